package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// rowsPast is fault 61: rows of the outbox that are never in the stream as its inserts.
func rowsPast(s *scene) {
	const child = `CREATE TABLE outbox_c () INHERITS (outbox)`
	const trigger = `CREATE FUNCTION to_child() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO outbox_old SELECT NEW.*; RETURN NULL; END $$;
		CREATE TRIGGER redirect BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION to_child()`
	exec := func(sql string) func(*scene) { return func(s *scene) { s.exec(sql) } }
	s.halting(set{},
		broken{"a child", exec(child), []string{"tables that inherit from it (public.outbox_c)"}},
		broken{"a rule", exec(`CREATE RULE away AS ON INSERT TO outbox DO INSTEAD NOTHING`), []string{"rules on public.outbox"}},
		broken{"a trigger", exec(`CREATE TABLE outbox_old (LIKE outbox); ` + trigger), []string{"sends rows elsewhere"}})

	// It comes while the relay streams, and the publication is changed while that is fixed.
	s.build(set{quiet: true, env: map[string]string{"WALPOST_SOURCE_CHECK_INTERVAL": "100ms"}})
	r := s.start()
	r.says(30*time.Second, `"streaming"`)
	s.insert(5)
	s.confirmed(20 * time.Second)
	s.exec(child + `; INSERT INTO outbox_c SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}' FROM generate_series(1, 3)`)
	s.halts(r, "outbox_c", "may never have been streamed")
	s.exec(`ALTER PUBLICATION walpost SET (publish = 'update')`)
	s.insert(2)
	s.stage.refuses("outbox_c", "adopt")
	s.exec(`ALTER TABLE outbox_c NO INHERIT outbox; INSERT INTO outbox SELECT * FROM outbox_c`)
	s.stage.refuses("does not publish inserts", "adopt")
	s.exec(`ALTER PUBLICATION walpost SET (publish = 'insert')`)
	s.allThere(s.must("adopt"))
	if err := r.stop(); err != nil {
		s.t.Fatal(err)
	}

	// What hid rows is gone before anybody decides, and left no trace in the catalog.
	s.exec(`DROP TABLE outbox_c`)
	s.oneRelay(1)
	s.exec(child + `; INSERT INTO outbox_c SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}'`)
	r = s.start()
	s.halts(r, "outbox_c")
	s.exec(`INSERT INTO outbox_c SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}'; ALTER TABLE outbox_c NO INHERIT outbox; INSERT INTO outbox SELECT * FROM outbox_c`)
	s.allThere(s.must("adopt"))
}

var printedReplay = regexp.MustCompile("`walpost (replay --from [^ ]+ --to [^`]+)`")

// allThere runs the replay that was printed, and wants every row of the table in the topic once the relay has gone on.
func (s *stage) allThere(adopted string) {
	s.t.Helper()
	m := printedReplay.FindStringSubmatch(adopted)
	if m == nil {
		s.t.Fatalf("adopt names no replay:\n%s", adopted)
	}
	s.must(strings.Fields(m[1])...)
	r := s.start()
	s.confirmed(30 * time.Second)
	if err := r.stop(); err != nil {
		s.t.Fatal(err)
	}
	want := strings.Split(s.query(`SELECT string_agg(id::text, ' ' ORDER BY id) FROM outbox`), " ")
	got := s.ids()
	slices.Sort(got)
	if got := slices.Compact(got); !slices.Equal(got, want) {
		s.t.Errorf("%d events are in Kafka, %d rows in the table", len(got), len(want))
	}
}

