package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
)

// poisonStage has an outbox that lets anything in, a topic per event type of which only one exists, and, if the policy asks for
// it, a dead letter topic under a name that a row could be routed to.
func poisonStage(t *testing.T, policy string) *stage {
	t.Helper()
	s := newStage(t)
	s.topic += ".ok"
	s.env["WALPOST_KAFKA_TOPIC"] = s.pipeline + ".{aggregate_type}.{event_type}"
	s.env["WALPOST_KAFKA_PAYLOAD"] = "json"
	s.env["WALPOST_POISON_TOPIC"] = s.pipeline + ".order.dead"
	s.env["WALPOST_POISON_POLICY"] = strings.TrimSuffix(policy, "+hold_key")
	if strings.HasSuffix(policy, "+hold_key") {
		s.env["WALPOST_POISON_HOLD_KEY"] = "true"
	}
	cdctest.CreateTopic(t, s.brokers, s.topic, 3)
	s.exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload text, headers text, created_at timestamptz DEFAULT clock_timestamp())`)
	s.must("init")
	return s
}

// put writes one row; columns that are not given have harmless values. It returns the row's id.
func (s *stage) put(columns map[string]string) string {
	s.t.Helper()
	id := s.query("SELECT gen_random_uuid()::text")
	row := map[string]string{"id": "'" + id + "'", "aggregate_type": "'order'", "aggregate_id": "'k'", "event_type": "'ok'", "payload": `'{"a": 1}'`, "headers": "'{}'"}
	for c, v := range columns {
		row[c] = v
	}
	s.exec(fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES (%s, %s, %s, %s, %s, %s)`,
		row["id"], row["aggregate_type"], row["aggregate_id"], row["event_type"], row["payload"], row["headers"]))
	return id
}

func (s *stage) sink() *kafka.Sink {
	s.t.Helper()
	cfgs, err := config.Load("", s.getenv)
	if err != nil {
		s.t.Fatal(err)
	}
	return kafka.NewSink(cfgs[0], nil)
}

func (s *stage) entries() []kafka.Entry {
	s.t.Helper()
	entries, err := s.sink().Entries(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return entries
}

// published are the ids on the topic, in the order of their partition.
func (s *stage) published() (ids []string) {
	s.t.Helper()
	for _, r := range cdctest.ReadAll(s.t, s.brokers, s.topic) {
		ids = append(ids, header(r, "id"))
	}
	return ids
}

type poisonKind struct {
	name, column, value string
	class               cdc.Class
	holds               bool // it has a key that others share
	says                string
}

var poisonKinds = []poisonKind{
	{"type not listed", "aggregate_type", "'invoice'", cdc.BadType, false, "kafka.aggregate_types"},
	{"type NULL", "aggregate_type", "NULL", cdc.BadType, false, "kafka.aggregate_types"},
	{"illegal topic", "event_type", "'a b'", cdc.BadTopic, true, "does not allow"},
	{"the dead letter topic itself", "event_type", "'dead'", cdc.BadTopic, true, "that is the dead letter topic"},
	{"id NULL", "id", "NULL", cdc.BadID, true, "id is NULL"},
	{"key NULL", "aggregate_id", "NULL", cdc.BadKey, false, "aggregate_id is empty"},
	{"key empty", "aggregate_id", "''", cdc.BadKey, false, "aggregate_id is empty"},
	{"payload NULL", "payload", "NULL", cdc.BadPayload, true, "payload is NULL"},
	{"payload not JSON", "payload", "'{\"a\": '", cdc.BadPayload, true, "kafka.payload"},
	{"headers a list", "headers", "'[1]'", cdc.BadHeaders, true, "not a JSON object"},
	{"headers torn", "headers", "'{\"a\": '", cdc.BadHeaders, true, "not valid JSON"},
	{"10,000 headers", "headers", "(SELECT json_object_agg('h' || i, i)::text FROM generate_series(1, 10000) i)", cdc.BadHeaders, true, "more than 1000"},
	{"larger than the topic takes", "payload", "'\"' || repeat('y', 1100000) || '\"'", cdc.TooLarge, true, "max.message.bytes"},
	{"a giant key", "aggregate_id", "repeat('k', 1100000)", cdc.TooLarge, false, "max.message.bytes"},
}

// TestPoisonHalts: the first policy. What stands before the row arrives, nothing behind it does, and it is said which row and why.
func TestPoisonHalts(t *testing.T) {
	t.Parallel()
	for _, kind := range poisonKinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			s := poisonStage(t, "halt")
			before := s.put(nil)
			s.put(map[string]string{kind.column: kind.value})
			s.put(nil)
			r := s.start()
			r.says(20*time.Second, `"halted"`)
			r.says(time.Second, kind.says)
			r.says(time.Second, "poison.policy: dead_letter")
			if got := s.published(); len(got) != 1 || got[0] != before {
				t.Errorf("published %v, want only %s", got, before)
			}
			if s.state().Ordinal == 0 {
				t.Error("what was published is not written down")
			}
		})
	}
}

