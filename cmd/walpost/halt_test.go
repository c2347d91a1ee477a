package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

// delivered returns a pipeline whose relay has published rows and was stopped.
func delivered(t *testing.T) *testbed {
	t.Helper()
	s := newTestbed(t)
	s.MustRun("init")
	r := s.StartRelay()
	s.InsertRows(20)
	s.WaitUntilConfirmed(20 * time.Second)
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestReconcileHalts changes one side while the relay is stopped. Each time the relay halts with a sentence that says
// what was found and what to run, publishes nothing, confirms nothing, and gives the slot back.
func TestReconcileHalts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(s *testbed)
		says   []string
	}{
		{"no state record", func(s *testbed) {
			s.deleteTopic("walpost.state." + s.Name)
		}, []string{"no state record", "walpost init"}},
		{"init did not finish", func(s *testbed) { s.RewriteStateRecord(func(st *cdc.State) { st.Phase = cdc.PhaseCreating }) }, []string{"did not finish", "`walpost init` again"}},
		{"another database", func(s *testbed) { s.RewriteStateRecord(func(st *cdc.State) { st.SystemID = "7" }) }, []string{"system id 7", "another database"}},
		{"another timeline", func(s *testbed) { s.RewriteStateRecord(func(st *cdc.State) { st.Timeline = 7 }) }, []string{"timeline 7", "stale primary"}},
		{"state ahead of the server", func(s *testbed) { s.RewriteStateRecord(func(st *cdc.State) { st.Covered += 1 << 40 }) }, []string{"the server's WAL ends at", "restored backup"}},
		{"slot missing", func(s *testbed) { s.Exec("SELECT pg_drop_replication_slot($1)", s.Slot()) }, []string{"does not exist", "walpost adopt --create-slot"}},
		{"slot re-created", func(s *testbed) {
			s.Exec("SELECT pg_drop_replication_slot($1)", s.Slot())
			s.InsertRows(5) // the rows that nobody would ever see
			s.Exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", s.Slot())
		}, []string{"re-created or advanced", "may be missing"}},
		{"slot advanced", func(s *testbed) {
			s.InsertRows(5)
			s.Exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.Slot())
		}, []string{"re-created or advanced", "may be missing"}},
		{"publication changed and changed back", func(s *testbed) {
			s.Exec("ALTER PUBLICATION walpost SET (publish = 'update')")
			s.InsertRows(5)
			s.Exec("ALTER PUBLICATION walpost SET (publish = 'insert')")
		}, []string{"publication or table changed", "may never have been streamed"}},
		{"table taken out of the publication and put back", func(s *testbed) {
			s.Exec("ALTER PUBLICATION walpost DROP TABLE outbox")
			s.InsertRows(5)
			s.Exec("ALTER PUBLICATION walpost ADD TABLE outbox")
		}, []string{"publication or table changed"}},
		{"table renamed and replaced", func(s *testbed) {
			s.Exec("ALTER TABLE outbox RENAME TO outbox_old")
			s.Exec("CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL)")
		}, []string{"does not carry public.outbox", "ADD TABLE"}},
		{"publication dropped", func(s *testbed) { s.Exec("DROP PUBLICATION walpost") }, []string{"walpost does not exist", "walpost init"}},
		{"row filter", func(s *testbed) {
			if cdctest.Postgres(s.T).Major() < 15 {
				s.Exec("ALTER PUBLICATION walpost SET (publish = 'delete')") // 14 has no filters; another way to hide rows
				return
			}
			s.Exec("ALTER PUBLICATION walpost SET TABLE outbox WHERE (event_type <> 'x')")
		}, []string{"ALTER PUBLICATION"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := delivered(t)
			c.change(s)
			confirmed := s.Query("SELECT coalesce(max(confirmed_flush_lsn), '0/0')::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot())
			r := s.StartRelay()
			r.WaitForLog(20*time.Second, `"halted"`)
			for _, text := range c.says {
				r.WaitForLog(3*time.Second, text)
			}
			s.InsertRows(5)
			if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "503") || !strings.Contains(ready, c.says[0]) {
				t.Errorf("/readyz does not say the same sentence: %s", ready)
			}
			if status := r.Get(t, "/status"); !strings.Contains(status, `"role":"halted"`) {
				t.Errorf("/status does not say that it is halted: %s", status)
			}
			if status := s.Status(); !strings.Contains(status, c.says[0]) || strings.Contains(status, "no relay streams") {
				t.Errorf("walpost status does not say it, or not it alone: %s", status)
			}
			if now := s.Query("SELECT coalesce(max(confirmed_flush_lsn), '0/0')::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); now != confirmed {
				t.Errorf("the halted relay moved the slot from %s to %s", confirmed, now)
			}
			if n := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); n != 20 {
				t.Errorf("the halted relay published: %d records instead of 20", n)
			}
			s.WaitUntilFree(10 * time.Second) // a halted relay does not keep it
		})
	}
}

