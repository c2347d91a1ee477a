package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

func slot(s *stage) string { return s.env["WALPOST_SOURCE_SLOT"] }

// ids are the different events in the topic, in the order of their first appearance.
func (s *stage) ids() (ids []string) {
	s.t.Helper()
	seen := map[string]bool{}
	for _, r := range cdctest.ReadAll(s.t, s.brokers, s.topic) {
		if id := header(r, "id"); !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

func (s *stage) deleteTopic(name string) {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	if resp, err := kadm.NewClient(client).DeleteTopic(s.t.Context(), name); err != nil || resp.Err != nil {
		s.t.Fatal(err, resp.Err)
	}
}

// one inserts a row and returns its id.
func (s *stage) one() string {
	s.t.Helper()
	id := uuid.NewString()
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'order', 'k', 'OrderPaid', '{}')`, id)
	return id
}

// arrives waits for an event in the topic.
func (s *stage) arrives(id string) {
	s.t.Helper()
	cdctest.Consume(s.t, s.brokers, s.topic, 20*time.Second, func(records []*kgo.Record) bool {
		for _, r := range records {
			if header(r, "id") == id {
				return true
			}
		}
		return false
	})
}

// refuses runs a command that must not do what it is asked, and say why.
func (s *stage) refuses(says string, args ...string) {
	s.t.Helper()
	out, err := s.walpost(args...)
	if err == nil || !strings.Contains(err.Error(), says) {
		s.t.Errorf("walpost %s: %v, want an error that says %q\n%s", strings.Join(args, " "), err, says, out)
	}
}

// dry runs a command with --dry-run and makes sure that it changed nothing.
func (s *stage) dry(args ...string) string {
	s.t.Helper()
	before := s.standing()
	out := s.must(append(args, "--dry-run")...)
	if after := s.standing(); after != before {
		s.t.Errorf("walpost %s --dry-run changed\n%s\nto\n%s", strings.Join(args, " "), before, after)
	}
	return out
}

func (s *stage) standing() string {
	s.t.Helper()
	b, _ := json.Marshal(s.state())
	return fmt.Sprintf("%s\n%s", b, s.query(`SELECT coalesce((SELECT slot_name || confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1), 'no slot')`, slot(s)))
}

// TestWedgeIsSteppedOver has rows that PostgreSQL itself cannot decode for us: bytes that are no UTF-8, in a database that does
// not look. The relay publishes what stands before them, names the way past, and nothing else is lost on it.
func TestWedgeIsSteppedOver(t *testing.T) {
	t.Parallel()
	s := stageOn(t, cdctest.Database(t, "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"), cdctest.Kafka(t))
	s.must("init")
	s.exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_payload_check, DROP CONSTRAINT outbox_payload_check1, ALTER COLUMN payload TYPE text`)
	r := s.start()
	before := s.one()
	s.arrives(before)
	s.confirmed(20 * time.Second)
	// One transaction: a row that can be decoded, one that cannot, another that could.
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', CASE i WHEN 2 THEN chr(200) || 'secret' ELSE 'x' END FROM generate_series(1, 3) i`)
	behind := s.one()
	r.says(20*time.Second, `"halted"`)
	r.says(time.Second, "PostgreSQL cannot decode the change at")
	if log := r.log.String(); strings.Contains(log, "secret") || strings.Contains(log, "0xc8") {
		t.Error("the log holds a row's content")
	}
	m := regexp.MustCompile("`walpost skip --to ([0-9A-F/]+)`").FindStringSubmatch(r.log.String())
	if m == nil {
		t.Fatal("the halt names no skip")
	}
	if status := s.must("status"); !strings.Contains(status, m[0]) {
		t.Errorf("status does not say it:\n%s", status)
	}
	if n := len(s.ids()); n != 2 {
		t.Errorf("%d events published before the wedge, want 2", n)
	}
	if out := s.dry("skip", "--to", m[1]); !strings.Contains(out, "3 outbox rows of 1 transactions") {
		t.Errorf("dry run:\n%s", out)
	}
	// Where the halt cannot name the transaction, it is found by trying.
	if out := s.dry("skip", "--to", "next"); !strings.Contains(out, ", "+m[1]+"]: the one transaction that PostgreSQL cannot decode") {
		t.Errorf("skip --to next finds another LSN than %s:\n%s", m[1], out)
	}
	s.must("skip", "--to", m[1])
	if err := r.stop(); err != nil { // it would go on within 30 s
		t.Fatal(err)
	}
	s.start()
	s.arrives(behind)
	if ids := s.ids(); len(ids) != 3 || ids[0] != before || ids[2] != behind {
		t.Errorf("published %v, want %s, one, %s", ids, before, behind)
	}
	if status := s.must("status"); !strings.Contains(status, "skip by") {
		t.Errorf("status lists no decision:\n%s", status)
	}
	s.confirmed(20 * time.Second)
}