// TestPoisonIsPutAside: the second and the third. Every kind of poison, each between two rows of its key, in one go: the poison
// is in the dead letter topic, whole and with its reason; everything else is published, in order, or held.
func TestPoisonIsPutAside(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"dead_letter", "dead_letter+hold_key"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			s := poisonStage(t, policy)
			hold := strings.HasSuffix(policy, "hold_key")
			var published, aside []string
			var classes []cdc.Class
			for i, kind := range poisonKinds {
				key := map[string]string{"aggregate_id": fmt.Sprintf("'key-%d'", i)}
				published = append(published, s.put(key))
				bad := map[string]string{"aggregate_id": key["aggregate_id"]}
				bad[kind.column] = kind.value
				id := s.put(bad)
				if kind.column == "id" {
					id = ""
				}
				aside, classes = append(aside, id), append(classes, kind.class)
				if after := s.put(key); hold && kind.holds {
					aside, classes = append(aside, after), append(classes, cdc.ForOrder)
				} else {
					published = append(published, after)
				}
			}
			r := s.start()
			s.confirmed(20 * time.Second)
			if got := s.published(); !sameSet(got, published) {
				t.Errorf("published %d rows\n%v, want\n%v", len(got), got, published)
			}
			entries := s.entries()
			if len(entries) != len(aside) {
				t.Fatalf("%d dead letters, want %d", len(entries), len(aside))
			}
			for i, e := range entries {
				if e.Err != nil || string(e.Letter.Row.ID) != aside[i] || e.Letter.Class != classes[i] || e.Letter.Reason == "" || e.Letter.Row.Commit == 0 || e.Letter.Source != s.pipeline {
					t.Errorf("dead letter %d: %.300v (%v), want %s of class %s", i, e.Letter, e.Err, aside[i], classes[i])
				}
				if held := e.Letter.HeldFor != ""; held != (classes[i] == cdc.ForOrder) || held && e.Letter.HeldFor != entries[i-1].Key {
					t.Errorf("dead letter %d is held for %q", i, e.Letter.HeldFor)
				}
			}
			r.says(time.Second, `"dead letter: the row was put aside"`)
			log := r.log.String()
			for _, leak := range []string{`{\"a\": 1}`, "key-3", "yyyy"} {
				if strings.Contains(log, leak) {
					t.Errorf("the log tells payload or key: %s", leak)
				}
			}
			metrics := r.get(t, "/metrics")
			if want := fmt.Sprintf(`walpost_dead_letters_total{class="topic",pipeline=%q} 2`, s.pipeline); !strings.Contains(metrics, want) {
				t.Errorf("metrics lack %s", want)
			}
			if status, want := r.get(t, "/status"), fmt.Sprintf(`"unresolved_dead_letters":%d`, len(aside)); !strings.Contains(status, want) {
				t.Errorf("/status is %s, want %s", status, want)
			}
			if status, want := s.must("status"), fmt.Sprintf("%d unresolved dead letters", len(aside)); !strings.Contains(status, want) {
				t.Errorf("status does not say %s:\n%s", want, status)
			}
		})
	}
}

func sameSet(a, b []string) bool {
	n := map[string]int{}
	for _, x := range a {
		n[x]++
	}
	for _, x := range b {
		n[x]--
	}
	for _, c := range n {
		if c != 0 {
			return false
		}
	}
	return len(a) == len(b)
}

// TestDeadLetterHoldsBytes: a bytea of more than a megabyte that is no text comes out of the dead letter topic as it went in.
func TestDeadLetterHoldsBytes(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.env["WALPOST_POISON_POLICY"] = "dead_letter"
	s.exec(`CREATE TABLE outbox (id bigint, aggregate_type text, aggregate_id text, event_type text, payload bytea, note text)`)
	s.must("init")
	want := make([]byte, 3<<20)
	for i := range want {
		want[i] = byte(rand.N(256))
	}
	s.exec(`INSERT INTO outbox VALUES (1, 'order', 'k', 'OrderPaid', $1, 'ignored'), (2, 'order', 'k', NULL, '\x00ff', NULL)`, want)
	s.start()
	s.confirmed(20 * time.Second)
	entries := s.entries()
	if len(entries) != 1 || !bytes.Equal(entries[0].Letter.Row.Payload, want) || entries[0].Letter.Row.CreatedAt != nil {
		t.Fatalf("%d dead letters; is the payload the same?", len(entries))
	}
	if got := s.published(); fmt.Sprint(got) != "[2]" {
		t.Errorf("published %v", got)
	}
}

// TestKillAroundDeadLetters kills -9 under a load of which every fourth row is poison. Nothing is lost: each row is on the topic or
// in the dead letter topic, where repeats stand under one key. In exactly-once nothing is there twice.
func TestKillAroundDeadLetters(t *testing.T) {
	t.Parallel()
	for _, delivery := range []config.Delivery{config.AtLeastOnce, config.ExactlyOnce} {
		t.Run(string(delivery), func(t *testing.T) { killAroundDeadLetters(t, delivery) })
	}
}

