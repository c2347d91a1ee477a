package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
)

// pgoutput returns a CopyData frame around a message.
func pgoutput(message ...byte) []byte {
	body := append([]byte{'w'}, make([]byte, 24)...)
	return frameOf('d', append(body, message...))
}

func frameOf(typ byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{typ}, uint32(len(body)+4)), body...)
}

// change returns a message of one column of n bytes, for relation oid.
func change(kind byte, oid uint32, n int) []byte {
	m := binary.BigEndian.AppendUint32([]byte{kind}, oid)
	m = append(m, 'N', 0, 1, 't')
	m = binary.BigEndian.AppendUint32(m, uint32(n))
	return pgoutput(append(m, bytes.Repeat([]byte{'x'}, n)...)...)
}

// emitted returns a CopyData frame around a message of pg_logical_emit_message.
func emitted(flags byte, prefix string, content []byte) []byte {
	m := binary.BigEndian.AppendUint64([]byte{'M', flags}, 7)
	m = append(append(m, prefix...), 0)
	return pgoutput(append(binary.BigEndian.AppendUint32(m, uint32(len(content))), content...)...)
}

// skimmer returns a stream of the outbox, relation 7, next to relation 9.
func skimmer(t *testing.T) (*stream, net.Conn) {
	t.Helper()
	cfg := defaults()
	cfg.MaxRowBytes = 1 << 20
	d := newDecoder(cfg, 7)
	d.relations[9] = nil
	d.relations[7] = &relation{field: []field{fieldID}, form: make([]form, len([]field{fieldID}))}
	server, client := net.Pipe()
	t.Cleanup(func() { _, _ = server.Close(), client.Close() })
	return newStream(d.cfg, client, d), server
}

// take reads the stream to its end, in pieces of n bytes and in larger ones where no decision depends on the size,
// and returns the kinds of its messages.
func take(t *testing.T, s *stream, server net.Conn, wire []byte, n int) (kinds []cdc.MessageKind, err error) {
	t.Helper()
	go func() {
		for i := 0; len(wire) > 0; i++ {
			size := min(n, len(wire))
			if i%100 == 99 {
				size = min(max(n, 60<<10), len(wire))
			}
			if _, err := server.Write(wire[:size]); err != nil {
				return
			}
			wire = wire[size:]
		}
		_ = server.Close()
	}()
	for {
		_, lost := s.Fill(time.Now().Add(10 * time.Second))
		if len(s.buf) > int(s.cfg.MaxRowBytes)+readChunk {
			t.Fatalf("the buffer has grown to %d bytes", len(s.buf))
		}
		for {
			var m cdc.Message
			ok, err := s.Next(&m)
			if err != nil {
				return kinds, err
			}
			if !ok {
				break
			}
			kinds = append(kinds, m.Kind)
		}
		if lost != nil {
			if w := (*cdc.UndecodableError)(nil); errors.As(lost, &w) || s.skim > 0 || s.r < s.w {
				return kinds, lost
			}
			return kinds, nil
		}
	}
}

// TestForeignMessagesAreSkimmedOver: messages of any kind and size, however the network cuts them, are counted and
// take no memory, and the outbox's rows before and after them arrive.
func TestForeignMessagesAreSkimmedOver(t *testing.T) {
	t.Parallel()
	const large = 3 << 20 // three times a row's limit
	row := change('I', 7, 100)
	content := bytes.Repeat([]byte{'x'}, large)
	for name, foreign := range map[string][]byte{
		"an insert into another table":               change('I', 9, large),
		"an update of another table":                 change('U', 9, large),
		"an update of the outbox":                    change('U', 7, large),
		"a delete from the outbox, REPLICA IDENTITY": change('D', 7, large),
		"a truncate of very many tables":             pgoutput(append([]byte{'T'}, content...)...),
		"another tool's message":                     emitted(1, "other", content),
		"a prefix that is longer than the buffer":    emitted(1, string(content), nil),
		"a message without a transaction":            emitted(0, "other", content),
		"one that fits a row's limit":                change('I', 9, 900<<10),
		"one byte more than the buffer":              change('I', 9, readChunk-40),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wire := slices.Concat(row, foreign, foreign, row, foreign, row)
			for _, n := range []int{7, 1000, 64<<10 + 1, len(wire)} {
				s, server := skimmer(t)
				kinds, err := take(t, s, server, wire, n)
				if want := []cdc.MessageKind{cdc.Insert, cdc.Other, cdc.Other, cdc.Insert, cdc.Other, cdc.Insert}; err != nil || !slices.Equal(kinds, want) {
					t.Errorf("in pieces of %d bytes: %v, %v; want %v", n, kinds, err, want)
				}
				if len(s.buf) > readChunk {
					t.Errorf("in pieces of %d bytes: the buffer has grown to %d bytes", n, len(s.buf))
				}
			}
		})
	}
}

