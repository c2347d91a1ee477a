package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// TestPolledRowsTravelFromInitToTopic is the whole way, as README tells it.
func TestPolledRowsTravelFromInitToTopic(t *testing.T) {
	t.Parallel()
	s := newPolledStory(t)
	s.MustRun("init")
	if again := s.MustRun("init"); !strings.Contains(again, "exists, with the columns and indexes for polling") || strings.Contains(again, "CREATE INDEX") {
		t.Errorf("a second init is not content:\n%s", again)
	}
	r := s.StartRelay()
	r.WaitForLog(30*time.Second, `"streaming"`)
	if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("a polling relay is not ready: %s", ready)
	}
	s.InsertRows(10)
	for _, rec := range cdctest.Consume(t, s.Brokers, s.Topic, 30*time.Second, cdctest.AtLeast(10)) {
		for name, want := range map[string]bool{"id": true, "type": true, "source": true, "created_at": true, "lsn": false, "seq": false} {
			if has := e2e.Header(rec, name) != ""; has != want {
				t.Errorf("record %s has a header %s: %t", rec.Key, name, has)
			}
		}
	}
	s.WaitUntilPolled()
	if n := s.Query(`SELECT count(*)::text FROM outbox WHERE status = 'SENT' AND processed_at > created_at AND retry_count = 0`); n != "10" {
		t.Errorf("%s rows are marked", n)
	}
	metrics := r.Get(t, "/metrics")
	for _, want := range []string{`walpost_rows_published_total{pipeline="` + s.Name + `"} 10`, `walpost_pending_rows{pipeline="` + s.Name + `"}`, `walpost_held_keys{pipeline="` + s.Name + `"} 0`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics do not say %s", want)
		}
	}
	if err := r.Stop(); err != nil {
		t.Fatalf("asked to stop, the relay ended with %v", err)
	}
	s.InsertRows(5)
	if status := s.Status(); !strings.Contains(status, "pending    5 rows") || !strings.Contains(status, "blocked    5 rows wait and no relay polls public.outbox") {
		t.Errorf("status with rows that wait:\n%s", status)
	}
	if _, err := s.Run("adopt"); err == nil || !strings.Contains(err.Error(), "polling has neither slot nor state record") {
		t.Errorf("adopt: %v", err)
	}
}

