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
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
)

// between puts a proxy between the relay and PostgreSQL.
func (s *stage) between(pass func(cdctest.Frame) cdctest.Verdict) *cdctest.Proxy {
	s.t.Helper()
	u, err := url.Parse(s.env["WALPOST_SOURCE_URL"])
	if err != nil {
		s.t.Fatal(err)
	}
	proxy := cdctest.StartProxy(s.t, u.Host, pass)
	s.env["WALPOST_SOURCE_URL"] = proxy.URL(s.t, s.env["WALPOST_SOURCE_URL"])
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

// TestPolledRowThatOnlyKafkaRefuses is among others of its key and of other keys: it is found out, and it alone fails.
func TestPolledRowThatOnlyKafkaRefuses(t *testing.T) {
	t.Parallel()
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	s := polledOn(t, cluster.Brokers())
	s.env["WALPOST_KAFKA_PARTITIONS"] = "1"
	s.env["WALPOST_KAFKA_COMPRESSION"] = "none"
	s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "2"
	s.must("init")
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
	conn := s.connect()
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	run1(t, conn, "BEGIN")
	for _, e := range []string{"a1", "b1", "a2", "bunwanted", "a3", "b3", "c1"} {
		row(t, conn, e[:1], e[1:])
	}
	run1(t, conn, "COMMIT")
	s.insert(300)
	r := s.start()
	came := func(want string) {
		t.Helper()
		cdctest.Eventually(t, 40*time.Second, func() error {
			records := cdctest.ReadAll(t, s.brokers, s.topic)
			if got := fmt.Sprint(types(records, "a"), types(records, "b"), types(records, "c")); got != want {
				return fmt.Errorf("got %s, want %s", got, want)
			}
			return nil
		})
	}
	came("[1 2 3] [1] [1]")
	const states = `SELECT string_agg(concat_ws(' ', aggregate_id || event_type, status, retry_count, substr(last_error, 1, 25)), ', ' ORDER BY position) FROM outbox WHERE aggregate_id < 'k'`
	const failed = "a1 SENT 0, b1 SENT 0, a2 SENT 0, bunwanted FAILED 2 kafka refuses its record , a3 SENT 0, b3 PENDING 0, c1 SENT 0"
	cdctest.Eventually(t, 40*time.Second, func() error {
		if got := s.query(states); got != failed {
			return fmt.Errorf("recorded is %s, want %s", got, failed)
		}
		return nil
	})
	cdctest.Eventually(t, 40*time.Second, func() error {
		if b := s.backlog(); b.Pending != 1 {
			return fmt.Errorf("%d are pending", b.Pending)
		}
		return nil
	})
	if n := windows.Load(); n > 150 { // one by one were those that were fetched with it
		t.Errorf("300 rows took %d windows", n)
	}
	s.must("dlq", "drop", "--all", "--yes")
	came("[1 2 3] [1 3] [1]")
	if n := strings.Count(r.log.String(), "one row at a time"); n != 1 {
		t.Errorf("it looked for the row %d times", n)
	}
}

// TestPolledPartitions polls a table that its owner has partitioned by day.
func TestPolledPartitions(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"mark", "delete"} {
		t.Run(after, func(t *testing.T) {
			t.Parallel()
			s := polled(t)
			s.env["WALPOST_SOURCE_POLLING_AFTER_PUBLISH"] = after
			s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
			s.exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, headers jsonb, created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
				transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(), position bigint GENERATED ALWAYS AS IDENTITY) PARTITION BY RANGE (created_at)`)
			s.must("init")
			s.exec(`CREATE TABLE outbox_past PARTITION OF outbox FOR VALUES FROM (MINVALUE) TO ('2026-01-01')`)
			s.exec(`CREATE TABLE outbox_now PARTITION OF outbox FOR VALUES FROM ('2026-01-01') TO (MAXVALUE)`)
			conn := s.connect()
			t.Cleanup(func() { _ = conn.Close(t.Context()) })
			past := func(sql string) { run1(t, conn, sql+" RETURNING id") }
			in := func(key, event, day string) {
				past(fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) VALUES (gen_random_uuid(), 'order', '%s', '%s', '{}', '%s')`, key, event, day))
			}
			for i := range 4 { // to and fro between the partitions
				in("a", fmt.Sprint(i), []string{"2025-12-31", "2026-11-22"}[i%2])
			}
			run1(t, conn, refusedRow("b", "0"))
			in("b", "1", "2025-12-31")
			s.start()
			came := func(want string) {
				t.Helper()
				cdctest.Eventually(t, 20*time.Second, func() error {
					records := cdctest.ReadAll(t, s.brokers, s.topic)
					if got := fmt.Sprint(types(records, "a"), types(records, "b")); got != want {
						return fmt.Errorf("got %s, want %s", got, want)
					}
					return nil
				})
			}
			came("[0 1 2 3] []")
			cdctest.Eventually(t, 20*time.Second, func() error {
				if b := s.backlog(); b.Failed != 1 || b.Pending != 1 {
					return fmt.Errorf("%+v", b)
				}
				return nil
			})
			s.must("dlq", "drop", "--all", "--yes")
			came("[0 1 2 3] [1]")
			s.drained()
			want := map[string]string{"mark": "DROPPED1 SENT5", "delete": ""}[after]
			if got := s.query(`SELECT coalesce(string_agg(s, ' ' ORDER BY s), '') FROM (SELECT status || count(*) AS s FROM outbox GROUP BY status) x`); got != want {
				t.Errorf("the table holds %q, want %q", got, want)
			}
			s.exec(`DROP TABLE outbox_past`) // all of it is done
			in("a", "4", "2026-11-22")
			came("[0 1 2 3 4] [1]")
		})
	}
}