// TestRowTooLargeForUsIsSteppedOver: one that the relay will not read into memory.
func TestRowTooLargeForUsIsSteppedOver(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.env["WALPOST_SOURCE_MAX_ROW_BYTES"] = "1MiB"
	s.must("init")
	s.exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_payload_check1`)
	r := s.start()
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', jsonb_build_object('t', repeat('x', 2000000)))`)
	behind := s.one()
	r.says(20*time.Second, "source.max_row_bytes is 1MiB")
	m := regexp.MustCompile("`walpost skip --to ([0-9A-F/]+)`").FindStringSubmatch(r.log.String())
	if m == nil {
		t.Fatalf("the halt names no skip: %s", r.log)
	}
	if out := s.must("skip", "--to", m[1]); !strings.Contains(out, "1 outbox rows of 1 transactions") {
		t.Errorf("skip does not say what it gives up:\n%s", out)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.arrives(behind)
	if ids := s.ids(); len(ids) != 1 {
		t.Errorf("published %v, want only %s", ids, behind)
	}
}

// TestSkipRefusesToGuess: whatever would not do what it says.
func TestSkipRefusesToGuess(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.must("init")
	r := s.start()
	s.arrives(s.one())
	end := func() string { return s.query("SELECT pg_current_wal_flush_lsn()::text") }
	s.refuses("stop the relay", "skip", "--to", end())
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.refuses("is not an LSN", "skip", "--to", "16B3748")
	s.refuses("is not an LSN", "skip", "--to", end()+"x")
	s.refuses("up to which everything is delivered", "skip", "--to", "0/1")
	s.refuses("up to which everything is delivered", "skip", "--to", "0/0") // which is no other word for next
	s.refuses("behind the end of the WAL", "skip", "--to", "FFFF/0")
	s.insert(5)
	to := end()
	if out := s.dry("skip", "--to", to); !strings.Contains(out, "5 outbox rows of 1 transactions") {
		t.Errorf("dry run:\n%s", out)
	}
	s.must("skip", "--to", to)
	s.must("skip", "--to", to) // again does no harm
	if got := s.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", slot(s)); got != to || s.state().Covered.String() != to {
		t.Errorf("slot %s, state %s, want %s", got, s.state().Covered, to)
	}
	s.start()
	s.arrives(s.one())
	if n := len(s.ids()); n != 2 {
		t.Errorf("%d events, want the first and the last", n)
	}
}

// TestAdoptTakesASlotThatIsNotOurs: no state record, be it that there never was one or that its topic is gone.
func TestAdoptTakesASlotThatIsNotOurs(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	s.deleteTopic("walpost.state." + s.pipeline)
	id := s.one()
	s.refuses("nobody knows what was delivered", "init")
	if out, err := s.walpost("adopt", "--dry-run"); err != nil || !strings.Contains(out, "without a state record") {
		t.Errorf("dry run: %v\n%s", err, out)
	}
	s.must("adopt")
	s.start()
	s.arrives(id)
	if n := len(s.ids()); n != 21 {
		t.Errorf("%d events, want 21", n)
	}
}

