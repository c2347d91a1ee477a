package postgres

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc"
)

// emitted is a CopyData body with a message of pgoutput.
func emitted(flags byte, prefix string, content []byte) []byte {
	b := append([]byte{'w'}, make([]byte, 24)...)
	b = append(b, 'M', flags)
	b = binary.BigEndian.AppendUint64(b, 7)
	b = append(append(b, prefix...), 0)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(content))), content...)
}

func messages(prefix string) *decoder {
	cfg := defaults()
	cfg.Messages = prefix
	return newDecoder(cfg, 0)
}

const anEvent = `{"id": "e-1", "aggregate_type": "order", "aggregate_id": 42, "event_type": "OrderPaid", "payload": {"b" :1,"a":"<ü>"}, "headers": {"k": "v"}, "created_at": "2026-11-22T08:00:00Z", "more": [1]}`

// TestMessageIsARow in all its columns; payload and headers are the JSON as it stands there.
func TestMessageIsARow(t *testing.T) {
	var m cdc.Message
	if err := messages("shop").copyData(emitted(1, "shop", []byte(anEvent)), &m); err != nil || m.Kind != cdc.Insert {
		t.Fatal(m.Kind, err)
	}
	r := m.Row
	got := strings.Join([]string{string(r.ID), string(r.AggregateType), string(r.AggregateID), string(r.EventType), string(r.Payload), string(r.Headers), string(r.CreatedAt), r.Malformed}, "|")
	if want := `e-1|order|42|OrderPaid|{"b" :1,"a":"<ü>"}|{"k": "v"}|2026-11-22T08:00:00Z|`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestMessagesOfOthers are no events: another prefix, one that only begins alike, none configured, not transactional.
func TestMessagesOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		ours   string
		flags  byte
		prefix string
	}{
		"another":           {"shop", 1, "other"},
		"longer":            {"shop", 1, "shop2"},
		"shorter":           {"shop", 1, "sho"},
		"a table's relay":   {"", 1, ""},
		"not transactional": {"shop", 0, "shop"},
	} {
		var m cdc.Message
		if err := messages(c.ours).copyData(emitted(c.flags, c.prefix, []byte(anEvent)), &m); err != nil || m.Kind != cdc.Other {
			t.Errorf("%s: kind %d, %v", name, m.Kind, err)
		}
	}
}

// TestMalformedMessageIsKeptWhole for the policy that decides on it.
func TestMalformedMessageIsKeptWhole(t *testing.T) {
	for name, c := range map[string]struct{ content, says string }{
		"empty":        {"", "no JSON object"},
		"cut":          {anEvent[:50], "no JSON object"},
		"a list":       {"[1]", "no JSON object"},
		"not UTF-8":    {"{\"id\": \"\xff\"}", "not UTF-8"},
		"two of them":  {anEvent + anEvent, "no JSON object"},
		"just a word":  {"hello", "no JSON object"},
		"only a quote": {"\"", "no JSON object"},
	} {
		var m cdc.Message
		if err := messages("shop").copyData(emitted(1, "shop", []byte(c.content)), &m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(m.Row.Malformed, c.says) || string(m.Row.Payload) != c.content || m.Kind != cdc.Insert {
			t.Errorf("%s: malformed %q, payload %q", name, m.Row.Malformed, m.Row.Payload)
		}
	}
	var m cdc.Message
	_ = messages("shop").copyData(emitted(1, "shop", []byte(`{"id": null, "payload": null}`)), &m)
	if m.Row.ID != nil || m.Row.Payload != nil || m.Row.Malformed != "" {
		t.Errorf("null: %+v", m.Row)
	}
}

// FuzzMessage: no panic, whatever comes; what is cut is an error; what is taken is an event of ours.
func FuzzMessage(f *testing.F) {
	f.Add(byte(1), "shop", []byte(anEvent), 0)
	f.Add(byte(0), "shop", []byte(`{"id":1e3,"payload":"x"}`), 3)
	f.Add(byte(1), "", []byte(`{"id":{"a":1},"headers":null}`), 30)
	f.Fuzz(func(t *testing.T, flags byte, prefix string, content []byte, cut int) {
		if strings.ContainsRune(prefix, 0) {
			return
		}
		body := emitted(flags, prefix, content)
		var m cdc.Message
		if cut > 0 && cut < len(body) {
			if err := messages("shop").copyData(body[:len(body)-cut:len(body)-cut], &m); err == nil && m.Kind == cdc.Insert {
				t.Fatal("a message that is cut was taken for an event")
			}
		}
		if err := messages("shop").copyData(body, &m); err != nil {
			t.Fatal(err)
		}
		if (m.Kind == cdc.Insert) != (flags&1 != 0 && prefix == "shop") {
			t.Fatalf("kind %d of a message with flags %d and prefix %q", m.Kind, flags, prefix)
		}
	})
}