// TestInitGoesOnWhereItStopped runs init after each step at which an earlier init can have stopped.
func TestInitGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	if out := s.MustRun("init", "--dry-run"); !strings.Contains(out, "CREATE PUBLICATION") || !strings.Contains(out, "pg_create_logical_replication_slot") {
		t.Errorf("the dry run does not show its SQL:\n%s", out)
	}
	if n := s.Query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); n != "0" {
		t.Fatal("the dry run made a slot")
	}
	s.MustRun("init")
	again := s.MustRun("init")
	for _, text := range []string{"LOGIN and REPLICATION", "exists, with the columns", "exists, and carries", "exists, as configured", "covers"} {
		if !strings.Contains(again, text) {
			t.Errorf("the second init does not say %q:\n%s", text, again)
		}
	}
	if strings.Contains(again, "create it") {
		t.Errorf("the second init creates again, or tells the password:\n%s", again)
	}
	s.RewriteStateRecord(func(st *cdc.State) { st.Phase = cdc.PhaseCreating }) // killed between slot and record
	if out := s.MustRun("init"); !strings.Contains(out, "begin again") {
		t.Errorf("init does not say that it begins again:\n%s", out)
	}
	s.InsertRows(3)
	s.StartRelay()
	cdctest.Consume(t, s.Brokers, s.Topic, 20*time.Second, cdctest.AtLeast(3))
}