// TestPollingAPartitionedTable adds what polling needs to a table that has partitions, or says why not.
func TestPollingAPartitionedTable(t *testing.T) {
	t.Parallel()
	s := polled(t)
	if _, err := s.walpost("init", "--partition-by-day"); err == nil || !strings.Contains(err.Error(), "--partition-by-day is for source.kind: wal") {
		t.Errorf("init --partition-by-day: %v", err)
	}
	s.exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, created_at timestamptz NOT NULL DEFAULT clock_timestamp()) PARTITION BY RANGE (created_at)`)
	s.exec(`CREATE TABLE outbox_all PARTITION OF outbox DEFAULT`)
	_, err := s.walpost("init")
	if s.query(`SELECT (current_setting('server_version_num')::int >= 170000)::text`) == "false" {
		if err == nil || !strings.Contains(err.Error(), "has partitions, and PostgreSQL adds no identity column to such a table before version 17") {
			t.Fatalf("init: %v", err)
		}
		s.exec(`DROP TABLE outbox_all`)
		_, err = s.walpost("init")
	}
	if err != nil {
		t.Fatal(err)
	}
	s.exec(`CREATE TABLE outbox_rest PARTITION OF outbox FOR VALUES FROM (MINVALUE) TO (MAXVALUE)`)
}

// TestPollerCutOff loses its connection to PostgreSQL while Kafka hangs, and with it the table, which another takes. What the
// first has sent to Kafka comes late, as one run in order that came before.
func TestPollerCutOff(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.must("init")
	direct := maps.Clone(s.env)
	var fetched atomic.Bool
	pg := s.between(func(f cdctest.Frame) cdctest.Verdict {
		if f.FromServer && f.Type == 'D' && bytes.Contains(f.Bytes, []byte("late2")) {
			fetched.Store(true)
		}
		return cdctest.Pass
	})
	kf := cdctest.StartKafkaProxy(t, s.brokers, nil)
	s.env["WALPOST_KAFKA_BROKERS"] = strings.Join(kf.Brokers(), ",")
	first := s.start()
	first.says(20*time.Second, `"streaming"`)
	s.env = direct
	conn := s.connect()
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	row(t, conn, "a", "early") // the first one's client knows the topic
	s.drained()

	kf.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{})
	run1(t, conn, "BEGIN")
	row(t, conn, "a", "late1")
	row(t, conn, "a", "late2")
	run1(t, conn, "COMMIT")
	cdctest.Eventually(t, 20*time.Second, func() error {
		if !fetched.Load() {
			return errors.New("the rows are not fetched")
		}
		return nil
	})
	pg.Cut()
	second := s.start()
	second.says(20*time.Second, `"streaming"`)
	s.drained()
	row(t, conn, "a", "later")
	s.drained()
	first.says(20*time.Second, "was lost while rows were published")
	first.says(20*time.Second, "standing by")
	kf.Set(cdctest.Wire{}, cdctest.Wire{})
	comes := func(want string) {
		t.Helper()
		cdctest.Eventually(t, 20*time.Second, func() error {
			if got := fmt.Sprint(types(cdctest.ReadAll(t, s.brokers, s.topic), "a")); got != want {
				return fmt.Errorf("got %s, want %s", got, want)
			}
			return nil
		})
	}
	comes("[early late1 late2 later late1 late2]")
	if err := second.stop(); err != nil {
		t.Error(err)
	}
	row(t, conn, "a", "last")
	comes("[early late1 late2 later late1 late2 last]")
}

// TestPolledRowTooLarge has rows whose payload, headers or key are larger than source.max_row_bytes. They are never read, and hold
// their keys like any row that is refused.
func TestPolledRowTooLarge(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_SOURCE_MAX_ROW_BYTES"] = "1MiB"
	s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "2"
	s.must("init")
	s.exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_payload_check1, DROP CONSTRAINT outbox_headers_check1, DROP CONSTRAINT outbox_aggregate_id_check`)
	var wire sent
	s.between(wire.pass)
	conn := s.connect()
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	large := func(key, payload, headers string) {
		t.Helper()
		run1(t, conn, fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES (gen_random_uuid(), 'order', %s, '2', %s, %s)`, key, payload, headers))
	}
	const much = `jsonb_build_object('text', repeat('y', 1100000))`
	row(t, conn, "a", "1")
	large(`'a'`, much, `'{}'`)
	row(t, conn, "a", "3")
	large(`'b'`, `'{}'`, `jsonb_build_object('h', repeat('y', 1100000))`)
	row(t, conn, "b", "3")
	large(`(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 40000) i)`, `'{}'`, `'{}'`)
	large(`'c'`, `jsonb_build_object('text', repeat('y', 1000000))`, `'{}'`)
	s.start()
	cdctest.Eventually(t, 20*time.Second, func() error {
		if b := s.backlog(); b.Failed != 3 || b.Pending != 2 {
			return fmt.Errorf("failed and pending: %d and %d, want 3 and 2", b.Failed, b.Pending)
		}
		return nil
	})
	records := cdctest.ReadAll(t, s.brokers, s.topic)
	if got := fmt.Sprint(types(records, "a"), types(records, "b"), types(records, "c"), len(records)); got != "[1] [] [2] 2" {
		t.Errorf("got %s", got)
	}
	list := s.must("dlq", "list")
	if n := strings.Count(list, "bytes, source.max_row_bytes is 1MiB"); n != 3 {
		t.Errorf("dlq list:\n%s", list)
	}
	first := s.query(`SELECT id::text FROM outbox WHERE status = 'FAILED' ORDER BY position LIMIT 1`)
	if shown := s.must("dlq", "show", first); !strings.Contains(shown, `"payload": null`) {
		t.Errorf("dlq show:\n%.1000s", shown)
	}
	second := s.query(`SELECT id::text FROM outbox WHERE status = 'FAILED' ORDER BY position OFFSET 1 LIMIT 1`)
	if shown := s.must("dlq", "show", second); strings.Count(shown, second) != 2 {
		t.Errorf("dlq show %s:\n%.1000s", second, shown)
	}
	if n := wire.largest.Load(); n > 1<<20 {
		t.Errorf("PostgreSQL sent a row of %d bytes", n)
	}
	// A row that is small enough is shown whole, and no other is read for it.
	s.exec(`UPDATE outbox SET payload = '{"now": "small"}' WHERE id::text = $1`, first)
	wire.all.Store(0)
	if shown := s.must("dlq", "show", first); !strings.Contains(shown, `small`) {
		t.Errorf("dlq show:\n%.1000s", shown)
	}
	if n := wire.all.Load(); n > 100_000 {
		t.Errorf("showing a row took %d bytes", n)
	}
	s.must("dlq", "redrive", first)
	cdctest.Eventually(t, 20*time.Second, func() error {
		if got := fmt.Sprint(types(cdctest.ReadAll(t, s.brokers, s.topic), "a")); got != "[1 2 3]" {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
}

// TestPollingReadsWhatItPublishes: of rows that fill windows by their bytes, little is sent twice.
func TestPollingReadsWhatItPublishes(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_WINDOW_BYTES"] = "64KiB"
	s.must("init")
	var wire sent
	s.between(wire.pass)
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', jsonb_build_object('text', repeat('y', 10000)) FROM generate_series(1, 300) i`)
	s.start()
	s.drained()
	if got, rows := wire.all.Load(), int64(300*10_100); got > 2*rows {
		t.Errorf("PostgreSQL sent %d bytes for %d", got, rows)
	}
	// Small ones fill windows by and by.
	wire.updates.Store(0)
	s.insert(3000)
	s.drained()
	if n := wire.updates.Load(); n > 60 {
		t.Errorf("3000 small rows took %d windows", n)
	}
}