// TestAdoptRefuses what no decision fixes.
func TestAdoptRefuses(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.must("init")
	s.refuses("nothing to adopt", "adopt")
	s.refuses("can be read", "adopt", "--create-slot")
	r := s.start()
	r.says(20*time.Second, `"streaming"`)
	s.refuses("stop the relay", "adopt")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.exec("SELECT pg_drop_replication_slot($1)", slot(s))
	s.refuses("--create-slot", "adopt")
	s.exec("SELECT pg_create_logical_replication_slot($1, 'test_decoding')", slot(s))
	s.refuses("a logical one of pgoutput is needed", "adopt")
}

// TestRefusedLeavesNothingBehind: what is refused has made neither slot nor role, publication or topic.
func TestRefusedLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	there := func(s *stage) string {
		return s.query(`SELECT concat((SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE database = current_database()), ' / ',
			(SELECT string_agg(pubname, ' ') FROM pg_publication), ' / ', (SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolname = $1))`, "relay_"+slot(s))
	}
	for name, c := range map[string]struct {
		change func(*stage)
		args   []string
		says   string
	}{
		"adopt on another server": {func(s *stage) { s.rewrite(func(st *cdc.State) { st.SystemID = "7" }); s.exec(dropSlot, slot(s)) }, []string{"adopt", "--create-slot"}, "system id"},
		"adopt after an init that was cut": {func(s *stage) {
			s.rewrite(func(st *cdc.State) { st.Phase = cdc.PhaseCreating })
			s.exec(dropSlot, slot(s))
		}, []string{"adopt", "--create-slot"}, "`walpost init` again"},
		"adopt of a table that hides rows": {func(s *stage) { s.exec("ALTER PUBLICATION walpost DROP TABLE outbox"); s.exec(dropSlot, slot(s)) }, []string{"adopt", "--create-slot"}, "does not carry"},
		"adopt of a slot that can be read": {func(*stage) {}, []string{"adopt", "--create-slot"}, "can be read"},
		"init on another server": {func(s *stage) {
			s.rewrite(func(st *cdc.State) { st.SystemID = "7" })
			s.exec("DROP PUBLICATION walpost")
			s.exec("DROP ROLE relay_" + slot(s))
		}, []string{"init"}, "system id"},
		"init beside a slot without record": {func(s *stage) {
			s.deleteTopic("walpost.state." + s.pipeline)
			s.exec("DROP PUBLICATION walpost")
			s.exec("DROP ROLE relay_" + slot(s))
		}, []string{"init"}, "nobody knows what was delivered"},
		"init with a wrong slot":         {func(s *stage) { s.env["WALPOST_SOURCE_SLOT"] += "_b"; s.exec("DROP PUBLICATION walpost") }, []string{"init"}, "is of slot"},
		"skip behind the end of the WAL": {func(*stage) {}, []string{"skip", "--to", "FFFF/0"}, "behind the end of the WAL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := delivered(t)
			c.change(s)
			before := there(s)
			s.refuses(c.says, c.args...)
			if after := there(s); after != before {
				t.Errorf("slots / publications / roles were %q, and are %q", before, after)
			}
		})
	}
}

// TestRowsOfATableThatIsRenamedForAMomentArrive: between two looks the table has another name and is written under it. Its rows are the
// outbox's all the same.
func TestRowsOfATableThatIsRenamedForAMomentArrive(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	s.exec("ALTER TABLE outbox RENAME TO moment; " + aRowOf("moment") + "; ALTER TABLE moment RENAME TO outbox")
	r := s.start()
	s.arrives(s.one())
	s.exec("ALTER TABLE outbox RENAME TO moment; " + aRowOf("moment") + "; ALTER TABLE moment RENAME TO outbox")
	s.arrives(s.one())
	if n := len(s.ids()); n != 24 {
		t.Errorf("%d events arrived, want 24", n)
	}
	if log := r.log.String(); strings.Contains(log, "halted") {
		t.Errorf("the relay halted: %s", log)
	}
}
