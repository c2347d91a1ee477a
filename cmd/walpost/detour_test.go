package main

import (
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// TestInitSaysWhatHidesRows: init refuses a publication that hides rows, before it creates anything, and reports one
// that sends rows of other tables.
func TestInitSaysWhatHidesRows(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	const ddl = `CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, published_at timestamptz, created_at timestamptz)`
	for says, sql := range map[string]string{
		"inherit from it":                     ddl + `; CREATE TABLE outbox_2026 () INHERITS (outbox)`,
		"is partitioned by published_at":      ddl + ` PARTITION BY LIST (published_at)`,
		"unlogged, temporary or foreign":      ddl + ` PARTITION BY RANGE (created_at); CREATE UNLOGGED TABLE p PARTITION OF outbox DEFAULT`,
		"replace an INSERT by something else": ddl + `; CREATE RULE r AS ON INSERT TO outbox DO INSTEAD NOTHING`,
	} {
		s.Exec(sql)
		s.MustRefuse(says, "init")
		if n := s.Query(`SELECT count(*)::text FROM pg_publication`); n != "0" {
			t.Errorf("%s: init made a publication", says)
		}
		s.Exec(`DROP TABLE outbox CASCADE`)
	}
	s.Exec(`CREATE PUBLICATION walpost FOR ALL TABLES; CREATE TABLE other (id int PRIMARY KEY)`)
	out := s.MustRun("init") // E3: the table is not there yet
	for _, want := range []string{"table public.outbox: create it", "publication walpost carries all tables", "`CREATE PUBLICATION \"" + s.Slot() + "_outbox\" FOR TABLE \"public\".\"outbox\" WITH (publish = 'insert')`"} {
		if !strings.Contains(out, want) {
			t.Errorf("init does not say %q:\n%s", want, out)
		}
	}
	s.publishOneRow()
	if status := s.Status(); !strings.Contains(status, "note       publication walpost carries all tables") || !strings.Contains(status, "blocked    by nothing") {
		t.Errorf("status:\n%s", status)
	}
	other := newTestbed(t)
	other.Exec(`CREATE PUBLICATION walpost FOR ALL TABLES WITH (publish = 'delete')`)
	other.MustRefuse("does not publish inserts", "init")
	other.MustRefuse("publish_via_partition_root", "init", "--partition-by-day")
	other.Exec(`DROP PUBLICATION walpost`)
	other.Exec(`CREATE TABLE other (id int PRIMARY KEY); CREATE PUBLICATION walpost FOR TABLE other`)
	if out := other.MustRun("init"); !strings.Contains(out, "add public.outbox to it") || !strings.Contains(out, "publication walpost carries other tables (other)") {
		t.Errorf("init:\n%s", out)
	}
	other.publishOneRow()
}

// publishOneRow runs a relay that publishes a row.
func (s *testbed) publishOneRow() {
	s.T.Helper()
	s.StartRelay()
	s.InsertRows(1)
	cdctest.Consume(s.T, s.Brokers, s.Topic, 20*time.Second, cdctest.AtLeast(1))
}
