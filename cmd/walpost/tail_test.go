package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
)

// TestTailPrintsALineForEachEvent: of one pipeline and of two, with hostile keys and payloads, in text and JSON; it needs
// Kafka only. SIGINT ends it with the code 0.
func TestTailPrintsALineForEachEvent(t *testing.T) {
	t.Parallel()
	brokers := cdctest.Kafka(t)
	name := cdctest.Name(t, "tail")
	for _, aggregate := range []string{".order", ".stock"} {
		cdctest.CreateTopic(t, brokers, name+aggregate, 1)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	write := func(aggregate string, second int, key, typ, payload string) {
		t.Helper()
		r := &kgo.Record{Topic: name + aggregate, Key: []byte(key), Value: []byte(payload), Timestamp: at.Add(time.Duration(second) * time.Second), Headers: []kgo.RecordHeader{
			{Key: "id", Value: fmt.Append(nil, second)}, {Key: "type", Value: []byte(typ)}, {Key: "created_at", Value: []byte("2026-11-30T11:59:59.5Z")},
		}}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	write(".order", 0, "k1", "Paid", `{"secret": 1}`)
	write(".order", 1, "\u202ek\x1b[2J", "<b>\n", "\xff\x1b")
	write(".stock", 2, "s1", "Moved", `[]`)
	file := filepath.Join(t.TempDir(), "walpost.yaml")
	text := fmt.Sprintf(`
kafka: {brokers: [%q], topic: "%s.{aggregate_type}"}
pipelines:
- {pipeline: orders, source: {url: "postgres://walpost@127.0.0.1:1/orders", slot: a}, kafka: {aggregate_types: [order]}}
- {pipeline: stock, source: {url: "postgres://walpost@127.0.0.1:1/stock", slot: b}, kafka: {aggregate_types: [stock]}}
`, brokers[0], name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	noEnv := func(string) string { return "" }
	tail := func(args ...string) string {
		t.Helper()
		var out strings.Builder
		if err := run(t.Context(), append([]string{"-c", file, "tail", "--no-follow"}, args...), noEnv, &out, &out); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		return strings.ReplaceAll(out.String(), name, "T")
	}
	for args, want := range map[string]string{
		"-p orders": "2026-11-30T12:00:00.000Z  T.order/0/0  key k1  Paid  id 0  lag 500 ms\n" +
			`2026-11-30T12:00:01.000Z  T.order/0/1  key \u202ek\x1b[2J  <b>\n  id 1  lag 1.5 s` + "\n",
		"-p orders -n 1 --payload":        `2026-11-30T12:00:01.000Z  T.order/0/1  key \u202ek\x1b[2J  <b>\n  id 1  lag 1.5 s  \xff\x1b` + "\n",
		"-p orders --type Paid --payload": `2026-11-30T12:00:00.000Z  T.order/0/0  key k1  Paid  id 0  lag 500 ms  {"secret": 1}` + "\n",
		"--key s1":                        "stock  2026-11-30T12:00:02.000Z  T.stock/0/0  key s1  Moved  id 2  lag 2.5 s\n",
	} {
		if said := tail(strings.Fields(args)...); said != want {
			t.Errorf("%s:\n%s\nwant\n%s", args, said, want)
		}
	}
	var ids []string
	for line := range strings.Lines(tail("--json", "--payload")) {
		var e struct {
			Pipeline, ID  string
			Payload       json.RawMessage
			PayloadBase64 []byte `json:"payload_base64"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		ids = append(ids, e.Pipeline+e.ID)
		if e.ID == "1" && string(e.PayloadBase64) != "\xff\x1b" || e.ID == "0" && string(e.Payload) != `{"secret":1}` {
			t.Errorf("the payload is lost: %s", line)
		}
	}
	// The order of two pipelines' events is open.
	if first, second := slices.Index(ids, "orders0"), slices.Index(ids, "orders1"); len(ids) != 3 || first < 0 || second < first || !slices.Contains(ids, "stock2") {
		t.Errorf("as JSON: %s", ids)
	}
	if said := tail("--json"); strings.Contains(said, "secret") {
		t.Errorf("nobody asked for a payload: %s", said)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, ended := &screen{}, make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-c", file, "tail", "--last", "0"}, noEnv, s, s) }()
	wrote := 2
	cdctest.Eventually(t, 30*time.Second, func() error { // it may begin after the first of them
		wrote++
		write(".order", wrote, "k2", "Paid", "{}")
		return contains(s.String(), "key k2")
	})
	if !regexp.MustCompile(`^orders  `).MatchString(s.String()) || strings.Contains(s.String(), "key k1") {
		t.Errorf("it follows with\n%s", s)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("SIGINT: %v", err)
	}
	silent := filepath.Join(t.TempDir(), "silent.yaml")
	if err := os.WriteFile(silent, []byte(strings.Replace(text, brokers[0], cdctest.Silent(t), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	inRequest, interrupt := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, interrupt)
	if err := run(inRequest, []string{"-c", silent, "tail"}, noEnv, s, s); err != nil {
		t.Errorf("SIGINT in a request: %v", err)
	}
	if err := run(t.Context(), []string{"-c", file, "tail", "--last=-1"}, noEnv, s, s); err == nil || !strings.Contains(err.Error(), "--last: write the number") {
		t.Errorf("a wrong number: %v", err)
	}
}
