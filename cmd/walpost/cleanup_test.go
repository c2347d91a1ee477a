package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

// rows counts the outbox.
func (s *stage) rows() string { s.t.Helper(); return s.query("SELECT count(*)::text FROM outbox") }

// insertOld is insert, two hours ago.
func (s *stage) insertOld(n int) {
	s.t.Helper()
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
		SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', jsonb_build_object('n', i), now() - interval '2 hours' FROM generate_series(1, $1::int) i`, n)
}

// keeps runs cleanup and wants its sentence, and the rows still there.
func (s *stage) keeps(texts ...string) {
	s.t.Helper()
	before := s.rows()
	out, err := s.walpost("cleanup", "--retention", "1h")
	if err == nil {
		s.t.Fatalf("cleanup did not refuse:\n%s", out)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			s.t.Errorf("cleanup does not say %q: %v", text, err)
		}
	}
	if after := s.rows(); after != before {
		s.t.Errorf("cleanup refused, and %s of %s rows are left", after, before)
	}
}

// TestCleanupDeletesWhatIsConfirmedAndOld and nothing else: neither what is young, nor what was committed by a transaction that
// is still open when it begins, nor anything on a dry run.
func TestCleanupDeletesWhatIsConfirmedAndOld(t *testing.T) {
	t.Parallel()
	s, _ := ownStage(t) // other tests' open transactions would be in the way
	s.must("init")
	r := s.start()
	r.says(20*time.Second, `"streaming"`) // a slot that nobody reads is not waited for
	s.insertOld(3000)
	s.insert(5)
	late := s.connect()
	defer func() { _ = late.Close(t.Context()) }()
	for _, sql := range []string{"BEGIN", "SAVEPOINT s", `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
		VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}', now() - interval '1 day')`, "RELEASE s"} {
		if _, err := late.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if out := s.must("cleanup", "--retention", "1h", "--dry-run"); !strings.Contains(out, "3000 rows older than 1h0m0s would be deleted") || s.rows() != "3005" {
		t.Errorf("dry run, and %s rows are left: %s", s.rows(), out)
	}
	// What a transaction writes that began behind the oldest one still open is not known to be confirmed.
	s.insertOld(7)
	if out := s.must("cleanup", "--retention", "1h"); !strings.Contains(out, " 3000 rows") || s.rows() != "12" {
		t.Errorf("with an open transaction, and %s rows are left: %s", s.rows(), out)
	}
	if _, err := late.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if out := s.must("cleanup", "--retention", "1h"); !strings.Contains(out, " 8 rows") {
		t.Errorf("when it has ended: %s", out)
	}
	if s.rows() != "5" {
		t.Errorf("%s rows are left, want the 5 young ones", s.rows())
	}
	s.insert(2)
	s.confirmed(20 * time.Second)
	if n := len(cdctest.ReadAll(t, s.brokers, s.topic)); n != 3000+5+1+7+2 {
		t.Errorf("%d records: rows were lost, or deletes published", n)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}

// TestCleanupRefuses wherever rows of the table may still be needed.
func TestCleanupRefuses(t *testing.T) {
	slot := func(s *stage) string { return s.env["WALPOST_SOURCE_SLOT"] }
	for name, c := range map[string]struct {
		change func(*stage)
		says   []string
	}{
		"the relay is behind": {func(s *stage) {
			s.insertOld(5)
		}, []string{"nothing was deleted", "the relay lags, perhaps by more than the retention of 1h0m0s", "walpost status"}},
		"another relay is behind": {func(s *stage) {
			s.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot(s)+"_other")
			s.insert(5)
			s.start().says(20*time.Second, `"streaming"`)
		}, []string{"another relay's slot", "_other", "drop the slot"}},
		"no slot": {func(s *stage) {
			s.exec("SELECT pg_drop_replication_slot($1)", slot(s))
		}, []string{"nothing was deleted", "does not exist"}},
		"a gap to be replayed": {func(s *stage) {
			s.exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", slot(s))
		}, []string{"nothing was deleted", "needed for a replay", "re-created or advanced"}},
		"no state record": {func(s *stage) { s.env["WALPOST_PIPELINE"] += "-b" }, []string{"no state record"}},
		"a latched halt": {func(s *stage) {
			s.rewrite(func(st *cdc.State) {
				st.Halt = &cdc.HaltRecord{Found: "rows may be missing", Latched: true}
			})
		}, []string{"nothing was deleted", "rows may be missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			s.must("init")
			s.insertOld(20)
			c.change(s)
			s.keeps(c.says...)
		})
	}
}

// TestPolledPartitionsAreCleanedUp: a day of which every row is sent or dropped goes whole, one with a failed row stays, and those of
// the days to come are made.
func TestPolledPartitionsAreCleanedUp(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, headers jsonb, created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
		transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(), position bigint GENERATED ALWAYS AS IDENTITY) PARTITION BY RANGE (created_at)`)
	s.must("init")
	today := time.Now().UTC().Truncate(24 * time.Hour)
	for _, ago := range []int{3, 2, 0} {
		day := today.AddDate(0, 0, -ago)
		s.exec(fmt.Sprintf("CREATE TABLE outbox_%d PARTITION OF outbox FOR VALUES FROM ('%s+00') TO ('%s+00')", ago, day.Format(time.DateTime), day.AddDate(0, 0, 1).Format(time.DateTime)))
	}
	at := func(day int) {
		t.Helper()
		s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}', $1)`, today.AddDate(0, 0, day).Add(time.Hour))
	}
	at(-3)
	at(-2)
	s.exec(strings.Replace(strings.Replace(refusedRow("held", "Refused"), "headers)", "headers, created_at)", 1), "FROM generate_series(1, 1100) i))", "FROM generate_series(1, 1100) i), $1)", 1), today.AddDate(0, 0, -2).Add(time.Hour))
	at(0)
	r := s.start()
	s.drained()
	out := s.must("cleanup", "--retention", "1h")
	for _, want := range []string{"partitions dropped: outbox_3", "delivered: outbox_2", "partitions made: public.outbox_" + today.AddDate(0, 0, 1).Format("20060102")} {
		if !strings.Contains(out, want) {
			t.Errorf("cleanup does not say %q: %s", want, out)
		}
	}
	at(1)
	s.drained()
	if n := len(cdctest.ReadAll(t, s.brokers, s.topic)); n != 4 {
		t.Errorf("%d records, want 4", n)
	}
	if n := s.query("SELECT count(*)::text FROM outbox WHERE status = 'FAILED'"); n != "1" {
		t.Errorf("%s failed rows are left", n)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}

