package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/polling"
)

// polled is a stage whose source is polled.
func polled(t testing.TB) *stage {
	t.Helper()
	return polledOn(t, cdctest.Kafka(t))
}

func polledOn(t testing.TB, brokers []string) *stage {
	t.Helper()
	s := stageOn(t, cdctest.Database(t), brokers)
	s.env["WALPOST_SOURCE_KIND"] = "polling"
	s.env["WALPOST_SOURCE_POLLING_INTERVAL"] = "50ms"
	s.env["WALPOST_SOURCE_POLLING_BACKOFF"] = "20ms"
	return s
}

// row inserts one event of a key in a transaction or connection.
func row(t testing.TB, conn *pgx.Conn, key, event string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', $1, $2, '{}')`, key, event); err != nil {
		t.Fatal(err)
	}
}

func run1(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// refusedRow inserts one with more headers than a record may have.
func refusedRow(key, event string) string {
	return `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES (gen_random_uuid(), 'order', '` + key + `', '` + event +
		`', '{}', (SELECT jsonb_object_agg('h' || i, '') FROM generate_series(1, 1100) i))`
}

// types are the events of a key, in the topic's order.
func types(records []*kgo.Record, key string) (all []string) {
	for _, r := range records {
		if string(r.Key) == key {
			all = append(all, header(r, "type"))
		}
	}
	return all
}

func (s *stage) backlog() polling.Backlog {
	s.t.Helper()
	var st pipeline.Status
	if err := json.Unmarshal([]byte(s.must("status", "--json")), &st); err != nil {
		s.t.Fatal(err)
	}
	if st.Backlog == nil {
		s.t.Fatalf("status knows nothing of the table: %v", st.Blocked)
	}
	return *st.Backlog
}

// drained waits until nothing is pending.
func (s *stage) drained() {
	s.t.Helper()
	cdctest.Eventually(s.t, time.Minute, func() error {
		if n := s.query(`SELECT count(*)::text FROM outbox WHERE status = 'PENDING'`); n != "0" {
			return fmt.Errorf("%s rows are pending", n)
		}
		return nil
	})
}

// delivered is settled for a polled table.
func (s *stage) delivered(ledger cdctest.Ledger) cdctest.Report {
	s.t.Helper()
	s.drained()
	ledger.Polled = true
	report := cdctest.Check(ledger, cdctest.ReadAll(s.t, s.brokers, s.topic))
	if err := report.Err(); err != nil {
		s.t.Errorf("%d events committed: %v", len(ledger.Events), err)
	}
	s.t.Logf("%d events, %d records, %d duplicates in %d replays", report.Events, report.Records, report.Duplicates, report.Replays)
	return report
}

// TestPolledRowsTravelFromInitToTopic is the whole way, as README tells it.
func TestPolledRowsTravelFromInitToTopic(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.must("init")
	if again := s.must("init"); !strings.Contains(again, "there, with the columns and indexes that polling needs") || strings.Contains(again, "CREATE INDEX") {
		t.Errorf("a second init is not content:\n%s", again)
	}
	r := s.start()
	r.says(10*time.Second, `"streaming"`)
	if ready := r.get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("a polling relay is not ready: %s", ready)
	}
	s.insert(10)
	for _, rec := range cdctest.Consume(t, s.brokers, s.topic, 10*time.Second, cdctest.AtLeast(10)) {
		for name, want := range map[string]bool{"id": true, "type": true, "source": true, "created_at": true, "lsn": false, "seq": false} {
			if has := header(rec, name) != ""; has != want {
				t.Errorf("record %s has a header %s: %t", rec.Key, name, has)
			}
		}
	}
	s.drained()
	if n := s.query(`SELECT count(*)::text FROM outbox WHERE status = 'SENT' AND processed_at > created_at AND retry_count = 0`); n != "10" {
		t.Errorf("%s rows are marked", n)
	}
	metrics := r.get(t, "/metrics")
	for _, want := range []string{`walpost_rows_published_total{pipeline="` + s.pipeline + `"} 10`, `walpost_pending_rows{pipeline="` + s.pipeline + `"}`, `walpost_held_keys{pipeline="` + s.pipeline + `"} 0`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics do not say %s", want)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatalf("asked to stop, the relay ended with %v", err)
	}
	s.insert(5)
	if status := s.must("status"); !strings.Contains(status, "pending    5 rows") || !strings.Contains(status, "blocked    5 rows wait and no relay polls public.outbox") {
		t.Errorf("status with rows that wait:\n%s", status)
	}
	if _, err := s.walpost("adopt"); err == nil || !strings.Contains(err.Error(), "polling has neither slot nor state record") {
		t.Errorf("adopt: %v", err)
	}
}

