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
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/config"
)

// TestPoisonHalts: with the first policy the rows before the poison row are published, no later row is, and the halt
// names the row and the reason.
func TestPoisonHalts(t *testing.T) {
	t.Parallel()
	for _, kind := range e2e.Poisons {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			s := newPoisonTestbed(t, "halt")
			before := s.InsertPoison(nil)
			s.InsertPoison(map[string]string{kind.Column: kind.Value})
			s.InsertPoison(nil)
			r := s.StartRelay()
			r.WaitForLog(20*time.Second, `"halted"`)
			r.WaitForLog(3*time.Second, kind.Says)
			r.WaitForLog(3*time.Second, "poison.policy: dead_letter")
			if got := s.PublishedIDs(); len(got) != 1 || got[0] != before {
				t.Errorf("published %v, want only %s", got, before)
			}
			if s.StateRecord().Ordinal == 0 {
				t.Error("what was published is not written down")
			}
		})
	}
}

// TestPoisonIsPutAside tests the second policy, with and without hold_key. Every kind of poison row comes between two
// rows of its key, all at once: the poison rows are in the dead letter topic, whole and with the reason; all other rows
// are published, in order, or held.
func TestPoisonIsPutAside(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"dead_letter", "dead_letter+hold_key"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			s := newPoisonTestbed(t, policy)
			hold := strings.HasSuffix(policy, "hold_key")
			var published, aside []string
			var classes []cdc.Class
			for i, kind := range e2e.Poisons {
				key := map[string]string{"aggregate_id": fmt.Sprintf("'key-%d'", i)}
				published = append(published, s.InsertPoison(key))
				bad := map[string]string{"aggregate_id": key["aggregate_id"]}
				bad[kind.Column] = kind.Value
				id := s.InsertPoison(bad)
				if kind.Column == "id" {
					id = ""
				}
				aside, classes = append(aside, id), append(classes, kind.Class)
				if after := s.InsertPoison(key); hold && kind.Holds {
					aside, classes = append(aside, after), append(classes, cdc.ForOrder)
				} else {
					published = append(published, after)
				}
			}
			r := s.StartRelay()
			s.WaitUntilConfirmed(20 * time.Second)
			if got := s.PublishedIDs(); !sameSet(got, published) {
				t.Errorf("published %d rows\n%v, want\n%v", len(got), got, published)
			}
			entries := s.DeadLetters()
			if len(entries) != len(aside) {
				t.Fatalf("%d dead letters, want %d", len(entries), len(aside))
			}
			for i, e := range entries {
				if e.Err != nil || string(e.Letter.Row.ID) != aside[i] || e.Letter.Class != classes[i] || e.Letter.Reason == "" || e.Letter.Row.Commit == 0 || e.Letter.Source != s.Name {
					t.Errorf("dead letter %d: %.300v (%v), want %s of class %s", i, e.Letter, e.Err, aside[i], classes[i])
				}
				if held := e.Letter.HeldFor != ""; held != (classes[i] == cdc.ForOrder) || held && e.Letter.HeldFor != entries[i-1].Key {
					t.Errorf("dead letter %d is held for %q", i, e.Letter.HeldFor)
				}
			}
			r.WaitForLog(3*time.Second, `"the row became a dead letter"`)
			log := r.Log.String()
			for _, leak := range []string{`{\"a\": 1}`, "key-3", "yyyy"} {
				if strings.Contains(log, leak) {
					t.Errorf("the log tells payload or key: %s", leak)
				}
			}
			metrics := r.Get(t, "/metrics")
			if want := fmt.Sprintf(`walpost_dead_letters_total{class="topic",pipeline=%q} 2`, s.Name); !strings.Contains(metrics, want) {
				t.Errorf("metrics lack %s", want)
			}
			if status, want := r.Get(t, "/status"), fmt.Sprintf(`"unresolved_dead_letters":%d`, len(aside)); !strings.Contains(status, want) {
				t.Errorf("/status is %s, want %s", status, want)
			}
			if status, want := s.Status(), fmt.Sprintf("%d unresolved dead letters", len(aside)); !strings.Contains(status, want) {
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

// TestDeadLetterHoldsBytes: a bytea of more than a megabyte that is no text comes out of the dead letter topic as it
// went in.
func TestDeadLetterHoldsBytes(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
	s.Exec(`CREATE TABLE outbox (id bigint, aggregate_type text, aggregate_id text, event_type text, payload bytea, note text)`)
	s.MustRun("init")
	want := make([]byte, 3<<20)
	for i := range want {
		want[i] = byte(rand.N(256))
	}
	s.Exec(`INSERT INTO outbox VALUES (1, 'order', 'k', 'OrderPaid', $1, 'ignored'), (2, 'order', 'k', NULL, '\x00ff', NULL)`, want)
	s.StartRelay()
	s.WaitUntilConfirmed(20 * time.Second)
	entries := s.DeadLetters()
	if len(entries) != 1 || !bytes.Equal(entries[0].Letter.Row.Payload, want) || entries[0].Letter.Row.CreatedAt != nil {
		t.Fatalf("%d dead letters; is the payload the same?", len(entries))
	}
	if got := s.PublishedIDs(); fmt.Sprint(got) != "[2]" {
		t.Errorf("published %v", got)
	}
}

// TestKillAroundDeadLetters kills -9 under a load of which every fourth row is poison. Nothing is lost: each row is on
// the topic or in the dead letter topic, where repeats stand under one key. In exactly-once nothing is there twice.
func TestKillAroundDeadLetters(t *testing.T) {
	t.Parallel()
	for _, delivery := range []config.Delivery{config.AtLeastOnce, config.ExactlyOnce} {
		t.Run(string(delivery), func(t *testing.T) { killAroundDeadLetters(t, delivery) })
	}
}

func killAroundDeadLetters(t *testing.T, delivery config.Delivery) {
	s := newTestbed(t)
	s.Env["WALPOST_DELIVERY"] = string(delivery)
	s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
	s.MustRun("init")
	conn := s.Connect()
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
	for range e2e.Kills() {
		r := s.SpawnRelay()
		r.WaitForLog(20*time.Second, "dead letter")
		time.Sleep(rand.N(500 * time.Millisecond)) // the instant of the kill is what is random here
		r.Kill()
	}
	cancel()
	n := <-written
	s.StartRelay()
	s.WaitUntilConfirmed(30 * time.Second)
	ids := map[string]bool{}
	repeats := 0
	for _, r := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		id := e2e.Header(r, "id")
		if ids[id] {
			repeats++
		}
		ids[id] = true
	}
	records := len(cdctest.ReadAll(t, s.Brokers, "walpost.dlq."+s.Name))
	entries := s.DeadLetters()
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

// TestDeadLetterTopicIsGuarded: a topic that would lose dead letters, or that is a topic of the outbox, is a halt with
// a clear sentence, and no row is published.
func TestDeadLetterTopicIsGuarded(t *testing.T) {
	t.Parallel()
	create := func(s *testbed, partitions int32, policy string) {
		client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...))
		if err != nil {
			s.T.Fatal(err)
		}
		defer client.Close()
		if _, err := kadm.NewClient(client).CreateTopic(s.T.Context(), partitions, 1, map[string]*string{"cleanup.policy": &policy}, "walpost.dlq."+s.Name); err != nil {
			s.T.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		make func(*testbed)
		says string
	}{
		"missing":                         {func(*testbed) {}, "does not exist"},
		"made by itself, deleted by time": {func(s *testbed) { create(s, 1, "delete") }, "cleanup.policy=delete"},
		"three partitions":                {func(s *testbed) { create(s, 3, "compact") }, "3 partitions"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			s.MustRun("init")
			s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
			c.make(s)
			s.InsertRows(3)
			r := s.StartRelay()
			r.WaitForLog(20*time.Second, `"halted"`)
			r.WaitForLog(3*time.Second, c.says)
			if status := s.Status(); !strings.Contains(status, c.says) {
				t.Errorf("status:\n%s", status)
			}
			if n := len(s.PublishedIDs()); n != 0 {
				t.Errorf("%d rows were published", n)
			}
		})
	}
	t.Run("the outbox's own topic", func(t *testing.T) {
		s := newTestbed(t)
		s.Env["WALPOST_POISON_TOPIC"] = s.Topic
		if _, err := s.Run("relay"); err == nil || !strings.Contains(err.Error(), "is a topic of the outbox") {
			t.Errorf("%v", err)
		}
	})
}

// TestLimitLoweredUnderARunningRelay: the relay knows a limit that Kafka has lowered since, and Kafka rejects a whole
// batch. No innocent row becomes a dead letter.
func TestLimitLoweredUnderARunningRelay(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
	s.MustRun("init")
	r := s.StartRelay()
	s.InsertRows(7)
	s.WaitUntilConfirmed(20 * time.Second)
	s.LimitTopic("3000")
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', jsonb_build_object('n', i, 'text', repeat(md5(i::text), CASE i WHEN 17 THEN 200 ELSE 5 END)) FROM generate_series(1, 40) i`)
	s.WaitUntilConfirmed(40 * time.Second)
	entries := s.DeadLetters()
	if len(entries) != 1 || !bytes.Contains(entries[0].Letter.Row.Payload, []byte(`"n": 17,`)) {
		t.Errorf("%d dead letters, want the one row that is too large", len(entries))
	}
	seen := map[string]bool{}
	for _, id := range s.PublishedIDs() {
		seen[id] = true
	}
	if len(seen) != 46 {
		t.Errorf("%d different rows on the topic, want 46", len(seen))
	}
	if role := r.Get(t, "/readyz"); !strings.HasPrefix(role, "200") {
		t.Error(role)
	}
}
