package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestNewServer moves a pipeline to another PostgreSQL, once with copied rows, as a dump and a restore do, and once by logical replication:
// nothing is missing and nothing comes twice, in both delivery modes, although the positions of the new server are lower. What a command
// refuses on the way changes nothing. Dead letters of both servers keep the order of their key.
func TestNewServer(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	fresh := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	for _, delivery := range []string{"at_least_once", "exactly_once"} {
		t.Run(delivery, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			s.Env["WALPOST_DELIVERY"], s.Env["WALPOST_POISON_POLICY"], s.Env["WALPOST_POISON_HOLD_KEY"] = delivery, "dead_letter", "true"
			for range 3 {
				s.Exec("SELECT pg_switch_wal()") // the old server's LSNs are the higher ones
				s.Exec("CREATE TABLE IF NOT EXISTS filler (n int)")
				s.Exec("INSERT INTO filler VALUES (1)")
			}
			s.MustRun("init")
			invoice := func(s *testbed, n int) {
				s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'invoice', 'k', 'Sent', '{}')`, event(n))
			}
			s.InsertRows(20)
			invoice(s, 1)
			invoice(s, 2)
			old := s.StartRelay()
			s.WaitUntilConfirmed(20 * time.Second)

			moved := &testbed{s.Copy()}
			database := strings.ReplaceAll(s.Name, "-", "_")
			if err := fresh.CreateDatabase(t.Context(), database); err != nil {
				t.Fatal(err)
			}
			moved.AdminURL = fresh.URL(database)
			moved.Env["WALPOST_ADMIN_URL"] = moved.AdminURL
			moved.Env["WALPOST_SOURCE_URL"] = moved.URLFor("relay_"+s.Slot(), cdctest.Canary)
			nothing := func() {
				t.Helper()
				if is := moved.Query(`SELECT format('%s roles, %s slots, %s tables', (SELECT count(*) FROM pg_roles WHERE rolname = $1), (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $2),
					(SELECT count(*) FROM pg_class WHERE relname = 'outbox'))`, "relay_"+s.Slot(), s.Slot()); is != "0 roles, 0 slots, 0 tables" {
					t.Errorf("what was refused has made something: %s", is)
				}
			}
			moved.MustRefuse("`walpost init --new-server` creates them first", "init")
			nothing()
			before := s.StateRecord()
			out := moved.MustRun("init", "--new-server")
			if !strings.Contains(out, "`walpost adopt --new-server --create-slot`") {
				t.Errorf("init --new-server does not say how to go on:\n%s", out)
			}
			r := moved.StartRelay()
			r.WaitForLog(20*time.Second, "`walpost adopt --new-server --create-slot` continues with it")
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
			moved.MustRefuse("another database", "adopt", "--create-slot")
			s.MustRefuse("of this same PostgreSQL", "adopt", "--new-server")
			s.MustRefuse("of this same PostgreSQL", "init", "--new-server")
			old.MustBeUndisturbed() // nobody was fenced by what was refused
			if err := old.Stop(); err != nil {
				t.Fatal(err)
			}

			// A row that the old relay has not delivered is copied with the others.
			var late string
			if delivery == "exactly_once" {
				moved.Exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", s.Slot()) // too early
				late = moved.subscribeTo(s)
				out := moved.MustRun("adopt", "--new-server", "--dry-run")
				if want := "23 rows wait in slot " + s.Slot() + ", and the relay will publish them; 22 of them are in Kafka already, and arrive twice"; !strings.Contains(out, want) {
					t.Errorf("adopt does not say %q:\n%s", want, out)
				}
				moved.Exec("SELECT pg_drop_replication_slot($1)", s.Slot())
			} else {
				late = s.InsertRow()
				moved.copyRows(s)
			}
			moved.MustRefuse("event "+late+" to event "+late, "adopt", "--new-server", "--create-slot")
			moved.MustRefuse("event "+late, "adopt", "--new-server", "--create-slot", "--dry-run")
			if n := moved.Query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); n != "0" {
				t.Error("an adoption that was refused has made the slot")
			}
			old = s.StartRelay() // drained after all
			s.WaitForEvent(late)
			s.WaitUntilConfirmed(20 * time.Second)
			if err := old.Stop(); err != nil {
				t.Fatal(err)
			}
			if st := s.StateRecord(); st.SystemID != before.SystemID {
				t.Error("an adoption that was refused has written a record")
			}
			dry := moved.MustRun("adopt", "--new-server", "--create-slot", "--dry-run")
			out = moved.MustRun("adopt", "--new-server", "--create-slot")
			for _, text := range []string{"in place of the one with system id " + before.SystemID, "the header lsn goes back", "each of the 23 rows of public.outbox", "is in Kafka"} {
				if !strings.Contains(dry, text) || !strings.Contains(out, text) {
					t.Errorf("adopt does not say %q:\n%s", text, out)
				}
			}

			// On the old server the relay halts; on the new one it goes on.
			old = s.StartRelay()
			old.WaitForLog(20*time.Second, "point source.url back at the right server")
			if err := old.Stop(); err != nil {
				t.Fatal(err)
			}
			invoice(moved, 3)
			r = moved.StartRelay()
			moved.InsertRows(20)
			last := moved.InsertRow()
			s.WaitForEvent(last)
			moved.WaitUntilConfirmed(20 * time.Second)
			if records, events := len(cdctest.ReadAll(t, s.Brokers, s.Topic)), len(s.EventIDs()); records != 42 || events != 42 {
				t.Errorf("%d records of %d events, want each of 42 once", records, events)
			}

			// What was there before is known.
			if is := moved.countUnresolved(); is != "1 2 3" {
				t.Errorf("dead letters: %s", is)
			}
			for _, id := range []string{late, last} {
				if out := moved.MustRun("where", id); !strings.Contains(out, "  published: topic "+s.Topic) {
					t.Errorf("where does not know %s:\n%s", id, out)
				}
			}
			if out := moved.Status(); !strings.Contains(out, "adopt") || !strings.Contains(out, "blocked    3 dead letters are unresolved: `walpost dlq list` says why\n") {
				t.Errorf("status:\n%s", out)
			}
			moved.Env["WALPOST_KAFKA_AGGREGATE_TYPES"] = "order,invoice"
			moved.MustRun("init")
			moved.MustRun("dlq", "redrive", event(1)) // which would stand behind 3, if its higher LSN counted
			moved.MustRun("dlq", "redrive", "--all")
			moved.Topic = s.Name + ".invoice"
			if is := moved.eventsOfKey("k"); is != "1 2 3" {
				t.Errorf("redriven: %s, want the old server's first", is)
			}
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// subscribeTo replicates another server's outbox to this one, until a last row has arrived. It returns that row's id.
func (s *testbed) subscribeTo(from *testbed) (late string) {
	s.T.Helper()
	name := s.Slot() + "_sub"
	from.Exec("CREATE PUBLICATION blue FOR TABLE outbox")
	s.Exec("CREATE SUBSCRIPTION " + name + " CONNECTION '" + from.AdminURL + "' PUBLICATION blue")
	late = from.InsertRow()
	cdctest.Eventually(s.T, 30*time.Second, func() error {
		return contains(s.Query("SELECT coalesce(string_agg(id::text, ' '), '') FROM outbox"), late)
	})
	s.Exec("DROP SUBSCRIPTION " + name)
	from.Exec("DROP PUBLICATION blue")
	return late
}

// copyRows copies the outbox of another server, as a restored dump has it.
func (s *testbed) copyRows(from *testbed) {
	s.T.Helper()
	source, target := from.Connect(), s.Connect()
	defer func() { _ = source.Close(context.Background()); _ = target.Close(context.Background()) }()
	rows, err := source.Query(s.T.Context(), "SELECT id, aggregate_type, aggregate_id, event_type, payload, headers, created_at FROM outbox")
	if err != nil {
		s.T.Fatal(err)
	}
	if _, err := target.CopyFrom(s.T.Context(), pgx.Identifier{"outbox"}, []string{"id", "aggregate_type", "aggregate_id", "event_type", "payload", "headers", "created_at"}, rows); err != nil {
		s.T.Fatal(err)
	}
}