// pollingLateCommit is fault 75: transactions that commit late what they inserted early, in each order of their ids.
func pollingLateCommit(of *scene) {
	t := of.t
	s := polled(t)
	s.must("init")
	s.exec(`CREATE TABLE other (n int)`)
	s.start().says(10*time.Second, `"streaming"`)
	a, b, c := s.connect(), s.connect(), s.connect()
	for _, conn := range []*pgx.Conn{a, b, c} {
		t.Cleanup(func() { _ = conn.Close(t.Context()) })
	}
	waits := func(conn *pgx.Conn, key string) {
		t.Helper()
		pid := conn.PgConn().PID()
		cdctest.Eventually(t, 20*time.Second, func() error {
			b := s.backlog()
			if b.Horizon == nil || b.Horizon.PID != int32(pid) || b.OldestSeconds < 0.6 || b.Horizon.Seconds < 0.6 {
				return fmt.Errorf("status does not say that rows have waited for pid %d: %+v, %+v", pid, b, b.Horizon)
			}
			return nil
		})
		if got := types(cdctest.ReadAll(t, s.brokers, s.topic), key); len(got) > 0 {
			t.Errorf("%s: %v came while an earlier row may still be committed", key, got)
		}
	}
	comes := func(key string, want ...string) {
		t.Helper()
		cdctest.Eventually(t, 20*time.Second, func() error {
			if got := types(cdctest.ReadAll(t, s.brokers, s.topic), key); fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Errorf("%s: got %v, want %v", key, got, want)
			}
			return nil
		})
	}

	// The earlier row's transaction is the older one.
	run1(t, a, "BEGIN")
	row(t, a, "older", "first")
	row(t, b, "older", "second")
	waits(a, "older")
	if status := s.must("status"); !strings.Contains(status, fmt.Sprintf("blocked    rows wait for the transaction of pid %d", a.PgConn().PID())) {
		t.Errorf("status:\n%s", status)
	}
	run1(t, a, "COMMIT")
	comes("older", "first", "second")

	// The earlier row's transaction is the younger one.
	run1(t, b, "BEGIN; INSERT INTO other VALUES (1)")
	run1(t, a, "BEGIN")
	row(t, a, "younger", "first")
	row(t, b, "younger", "second")
	run1(t, b, "COMMIT")
	waits(a, "younger")
	run1(t, a, "COMMIT")
	comes("younger", "first", "second")

	// Both have ended, and a third transaction is between their ids.
	run1(t, b, "BEGIN; INSERT INTO other VALUES (1)")
	run1(t, c, "BEGIN; INSERT INTO other VALUES (1)")
	row(t, a, "between", "first")
	row(t, b, "between", "second")
	run1(t, b, "COMMIT")
	waits(c, "between")
	run1(t, c, "ROLLBACK")
	comes("between", "first", "second")

	// One that is prepared and forgotten.
	run1(t, a, "BEGIN")
	row(t, a, "prepared", "first")
	run1(t, a, "PREPARE TRANSACTION '"+s.pipeline+"'")
	row(t, b, "prepared", "second")
	cdctest.Eventually(t, 20*time.Second, func() error {
		if b := s.backlog(); b.Horizon == nil || b.Horizon.Prepared != s.pipeline {
			return fmt.Errorf("status does not name the prepared transaction: %+v", b.Horizon)
		}
		return nil
	})
	run1(t, a, "COMMIT PREPARED '"+s.pipeline+"'")
	comes("prepared", "first", "second")
}