// TestWherePolled gives each answer from the table, and where on Kafka a row is.
func TestWherePolled(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.must("init")
	r := s.start()
	first := s.row("a", 10)
	conn := s.connect()
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	run1(t, conn, refusedRow("a", "2"))
	second := s.query(`SELECT id::text FROM outbox WHERE event_type = '2'`)
	third, fourth := s.row("a", 10), s.row("a", 10)
	cdctest.Eventually(t, 20*time.Second, func() error {
		if b := s.backlog(); b.Failed != 1 || b.Pending != 2 {
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
		third:  {pipeline.NotYet, "it waits behind event " + second},
		fourth: {pipeline.NotYet, "it waits behind event " + second},
	} {
		if got := answers(s.where(id)); fmt.Sprint(got) != fmt.Sprintf("[%s]", want.answer) {
			t.Errorf("%s: %v, want %s", id, got, want.answer)
		}
		if out := s.must("where", id); !strings.Contains(out, want.says) || strings.Contains(out, "slot") || strings.Contains(out, "lsn") {
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
	s.must("dlq", "drop", second, "--yes")
	s.drained()
	if got := fmt.Sprint(answers(s.where("a"))); got != "[published gone published published]" {
		t.Errorf("the key's: %s", got)
	}
	s.exec(`DELETE FROM outbox`)
	if got := answers(s.where(first)); fmt.Sprint(got) != "[published]" {
		t.Errorf("without its row: %v", got)
	}
	if out := s.must("where", uuid.Must(uuid.NewV7()).String()); !strings.Contains(out, "neither in the table nor") {
		t.Errorf("of nobody:\n%s", out)
	}
	for _, args := range [][]string{{"skip", "--to", "0/1"}, {"adopt"}} {
		if _, err := s.walpost(args...); err == nil || !strings.Contains(err.Error(), "polling has neither slot nor state record") || !strings.Contains(err.Error(), "walpost dlq") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// TestReplayPolled publishes once more what the table still has, whatever its status.
func TestReplayPolled(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.must("init")
	r := s.start()
	s.insert(3)
	s.drained()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.insert(2)
	hour := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	out := s.must("replay", "--from", hour(-time.Hour), "--to", hour(time.Hour))
	if !strings.Contains(out, "so does what is pending") || !strings.Contains(out, "5 rows were published again") {
		t.Errorf("replay:\n%s", out)
	}
	again := 0
	for _, rec := range cdctest.ReadAll(t, s.brokers, s.topic) {
		if header(rec, "replay") != "" {
			again++
		}
	}
	if pending := s.backlog().Pending; again != 5 || pending != 2 {
		t.Errorf("%d records are a replay's, and %d rows are pending; want 5 and 2", again, pending)
	}
}

// TestARefusedRowIsShownWhileItIsTriedAgain tells it from one that nobody has looked at.
func TestARefusedRowIsShownWhileItIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_SOURCE_POLLING_BACKOFF"] = "1m"
	s.must("init")
	s.exec(refusedRow("k", "Refused"))
	r := s.start()
	cdctest.Eventually(t, 20*time.Second, func() error {
		if status := s.must("status"); !strings.Contains(status, "; 1 were refused and are tried again") {
			return fmt.Errorf("status says\n%s", status)
		}
		return nil
	})
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}