// TestForeignAgreesWithTheDecoder: a message that is skipped unread would be Other if it were decoded, however few
// bytes of it were seen.
func TestForeignAgreesWithTheDecoder(t *testing.T) {
	t.Parallel()
	for name, rec := range recordings(t) {
		d, skimmed := newDecoder(defaults(), outboxOID(rec)), 0
		for i, body := range rec {
			var m cdc.Message
			if err := d.copyData(bytes.Clone(body), &m); err != nil {
				t.Fatal(err)
			}
			for cut := 0; cut <= len(body) && body[0] == 'w'; cut++ {
				foreign, err := d.foreign(body[:cut])
				if foreign {
					skimmed++
				}
				if foreign && m.Kind != cdc.Other || err != nil && !errors.Is(err, errTruncated) {
					t.Fatalf("%s: message %d of kind %d, cut at %d: foreign %t, %v", name, i, m.Kind, cut, foreign, err)
				}
			}
		}
		if skimmed == 0 {
			t.Errorf("%s: nothing is foreign in it: it proves nothing", name)
		}
	}
}

// TestLargeMessagesThatAreNotForeign: an outbox row arrives whole up to its limit and is an UndecodableError above
// it; an unknown relation halts; and a stream that ends inside a skipped message is a lost connection.
func TestLargeMessagesThatAreNotForeign(t *testing.T) {
	t.Parallel()
	var undecodable *cdc.UndecodableError
	var halt *cdc.HaltError
	for name, c := range map[string]struct {
		wire  []byte
		check func(kinds []cdc.MessageKind, err error) bool
	}{
		"a row at the limit":  {change('I', 7, 1<<20), func(k []cdc.MessageKind, err error) bool { return err == nil && len(k) == 1 && k[0] == cdc.Insert }},
		"a row above it":      {change('I', 7, 2<<20), func(_ []cdc.MessageKind, err error) bool { return errors.As(err, &undecodable) }},
		"an unknown relation": {change('I', 8, 2<<20), func(_ []cdc.MessageKind, err error) bool { return errors.As(err, &halt) }},
		"the end inside a foreign one": {change('I', 9, 2<<20)[:1<<20], func(k []cdc.MessageKind, err error) bool {
			return err != nil && !errors.As(err, &undecodable) && !errors.As(err, &halt)
		}},
	} {
		for _, n := range []int{999, 1 << 20} {
			s, server := skimmer(t)
			if kinds, err := take(t, s, server, c.wire, n); !c.check(kinds, err) {
				t.Errorf("%s, in pieces of %d bytes: %v, %v", name, n, kinds, err)
			}
		}
	}
}

// TestOnlyTheRoutineSaysThatThePublicationIsMissing: SQLSTATE 55000 and 42704 are also used for a standby, a server
// that stops and a slot.
func TestOnlyTheRoutineSaysThatThePublicationIsMissing(t *testing.T) {
	t.Parallel()
	body := func(code, routine, context string) []byte {
		b := "SWARNUNG\x00VWARNING\x00C" + code + "\x00Mübersprungen\x00R" + routine + "\x00"
		if context != "" {
			b += "W" + context + "\x00"
		}
		return []byte(b + "\x00")
	}
	latched := func(err error) bool {
		var h *cdc.HaltError
		return errors.As(err, &h) && h.Latch
	}
	if err := notice(body("55000", "LoadPublications", "")); !latched(err) {
		t.Errorf("the warning that rows are skipped: %v, want a latched halt", err)
	}
	for code, routine := range map[string]string{"55000": "StandbySlotsHaveCaughtup", "22023": "StandbySlotsHaveCaughtup", "01000": "exec_stmt_raise", "42704": "somewhere"} {
		if err := notice(body(code, routine, "")); err != nil {
			t.Errorf("a notice of %s from %s: %v", code, routine, err)
		}
	}
	const at = "slot \"s\", output plugin \"pgoutput\", in the change callback, associated LSN 0/15D5B40"
	if err := classify("stream", errorResponse(body("42704", "get_publication_oid", at))); !latched(err) {
		t.Errorf("a publication that is missing in the WAL: %v, want a latched halt", err)
	}
	var undecodable *cdc.UndecodableError
	if err := classify("stream", errorResponse(body("42704", "typenameType", at))); !errors.As(err, &undecodable) {
		t.Errorf("something else that is missing in the WAL: %v, want an UndecodableError", err)
	}
	var halt *cdc.HaltError
	for code, routine := range map[string]string{
		"55000": "StandbySlotsHaveCaughtup", "55P02": "exec_replication_command", "42704": "ReplicationSlotAcquire", "42501": "",
	} {
		err := classify("stream", errorResponse(body(code, routine, "")))
		if want := code == "42501"; errors.As(err, &halt) != want || !strings.Contains(err.Error(), "übersprungen") {
			t.Errorf("an error of %s from %s: %v", code, routine, err)
		}
	}
}
