package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
)

// putProxyBetween puts a proxy between the relay and PostgreSQL.
func (s *testbed) putProxyBetween(pass func(cdctest.Frame) cdctest.Verdict) *cdctest.Proxy {
	s.T.Helper()
	u, err := url.Parse(s.Env["WALPOST_SOURCE_URL"])
	if err != nil {
		s.T.Fatal(err)
	}
	proxy := cdctest.StartProxy(s.T, u.Host, pass)
	s.Env["WALPOST_SOURCE_URL"] = proxy.URL(s.T, s.Env["WALPOST_SOURCE_URL"])
	return proxy
}

// sent counts the rows' bytes that come from PostgreSQL.
type sent struct{ all, largest, updates atomic.Int64 }

func (n *sent) pass(f cdctest.Frame) cdctest.Verdict {
	if f.FromServer && f.Type == 'D' {
		size := int64(len(f.Bytes))
		n.all.Add(size)
		for l := n.largest.Load(); size > l && !n.largest.CompareAndSwap(l, size); l = n.largest.Load() {
		}
	}
	if f.FromServer && f.Type == 'C' && bytes.Contains(f.Bytes, []byte("UPDATE")) {
		n.updates.Add(1)
	}
	return cdctest.Pass
}

// TestPolledRowThatOnlyKafkaRefuses: Kafka rejects one row among others of its key and of other keys. The relay finds
// it, and only this row fails.
func TestPolledRowThatOnlyKafkaRefuses(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	s := &testbed{e2e.NewPolledOn(t, program, cluster.Brokers())}
	s.Env["WALPOST_KAFKA_PARTITIONS"] = "1"
	s.Env["WALPOST_KAFKA_COMPRESSION"] = "none"
	s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "2"
	s.MustRun("init")
	var windows atomic.Int64
	cluster.Cluster().ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.Cluster().KeepControl()
		windows.Add(1)
		produce := req.(*kmsg.ProduceRequest)
		resp := produce.ResponseKind().(*kmsg.ProduceResponse)
		marked := false
		for _, topic := range produce.Topics {
			rt := kmsg.NewProduceResponseTopic()
			rt.Topic, rt.TopicID = topic.Topic, topic.TopicID
			for _, part := range topic.Partitions {
				rp := kmsg.NewProduceResponseTopicPartition()
				rp.Partition, rp.ErrorCode = part.Partition, kerr.InvalidRecord.Code
				marked = marked || bytes.Contains(part.Records, []byte("unwanted"))
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, marked
	})
	conn := s.Connect()
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	e2e.ExecOn(t, conn, "BEGIN")
	for _, e := range []string{"a1", "b1", "a2", "bunwanted", "a3", "b3", "c1"} {
		e2e.InsertEvent(t, conn, e[:1], e[1:])
	}
	e2e.ExecOn(t, conn, "COMMIT")
	s.InsertRows(300)
	r := s.StartRelay()
	came := func(want string) {
		t.Helper()
		cdctest.Eventually(t, 40*time.Second, func() error {
			records := cdctest.ReadAll(t, s.Brokers, s.Topic)
			if got := fmt.Sprint(e2e.EventTypes(records, "a"), e2e.EventTypes(records, "b"), e2e.EventTypes(records, "c")); got != want {
				return fmt.Errorf("got %s, want %s", got, want)
			}
			return nil
		})
	}
	came("[1 2 3] [1] [1]")
	const states = `SELECT string_agg(concat_ws(' ', aggregate_id || event_type, status, retry_count, substr(last_error, 1, 25)), ', ' ORDER BY position) FROM outbox WHERE aggregate_id < 'k'`
	const failed = "a1 SENT 0, b1 SENT 0, a2 SENT 0, bunwanted FAILED 2 kafka rejects its record , a3 SENT 0, b3 PENDING 0, c1 SENT 0"
	cdctest.Eventually(t, 40*time.Second, func() error {
		if got := s.Query(states); got != failed {
			return fmt.Errorf("recorded is %s, want %s", got, failed)
		}
		return nil
	})
	cdctest.Eventually(t, 40*time.Second, func() error {
		if b := s.Backlog(); b.Pending != 1 {
			return fmt.Errorf("%d are pending", b.Pending)
		}
		return nil
	})
	if n := windows.Load(); n > 150 { // one by one were those that were fetched with it
		t.Errorf("300 rows took %d windows", n)
	}
	s.MustRun("dlq", "drop", "--all", "--yes")
	came("[1 2 3] [1 3] [1]")
	if n := strings.Count(r.Log.String(), "the rows one at a time"); n != 1 {
		t.Errorf("it looked for the row %d times", n)
	}
}