// counts waits until the relay's metric has a value.
func (r *relay) counts(metric, value string) {
	r.t.Helper()
	cdctest.Eventually(r.t, 20*time.Second, func() error {
		text, err := r.ask("/metrics")
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, metric+"{") {
				if strings.HasSuffix(line, " "+value+"\n") {
					return nil
				}
				return fmt.Errorf("%s, want %s", strings.TrimSpace(line), value)
			}
		}
		return fmt.Errorf("no metric %s", metric)
	})
}

// TestCleanupOfAPolledTable takes what was sent or dropped, and is old. What is pending or failed stays, whatever its age.
func TestCleanupOfAPolledTable(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.must("init")
	r := s.start()
	s.insert(20)
	s.exec(refusedRow("held", "Refused"))
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'held', 'Waits', '{}')`)
	stands := func(want string) {
		t.Helper()
		cdctest.Eventually(t, 20*time.Second, func() error {
			if is := s.query(`SELECT coalesce(string_agg(status || ' ' || n, ', ' ORDER BY status), '') FROM (SELECT status, count(*) n FROM outbox GROUP BY status) s`); is != want {
				return fmt.Errorf("the table holds %s, want %s", is, want)
			}
			return nil
		})
	}
	stands("FAILED 1, PENDING 1, SENT 20")
	s.exec(`UPDATE outbox SET processed_at = now() - interval '2 hours'`)
	s.insert(3)
	stands("FAILED 1, PENDING 1, SENT 23")
	if out := s.must("cleanup", "--retention", "1h", "--dry-run"); !strings.Contains(out, " 20 rows older than 1h0m0s would be deleted") {
		t.Errorf("dry run: %s", out)
	}
	if out := s.must("cleanup", "--retention", "1h"); !strings.Contains(out, " 20 rows older than 1h0m0s deleted") {
		t.Errorf("cleanup: %s", out)
	}
	stands("FAILED 1, PENDING 1, SENT 3")
	s.must("dlq", "drop", "--all", "--yes")
	stands("DROPPED 1, SENT 4")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	s.env["WALPOST_CLEANUP_EVERY"], s.env["WALPOST_CLEANUP_RETENTION"] = "1s", "0s"
	r = s.start()
	r.counts("walpost_cleanup_rows_total", "5")
	stands("")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}

// TestCleanupReachesEveryRow of a polled table, in whatever it is divided: children by inheritance, partitions of no time, partitions of
// partitions. It refuses while one of them hides rows from who cleans up.
func TestCleanupReachesEveryRow(t *testing.T) {
	t.Parallel()
	const columns = `(id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, created_at timestamptz DEFAULT clock_timestamp())`
	for name, c := range map[string][2]string{ // before init, and after it
		"children": {`CREATE TABLE outbox ` + columns, `CREATE TABLE c1 () INHERITS (outbox); CREATE TABLE c2 () INHERITS (c1); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql
			AS $$ BEGIN IF NEW.position % 2 = 0 THEN INSERT INTO c1 SELECT NEW.*; ELSE INSERT INTO c2 SELECT NEW.*; END IF; RETURN NULL; END $$; CREATE TRIGGER t BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION f()`},
		"hash":                          {`CREATE TABLE outbox ` + columns + ` PARTITION BY HASH (aggregate_id)`, `CREATE TABLE c1 PARTITION OF outbox FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE c2 PARTITION OF outbox FOR VALUES WITH (MODULUS 2, REMAINDER 1)`},
		"partitions of the default one": {`CREATE TABLE outbox ` + columns + ` PARTITION BY RANGE (created_at)`, `CREATE TABLE c1 PARTITION OF outbox DEFAULT PARTITION BY LIST (aggregate_id); CREATE TABLE c2 PARTITION OF c1 DEFAULT`},
		"partitions of a day":           {`CREATE TABLE outbox ` + columns + ` PARTITION BY RANGE (created_at)`, `CREATE TABLE c1 PARTITION OF outbox FOR VALUES FROM ('2020-01-01') TO ('2199-01-01') PARTITION BY LIST (aggregate_id); CREATE TABLE c2 PARTITION OF c1 DEFAULT`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := polled(t)
			s.exec(c[0])
			s.must("init")
			s.exec(c[1])
			s.start()
			s.insert(20)
			s.drained()
			if name == "partitions of a day" { // is over
				s.exec(`ALTER TABLE outbox DETACH PARTITION c1; UPDATE c1 SET created_at = '2020-01-01'; ALTER TABLE outbox ATTACH PARTITION c1 FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')`)
			}
			_, url := s.login("cleaner", "GRANT SELECT, DELETE ON outbox, c1, c2 TO ROLE")
			s.exec("ALTER TABLE c2 ENABLE ROW LEVEL SECURITY")
			s.refuses("does not see all rows of public.c2", "cleanup", "--retention", "0s", "--admin-url", url)
			s.exec(`UPDATE outbox SET status = 'FAILED' WHERE id = (SELECT id FROM outbox LIMIT 1)`)
			s.must("cleanup", "--retention", "0s")
			if n := s.query(`SELECT count(*)::text FROM outbox WHERE status = 'FAILED'`); n != "1" {
				t.Errorf("%s failed rows are left, want 1", n)
			}
			s.exec(`UPDATE outbox SET status = 'SENT'`)
			out := s.must("cleanup", "--retention", "0s")
			if n := s.rows(); n != "0" || !strings.Contains(out, " 1 rows") && !strings.Contains(out, "dropped: c1") {
				t.Errorf("%s rows are left:\n%s", n, out)
			}
		})
	}
}

