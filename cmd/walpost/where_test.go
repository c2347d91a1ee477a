package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/pipeline"
)

func (s *testbed) where(args ...string) pipeline.Trace {
	s.T.Helper()
	var w pipeline.Trace
	if err := json.Unmarshal([]byte(s.MustRun(append([]string{"where", "--json"}, args...)...)), &w); err != nil {
		s.T.Fatal(err)
	}
	return w
}

// insertBytes writes one outbox row and returns its id, a UUIDv7.
func (s *testbed) insertBytes(key string, bytes int) string {
	s.T.Helper()
	id := uuid.Must(uuid.NewV7()).String()
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'order', $2, 'OrderPaid', jsonb_build_object('text', repeat('y', $3::int)))`, id, key, bytes)
	return id
}

func answers(w pipeline.Trace) (all []pipeline.Answer) {
	for _, e := range w.Events {
		all = append(all, e.Answer)
	}
	return all
}

// TestWhere gives each of the answers for events of one key, and for the key all of them.
func TestWhere(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
	cdctest.CreateOutbox(t, s.AdminURL, "outbox")
	old := s.insertBytes("key", 0) // before the slot: nobody streams it
	s.MustRun("init")
	s.LimitTopic("3000")
	// What lies on the topic for longer is not read.
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for i := range 300 {
		r := &kgo.Record{Topic: s.Topic, Key: []byte("key"), Value: []byte("{}"), Timestamp: time.Now().Add(-time.Hour), Headers: []kgo.RecordHeader{{Key: "id", Value: fmt.Append(nil, i)}}}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	r := s.StartRelay()
	first, poison, last := s.insertBytes("key", 0), s.insertBytes("key", 5000), s.insertBytes("key", 0)
	s.InsertRows(70)
	s.WaitUntilConfirmed(20 * time.Second)

	w := s.where(first)
	if e := w.Events[0]; len(w.Events) != 1 || e.Answer != pipeline.IsPublished || e.Times != 1 || e.EventID != first || e.Key != "key" {
		t.Fatalf("%+v", w)
	}
	place := w.Events[0].Places[0]
	for _, r := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		if here := r.Partition == place.Partition && r.Offset == place.Offset; here != (e2e.Header(r, "id") == first) || here && (e2e.Header(r, "lsn") != place.LSN || e2e.Header(r, "seq") != place.Seq) {
			t.Errorf("said %+v, and partition %d offset %d is %s", place, r.Partition, r.Offset, e2e.Header(r, "id"))
		}
	}
	if w.Read.Partitions != 1 || w.Read.Records > 73 {
		t.Errorf("read %+v: more than the key's partition since the event", w.Read)
	}
	if e := s.where(poison).Events[0]; e.Answer != pipeline.IsDeadLettered || e.DeadLetter == nil || !strings.Contains(e.DeadLetter.Reason, "max.message.bytes") {
		t.Errorf("%+v", e)
	}
	if out := s.MustRun("where", poison); !strings.Contains(out, "dead-lettered") || !strings.Contains(out, "walpost dlq show") {
		t.Errorf("%s", out)
	}
	cdctest.Eventually(t, 30*time.Second, func() error { // the WAL's end moves by itself
		if e := s.where(old).Events[0]; e.Answer != pipeline.Gone {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})

	// A repeat, as a crash leaves it.
	again := &kgo.Record{Topic: s.Topic, Key: []byte("key"), Value: []byte("{}"), Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(first)}, {Key: "lsn", Value: []byte(place.LSN)}, {Key: "seq", Value: []byte(place.Seq)}}}
	if err := client.ProduceSync(t.Context(), again).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if e := s.where(first).Events[0]; e.Times != 2 || len(e.Places) != 2 {
		t.Errorf("%+v", e)
	}

	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	waiting := s.insertBytes("key", 0)
	s.InsertRows(1000)
	w = s.where(waiting)
	if e := w.Events[0]; e.Answer != pipeline.NotYet || w.Behind < 1000 {
		t.Errorf("%+v behind %d", e, w.Behind)
	}
	if out := s.MustRun("where", waiting); !strings.Contains(out, "not yet") || !strings.Contains(out, "walpost status") {
		t.Errorf("%s", out)
	}

	w = s.where("key")
	if got, want := fmt.Sprint(answers(w)), "[published dead_lettered published not_yet not_yet]"; got != want {
		t.Errorf("the key: %s, want %s", got, want)
	}
	for i, id := range []string{first, poison, last, old, waiting} {
		if w.Events[i].EventID != id {
			t.Errorf("event %d is %s, want %s", i, w.Events[i].EventID, id)
		}
	}

	// After a redrive it is published.
	s.LimitTopic("1048588")
	s.MustRun("dlq", "redrive", poison)
	if e := s.where(poison).Events[0]; e.Answer != pipeline.IsPublished || !e.Places[0].Redriven || e.DeadLetter != nil {
		t.Errorf("%+v", e)
	}
}

// TestWhereWithoutTheRow: the relay's own role may not read the outbox, and rows are deleted. A UUIDv7 tells the time
// by itself; for another id it must be said.
func TestWhereWithoutTheRow(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	s.StartRelay()
	order := uuid.Must(uuid.NewV7()).String()
	first, second := s.insertBytes(order, 0), s.insertBytes(order, 0)
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ('6d2b5f0a-5a0e-4b5e-8f0e-0a4f5b6c7d8e', 'order', 'k', 'OrderPaid', '{}')`)
	s.WaitUntilConfirmed(20 * time.Second)
	delete(s.Env, "WALPOST_ADMIN_URL")
	for _, mayRead := range []bool{false, true} {
		if mayRead {
			s.Env["WALPOST_READ_URL"] = s.AdminURL
			s.Exec("DELETE FROM outbox")
		}
		w := s.where(strings.ToUpper(first))
		if e := w.Events[0]; e.Answer != pipeline.IsPublished || e.Places[0].Topic != s.Topic {
			t.Errorf("may read %v: %+v", mayRead, e)
		}
		if told := strings.Contains(fmt.Sprint(w.Notes), "--read-url"); told == mayRead {
			t.Errorf("may read %v: notes %v", mayRead, w.Notes)
		}
		w = s.where(order)
		if got := fmt.Sprint(answers(w)); got != "[published published]" || w.Events[0].EventID != first || w.Events[1].EventID != second {
			t.Errorf("may read %v: the order: %+v", mayRead, w.Events)
		}
		const timeless = "6d2b5f0a-5a0e-4b5e-8f0e-0a4f5b6c7d8e"
		cause := "the outbox cannot be read: role "
		if mayRead {
			cause = "no row of the outbox has this id or key: its transaction was rolled back"
		}
		if _, err := s.Run("where", timeless); err == nil || !strings.HasPrefix(err.Error(), cause) || !strings.HasSuffix(err.Error(), "say how far back: --since 24h") || strings.Contains(err.Error(), "\n") {
			t.Errorf("may read %v: an id without a time: %v", mayRead, err)
		}
		if e := s.where(timeless, "--since", "1h").Events[0]; e.Answer != pipeline.IsPublished || e.Key != "k" {
			t.Errorf("may read %v: %+v", mayRead, e)
		}
		if e := s.where("nonsense", "--since", "1h").Events[0]; e.Answer != pipeline.Unknown {
			t.Errorf("may read %v: %+v", mayRead, e)
		}
	}
}

// TestWhereAfterPartitionsWereAdded finds what the producer once put elsewhere.
func TestWhereAfterPartitionsWereAdded(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	s.StartRelay()
	var ids []string
	for i := range 10 {
		ids = append(ids, s.insertBytes(fmt.Sprintf("key-%d", i), 0))
	}
	s.WaitUntilConfirmed(20 * time.Second)
	s.CreatePartitions(16)
	for _, id := range ids {
		cdctest.Eventually(t, 30*time.Second, func() error {
			if e := s.where(id).Events[0]; e.Answer != pipeline.IsPublished {
				return fmt.Errorf("%s: %+v", id, e)
			}
			return nil
		})
	}
}

// CreatePartitions adds partitions to the topic.
func (s *testbed) CreatePartitions(n int) {
	s.T.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...))
	if err != nil {
		s.T.Fatal(err)
	}
	defer client.Close()
	resp, err := kadm.NewClient(client).UpdatePartitions(s.T.Context(), n, s.Topic)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		s.T.Fatal(err)
	}
}