// TestPolledPartitions polls a table that its owner has partitioned by day.
func TestPolledPartitions(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"mark", "delete"} {
		t.Run(after, func(t *testing.T) {
			t.Parallel()
			s := newPolledTestbed(t)
			s.Env["WALPOST_SOURCE_POLLING_AFTER_PUBLISH"] = after
			s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
			s.Exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, headers jsonb, created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
				transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(), position bigint GENERATED ALWAYS AS IDENTITY) PARTITION BY RANGE (created_at)`)
			s.MustRun("init")
			s.Exec(`CREATE TABLE outbox_past PARTITION OF outbox FOR VALUES FROM (MINVALUE) TO ('2026-01-01')`)
			s.Exec(`CREATE TABLE outbox_now PARTITION OF outbox FOR VALUES FROM ('2026-01-01') TO (MAXVALUE)`)
			conn := s.Connect()
			t.Cleanup(func() { _ = conn.Close(t.Context()) })
			past := func(sql string) { e2e.ExecOn(t, conn, sql+" RETURNING id") }
			in := func(key, event, day string) {
				past(fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) VALUES (gen_random_uuid(), 'order', '%s', '%s', '{}', '%s')`, key, event, day))
			}
			for i := range 4 { // to and fro between the partitions
				in("a", fmt.Sprint(i), []string{"2025-12-31", "2026-11-22"}[i%2])
			}
			e2e.ExecOn(t, conn, e2e.RefusedRow("b", "0"))
			in("b", "1", "2025-12-31")
			s.StartRelay()
			came := func(want string) {
				t.Helper()
				cdctest.Eventually(t, 20*time.Second, func() error {
					records := cdctest.ReadAll(t, s.Brokers, s.Topic)
					if got := fmt.Sprint(e2e.EventTypes(records, "a"), e2e.EventTypes(records, "b")); got != want {
						return fmt.Errorf("got %s, want %s", got, want)
					}
					return nil
				})
			}
			came("[0 1 2 3] []")
			cdctest.Eventually(t, 20*time.Second, func() error {
				if b := s.Backlog(); b.Failed != 1 || b.Pending != 1 {
					return fmt.Errorf("%+v", b)
				}
				return nil
			})
			s.MustRun("dlq", "drop", "--all", "--yes")
			came("[0 1 2 3] [1]")
			s.WaitUntilPolled()
			want := map[string]string{"mark": "DROPPED1 SENT5", "delete": ""}[after]
			if got := s.Query(`SELECT coalesce(string_agg(s, ' ' ORDER BY s), '') FROM (SELECT status || count(*) AS s FROM outbox GROUP BY status) x`); got != want {
				t.Errorf("the table holds %q, want %q", got, want)
			}
			s.Exec(`DROP TABLE outbox_past`) // all of it is done
			in("a", "4", "2026-11-22")
			came("[0 1 2 3 4] [1]")
		})
	}
}

