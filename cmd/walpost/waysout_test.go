package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

func (s *testbed) deleteTopic(name string) {
	s.T.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...))
	if err != nil {
		s.T.Fatal(err)
	}
	defer client.Close()
	if resp, err := kadm.NewClient(client).DeleteTopic(s.T.Context(), name); err != nil || resp.Err != nil {
		s.T.Fatal(err, resp.Err)
	}
}

// DryRun runs a command with --dry-run and checks that it changed nothing.
func (s *testbed) DryRun(args ...string) string {
	s.T.Helper()
	before := s.positions()
	out := s.MustRun(append(args, "--dry-run")...)
	if after := s.positions(); after != before {
		s.T.Errorf("walpost %s --dry-run changed\n%s\nto\n%s", strings.Join(args, " "), before, after)
	}
	return out
}

func (s *testbed) positions() string {
	s.T.Helper()
	b, _ := json.Marshal(s.StateRecord())
	return fmt.Sprintf("%s\n%s", b, s.Query(`SELECT coalesce((SELECT slot_name || confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1), 'no slot')`, s.Slot()))
}

// TestWedgeIsSteppedOver has rows that PostgreSQL itself cannot decode for us: bytes that are no UTF-8, in a database
// that does not look. The relay publishes what stands before them, names the way past, and nothing else is lost on it.
func TestWedgeIsSteppedOver(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	s := newTestbedOn(t, cdctest.Database(t, "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"), cdctest.Kafka(t))
	s.MustRun("init")
	s.Exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_payload_object, DROP CONSTRAINT outbox_payload_size, ALTER COLUMN payload TYPE text`)
	r := s.StartRelay()
	before := s.InsertRow()
	s.WaitForEvent(before)
	s.WaitUntilConfirmed(20 * time.Second)
	// One transaction: a row that can be decoded, one that cannot, another that could.
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', CASE i WHEN 2 THEN chr(200) || 'secret' ELSE 'x' END FROM generate_series(1, 3) i`)
	behind := s.InsertRow()
	r.WaitForLog(20*time.Second, `"halted"`)
	r.WaitForLog(3*time.Second, "PostgreSQL cannot decode the change at")
	if log := r.Log.String(); strings.Contains(log, "secret") || strings.Contains(log, "0xc8") {
		t.Error("the log holds a row's content")
	}
	m := regexp.MustCompile("`walpost skip --to ([0-9A-F/]+)`").FindStringSubmatch(r.Log.String())
	if m == nil {
		t.Fatal("the halt names no skip")
	}
	if status := s.Status(); !strings.Contains(status, m[0]) {
		t.Errorf("status does not say it:\n%s", status)
	}
	if n := len(s.EventIDs()); n != 2 {
		t.Errorf("%d events published before the wedge, want 2", n)
	}
	if out := s.DryRun("skip", "--to", m[1]); !strings.Contains(out, "2 outbox rows of 1 transactions are given up for good") || !strings.Contains(out, "; 1 earlier rows of the first transaction were delivered") {
		t.Errorf("dry run:\n%s", out)
	}
	// Where the halt cannot name the transaction, it is found by trying.
	if out := s.DryRun("skip", "--to", "next"); !strings.Contains(out, ", "+m[1]+"]: the one transaction that PostgreSQL cannot decode") {
		t.Errorf("skip --to next finds another LSN than %s:\n%s", m[1], out)
	}
	s.MustRun("skip", "--to", m[1])
	if err := r.Stop(); err != nil { // it would go on within 30 s
		t.Fatal(err)
	}
	s.StartRelay()
	s.WaitForEvent(behind)
	if ids := s.EventIDs(); len(ids) != 3 || ids[0] != before || ids[2] != behind {
		t.Errorf("published %v, want %s, one, %s", ids, before, behind)
	}
	if status := s.Status(); !strings.Contains(status, "skip by") {
		t.Errorf("status lists no decision:\n%s", status)
	}
	s.WaitUntilConfirmed(20 * time.Second)
}

// TestRowTooLargeForUsIsSteppedOver: one that the relay will not read into memory.
func TestRowTooLargeForUsIsSteppedOver(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_SOURCE_MAX_ROW_BYTES"] = "1MiB"
	s.MustRun("init")
	s.Exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_payload_size`)
	r := s.StartRelay()
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', jsonb_build_object('t', repeat('x', 2000000)))`)
	behind := s.InsertRow()
	r.WaitForLog(20*time.Second, "source.max_row_bytes is 1MiB")
	m := regexp.MustCompile("`walpost skip --to ([0-9A-F/]+)`").FindStringSubmatch(r.Log.String())
	if m == nil {
		t.Fatalf("the halt names no skip: %s", r.Log)
	}
	if out := s.MustRun("skip", "--to", m[1]); !strings.Contains(out, "1 outbox rows of 1 transactions") {
		t.Errorf("skip does not say what it gives up:\n%s", out)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.StartRelay()
	s.WaitForEvent(behind)
	if ids := s.EventIDs(); len(ids) != 1 {
		t.Errorf("published %v, want only %s", ids, behind)
	}
}