// TestRowThatKafkaCannotTakeHalts puts a row that can never be published between others. The earlier rows arrive, the
// later ones do not, and the halt names the row. After the row can be published the relay continues, and nothing
// arrives twice.
func TestRowThatKafkaCannotTakeHalts(t *testing.T) {
	t.Parallel()
	type poison struct {
		name   string
		column string
		value  string
		says   string
		fix    func(*testbed)
	}
	for _, c := range []poison{
		{"aggregate type that is not listed", "aggregate_type", "'invoice'", "kafka.aggregate_types", func(s *testbed) { s.Env["WALPOST_KAFKA_AGGREGATE_TYPES"] = "order,invoice" }},
		{"larger than the topic takes", "payload", "jsonb_build_object('text', repeat('y', 5000))", "max.message.bytes", func(s *testbed) { s.LimitTopic("1048588") }},
		{"empty key", "aggregate_id", "''", "aggregate_id is empty", nil},
		{"topic that Kafka does not allow", "event_type", "'a b'", "does not allow", func(s *testbed) { s.Env["WALPOST_KAFKA_RENAME"] = "{'a b': OrderPaid}" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			topic := s.Topic
			if c.column == "event_type" {
				s.Env["WALPOST_KAFKA_TOPIC"] = s.Name + ".{aggregate_type}.{event_type}"
				topic = s.Topic + ".OrderPaid"
				cdctest.CreateTopic(t, s.Brokers, topic, 3)
			}
			s.MustRun("init")
			s.Exec("ALTER TABLE outbox DROP CONSTRAINT outbox_aggregate_id")
			if c.says == "max.message.bytes" {
				s.LimitTopic("2000")
			}
			if c.column == "aggregate_type" {
				cdctest.CreateTopic(t, s.Brokers, s.Name+".invoice", 1)
			}
			s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
				SELECT gen_random_uuid(), 'order', 'k' || i, 'OrderPaid', '{}' FROM generate_series(1, 10) i`)
			columns := map[string]string{"aggregate_type": "'order'", "aggregate_id": "'k'", "event_type": "'OrderPaid'", "payload": "'{}'"}
			columns[c.column] = c.value
			s.Exec(fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ('00000000-0000-7000-8000-00000000dead', %s, %s, %s, %s)`,
				columns["aggregate_type"], columns["aggregate_id"], columns["event_type"], columns["payload"]))
			s.InsertRows(10)
			for range 2 { // a restart does not loop past it
				r := s.StartRelay()
				r.WaitForLog(20*time.Second, `"halted"`)
				r.WaitForLog(3*time.Second, c.says)
				r.WaitForLog(3*time.Second, "00000000-0000-7000-8000-00000000dead")
				if err := r.Stop(); err != nil {
					t.Fatal(err)
				}
				if n := len(cdctest.ReadAll(t, s.Brokers, topic)); n != 10 {
					t.Fatalf("%d records, want the 10 before the row that cannot be published", n)
				}
			}
			if c.fix == nil {
				return
			}
			c.fix(s)
			s.StartRelay()
			want := 21
			if c.column == "aggregate_type" {
				want = 20
			}
			cdctest.Consume(t, s.Brokers, topic, 20*time.Second, cdctest.AtLeast(want))
			s.WaitUntilConfirmed(30 * time.Second)
			if n := len(cdctest.ReadAll(t, s.Brokers, topic)); n != want {
				t.Errorf("%d records, want %d, each once", n, want)
			}
		})
	}
}

// TestChangesUnderARunningRelay changes publication, table or slot while the relay streams. It halts before a row is
// skipped.
func TestChangesUnderARunningRelay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*testbed)
		says   string
	}{
		"publication dropped": {func(s *testbed) {
			s.Exec("DROP PUBLICATION walpost")
			s.InsertRows(5)
		}, "publication"},
		"table renamed": {func(s *testbed) {
			s.Exec("ALTER TABLE outbox RENAME TO outbox_old")
			s.Exec("INSERT INTO outbox_old VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}')")
		}, "public.outbox does not exist"},
		"column taken away": {func(s *testbed) {
			s.Exec("ALTER TABLE outbox DROP COLUMN event_type CASCADE")
			s.Exec("INSERT INTO outbox (id, aggregate_type, aggregate_id, payload) VALUES (gen_random_uuid(), 'order', 'k', '{}')")
		}, "source.columns.event_type"},
		"slot's walsender ended and the slot advanced": {func(s *testbed) {
			s.Exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", s.Slot())
			cdctest.Eventually(s.T, 30*time.Second, func() error { // the relay comes back within a moment: be quicker
				conn := s.Connect()
				defer func() { _ = conn.Close(context.Background()) }()
				if _, err := conn.Exec(s.T.Context(), "INSERT INTO outbox VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}')"); err != nil {
					return err
				}
				if _, err := conn.Exec(s.T.Context(), "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.Slot()); err != nil {
					_, _ = conn.Exec(s.T.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", s.Slot())
					return err
				}
				return nil
			})
		}, "re-created or advanced"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			s.Env["WALPOST_SOURCE_CHECK_INTERVAL"] = "200ms"
			s.MustRun("init")
			r := s.StartRelay()
			s.InsertRows(5)
			s.WaitUntilConfirmed(20 * time.Second)
			c.change(s)
			r.WaitForLog(20*time.Second, `"halted"`)
			r.WaitForLog(3*time.Second, c.says)
		})
	}
}