// TestPollingAPartitionedTable: init adds the columns for polling to a table with partitions, or names the reason why
// it cannot.
func TestPollingAPartitionedTable(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	if _, err := s.Run("init", "--partition-by-day"); err == nil || !strings.Contains(err.Error(), "--partition-by-day needs source.kind: wal") {
		t.Errorf("init --partition-by-day: %v", err)
	}
	s.Exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, created_at timestamptz NOT NULL DEFAULT clock_timestamp()) PARTITION BY RANGE (created_at)`)
	s.Exec(`CREATE TABLE outbox_all PARTITION OF outbox DEFAULT`)
	_, err := s.Run("init")
	if s.Query(`SELECT (current_setting('server_version_num')::int >= 170000)::text`) == "false" {
		if err == nil || !strings.Contains(err.Error(), "has partitions, and PostgreSQL adds no identity column to such a table before version 17") {
			t.Fatalf("init: %v", err)
		}
		s.Exec(`DROP TABLE outbox_all`)
		_, err = s.Run("init")
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Exec(`CREATE TABLE outbox_rest PARTITION OF outbox FOR VALUES FROM (MINVALUE) TO (MAXVALUE)`)
}

// TestPollerCutOff: a relay loses its connection to PostgreSQL, and with it the table, while Kafka hangs. Another relay
// takes the table. The rows that the first one had sent to Kafka arrive late, as one run in order of rows that had
// arrived before.
func TestPollerCutOff(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.MustRun("init")
	direct := maps.Clone(s.Env)
	var fetched atomic.Bool
	pg := s.putProxyBetween(func(f cdctest.Frame) cdctest.Verdict {
		if f.FromServer && f.Type == 'D' && bytes.Contains(f.Bytes, []byte("late2")) {
			fetched.Store(true)
		}
		return cdctest.Pass
	})
	kf := cdctest.StartKafkaProxy(t, s.Brokers, nil)
	s.Env["WALPOST_KAFKA_BROKERS"] = strings.Join(kf.Brokers(), ",")
	first := s.StartRelay()
	first.WaitForLog(20*time.Second, `"streaming"`)
	s.Env = direct
	conn := s.Connect()
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	e2e.InsertEvent(t, conn, "a", "early") // the first one's client knows the topic
	s.WaitUntilPolled()

	kf.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{})
	e2e.ExecOn(t, conn, "BEGIN")
	e2e.InsertEvent(t, conn, "a", "late1")
	e2e.InsertEvent(t, conn, "a", "late2")
	e2e.ExecOn(t, conn, "COMMIT")
	cdctest.Eventually(t, 20*time.Second, func() error {
		if !fetched.Load() {
			return errors.New("the rows are not fetched")
		}
		return nil
	})
	pg.Cut()
	second := s.StartRelay()
	second.WaitForLog(20*time.Second, `"streaming"`)
	s.WaitUntilPolled()
	e2e.InsertEvent(t, conn, "a", "later")
	s.WaitUntilPolled()
	first.WaitForLog(20*time.Second, "was lost while rows were published")
	first.WaitForLog(20*time.Second, "standing by")
	kf.Set(cdctest.Wire{}, cdctest.Wire{})
	comes := func(want string) {
		t.Helper()
		cdctest.Eventually(t, 20*time.Second, func() error {
			if got := fmt.Sprint(e2e.EventTypes(cdctest.ReadAll(t, s.Brokers, s.Topic), "a")); got != want {
				return fmt.Errorf("got %s, want %s", got, want)
			}
			return nil
		})
	}
	comes("[early late1 late2 later late1 late2]")
	if err := second.Stop(); err != nil {
		t.Error(err)
	}
	e2e.InsertEvent(t, conn, "a", "last")
	comes("[early late1 late2 later late1 late2 last]")
}

// TestPolledRowTooLarge has rows whose payload, headers or key are larger than source.max_row_bytes. The relay never
// reads them, and they hold their keys like any rejected row.
func TestPolledRowTooLarge(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_SOURCE_MAX_ROW_BYTES"] = "1MiB"
	s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "2"
	s.MustRun("init")
	s.Exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_payload_size, DROP CONSTRAINT outbox_headers_size, DROP CONSTRAINT outbox_aggregate_id`)
	var wire sent
	s.putProxyBetween(wire.pass)
	conn := s.Connect()
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	large := func(key, payload, headers string) {
		t.Helper()
		e2e.ExecOn(t, conn, fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES (gen_random_uuid(), 'order', %s, '2', %s, %s)`, key, payload, headers))
	}
	const much = `jsonb_build_object('text', repeat('y', 1100000))`
	e2e.InsertEvent(t, conn, "a", "1")
	large(`'a'`, much, `'{}'`)
	e2e.InsertEvent(t, conn, "a", "3")
	large(`'b'`, `'{}'`, `jsonb_build_object('h', repeat('y', 1100000))`)
	e2e.InsertEvent(t, conn, "b", "3")
	large(`(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 40000) i)`, `'{}'`, `'{}'`)
	large(`'c'`, `jsonb_build_object('text', repeat('y', 1000000))`, `'{}'`)
	s.StartRelay()
	cdctest.Eventually(t, 20*time.Second, func() error {
		if b := s.Backlog(); b.Failed != 3 || b.Pending != 2 {
			return fmt.Errorf("failed and pending: %d and %d, want 3 and 2", b.Failed, b.Pending)
		}
		return nil
	})
	records := cdctest.ReadAll(t, s.Brokers, s.Topic)
	if got := fmt.Sprint(e2e.EventTypes(records, "a"), e2e.EventTypes(records, "b"), e2e.EventTypes(records, "c"), len(records)); got != "[1] [] [2] 2" {
		t.Errorf("got %s", got)
	}
	list := s.MustRun("dlq", "list")
	if n := strings.Count(list, "bytes, source.max_row_bytes is 1MiB"); n != 3 {
		t.Errorf("dlq list:\n%s", list)
	}
	first := s.Query(`SELECT id::text FROM outbox WHERE status = 'FAILED' ORDER BY position LIMIT 1`)
	if shown := s.MustRun("dlq", "show", first); !strings.Contains(shown, `"payload": null`) {
		t.Errorf("dlq show:\n%.1000s", shown)
	}
	second := s.Query(`SELECT id::text FROM outbox WHERE status = 'FAILED' ORDER BY position OFFSET 1 LIMIT 1`)
	if shown := s.MustRun("dlq", "show", second); strings.Count(shown, second) != 2 {
		t.Errorf("dlq show %s:\n%.1000s", second, shown)
	}
	if n := wire.largest.Load(); n > 1<<20 {
		t.Errorf("PostgreSQL sent a row of %d bytes", n)
	}
	// A row that is small enough is shown whole, and no other is read for it.
	s.Exec(`UPDATE outbox SET payload = '{"now": "small"}' WHERE id::text = $1`, first)
	wire.all.Store(0)
	if shown := s.MustRun("dlq", "show", first); !strings.Contains(shown, `small`) {
		t.Errorf("dlq show:\n%.1000s", shown)
	}
	if n := wire.all.Load(); n > 100_000 {
		t.Errorf("showing a row took %d bytes", n)
	}
	s.MustRun("dlq", "redrive", first)
	cdctest.Eventually(t, 20*time.Second, func() error {
		if got := fmt.Sprint(e2e.EventTypes(cdctest.ReadAll(t, s.Brokers, s.Topic), "a")); got != "[1 2 3]" {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
}

// TestPollingReadsWhatItPublishes: of rows that fill windows by their bytes, little is sent twice.
func TestPollingReadsWhatItPublishes(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_WINDOW_BYTES"] = "64KiB"
	s.MustRun("init")
	var wire sent
	s.putProxyBetween(wire.pass)
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', jsonb_build_object('text', repeat('y', 10000)) FROM generate_series(1, 300) i`)
	s.StartRelay()
	s.WaitUntilPolled()
	if got, rows := wire.all.Load(), int64(300*10_100); got > 2*rows {
		t.Errorf("PostgreSQL sent %d bytes for %d", got, rows)
	}
	// Small rows fill windows slowly.
	wire.updates.Store(0)
	s.InsertRows(3000)
	s.WaitUntilPolled()
	if n := wire.updates.Load(); n > 60 {
		t.Errorf("3000 small rows took %d windows", n)
	}
}