// TestCleanupBySchedule has the relay do it, with its own role, which may see nothing of the rows.
func TestCleanupBySchedule(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.env["WALPOST_CLEANUP_EVERY"], s.env["WALPOST_CLEANUP_RETENTION"] = "1s", "1h"
	s.must("init")
	role := "relay_" + s.env["WALPOST_SOURCE_SLOT"]
	if may := s.query(`SELECT concat_ws(' ', has_table_privilege($1, 'outbox', 'DELETE'), has_table_privilege($1, 'outbox', 'SELECT'), has_table_privilege($1, 'outbox', 'INSERT, UPDATE'),
		has_column_privilege($1, 'outbox', 'payload', 'SELECT'))`, role); may != "t f f f" {
		t.Errorf("DELETE, SELECT, INSERT or UPDATE, SELECT (payload): %s", may)
	}
	r := s.start()
	s.insertOld(20)
	s.insert(3)
	cdctest.Eventually(t, 30*time.Second, func() error {
		if n := s.rows(); n != "3" {
			return fmt.Errorf("%s rows are left", n)
		}
		return nil
	})
	r.says(5*time.Second, `"rows":20`)
	s.confirmed(20 * time.Second)
	if n := len(cdctest.ReadAll(t, s.brokers, s.topic)); n != 23 {
		t.Errorf("%d records, want 23", n)
	}
	r.counts("walpost_cleanup_rows_total", "20")
	r.counts("walpost_cleanup_refused", "0")
	s.exec("REVOKE DELETE ON outbox FROM " + role)
	s.insertOld(1)
	r.says(20*time.Second, "walpost init")
	r.counts("walpost_cleanup_refused", "1")
	s.exec("GRANT DELETE ON outbox TO " + role)
	r.counts("walpost_cleanup_rows_total", "21")
	r.counts("walpost_cleanup_refused", "0")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.must("init", "--remove", "--yes")
}