// pollingKilled is fault 73: kills -9 under load between any two steps, and loses the connection before and the answer after the marking.
func pollingKilled(of *scene) {
	t := of.t
	s := polled(t)
	s.env["WALPOST_WINDOW_ROWS"] = "50"
	s.must("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 60, Prepared: true, Long: 200 * time.Millisecond})
	binary := of.binary()
	for i, point := range []string{"poll_fetched", "mid_produce", "mid_flush", "after_flush", "poll_published", "poll_marked"} {
		r := s.command(exec.Command(binary, "relay"), fmt.Sprintf("WALPOST_FAILPOINT=%s:kill@%d", point, 1+i%3))
		r.says(30*time.Second, "failpoint "+point+": kill")
		<-r.gone
	}
	// The connection, and with it the lock, is lost between publishing and marking.
	r := s.command(exec.Command(binary, "relay"), "WALPOST_FAILPOINT=poll_published:sleep=500ms@2")
	r.says(30*time.Second, "failpoint poll_published: sleep")
	s.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1`, "walpost "+s.pipeline)
	r.says(30*time.Second, "session ended, starting over")
	r.kill()
	// The rows are marked, and nobody hears of it.
	var lost atomic.Bool
	u, err := url.Parse(s.env["WALPOST_SOURCE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	proxy := cdctest.StartProxy(t, u.Host, func(f cdctest.Frame) cdctest.Verdict {
		if f.FromServer && f.Type == 'C' && bytes.Contains(f.Bytes, []byte("UPDATE")) && lost.CompareAndSwap(false, true) {
			return cdctest.Lose
		}
		return cdctest.Pass
	})
	s.env["WALPOST_SOURCE_URL"] = proxy.URL(t, s.env["WALPOST_SOURCE_URL"])
	s.spawn().says(30*time.Second, "session ended, starting over")
	report := s.delivered(w.Stop())
	if report.Duplicates == 0 {
		t.Error("nothing came twice: the kills were too tame to prove anything")
	}
}

// pollingClock is fault 76: the clock of fault 38 under a poller, with a row that is refused until it has failed.
func pollingClock(of *scene) {
	t := of.t
	binary, err := of.jumping()
	if err != nil {
		t.Fatal(err)
	}
	s := polled(t)
	s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "3"
	s.env["WALPOST_SOURCE_POLLING_BACKOFF"] = "100ms"
	s.must("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 60, Long: 200 * time.Millisecond})
	for range 2 {
		s.command(exec.Command(binary, "relay"), "WALPOST_FAILPOINT=poll_published:kill@3").ends(60 * time.Second)
	}
	conn := s.connect()
	defer func() { _ = conn.Close(t.Context()) }()
	run1(t, conn, refusedRow("late", "1"))
	r := s.command(exec.Command(binary, "relay"))
	r.says(30*time.Second, `"streaming"`)
	cdctest.Eventually(t, time.Minute, func() error {
		if b := s.backlog(); b.Failed != 1 {
			return fmt.Errorf("%d rows have failed, want 1: the backoff goes by the clock", b.Failed)
		}
		return nil
	})
	s.delivered(w.Stop())
}

// twoPollers is fault 74: a second relay stand by and take over, again and again.
func twoPollers(of *scene) {
	t := of.t
	s := polled(t)
	s.must("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 60, Long: 200 * time.Millisecond})
	active := s.spawn()
	active.says(20*time.Second, `"streaming"`)
	for range kills() {
		next := s.spawn()
		next.says(20*time.Second, "standing by")
		if strings.Contains(next.log.String(), `"streaming"`) {
			t.Fatal("two relays have the table")
		}
		active.kill()
		next.says(20*time.Second, `"streaming"`)
		active = next
	}
	s.delivered(w.Stop())
}

// TestFailedRowHoldsItsKey has a row that is refused until it has failed. Only its key waits, until a person decides.
func TestFailedRowHoldsItsKey(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"mark", "delete"} {
		t.Run(after, func(t *testing.T) {
			t.Parallel()
			s := polled(t)
			s.env["WALPOST_SOURCE_POLLING_AFTER_PUBLISH"] = after
			s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "3"
			s.must("init")
			conn := s.connect()
			t.Cleanup(func() { _ = conn.Close(t.Context()) })
			bad := func(key, event string) {
				t.Helper()
				run1(t, conn, refusedRow(key, event))
			}
			row(t, conn, "a", "1")
			bad("a", "2")
			row(t, conn, "a", "3")
			row(t, conn, "b", "1")
			bad("c", "1")
			row(t, conn, "c", "2")
			r := s.start()
			failed := func(n int64) {
				t.Helper()
				cdctest.Eventually(t, 20*time.Second, func() error {
					if b := s.backlog(); b.Failed != n || b.HeldKeys != n {
						return fmt.Errorf("failed and held: %d and %d, want %d", b.Failed, b.HeldKeys, n)
					}
					return nil
				})
			}
			failed(2)
			came := func(want string) {
				t.Helper()
				cdctest.Eventually(t, 20*time.Second, func() error {
					records := cdctest.ReadAll(t, s.brokers, s.topic)
					if got := fmt.Sprint(types(records, "a"), types(records, "b"), types(records, "c")); got != want {
						return fmt.Errorf("got %s, want %s", got, want)
					}
					return nil
				})
			}
			came("[1] [1] []")
			run1(t, conn, "BEGIN; SELECT pg_current_xact_id()")
			if h := s.backlog().Horizon; h != nil {
				t.Errorf("rows wait for a failed one, and status says: %s", h)
			}
			run1(t, conn, "COMMIT")
			if n := s.query(`SELECT string_agg(status || retry_count || (last_error ~ 'headers has more than 1000'), ',' ORDER BY position) FROM outbox WHERE status = 'FAILED'`); n != "FAILED3true,FAILED3true" {
				t.Errorf("failed rows: %s", n)
			}
			r.says(5*time.Second, `"class":"headers"`)
			r.says(5*time.Second, "dead letter: the row was put aside")
			if metrics := r.get(t, "/metrics"); !strings.Contains(metrics, `walpost_dead_letters_total{class="headers",pipeline="`+s.pipeline+`"} 2`) {
				t.Error("the metrics do not count the two rows that failed")
			}
			if list := s.must("dlq", "list"); strings.Count(list, "headers has more than 1000 entries") != 2 {
				t.Errorf("dlq list:\n%s", list)
			}
			if _, err := s.walpost("dlq", "redrive", "nobody"); err == nil || !strings.Contains(err.Error(), "no dead letter with this event id") {
				t.Errorf("redrive of what is not there: %v", err)
			}
			if status := s.must("status"); !strings.Contains(status, "2 rows have failed and hold 2 keys back") {
				t.Errorf("status:\n%s", status)
			}
			first := s.query(`SELECT id::text FROM outbox WHERE status = 'FAILED' ORDER BY position LIMIT 1`)
			if shown := s.must("dlq", "show", first); !strings.Contains(shown, `"reason": "headers has more`) {
				t.Errorf("dlq show:\n%s", shown)
			}
			s.exec(`UPDATE outbox SET headers = '{}' WHERE id::text = $1`, first)
			s.must("dlq", "redrive", first)
			failed(1)
			came("[1 2 3] [1] []")
			s.must("dlq", "drop", "--all", "--yes")
			failed(0)
			came("[1 2 3] [1] [2]")
			s.drained()
			want := map[string]string{"mark": "DROPPED1 SENT5", "delete": ""}[after]
			if got := s.query(`SELECT coalesce(string_agg(s, ' ' ORDER BY s), '') FROM (SELECT status || count(*) AS s FROM outbox GROUP BY status) x`); got != want {
				t.Errorf("the table holds %q, want %q", got, want)
			}
			if err := r.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPollersWithoutOrder share the rows, and each row is published by one of them.
func TestPollersWithoutOrder(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_SOURCE_POLLING_ORDER"] = "none"
	s.env["WALPOST_WINDOW_ROWS"] = "10"
	s.must("init")
	var relays []*relay
	for range 3 {
		r := s.spawn()
		r.says(20*time.Second, `"streaming"`)
		relays = append(relays, r)
	}
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 100, Long: 200 * time.Millisecond, Events: 3000})
	ledger := w.Wait()
	s.drained()
	seen := map[string]int{}
	for _, r := range cdctest.ReadAll(t, s.brokers, s.topic) {
		seen[header(r, "id")]++
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
		if !strings.Contains(r.get(t, "/metrics"), `walpost_rows_published_total{pipeline="`+s.pipeline+`"} 0`) {
			busy++
		}
	}
	if busy < 2 {
		t.Errorf("%d relays had work", busy)
	}
	// A row that is locked by one of them is given back when that one dies.
	relays[0].kill()
	s.insert(100)
	s.drained()
}

