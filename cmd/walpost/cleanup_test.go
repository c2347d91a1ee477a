package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// insertOldRows inserts n rows with a created_at two hours ago.
func (s *testbed) insertOldRows(n int) {
	s.T.Helper()
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
		SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', jsonb_build_object('n', i), now() - interval '2 hours' FROM generate_series(1, $1::int) i`, n)
}

// TestCleanupDeletesWhatIsConfirmedAndOld and nothing else: neither what is young, nor what was committed by a
// transaction that is still open when it begins, nor anything on a dry run.
func TestCleanupDeletesWhatIsConfirmedAndOld(t *testing.T) {
	t.Parallel()
	s, _ := newTestbedOnOwnServer(t) // other tests' open transactions would be in the way
	s.MustRun("init")
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"streaming"`) // a slot that nobody reads is not waited for
	s.insertOldRows(3000)
	s.InsertRows(5)
	late := s.Connect()
	defer func() { _ = late.Close(t.Context()) }()
	for _, sql := range []string{"BEGIN", "SAVEPOINT s", `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
		VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}', now() - interval '1 day')`, "RELEASE s"} {
		if _, err := late.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if out := s.MustRun("cleanup", "--retention", "1h", "--dry-run"); !strings.Contains(out, "3000 rows older than 1h0m0s would be deleted") || s.CountRows() != "3005" {
		t.Errorf("dry run, and %s rows are left: %s", s.CountRows(), out)
	}
	// What a transaction writes that began behind the oldest one still open is not known to be confirmed.
	s.insertOldRows(7)
	if out := s.MustRun("cleanup", "--retention", "1h"); !strings.Contains(out, " 3000 rows") || s.CountRows() != "12" {
		t.Errorf("with an open transaction, and %s rows are left: %s", s.CountRows(), out)
	}
	if _, err := late.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if out := s.MustRun("cleanup", "--retention", "1h"); !strings.Contains(out, " 8 rows") {
		t.Errorf("when it has ended: %s", out)
	}
	if s.CountRows() != "5" {
		t.Errorf("%s rows are left, want the 5 young ones", s.CountRows())
	}
	s.InsertRows(2)
	s.WaitUntilConfirmed(20 * time.Second)
	if n := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); n != 3000+5+1+7+2 {
		t.Errorf("%d records: rows were lost, or deletes published", n)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
}

// TestCleanupRefuses wherever rows of the table may still be needed.
func TestCleanupRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*testbed)
		says   []string
	}{
		"the relay is behind": {func(s *testbed) {
			s.insertOldRows(5)
		}, []string{"nothing was deleted", "the relay lags, perhaps by more than the retention of 1h0m0s", "walpost status"}},
		"another relay is behind": {func(s *testbed) {
			s.Exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", s.Slot()+"_other")
			s.InsertRows(5)
			s.StartRelay().WaitForLog(20*time.Second, `"streaming"`)
		}, []string{"another relay's slot", "_other", "drop the slot"}},
		"no slot": {func(s *testbed) {
			s.Exec("SELECT pg_drop_replication_slot($1)", s.Slot())
		}, []string{"nothing was deleted", "does not exist"}},
		"a gap to be replayed": {func(s *testbed) {
			s.Exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.Slot())
		}, []string{"nothing was deleted", "a replay may need rows of the table", "re-created or advanced"}},
		"no state record": {func(s *testbed) { s.Env["WALPOST_PIPELINE"] += "-b" }, []string{"no state record"}},
		"a latched halt": {func(s *testbed) {
			s.RewriteStateRecord(func(st *cdc.State) {
				st.Halt = &cdc.HaltRecord{Found: "rows may be missing", Latched: true}
			})
		}, []string{"nothing was deleted", "rows may be missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			s.MustRun("init")
			s.insertOldRows(20)
			c.change(s)
			s.CleanupMustRefuse(c.says...)
		})
	}
}