// TestPartitionsByDay are made by init and by cleanup, published through their root, and dropped whole: not while a row in one
// is not confirmed, nor while one is in use. The relay notices nothing.
func TestPartitionsByDay(t *testing.T) {
	t.Parallel()
	s, _ := ownStage(t) // other tests' open transactions would be in the way
	if out := s.must("init", "--partition-by-day", "--dry-run"); !strings.Contains(out, "PARTITION BY RANGE") || !strings.Contains(out, "publish_via_partition_root") {
		t.Errorf("dry run: %s", out)
	}
	s.must("init", "--partition-by-day")
	s.must("init", "--partition-by-day")
	const partitions = "SELECT string_agg(c.relname, ' ' ORDER BY c.relname) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'outbox'::regclass"
	ahead := s.query(partitions)
	today := time.Now().UTC()
	if n := strings.Count(ahead, "outbox_2"); n != 8 || !strings.Contains(ahead, "outbox_default") || !strings.Contains(ahead, today.AddDate(0, 0, 7).Format("20060102")) {
		t.Fatalf("init made %s", ahead)
	}
	day := func(back int) string { return today.AddDate(0, 0, -back).Format("outbox_20060102") }
	for back := 3; back > 0; back-- {
		s.exec(fmt.Sprintf("CREATE TABLE %s PARTITION OF outbox FOR VALUES FROM ('%s 00:00+00') TO ('%s 00:00+00')", day(back),
			today.AddDate(0, 0, -back).Format(time.DateOnly), today.AddDate(0, 0, 1-back).Format(time.DateOnly)))
	}
	r := s.start()
	r.says(20*time.Second, `"streaming"`)
	s.insert(10)
	old := func(n, back int) {
		s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
			SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', '{}', $2::text::timestamptz FROM generate_series(1, $1::int) i`, n, today.AddDate(0, 0, -back).Format(time.DateOnly)+" 00:00+00")
	}
	old(5, 1)
	old(20, 2)
	old(20, 3)
	old(30, 9) // no partition was made for that day
	s.exec("DROP TABLE " + time.Now().UTC().AddDate(0, 0, 6).Format("outbox_20060102"))

	// A row of a transaction that is open when the cleanup begins keeps its partition.
	late := s.connect()
	defer func() { _ = late.Close(t.Context()) }()
	if _, err := late.Exec(t.Context(), "BEGIN; SELECT pg_current_xact_id()"); err != nil {
		t.Fatal(err)
	}
	old(1, 2)
	out := s.must("cleanup", "--retention", "24h")
	if has := s.query(partitions); strings.Contains(has, day(3)) || !strings.Contains(has, day(2)) || !strings.Contains(has, day(1)) {
		t.Errorf("left are %s; want all but %s:\n%s", has, day(3), out)
	}
	if !strings.Contains(out, "30 rows") || !strings.Contains(out, "dropped: "+day(3)) || !strings.Contains(out, "kept, in use or not all of it delivered: "+day(2)) || !strings.Contains(out, "made: ") {
		t.Errorf("cleanup says %s", out)
	}
	if _, err := late.Exec(t.Context(), "COMMIT; BEGIN; SELECT count(*) FROM "+day(2)); err != nil {
		t.Fatal(err)
	}
	if out := s.must("cleanup", "--retention", "24h"); !strings.Contains(out, "kept, in use") { // somebody reads it
		t.Errorf("cleanup says %s", out)
	}
	if _, err := late.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	s.must("cleanup", "--retention", "24h")
	if has := s.query(partitions); has != strings.Replace(ahead, day(0), day(1)+" "+day(0), 1) {
		t.Errorf("left are %s, init made %s", has, ahead)
	}
	s.insert(10)
	s.confirmed(20 * time.Second)
	if n := len(cdctest.ReadAll(t, s.brokers, s.topic)); n != 10+5+20+20+30+1+10 {
		t.Errorf("%d records, want 96", n)
	}
	if log := r.log.String(); strings.Contains(log, `"halted"`) || strings.Contains(log, `"session ended`) {
		t.Errorf("the relay was disturbed:\n%s", log)
	}
}