// TestWherePolled gets each answer from the table, and the place of a row on Kafka.
func TestWherePolled(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.MustRun("init")
	r := s.StartRelay()
	first := s.insertBytes("a", 10)
	conn := s.Connect()
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	e2e.ExecOn(t, conn, e2e.RefusedRow("a", "2"))
	second := s.Query(`SELECT id::text FROM outbox WHERE event_type = '2'`)
	third, fourth := s.insertBytes("a", 10), s.insertBytes("a", 10)
	cdctest.Eventually(t, 20*time.Second, func() error {
		if b := s.Backlog(); b.Failed != 1 || b.Pending != 2 {
			return fmt.Errorf("%+v", b)
		}
		return nil
	})
	for id, want := range map[string]struct {
		answer pipeline.Answer
		says   string
	}{
		first:  {pipeline.IsPublished, "  in the table: SENT since 20"},
		second: {pipeline.IsDeadLettered, "FAILED since 20"},
		third:  {pipeline.NotYet, "it waits for the earlier event " + second},
		fourth: {pipeline.NotYet, "it waits for the earlier event " + second},
	} {
		if got := answers(s.where(id)); fmt.Sprint(got) != fmt.Sprintf("[%s]", want.answer) {
			t.Errorf("%s: %v, want %s", id, got, want.answer)
		}
		if out := s.MustRun("where", id); !strings.Contains(out, want.says) || strings.Contains(out, "slot") || strings.Contains(out, "lsn") {
			t.Errorf("it does not say %q:\n%s", want.says, out)
		}
	}
	if w := s.where(first); len(w.Events[0].Places) != 1 || w.Events[0].Times != 1 {
		t.Errorf("published at %+v", w.Events[0].Places)
	}
	if got := fmt.Sprint(answers(s.where("a"))); got != "[published dead_lettered not_yet not_yet]" {
		t.Errorf("the key's: %s", got)
	}
	if w := s.where(third); w.Read.Partitions != 1 {
		t.Errorf("read %+v for a row that is pending", w.Read)
	}
	s.MustRun("dlq", "drop", second, "--yes")
	s.WaitUntilPolled()
	if got := fmt.Sprint(answers(s.where("a"))); got != "[published gone published published]" {
		t.Errorf("the key's: %s", got)
	}
	s.Exec(`DELETE FROM outbox`)
	if got := answers(s.where(first)); fmt.Sprint(got) != "[published]" {
		t.Errorf("without its row: %v", got)
	}
	if out := s.MustRun("where", uuid.Must(uuid.NewV7()).String()); !strings.Contains(out, "the table has no such event or key") {
		t.Errorf("of nobody:\n%s", out)
	}
	for _, args := range [][]string{{"skip", "--to", "0/1"}, {"adopt"}} {
		if _, err := s.Run(args...); err == nil || !strings.Contains(err.Error(), "polling has neither slot nor state record") || !strings.Contains(err.Error(), "walpost dlq") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
}

// TestReplayPolled publishes the rows that are still in the table once more, with any status.
func TestReplayPolled(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.MustRun("init")
	r := s.StartRelay()
	s.InsertRows(3)
	s.WaitUntilPolled()
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.InsertRows(2)
	hour := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	out := s.MustRun("replay", "--from", hour(-time.Hour), "--to", hour(time.Hour))
	if !strings.Contains(out, "so do pending rows") || !strings.Contains(out, "5 rows were published again") {
		t.Errorf("replay:\n%s", out)
	}
	again := 0
	for _, rec := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		if e2e.Header(rec, "replay") != "" {
			again++
		}
	}
	if pending := s.Backlog().Pending; again != 5 || pending != 2 {
		t.Errorf("%d records are a replay's, and %d rows are pending; want 5 and 2", again, pending)
	}
}

// TestARefusedRowIsShownWhileItIsTriedAgain: status and metrics distinguish it from a row that was never tried.
func TestARefusedRowIsShownWhileItIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_SOURCE_POLLING_BACKOFF"] = "1m"
	s.MustRun("init")
	s.Exec(e2e.RefusedRow("k", "Refused"))
	r := s.StartRelay()
	cdctest.Eventually(t, 20*time.Second, func() error {
		if status := s.Status(); !strings.Contains(status, "; 1 were rejected and are tried again") {
			return fmt.Errorf("status says\n%s", status)
		}
		return nil
	})
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
}