// TestPollingSurvivesKafka: Kafka that is away is no attempt of any row.
func TestPollingSurvivesKafka(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.must("init")
	s.env["WALPOST_SHUTDOWN_TIMEOUT"] = "500ms"
	kf := cdctest.StartKafkaProxy(t, s.brokers, nil)
	s.env["WALPOST_KAFKA_BROKERS"] = strings.Join(kf.Brokers(), ",")
	r := s.start()
	r.says(20*time.Second, `"streaming"`)
	kf.Down()
	s.insert(10)
	cdctest.Eventually(t, 20*time.Second, func() error {
		if ready := r.get(t, "/readyz"); !strings.Contains(ready, "rows wait in the table") {
			return fmt.Errorf("readyz says %s", ready)
		}
		return nil
	})
	if err := r.stop(); err == nil {
		t.Error("it stopped as if everything were published")
	}
	if n := s.query(`SELECT count(*)::text FROM outbox WHERE status = 'PENDING' AND retry_count = 0`); n != "10" {
		t.Errorf("%s rows are pending and untried", n)
	}
	kf.Up()
	s.start()
	s.drained()
}

// TestPollingBadInput says in one sentence what is wrong, and goes on once it is fixed.
func TestPollingBadInput(t *testing.T) {
	t.Parallel()
	s := polled(t)
	says := func(text string) {
		t.Helper()
		if status := s.must("status"); !strings.Contains(status, text) {
			t.Errorf("status does not say %q:\n%s", text, status)
		}
	}
	for key, want := range map[string][2]string{
		"WALPOST_DELIVERY":                           {"exactly_once", "delivery: exactly_once needs source.kind: wal"},
		"WALPOST_SOURCE_KIND":                        {"poll", "source.kind: \"poll\": write wal or polling"},
		"WALPOST_SOURCE_POLLING_ORDER":               {"id", "source.polling.order: \"id\": write key or none"},
		"WALPOST_SOURCE_POLLING_WORDS_SENT":          {"PENDING", "source.polling.words.sent: \"PENDING\" stands for another of them already"},
		"WALPOST_SOURCE_POLLING_COLUMNS_RETRY_COUNT": {"status", "source.polling.columns.retry_count: \"status\" stands for another"},
	} {
		before, had := s.env[key]
		s.env[key] = want[0]
		if _, err := s.walpost("status"); err == nil || !strings.Contains(err.Error(), want[1]) {
			t.Errorf("%s=%s: %v, want %q", key, want[0], err, want[1])
		}
		if delete(s.env, key); had {
			s.env[key] = before
		}
	}
	s.must("init")
	r := s.start()
	r.says(10*time.Second, `"streaming"`)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.exec(`DROP INDEX outbox_position_idx`)
	says(`source.table: public.outbox has no index for polling: let ` + "`walpost init`" + ` make it, or run it yourself: CREATE INDEX ON "public"."outbox" ("position") WHERE "status" = 'PENDING'`)
	s.must("init")
	s.env["WALPOST_SOURCE_POLLING_WORDS_PENDING"] = "NEW"
	says(`new rows have the status 'PENDING'::text, and "NEW" would never be found`)
	delete(s.env, "WALPOST_SOURCE_POLLING_WORDS_PENDING")
	s.exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_status_check`)
	s.insert(1)
	s.exec(`UPDATE outbox SET status = 'DONE'`)
	says(`a row has the "status" "DONE", which is none of PENDING, SENT, FAILED, DROPPED`)
	s.exec(`UPDATE outbox SET status = 'SENT'`)
	s.exec(`ALTER TABLE outbox DROP COLUMN transaction_id`)
	says(`source.polling.columns.transaction: the table has no column "transaction_id"`)
	s.exec(`ALTER TABLE outbox ADD COLUMN transaction_id xid8 DEFAULT pg_current_xact_id()`)
	says(`column "transaction_id" must stand before "position" in the table`)
	s.exec(`ALTER TABLE outbox DROP COLUMN transaction_id, DROP COLUMN position, DROP COLUMN retry_count`)
	s.must("init")
	s.exec(`ALTER SEQUENCE outbox_position_seq CACHE 10`)
	says(`column "position" must be GENERATED ALWAYS AS IDENTITY with a sequence of CACHE 1`)
	s.exec(`ALTER SEQUENCE outbox_position_seq CACHE 1`)
	s.start().says(10*time.Second, `"streaming"`)
}

// TestFromPollingToTheWAL moves a pipeline under load. The two sources keep out of each other's way.
func TestFromPollingToTheWAL(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.must("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 60, Long: 200 * time.Millisecond})
	poller := s.spawn()
	poller.says(20*time.Second, `"streaming"`)
	s.eventuallyCommitted(w, 200)

	s.env["WALPOST_SOURCE_KIND"] = "wal"
	if out := s.must("migrate-source"); !strings.Contains(out, "stop it, and start `walpost relay` with source.kind: wal") {
		t.Errorf("migrate-source:\n%s", out)
	}
	early := s.start()
	early.says(20*time.Second, "and each row would be published twice: stop that one, or this one")
	if err := early.stop(); err != nil {
		t.Error(err)
	}
	s.eventuallyCommitted(w, 200)
	poller.kill()
	s.eventuallyCommitted(w, 200)
	s.start().says(20*time.Second, `"streaming"`)
	s.eventuallyCommitted(w, 200)

	s.env["WALPOST_SOURCE_KIND"] = "polling"
	late := s.start()
	late.says(20*time.Second, "a relay streams public.outbox from the WAL")
	if err := late.stop(); err != nil {
		t.Error(err)
	}
	s.env["WALPOST_SOURCE_KIND"] = "wal"

	ledger := w.Stop()
	s.confirmed(time.Minute)
	last := map[string]int64{}
	seen := map[string]bool{}
	seq := map[string]int64{}
	for _, e := range ledger.Events {
		seq[e.ID.String()] = e.Seq
	}
	for _, r := range cdctest.ReadAll(t, s.brokers, s.topic) {
		id := header(r, "id")
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

func (s *stage) eventuallyCommitted(w *cdctest.Writer, more int) {
	s.t.Helper()
	want := w.Committed() + more
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		if n := w.Committed(); n < want {
			return fmt.Errorf("%d of %d are committed", n, want)
		}
		return nil
	})
}