// TestPolledPartitionsAreCleanedUp: a day of which every row is sent or dropped goes whole, one with a failed row
// stays, and those of the days to come are made.
func TestPolledPartitionsAreCleanedUp(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.Exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, headers jsonb, created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
		transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(), position bigint GENERATED ALWAYS AS IDENTITY) PARTITION BY RANGE (created_at)`)
	s.MustRun("init")
	today := time.Now().UTC().Truncate(24 * time.Hour)
	for _, ago := range []int{3, 2, 0} {
		day := today.AddDate(0, 0, -ago)
		s.Exec(fmt.Sprintf("CREATE TABLE outbox_%d PARTITION OF outbox FOR VALUES FROM ('%s+00') TO ('%s+00')", ago, day.Format(time.DateTime), day.AddDate(0, 0, 1).Format(time.DateTime)))
	}
	at := func(day int) {
		t.Helper()
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}', $1)`, today.AddDate(0, 0, day).Add(time.Hour))
	}
	at(-3)
	at(-2)
	s.Exec(strings.Replace(strings.Replace(e2e.RefusedRow("held", "Refused"), "headers)", "headers, created_at)", 1), "FROM generate_series(1, 1100) i))", "FROM generate_series(1, 1100) i), $1)", 1), today.AddDate(0, 0, -2).Add(time.Hour))
	at(0)
	r := s.StartRelay()
	s.WaitUntilPolled()
	out := s.MustRun("cleanup", "--retention", "1h")
	for _, want := range []string{"partitions dropped: outbox_3", "undelivered rows: outbox_2", "partitions created: public.outbox_" + today.AddDate(0, 0, 1).Format("20060102")} {
		if !strings.Contains(out, want) {
			t.Errorf("cleanup does not say %q: %s", want, out)
		}
	}
	at(1)
	s.WaitUntilPolled()
	if n := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); n != 4 {
		t.Errorf("%d records, want 4", n)
	}
	if n := s.Query("SELECT count(*)::text FROM outbox WHERE status = 'FAILED'"); n != "1" {
		t.Errorf("%s failed rows are left", n)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
}

// TestCleanupOfAPolledTable takes what was sent or dropped, and is old. What is pending or failed stays, also
// when it is old.
func TestCleanupOfAPolledTable(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.MustRun("init")
	r := s.StartRelay()
	s.InsertRows(20)
	s.Exec(e2e.RefusedRow("held", "Refused"))
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'held', 'Waits', '{}')`)
	stands := func(want string) {
		t.Helper()
		cdctest.Eventually(t, 20*time.Second, func() error {
			if is := s.Query(`SELECT coalesce(string_agg(status || ' ' || n, ', ' ORDER BY status), '') FROM (SELECT status, count(*) n FROM outbox GROUP BY status) s`); is != want {
				return fmt.Errorf("the table holds %s, want %s", is, want)
			}
			return nil
		})
	}
	stands("FAILED 1, PENDING 1, SENT 20")
	s.Exec(`UPDATE outbox SET processed_at = now() - interval '2 hours'`)
	s.InsertRows(3)
	stands("FAILED 1, PENDING 1, SENT 23")
	if out := s.MustRun("cleanup", "--retention", "1h", "--dry-run"); !strings.Contains(out, " 20 rows older than 1h0m0s would be deleted") {
		t.Errorf("dry run: %s", out)
	}
	if out := s.MustRun("cleanup", "--retention", "1h"); !strings.Contains(out, " 20 rows older than 1h0m0s deleted") {
		t.Errorf("cleanup: %s", out)
	}
	stands("FAILED 1, PENDING 1, SENT 3")
	s.MustRun("dlq", "drop", "--all", "--yes")
	stands("DROPPED 1, SENT 4")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}

	s.Env["WALPOST_CLEANUP_EVERY"], s.Env["WALPOST_CLEANUP_RETENTION"] = "1s", "0s"
	r = s.StartRelay()
	r.WaitForMetric("walpost_cleanup_rows_total", "5")
	stands("")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
}

// TestCleanupReachesEveryRow of a polled table that is divided: children by inheritance, partitions of no
// time, partitions of partitions. It refuses while one of them hides rows from who cleans up.
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
			s := newPolledTestbed(t)
			s.Exec(c[0])
			s.MustRun("init")
			s.Exec(c[1])
			s.StartRelay()
			s.InsertRows(20)
			s.WaitUntilPolled()
			if name == "partitions of a day" { // is over
				s.Exec(`ALTER TABLE outbox DETACH PARTITION c1; UPDATE c1 SET created_at = '2020-01-01'; ALTER TABLE outbox ATTACH PARTITION c1 FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')`)
			}
			_, url := s.createLogin("cleaner", "GRANT SELECT, DELETE ON outbox, c1, c2 TO ROLE")
			s.Exec("ALTER TABLE c2 ENABLE ROW LEVEL SECURITY")
			s.MustRefuse("does not see all rows of public.c2", "cleanup", "--retention", "0s", "--admin-url", url)
			s.Exec(`UPDATE outbox SET status = 'FAILED' WHERE id = (SELECT id FROM outbox LIMIT 1)`)
			s.MustRun("cleanup", "--retention", "0s")
			if n := s.Query(`SELECT count(*)::text FROM outbox WHERE status = 'FAILED'`); n != "1" {
				t.Errorf("%s failed rows are left, want 1", n)
			}
			s.Exec(`UPDATE outbox SET status = 'SENT'`)
			out := s.MustRun("cleanup", "--retention", "0s")
			if n := s.CountRows(); n != "0" || !strings.Contains(out, " 1 rows") && !strings.Contains(out, "dropped: c1") {
				t.Errorf("%s rows are left:\n%s", n, out)
			}
		})
	}
}