// movedRows is fault 62: an UPDATE that moves a row to another partition, which the WAL shows as another insert.
func movedRows(s *scene) {
	s.halting(set{init: []string{"--partition-by-day"}},
		broken{"a partition by status", func(s *scene) {
			s.exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_pkey, ADD COLUMN status text DEFAULT 'NEW'`)
			s.exec(`ALTER TABLE outbox DETACH PARTITION outbox_default; CREATE TABLE outbox_more PARTITION OF outbox DEFAULT PARTITION BY LIST (status);
				CREATE TABLE outbox_new PARTITION OF outbox_more FOR VALUES IN ('NEW'); CREATE TABLE outbox_sent PARTITION OF outbox_more DEFAULT`)
		}, []string{"outbox_more is partitioned by status"}},
		broken{"an unlogged partition", func(s *scene) {
			s.exec(`DROP TABLE outbox_default; CREATE UNLOGGED TABLE outbox_fast PARTITION OF outbox DEFAULT`)
		}, []string{"unlogged, temporary or foreign (public.outbox_fast)"}})

	// It is not latched: without the key all goes on.
	s.build(set{quiet: true, init: []string{"--partition-by-day"}, env: map[string]string{"WALPOST_SOURCE_CHECK_INTERVAL": "100ms"}})
	s.oneRelay(5)
	s.exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_pkey, ADD COLUMN status text DEFAULT 'NEW'; DROP TABLE outbox_default; CREATE TABLE outbox_default PARTITION OF outbox DEFAULT PARTITION BY LIST (status)`)
	r := s.start()
	s.halts(r, "partitioned by status")
	s.exec(`DROP TABLE outbox_default`)
	if err := r.stop(); err != nil {
		s.t.Fatal(err)
	}
	s.oneRelay(5)
	s.exec(`UPDATE outbox SET status = 'SENT'`)
	s.oneRelay(1)
	if ids := s.ids(); len(ids) != 11 {
		s.t.Errorf("%d events, want 11", len(ids))
	}
}

// TestInitSaysWhatHidesRows and what is sent for nothing, and refuses the first before it makes anything.
func TestInitSaysWhatHidesRows(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	const ddl = `CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, published_at timestamptz, created_at timestamptz)`
	for says, sql := range map[string]string{
		"inherit from it":                    ddl + `; CREATE TABLE outbox_2026 () INHERITS (outbox)`,
		"is partitioned by published_at":     ddl + ` PARTITION BY LIST (published_at)`,
		"unlogged, temporary or foreign":     ddl + ` PARTITION BY RANGE (created_at); CREATE UNLOGGED TABLE p PARTITION OF outbox DEFAULT`,
		"put something else in the place of": ddl + `; CREATE RULE r AS ON INSERT TO outbox DO INSTEAD NOTHING`,
	} {
		s.exec(sql)
		s.refuses(says, "init")
		if n := s.query(`SELECT count(*)::text FROM pg_publication`); n != "0" {
			t.Errorf("%s: init made a publication", says)
		}
		s.exec(`DROP TABLE outbox CASCADE`)
	}
	s.exec(`CREATE PUBLICATION walpost FOR ALL TABLES; CREATE TABLE other (id int PRIMARY KEY)`)
	out := s.must("init") // E3: the table is not there yet
	for _, want := range []string{"table public.outbox: create it", "publication walpost carries all tables", "`CREATE PUBLICATION \"" + slot(s) + "_outbox\" FOR TABLE \"public\".\"outbox\" WITH (publish = 'insert')`"} {
		if !strings.Contains(out, want) {
			t.Errorf("init does not say %q:\n%s", want, out)
		}
	}
	s.oneOf()
	if status := s.must("status"); !strings.Contains(status, "note       publication walpost carries all tables") || !strings.Contains(status, "blocked    by nothing") {
		t.Errorf("status:\n%s", status)
	}
	other := newStage(t)
	other.exec(`CREATE PUBLICATION walpost FOR ALL TABLES WITH (publish = 'delete')`)
	other.refuses("does not publish inserts", "init")
	other.refuses("publish_via_partition_root", "init", "--partition-by-day")
	other.exec(`DROP PUBLICATION walpost`)
	other.exec(`CREATE TABLE other (id int PRIMARY KEY); CREATE PUBLICATION walpost FOR TABLE other`)
	if out := other.must("init"); !strings.Contains(out, "add public.outbox to it") || !strings.Contains(out, "publication walpost carries other tables (other)") {
		t.Errorf("init:\n%s", out)
	}
	other.oneOf()
}

// oneOf has a relay publish a row.
func (s *stage) oneOf() {
	s.t.Helper()
	s.start()
	s.insert(1)
	cdctest.Consume(s.t, s.brokers, s.topic, 20*time.Second, cdctest.AtLeast(1))
}
