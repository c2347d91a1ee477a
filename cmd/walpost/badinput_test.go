package main

import (
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestWhatIsWrongWithTheServerIsSaidTogether has a server on which nothing is as it must be. One line names all of it,
// each with the way to fix it, and once fixed the relay streams without being restarted.
func TestWhatIsWrongWithTheServerIsSaidTogether(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"wal_level": "replica"}})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
	role := "relay_" + s.Slot()
	s.Exec(`CREATE ROLE ` + role + ` LOGIN`)
	s.Exec(`CREATE UNLOGGED TABLE outbox (id uuid, aggregate_type text, aggregate_id point, event_type text, body jsonb)`)
	if _, err := s.Run("init"); err == nil || !strings.Contains(err.Error(), "wal_level is replica") || !strings.Contains(err.Error(), "ALTER SYSTEM SET wal_level") {
		t.Errorf("init: %v", err)
	}
	status := s.MustRun("status")
	for _, text := range []string{
		"wal_level is replica: ALTER SYSTEM SET wal_level = 'logical'",
		"may not replicate: ALTER ROLE",
		"is unlogged or temporary",
		`source.columns.payload: the table has no column "payload"`,
		`source.columns.aggregate_id: column "aggregate_id" has a type that cannot be used`,
		"source.publication: walpost does not exist: run `walpost init`",
	} {
		if !strings.Contains(status, text) {
			t.Errorf("status does not say %q:\n%s", text, status)
		}
	}
}

// TestColumnListAndMissingRights are refused early, in the words of the configuration.
func TestColumnListAndMissingRights(t *testing.T) {
	t.Parallel()
	t.Run("column list", func(t *testing.T) {
		s := newTestbed(t)
		s.MustRun("init")
		if cdctest.Postgres(t).Major() < 15 {
			s.Exec("ALTER PUBLICATION walpost SET (publish = 'delete')") // 14 has no column lists; another way to hide rows
		} else {
			s.Exec("ALTER PUBLICATION walpost SET TABLE outbox (id, aggregate_type, aggregate_id, event_type)")
		}
		if status := s.MustRun("status"); !strings.Contains(status, "source.publication:") || !strings.Contains(status, "ALTER PUBLICATION") {
			t.Errorf("status:\n%s", status)
		}
	})
	t.Run("role that does not exist", func(t *testing.T) {
		s := newTestbed(t)
		s.MustRun("init")
		s.Env["WALPOST_SOURCE_URL"] = s.URLFor("nobody_at_all", "x")
		r := s.StartRelay()
		r.WaitForLog(20*time.Second, `"halted"`)
		r.WaitForLog(3*time.Second, "`walpost init` makes the role where there is none")
	})
	t.Run("slot of another plugin", func(t *testing.T) {
		s := newTestbed(t)
		s.MustRun("init")
		s.Exec("SELECT pg_drop_replication_slot($1)", s.Slot())
		s.Exec("SELECT pg_create_logical_replication_slot($1, 'test_decoding')", s.Slot())
		r := s.StartRelay()
		r.WaitForLog(20*time.Second, "a logical one of pgoutput is needed")
	})
	t.Run("init beside a slot that is not ours", func(t *testing.T) {
		s := newTestbed(t)
		s.Exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", s.Slot())
		if _, err := s.Run("init"); err == nil || !strings.Contains(err.Error(), "nobody knows what was delivered") {
			t.Errorf("init took over a slot without a state record: %v", err)
		}
	})
}

// TestInitSaysWhatWillNotBePublished counts the rows that no slot will ever stream.
func TestInitSaysWhatWillNotBePublished(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	cdctest.CreateOutbox(t, s.AdminURL, "outbox")
	s.InsertRows(17)
	if out := s.MustRun("init"); !strings.Contains(out, "17 rows were in public.outbox before the slot, which does not have them: they will not be published") {
		t.Errorf("init:\n%s", out)
	}
}

// TestRelaysRoleHasNothingElse: LOGIN and REPLICATION; not the rows.
func TestRelaysRoleHasNothingElse(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	role := "relay_" + s.Slot()
	if got := s.Query(`SELECT concat_ws(' ', rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls) FROM pg_roles WHERE rolname = $1`, role); got != "f f f f t t f" && got != "f t f f t t f" {
		t.Errorf("the role's attributes: %s", got)
	}
	if may := s.Query(`SELECT (has_table_privilege($1, 'outbox', 'SELECT') OR has_table_privilege($1, 'outbox', 'INSERT, UPDATE, DELETE'))::text`, role); may != "false" {
		t.Error("the relay's role may touch the outbox")
	}
	s.StartRelay()
	s.InsertRows(3) // and it streams all the same
	cdctest.Consume(t, s.Brokers, s.Topic, 20*time.Second, cdctest.AtLeast(3))
}

// TestMadeTableIsTheServicesTable: what init makes where there is no table is what the orders service migrates to.
func TestMadeTableIsTheServicesTable(t *testing.T) {
	t.Parallel()
	columns := func(s *testbed) string {
		return s.Query(`
			SELECT string_agg(c, E'\n' ORDER BY c) FROM (
				SELECT format('%s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(d.adbin, d.adrelid)) c
				FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
				WHERE a.attrelid = 'outbox'::regclass AND attnum > 0
				UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'outbox'::regclass AND contype IN ('c', 'p')) x`)
	}
	made := newTestbed(t)
	made.MustRun("init")
	migrated := newTestbed(t)
	migrated.migrateOrders()
	if a, b := columns(made), columns(migrated); a != b {
		t.Errorf("init makes\n%s\n\nthe orders service has\n%s", a, b)
	}
}
