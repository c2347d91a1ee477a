package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/inbox/schema"
)

// TestConsumerReadsBothKindsOfHeaders: a relay changes to CloudEvents while its topic is in use. An event that is there
// with both kinds of headers is one event, for the inbox and for walpost.
func TestConsumerReadsBothKindsOfHeaders(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	since := time.Now().Add(-time.Minute).Format(time.RFC3339)
	plain := s.insertBytes("k", 1)
	r := s.StartRelay()
	s.WaitUntilConfirmed(20 * time.Second)
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Env["WALPOST_KAFKA_HEADERS"] = "cloudevents"
	r = s.StartRelay()
	cloud := s.insertBytes("k", 1)
	s.WaitUntilConfirmed(20 * time.Second)
	s.MustRun("replay", "--from", since, "--to", time.Now().Add(time.Minute).Format(time.RFC3339))

	records := cdctest.ReadAll(t, s.Brokers, s.Topic)
	if len(records) != 4 {
		t.Fatalf("%d records, want each event, and each again", len(records))
	}
	for i, id := range []string{plain, cloud, plain, cloud} {
		want := map[string]string{"ce_specversion": "1.0", "ce_id": id, "ce_source": "walpost:" + s.Name, "ce_type": "OrderPaid", "ce_subject": "k", "content-type": "application/json", "id": ""}
		if i == 0 {
			want = map[string]string{"ce_specversion": "", "id": id}
		}
		for name, value := range want {
			if got := rawHeader(records[i], name); got != value {
				t.Errorf("record %d: header %s is %q, want %q", i, name, got, value)
			}
		}
		if at, err := time.Parse(time.RFC3339Nano, rawHeader(records[i], "ce_time")); i > 0 && (err != nil || time.Since(at).Abs() > time.Hour) {
			t.Errorf("record %d: ce_time is %v, %v", i, at, err)
		}
		if replayed := i > 1; replayed == (e2e.Header(records[i], "lsn") != "") || replayed == (e2e.Header(records[i], "seq") != "") {
			t.Errorf("record %d has the headers %v", i, records[i].Headers)
		}
	}
	for id, again := range map[string]int{plain: 2, cloud: 2} {
		if w := s.where(id); len(w.Events) != 1 || w.Events[0].Times != again || w.Events[0].Type != "OrderPaid" || w.Events[0].Places[0].LSN == "" {
			t.Errorf("where is %s: %+v", id, w)
		}
	}

	s.Exec(schema.SQL)
	pool, err := pgxpool.New(t.Context(), s.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	applied := make(chan string, 10)
	consumer, err := inbox.New(inbox.Config{
		Brokers: s.Brokers, Topic: s.Topic, Group: s.Name, Pool: pool, Types: []string{"OrderPaid"},
		Handle: func(_ context.Context, _ pgx.Tx, ev inbox.Event) error {
			ev.OnCommit(func() { applied <- ev.ID + " " + ev.Type })
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- consumer.Run(ctx) }()
	last := s.insertBytes("k", 1)
	for _, id := range []string{plain, cloud, last} {
		select {
		case got := <-applied:
			if got != id+" OrderPaid" {
				t.Errorf("applied %s, want event %s, once", got, id)
			}
		case <-time.After(cdctest.Patience(30 * time.Second)):
			t.Fatalf("event %s is not applied", id)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := s.Query("SELECT count(*)::text FROM inbox_parked"); n != "0" {
		t.Errorf("%s events are parked", n)
	}
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
}

// TestRowWithoutATypeIsNoCloudEvent: such a row is a poison row, and the halt says so.
func TestRowWithoutATypeIsNoCloudEvent(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_KAFKA_HEADERS"] = "cloudevents"
	s.Exec("CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb)")
	s.MustRun("init")
	r := s.StartRelay()
	s.Exec("INSERT INTO outbox VALUES (gen_random_uuid(), 'order', 'k', NULL, '{}')")
	r.WaitForLog(30*time.Second, "its event type is NULL or empty, and a CloudEvent needs one")
	if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "503") {
		t.Errorf("not halted: %s", ready)
	}
}

func rawHeader(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}
