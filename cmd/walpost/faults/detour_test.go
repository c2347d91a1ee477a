package faults

import (
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// rowsPast runs fault 61: rows of the outbox that the stream never has as the outbox's inserts.
func rowsPast(s *trial) {
	const child = `CREATE TABLE outbox_c () INHERITS (outbox)`
	const trigger = `CREATE FUNCTION to_child() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO outbox_old SELECT NEW.*; RETURN NULL; END $$;
		CREATE TRIGGER redirect BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION to_child()`
	exec := func(sql string) func(*trial) { return func(s *trial) { s.Exec(sql) } }
	s.wantHaltAfterEach(setup{},
		breakage{"a child", exec(child), []string{"tables that inherit from it (public.outbox_c)"}},
		breakage{"a rule", exec(`CREATE RULE away AS ON INSERT TO outbox DO INSTEAD NOTHING`), []string{"rules on public.outbox"}},
		breakage{"a trigger", exec(`CREATE TABLE outbox_old (LIKE outbox); ` + trigger), []string{"sends rows to another table"}})

	// The detour comes while the relay streams, and the publication is changed while the detour is fixed.
	s.prepare(setup{quiet: true, env: map[string]string{"WALPOST_SOURCE_CHECK_INTERVAL": "100ms"}})
	r := s.StartRelay()
	r.WaitForLog(time.Minute, `"streaming"`)
	s.InsertRows(5)
	s.WaitUntilConfirmed(20 * time.Second)
	s.Exec(child + `; INSERT INTO outbox_c SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}' FROM generate_series(1, 3)`)
	s.waitUntilHalted(r, "outbox_c", "may never have been streamed")
	s.Exec(`ALTER PUBLICATION walpost SET (publish = 'update')`)
	s.InsertRows(2)
	s.MustRefuse("outbox_c", "adopt")
	s.Exec(`ALTER TABLE outbox_c NO INHERIT outbox; INSERT INTO outbox SELECT * FROM outbox_c`)
	s.MustRefuse("does not publish inserts", "adopt")
	s.Exec(`ALTER PUBLICATION walpost SET (publish = 'insert')`)
	s.replayAsPrinted(s.MustRun("adopt"))
	if err := r.Stop(); err != nil {
		s.t.Fatal(err)
	}

	// The detour is gone before the operator decides, and left no trace in the catalog.
	s.Exec(`DROP TABLE outbox_c`)
	s.deliverWithOneRelay(1)
	s.Exec(child + `; INSERT INTO outbox_c SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}'`)
	r = s.StartRelay()
	s.waitUntilHalted(r, "outbox_c")
	s.Exec(`INSERT INTO outbox_c SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}'; ALTER TABLE outbox_c NO INHERIT outbox; INSERT INTO outbox SELECT * FROM outbox_c`)
	s.replayAsPrinted(s.MustRun("adopt"))
}

// replayAsPrinted runs the printed replay, and requires every row of the table in the topic once the relay has
// resumed.
func (s *trial) replayAsPrinted(adopted string) {
	s.T.Helper()
	m := e2e.PrintedReplay.FindStringSubmatch(adopted)
	if m == nil {
		s.T.Fatalf("adopt names no replay:\n%s", adopted)
	}
	s.MustRun(strings.Fields(m[1])...)
	r := s.StartRelay()
	s.WaitUntilConfirmed(30 * time.Second)
	if err := r.Stop(); err != nil {
		s.T.Fatal(err)
	}
	want := strings.Split(s.Query(`SELECT string_agg(id::text, ' ' ORDER BY id) FROM outbox`), " ")
	got := s.EventIDs()
	slices.Sort(got)
	if got := slices.Compact(got); !slices.Equal(got, want) {
		s.T.Errorf("%d events are in Kafka, %d rows in the table", len(got), len(want))
	}
}

// movedRows runs fault 62: an UPDATE that moves a row to another partition, which the WAL shows as another insert.
func movedRows(s *trial) {
	s.wantHaltAfterEach(setup{init: []string{"--partition-by-day"}},
		breakage{"a partition by status", func(s *trial) {
			s.Exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_pkey, ADD COLUMN status text DEFAULT 'NEW'`)
			s.Exec(`ALTER TABLE outbox DETACH PARTITION outbox_default; CREATE TABLE outbox_more PARTITION OF outbox DEFAULT PARTITION BY LIST (status);
				CREATE TABLE outbox_new PARTITION OF outbox_more FOR VALUES IN ('NEW'); CREATE TABLE outbox_sent PARTITION OF outbox_more DEFAULT`)
		}, []string{"outbox_more is partitioned by status"}},
		breakage{"an unlogged partition", func(s *trial) {
			s.Exec(`DROP TABLE outbox_default; CREATE UNLOGGED TABLE outbox_fast PARTITION OF outbox DEFAULT`)
		}, []string{"unlogged, temporary or foreign (public.outbox_fast)"}})

	// The halt is not latched: without the key the relay resumes.
	s.prepare(setup{quiet: true, init: []string{"--partition-by-day"}, env: map[string]string{"WALPOST_SOURCE_CHECK_INTERVAL": "100ms"}})
	s.deliverWithOneRelay(5)
	s.Exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_pkey, ADD COLUMN status text DEFAULT 'NEW'; DROP TABLE outbox_default; CREATE TABLE outbox_default PARTITION OF outbox DEFAULT PARTITION BY LIST (status)`)
	r := s.StartRelay()
	s.waitUntilHalted(r, "partitioned by status")
	s.Exec(`DROP TABLE outbox_default`)
	if err := r.Stop(); err != nil {
		s.t.Fatal(err)
	}
	s.deliverWithOneRelay(5)
	s.Exec(`UPDATE outbox SET status = 'SENT'`)
	s.deliverWithOneRelay(1)
	if ids := s.EventIDs(); len(ids) != 11 {
		s.t.Errorf("%d events, want 11", len(ids))
	}
}