// TestPartitionsBySchedule: the relay's own role is told whom it needs, and the owner in cleanup.url does it.
func TestPartitionsBySchedule(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.env["WALPOST_CLEANUP_EVERY"], s.env["WALPOST_CLEANUP_RETENTION"] = "1s", "24h"
	s.must("init", "--partition-by-day")
	s.exec("CREATE TABLE outbox_20200101 PARTITION OF outbox FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')")
	r := s.start()
	r.says(20*time.Second, "name the owner in cleanup.url")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.env["WALPOST_CLEANUP_URL"] = s.admin
	r = s.start()
	r.says(30*time.Second, `"dropped":["outbox_20200101"]`)
	if strings.Contains(r.log.String(), `"halted"`) {
		t.Error("the relay halted")
	}
}

// TestInsertAndDeleteInOneTransaction: the event arrives, the table is empty.
func TestInsertAndDeleteInOneTransaction(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.must("init")
	s.start()
	s.exec(`CREATE PROCEDURE pass(id uuid, type text) LANGUAGE sql AS $$
		INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (id, 'order', '42', type, '{}');
		DELETE FROM outbox o WHERE o.id = pass.id $$`)
	s.exec("BEGIN; CALL pass(gen_random_uuid(), 'OrderCreated'); CALL pass(gen_random_uuid(), 'OrderPaid'); COMMIT")
	s.exec("CALL pass(gen_random_uuid(), 'OrderShipped')")
	if s.rows() != "0" {
		t.Errorf("%s rows are left", s.rows())
	}
	s.confirmed(20 * time.Second)
	var types []string
	for _, rec := range cdctest.ReadAll(t, s.brokers, s.topic) {
		types = append(types, header(rec, "type"))
	}
	if got := strings.Join(types, " "); got != "OrderCreated OrderPaid OrderShipped" {
		t.Errorf("published %q", got)
	}
}