// TestCleanupBySchedule has the relay do it, with its own role, which may see nothing of the rows.
func TestCleanupBySchedule(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_CLEANUP_EVERY"], s.Env["WALPOST_CLEANUP_RETENTION"] = "1s", "1h"
	s.MustRun("init")
	role := "relay_" + s.Slot()
	if may := s.Query(`SELECT concat_ws(' ', has_table_privilege($1, 'outbox', 'DELETE'), has_table_privilege($1, 'outbox', 'SELECT'), has_table_privilege($1, 'outbox', 'INSERT, UPDATE'),
		has_column_privilege($1, 'outbox', 'payload', 'SELECT'))`, role); may != "t f f f" {
		t.Errorf("DELETE, SELECT, INSERT or UPDATE, SELECT (payload): %s", may)
	}
	r := s.StartRelay()
	s.insertOldRows(20)
	s.InsertRows(3)
	cdctest.Eventually(t, 30*time.Second, func() error {
		if n := s.CountRows(); n != "3" {
			return fmt.Errorf("%s rows are left", n)
		}
		return nil
	})
	r.WaitForLog(15*time.Second, `"rows":20`)
	s.WaitUntilConfirmed(20 * time.Second)
	if n := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); n != 23 {
		t.Errorf("%d records, want 23", n)
	}
	r.WaitForMetric("walpost_cleanup_rows_total", "20")
	r.WaitForMetric("walpost_cleanup_refused", "0")
	s.Exec("REVOKE DELETE ON outbox FROM " + role)
	s.insertOldRows(1)
	r.WaitForLog(20*time.Second, "walpost init")
	r.WaitForMetric("walpost_cleanup_refused", "1")
	s.Exec("GRANT DELETE ON outbox TO " + role)
	r.WaitForMetric("walpost_cleanup_rows_total", "21")
	r.WaitForMetric("walpost_cleanup_refused", "0")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.MustRun("init", "--remove", "--yes")
}