func killAroundDeadLetters(t *testing.T, delivery config.Delivery) {
	s := newStage(t)
	s.env["WALPOST_DELIVERY"] = string(delivery)
	s.env["WALPOST_POISON_POLICY"] = "dead_letter"
	s.must("init")
	conn := s.connect()
	defer func() { _ = conn.Close(context.Background()) }()
	ctx, cancel := context.WithCancel(t.Context())
	written := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n += 4 {
			if _, err := conn.Exec(t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
				SELECT ('00000000-0000-7000-8000-' || lpad(i::text, 12, '0'))::uuid, CASE i % 4 WHEN 3 THEN 'invoice' ELSE 'order' END, 'k' || i % 7, 'OrderPaid', '{}'
				FROM generate_series($1::int, $1::int + 3) i`, n); err != nil {
				t.Error(err)
				break
			}
			time.Sleep(4 * time.Millisecond) // a rate, not a wait
		}
		written <- n
	}()
	for range kills() {
		r := s.spawn()
		r.says(20*time.Second, "dead letter")
		time.Sleep(rand.N(500 * time.Millisecond)) // the instant of the kill is what is random here
		r.kill()
	}
	cancel()
	n := <-written
	s.start()
	s.confirmed(30 * time.Second)
	ids := map[string]bool{}
	repeats := 0
	for _, r := range cdctest.ReadAll(t, s.brokers, s.topic) {
		id := header(r, "id")
		if ids[id] {
			repeats++
		}
		ids[id] = true
	}
	records := len(cdctest.ReadAll(t, s.brokers, "walpost.dlq."+s.pipeline))
	entries := s.entries()
	for _, e := range entries {
		ids[string(e.Letter.Row.ID)] = true
	}
	t.Logf("%d rows; %d repeats on the topic; %d dead letters in %d records", n, repeats, len(entries), records)
	if delivery == config.ExactlyOnce && (repeats > 0 || records != n/4) {
		t.Errorf("I9: %d repeats, %d records of %d dead letters", repeats, records, n/4)
	}
	if len(ids) != n || len(entries) != n/4 {
		t.Errorf("%d of %d rows are somewhere, %d dead letters of %d", len(ids), n, len(entries), n/4)
	}
}

// TestDeadLetterTopicIsGuarded: a topic that would lose dead letters, or that is the outbox's, is a clear sentence and nothing is
// published.
func TestDeadLetterTopicIsGuarded(t *testing.T) {
	t.Parallel()
	create := func(s *stage, partitions int32, policy string) {
		client, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...))
		if err != nil {
			s.t.Fatal(err)
		}
		defer client.Close()
		if _, err := kadm.NewClient(client).CreateTopic(s.t.Context(), partitions, 1, map[string]*string{"cleanup.policy": &policy}, "walpost.dlq."+s.pipeline); err != nil {
			s.t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		make func(*stage)
		says string
	}{
		"missing":                         {func(*stage) {}, "does not exist"},
		"made by itself, deleted by time": {func(s *stage) { create(s, 1, "delete") }, "cleanup.policy=delete"},
		"three partitions":                {func(s *stage) { create(s, 3, "compact") }, "3 partitions"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			s.must("init")
			s.env["WALPOST_POISON_POLICY"] = "dead_letter"
			c.make(s)
			s.insert(3)
			r := s.start()
			r.says(20*time.Second, `"halted"`)
			r.says(time.Second, c.says)
			if status := s.must("status"); !strings.Contains(status, c.says) {
				t.Errorf("status:\n%s", status)
			}
			if n := len(s.published()); n != 0 {
				t.Errorf("%d rows were published", n)
			}
		})
	}
	t.Run("the outbox's own topic", func(t *testing.T) {
		s := newStage(t)
		s.env["WALPOST_POISON_TOPIC"] = s.topic
		if _, err := s.walpost("relay"); err == nil || !strings.Contains(err.Error(), "is a topic of the outbox") {
			t.Errorf("%v", err)
		}
	})
}

// TestLimitLoweredUnderARunningRelay: the relay knows a limit that no longer holds, and Kafka refuses a whole batch. No innocent row
// is put aside.
func TestLimitLoweredUnderARunningRelay(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.env["WALPOST_POISON_POLICY"] = "dead_letter"
	s.must("init")
	r := s.start()
	s.insert(7)
	s.confirmed(20 * time.Second)
	s.limit("3000")
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', jsonb_build_object('n', i, 'text', repeat(md5(i::text), CASE i WHEN 17 THEN 200 ELSE 5 END)) FROM generate_series(1, 40) i`)
	s.confirmed(40 * time.Second)
	entries := s.entries()
	if len(entries) != 1 || !bytes.Contains(entries[0].Letter.Row.Payload, []byte(`"n": 17,`)) {
		t.Errorf("%d dead letters, want the one row that is too large", len(entries))
	}
	seen := map[string]bool{}
	for _, id := range s.published() {
		seen[id] = true
	}
	if len(seen) != 46 {
		t.Errorf("%d different rows on the topic, want 46", len(seen))
	}
	if role := r.get(t, "/readyz"); !strings.HasPrefix(role, "200") {
		t.Error(role)
	}
}