// TestSkipRefusesToGuess: skip refuses each LSN with which it would not do what the operator expects.
func TestSkipRefusesToGuess(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	r := s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	end := func() string { return s.Query("SELECT pg_current_wal_flush_lsn()::text") }
	s.MustRefuse("stop the relay", "skip", "--to", end())
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.MustRefuse("is not an LSN", "skip", "--to", "16B3748")
	s.MustRefuse("is not an LSN", "skip", "--to", end()+"x")
	s.MustRefuse("is delivered, and 0/1 is before that", "skip", "--to", "0/1")
	s.MustRefuse("is delivered, and 0/0 is before that", "skip", "--to", "0/0") // which is no other word for next
	s.MustRefuse("after the end of the WAL", "skip", "--to", "FFFF/0")
	s.InsertRows(5)
	to := end()
	if out := s.DryRun("skip", "--to", to); !strings.Contains(out, "5 outbox rows of 1 transactions") {
		t.Errorf("dry run:\n%s", out)
	}
	s.MustRun("skip", "--to", to)
	s.MustRun("skip", "--to", to) // again does no harm
	if got := s.Query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); got != to || s.StateRecord().Covered.String() != to {
		t.Errorf("slot %s, state %s, want %s", got, s.StateRecord().Covered, to)
	}
	s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	if n := len(s.EventIDs()); n != 2 {
		t.Errorf("%d events, want the first and the last", n)
	}
}

// TestAdoptTakesASlotThatIsNotOurs: no state record, be it that there never was one or that its topic is gone.
func TestAdoptTakesASlotThatIsNotOurs(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	s.deleteTopic("walpost.state." + s.Name)
	id := s.InsertRow()
	s.MustRefuse("it is not known which of its rows were delivered", "init")
	if out, err := s.Run("adopt", "--dry-run"); err != nil || !strings.Contains(out, "without a state record") {
		t.Errorf("dry run: %v\n%s", err, out)
	}
	s.MustRun("adopt")
	s.StartRelay()
	s.WaitForEvent(id)
	if n := len(s.EventIDs()); n != 21 {
		t.Errorf("%d events, want 21", n)
	}
}

// TestAdoptRefuses what no decision fixes.
func TestAdoptRefuses(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	s.MustRefuse("nothing to adopt", "adopt")
	s.MustRefuse("exists and is not lost", "adopt", "--create-slot")
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"streaming"`)
	s.MustRefuse("stop the relay", "adopt")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Exec("SELECT pg_drop_replication_slot($1)", s.Slot())
	s.MustRefuse("--create-slot", "adopt")
	s.Exec("SELECT pg_create_logical_replication_slot($1, 'test_decoding')", s.Slot())
	s.MustRefuse("a logical slot of pgoutput is needed", "adopt")
}

// TestRefusedLeavesNothingBehind: what is refused has made neither slot nor role, publication or topic.
func TestRefusedLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	there := func(s *testbed) string {
		return s.Query(`SELECT concat((SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE database = current_database()), ' / ',
			(SELECT string_agg(pubname, ' ') FROM pg_publication), ' / ', (SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolname = $1))`, "relay_"+s.Slot())
	}
	for name, c := range map[string]struct {
		change func(*testbed)
		args   []string
		says   string
	}{
		"adopt on another server": {func(s *testbed) {
			s.RewriteStateRecord(func(st *cdc.State) { st.SystemID = "7" })
			s.Exec(dropSlot, s.Slot())
		}, []string{"adopt", "--create-slot"}, "system id"},
		"adopt after an init that was cut": {func(s *testbed) {
			s.RewriteStateRecord(func(st *cdc.State) { st.Phase = cdc.PhaseCreating })
			s.Exec(dropSlot, s.Slot())
		}, []string{"adopt", "--create-slot"}, "`walpost init` again"},
		"adopt of a table that hides rows": {func(s *testbed) { s.Exec("ALTER PUBLICATION walpost DROP TABLE outbox"); s.Exec(dropSlot, s.Slot()) }, []string{"adopt", "--create-slot"}, "does not carry"},
		"adopt of a slot that is not lost": {func(*testbed) {}, []string{"adopt", "--create-slot"}, "exists and is not lost"},
		"init on another server": {func(s *testbed) {
			s.RewriteStateRecord(func(st *cdc.State) { st.SystemID = "7" })
			s.Exec("DROP PUBLICATION walpost")
			s.Exec("DROP ROLE relay_" + s.Slot())
		}, []string{"init"}, "system id"},
		"init beside a slot without record": {func(s *testbed) {
			s.deleteTopic("walpost.state." + s.Name)
			s.Exec("DROP PUBLICATION walpost")
			s.Exec("DROP ROLE relay_" + s.Slot())
		}, []string{"init"}, "it is not known which of its rows were delivered"},
		"init with a wrong slot":        {func(s *testbed) { s.Env["WALPOST_SOURCE_SLOT"] += "_b"; s.Exec("DROP PUBLICATION walpost") }, []string{"init"}, "is of slot"},
		"skip after the end of the WAL": {func(*testbed) {}, []string{"skip", "--to", "FFFF/0"}, "after the end of the WAL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := delivered(t)
			c.change(s)
			before := there(s)
			s.MustRefuse(c.says, c.args...)
			if after := there(s); after != before {
				t.Errorf("slots / publications / roles were %q, and are %q", before, after)
			}
		})
	}
}

// TestRowsOfATableThatIsRenamedForAMomentArrive: between two looks the table has another name and is written under it.
// Its rows are the outbox's all the same.
func TestRowsOfATableThatIsRenamedForAMomentArrive(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	s.Exec("ALTER TABLE outbox RENAME TO moment; " + aRowOf("moment") + "; ALTER TABLE moment RENAME TO outbox")
	r := s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	s.Exec("ALTER TABLE outbox RENAME TO moment; " + aRowOf("moment") + "; ALTER TABLE moment RENAME TO outbox")
	s.WaitForEvent(s.InsertRow())
	if n := len(s.EventIDs()); n != 24 {
		t.Errorf("%d events arrived, want 24", n)
	}
	if log := r.Log.String(); strings.Contains(log, "halted") {
		t.Errorf("the relay halted: %s", log)
	}
}