// TestPartitionsByDay are made by init and by cleanup, published through their root, and dropped whole: not while a row
// in one is not confirmed, nor while one is in use. The relay notices nothing.
func TestPartitionsByDay(t *testing.T) {
	t.Parallel()
	s, _ := newTestbedOnOwnServer(t) // other tests' open transactions would be in the way
	if out := s.MustRun("init", "--partition-by-day", "--dry-run"); !strings.Contains(out, "PARTITION BY RANGE") || !strings.Contains(out, "publish_via_partition_root") {
		t.Errorf("dry run: %s", out)
	}
	s.MustRun("init", "--partition-by-day")
	s.MustRun("init", "--partition-by-day")
	const partitions = "SELECT string_agg(c.relname, ' ' ORDER BY c.relname) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'outbox'::regclass"
	ahead := s.Query(partitions)
	today := time.Now().UTC()
	if n := strings.Count(ahead, "outbox_2"); n != 8 || !strings.Contains(ahead, "outbox_default") || !strings.Contains(ahead, today.AddDate(0, 0, 7).Format("20060102")) {
		t.Fatalf("init made %s", ahead)
	}
	day := func(back int) string { return today.AddDate(0, 0, -back).Format("outbox_20060102") }
	for back := 3; back > 0; back-- {
		s.Exec(fmt.Sprintf("CREATE TABLE %s PARTITION OF outbox FOR VALUES FROM ('%s 00:00+00') TO ('%s 00:00+00')", day(back),
			today.AddDate(0, 0, -back).Format(time.DateOnly), today.AddDate(0, 0, 1-back).Format(time.DateOnly)))
	}
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"streaming"`)
	s.InsertRows(10)
	old := func(n, back int) {
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
			SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', '{}', $2::text::timestamptz FROM generate_series(1, $1::int) i`, n, today.AddDate(0, 0, -back).Format(time.DateOnly)+" 00:00+00")
	}
	old(5, 1)
	old(20, 2)
	old(20, 3)
	old(30, 9) // no partition was made for that day
	s.Exec("DROP TABLE " + time.Now().UTC().AddDate(0, 0, 6).Format("outbox_20060102"))

	// A row of a transaction that is open when the cleanup begins keeps its partition.
	late := s.Connect()
	defer func() { _ = late.Close(t.Context()) }()
	if _, err := late.Exec(t.Context(), "BEGIN; SELECT pg_current_xact_id()"); err != nil {
		t.Fatal(err)
	}
	old(1, 2)
	out := s.MustRun("cleanup", "--retention", "24h")
	if has := s.Query(partitions); strings.Contains(has, day(3)) || !strings.Contains(has, day(2)) || !strings.Contains(has, day(1)) {
		t.Errorf("left are %s; want all but %s:\n%s", has, day(3), out)
	}
	if !strings.Contains(out, "30 rows") || !strings.Contains(out, "dropped: "+day(3)) || !strings.Contains(out, "kept, because they are in use or hold undelivered rows: "+day(2)) || !strings.Contains(out, "created: ") {
		t.Errorf("cleanup says %s", out)
	}
	if _, err := late.Exec(t.Context(), "COMMIT; BEGIN; SELECT count(*) FROM "+day(2)); err != nil {
		t.Fatal(err)
	}
	if out := s.MustRun("cleanup", "--retention", "24h"); !strings.Contains(out, "kept, because they are in use") { // somebody reads it
		t.Errorf("cleanup says %s", out)
	}
	if _, err := late.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	s.MustRun("cleanup", "--retention", "24h")
	if has := s.Query(partitions); has != strings.Replace(ahead, day(0), day(1)+" "+day(0), 1) {
		t.Errorf("left are %s, init made %s", has, ahead)
	}
	s.InsertRows(10)
	s.WaitUntilConfirmed(20 * time.Second)
	if n := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); n != 10+5+20+20+30+1+10 {
		t.Errorf("%d records, want 96", n)
	}
	if log := r.Log.String(); strings.Contains(log, `"halted"`) || strings.Contains(log, `"session ended`) {
		t.Errorf("the relay was disturbed:\n%s", log)
	}
}

// TestPartitionsBySchedule: the relay's own role is told whom it needs, and the owner in cleanup.url does it.
func TestPartitionsBySchedule(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_CLEANUP_EVERY"], s.Env["WALPOST_CLEANUP_RETENTION"] = "1s", "24h"
	s.MustRun("init", "--partition-by-day")
	s.Exec("CREATE TABLE outbox_20200101 PARTITION OF outbox FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')")
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, "name the owner in cleanup.url")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Env["WALPOST_CLEANUP_URL"] = s.AdminURL
	r = s.StartRelay()
	r.WaitForLog(30*time.Second, `"dropped":["outbox_20200101"]`)
	if strings.Contains(r.Log.String(), `"halted"`) {
		t.Error("the relay halted")
	}
}

// TestInsertAndDeleteInOneTransaction: the event arrives, the table is empty.
func TestInsertAndDeleteInOneTransaction(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	s.StartRelay()
	s.Exec(`CREATE PROCEDURE pass(id uuid, type text) LANGUAGE sql AS $$
		INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (id, 'order', '42', type, '{}');
		DELETE FROM outbox o WHERE o.id = pass.id $$`)
	s.Exec("BEGIN; CALL pass(gen_random_uuid(), 'OrderCreated'); CALL pass(gen_random_uuid(), 'OrderPaid'); COMMIT")
	s.Exec("CALL pass(gen_random_uuid(), 'OrderShipped')")
	if s.CountRows() != "0" {
		t.Errorf("%s rows are left", s.CountRows())
	}
	s.WaitUntilConfirmed(20 * time.Second)
	var types []string
	for _, rec := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		types = append(types, e2e.Header(rec, "type"))
	}
	if got := strings.Join(types, " "); got != "OrderCreated OrderPaid OrderShipped" {
		t.Errorf("published %q", got)
	}
}