// TestFailedRowHoldsItsKey has a row that is rejected until it has failed. Only its key waits, until an operator
// decides.
func TestFailedRowHoldsItsKey(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"mark", "delete"} {
		t.Run(after, func(t *testing.T) {
			t.Parallel()
			s := newPolledTestbed(t)
			s.Env["WALPOST_SOURCE_POLLING_AFTER_PUBLISH"] = after
			s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "3"
			s.MustRun("init")
			conn := s.Connect()
			t.Cleanup(func() { _ = conn.Close(t.Context()) })
			bad := func(key, event string) {
				t.Helper()
				e2e.ExecOn(t, conn, e2e.RefusedRow(key, event))
			}
			e2e.InsertEvent(t, conn, "a", "1")
			bad("a", "2")
			e2e.InsertEvent(t, conn, "a", "3")
			e2e.InsertEvent(t, conn, "b", "1")
			bad("c", "1")
			e2e.InsertEvent(t, conn, "c", "2")
			r := s.StartRelay()
			failed := func(n int64) {
				t.Helper()
				cdctest.Eventually(t, 20*time.Second, func() error {
					if b := s.Backlog(); b.Failed != n || b.HeldKeys != n {
						return fmt.Errorf("failed and held: %d and %d, want %d", b.Failed, b.HeldKeys, n)
					}
					return nil
				})
			}
			failed(2)
			came := func(want string) {
				t.Helper()
				cdctest.Eventually(t, 20*time.Second, func() error {
					records := cdctest.ReadAll(t, s.Brokers, s.Topic)
					if got := fmt.Sprint(e2e.EventTypes(records, "a"), e2e.EventTypes(records, "b"), e2e.EventTypes(records, "c")); got != want {
						return fmt.Errorf("got %s, want %s", got, want)
					}
					return nil
				})
			}
			came("[1] [1] []")
			e2e.ExecOn(t, conn, "BEGIN; SELECT pg_current_xact_id()")
			if h := s.Backlog().Horizon; h != nil {
				t.Errorf("rows wait for a failed one, and status says: %s", h)
			}
			e2e.ExecOn(t, conn, "COMMIT")
			if n := s.Query(`SELECT string_agg(status || retry_count || (last_error ~ 'headers has more than 1000'), ',' ORDER BY position) FROM outbox WHERE status = 'FAILED'`); n != "FAILED3true,FAILED3true" {
				t.Errorf("failed rows: %s", n)
			}
			r.WaitForLog(15*time.Second, `"class":"headers"`)
			r.WaitForLog(15*time.Second, "the row became a dead letter")
			if metrics := r.Get(t, "/metrics"); !strings.Contains(metrics, `walpost_dead_letters_total{class="headers",pipeline="`+s.Name+`"} 2`) {
				t.Error("the metrics do not count the two rows that failed")
			}
			if list := s.MustRun("dlq", "list"); strings.Count(list, "headers has more than 1000 entries") != 2 {
				t.Errorf("dlq list:\n%s", list)
			}
			if _, err := s.Run("dlq", "redrive", "nobody"); err == nil || !strings.Contains(err.Error(), "no dead letter with this event id") {
				t.Errorf("redrive of what is not there: %v", err)
			}
			if status := s.Status(); !strings.Contains(status, "2 rows have failed and hold 2 keys back") {
				t.Errorf("status:\n%s", status)
			}
			first := s.Query(`SELECT id::text FROM outbox WHERE status = 'FAILED' ORDER BY position LIMIT 1`)
			if shown := s.MustRun("dlq", "show", first); !strings.Contains(shown, `"reason": "headers has more`) {
				t.Errorf("dlq show:\n%s", shown)
			}
			s.Exec(`UPDATE outbox SET headers = '{}' WHERE id::text = $1`, first)
			s.MustRun("dlq", "redrive", first)
			failed(1)
			came("[1 2 3] [1] []")
			s.MustRun("dlq", "drop", "--all", "--yes")
			failed(0)
			came("[1 2 3] [1] [2]")
			s.WaitUntilPolled()
			want := map[string]string{"mark": "DROPPED1 SENT5", "delete": ""}[after]
			if got := s.Query(`SELECT coalesce(string_agg(s, ' ' ORDER BY s), '') FROM (SELECT status || count(*) AS s FROM outbox GROUP BY status) x`); got != want {
				t.Errorf("the table holds %q, want %q", got, want)
			}
			if err := r.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPollersWithoutOrder: several relays share the rows, and one of them publishes each row.
func TestPollersWithoutOrder(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_SOURCE_POLLING_ORDER"] = "none"
	s.Env["WALPOST_WINDOW_ROWS"] = "10"
	s.MustRun("init")
	var relays []*e2e.Relay
	for range 3 {
		r := s.SpawnRelay()
		r.WaitForLog(20*time.Second, `"streaming"`)
		relays = append(relays, r)
	}
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.AdminURL, Rate: 100, Long: 200 * time.Millisecond, Events: 3000})
	ledger := w.Wait()
	s.WaitUntilPolled()
	seen := map[string]int{}
	for _, r := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		seen[e2e.Header(r, "id")]++
	}
	for _, e := range ledger.Events {
		if n := seen[e.ID.String()]; n != 1 {
			t.Errorf("event %s was published %d times", e.ID, n)
		}
	}
	if len(seen) != len(ledger.Events) {
		t.Errorf("%d events were published, %d committed", len(seen), len(ledger.Events))
	}
	busy := 0
	for _, r := range relays {
		if !strings.Contains(r.Get(t, "/metrics"), `walpost_rows_published_total{pipeline="`+s.Name+`"} 0`) {
			busy++
		}
	}
	if busy < 2 {
		t.Errorf("%d relays had work", busy)
	}
	// A row that is locked by one of them is given back when that one dies.
	relays[0].Kill()
	s.InsertRows(100)
	s.WaitUntilPolled()
}

// TestPollingSurvivesKafka: an outage of Kafka does not count as an attempt of any row.
func TestPollingSurvivesKafka(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.MustRun("init")
	s.Env["WALPOST_SHUTDOWN_TIMEOUT"] = "500ms"
	kf := cdctest.StartKafkaProxy(t, s.Brokers, nil)
	s.Env["WALPOST_KAFKA_BROKERS"] = strings.Join(kf.Brokers(), ",")
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"streaming"`)
	kf.Down()
	s.InsertRows(10)
	cdctest.Eventually(t, 20*time.Second, func() error {
		if ready := r.Get(t, "/readyz"); !strings.Contains(ready, "rows wait in the table") {
			return fmt.Errorf("readyz says %s", ready)
		}
		return nil
	})
	if err := r.Stop(); err == nil {
		t.Error("it stopped as if everything were published")
	}
	if n := s.Query(`SELECT count(*)::text FROM outbox WHERE status = 'PENDING' AND retry_count = 0`); n != "10" {
		t.Errorf("%s rows are pending and untried", n)
	}
	kf.Up()
	s.StartRelay()
	s.WaitUntilPolled()
}

// TestPollingBadInput: a faulty table is a halt with one sentence for each fault, which ends after the fault is fixed.
func TestPollingBadInput(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	says := func(text string) {
		t.Helper()
		if status := s.Status(); !strings.Contains(status, text) {
			t.Errorf("status does not say %q:\n%s", text, status)
		}
	}
	for key, want := range map[string][2]string{
		"WALPOST_DELIVERY":                           {"exactly_once", "delivery: exactly_once needs source.kind: wal"},
		"WALPOST_SOURCE_KIND":                        {"poll", "source.kind: \"poll\": write wal or polling"},
		"WALPOST_SOURCE_POLLING_ORDER":               {"id", "source.polling.order: \"id\": write key or none"},
		"WALPOST_SOURCE_POLLING_WORDS_SENT":          {"PENDING", "source.polling.words.sent: another of these keys has the value \"PENDING\" too"},
		"WALPOST_SOURCE_POLLING_COLUMNS_RETRY_COUNT": {"status", "source.polling.columns.retry_count: another of these keys has the value \"status\" too"},
	} {
		before, had := s.Env[key]
		s.Env[key] = want[0]
		if _, err := s.Run("status"); err == nil || !strings.Contains(err.Error(), want[1]) {
			t.Errorf("%s=%s: %v, want %q", key, want[0], err, want[1])
		}
		if delete(s.Env, key); had {
			s.Env[key] = before
		}
	}
	s.MustRun("init")
	r := s.StartRelay()
	r.WaitForLog(30*time.Second, `"streaming"`)
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Exec(`DROP INDEX outbox_position_idx`)
	says(`source.table: public.outbox has no index for polling: let ` + "`walpost init`" + ` create it, or create it yourself: CREATE INDEX ON "public"."outbox" ("position") WHERE "status" = 'PENDING'`)
	s.MustRun("init")
	s.Env["WALPOST_SOURCE_POLLING_WORDS_PENDING"] = "NEW"
	says(`new rows have the status 'PENDING'::text, and the relay looks for "NEW": write the rows' word in the configuration, or run ALTER TABLE "public"."outbox" ALTER "status" SET DEFAULT 'NEW'`)
	delete(s.Env, "WALPOST_SOURCE_POLLING_WORDS_PENDING")
	s.Exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_status_word`)
	s.InsertRows(1)
	s.Exec(`UPDATE outbox SET status = 'DONE'`)
	says(`a row has the "status" "DONE", which is none of PENDING, SENT, FAILED, DROPPED`)
	s.Exec(`UPDATE outbox SET status = 'SENT'`)
	s.Exec(`ALTER TABLE outbox DROP COLUMN transaction_id`)
	says(`source.polling.columns.transaction: the table has no column "transaction_id"`)
	s.Exec(`ALTER TABLE outbox ADD COLUMN transaction_id xid8 DEFAULT pg_current_xact_id()`)
	says(`column "transaction_id" must come before "position" in the table`)
	s.Exec(`ALTER TABLE outbox DROP COLUMN transaction_id, DROP COLUMN position, DROP COLUMN retry_count`)
	s.MustRun("init")
	s.Exec(`ALTER SEQUENCE outbox_position_seq CACHE 10`)
	says(`column "position" must be GENERATED ALWAYS AS IDENTITY with a sequence of CACHE 1`)
	s.Exec(`ALTER SEQUENCE outbox_position_seq CACHE 1`)
	s.StartRelay().WaitForLog(30*time.Second, `"streaming"`)
}

// TestFromPollingToTheWAL moves a pipeline under load. The two sources keep out of each other's way.
func TestFromPollingToTheWAL(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.MustRun("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.AdminURL, Rate: 60, Long: 200 * time.Millisecond})
	poller := s.SpawnRelay()
	poller.WaitForLog(20*time.Second, `"streaming"`)
	e2e.WaitForCommits(s.T, w, 200)

	s.Env["WALPOST_SOURCE_KIND"] = "wal"
	if out := s.MustRun("migrate-source"); !strings.Contains(out, "stop it, and start `walpost relay` with source.kind: wal") {
		t.Errorf("migrate-source:\n%s", out)
	}
	early := s.StartRelay()
	early.WaitForLog(20*time.Second, "and each row would be published twice: stop the other relay, or this one")
	if err := early.Stop(); err != nil {
		t.Error(err)
	}
	e2e.WaitForCommits(s.T, w, 200)
	poller.Kill()
	e2e.WaitForCommits(s.T, w, 200)
	s.StartRelay().WaitForLog(20*time.Second, `"streaming"`)
	e2e.WaitForCommits(s.T, w, 200)

	s.Env["WALPOST_SOURCE_KIND"] = "polling"
	late := s.StartRelay()
	late.WaitForLog(20*time.Second, "a relay streams public.outbox from the WAL")
	if err := late.Stop(); err != nil {
		t.Error(err)
	}
	s.Env["WALPOST_SOURCE_KIND"] = "wal"

	ledger := w.Stop()
	s.WaitUntilConfirmed(time.Minute)
	last := map[string]int64{}
	seen := map[string]bool{}
	seq := map[string]int64{}
	for _, e := range ledger.Events {
		seq[e.ID.String()] = e.Seq
	}
	for _, r := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		id := e2e.Header(r, "id")
		if seen[id] {
			continue
		}
		seen[id] = true
		if n, key := seq[id], string(r.Key); n != last[key]+1 {
			t.Errorf("event %s is number %d of key %s and comes after number %d", id, n, key, last[key])
		} else {
			last[key] = n
		}
	}
	if len(seen) != len(ledger.Events) {
		t.Errorf("%d events are there, %d were committed", len(seen), len(ledger.Events))
	}
}
