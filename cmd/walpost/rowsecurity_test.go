package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// createLogin creates a role that may read and clean up the outbox, and returns its name and URL.
func (s *testbed) createLogin(base string, grants ...string) (name, url string) {
	s.T.Helper()
	name = strings.ReplaceAll(cdctest.Name(s.T, base), "-", "_")
	s.Exec("CREATE ROLE " + name + " LOGIN PASSWORD 'pw'")
	s.T.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), s.AdminURL)
		if err != nil {
			s.T.Error(err)
			return
		}
		defer func() { _ = conn.Close(context.Background()) }()
		if _, err := conn.Exec(context.Background(), "REASSIGN OWNED BY "+name+" TO CURRENT_USER; DROP OWNED BY "+name+"; DROP ROLE "+name); err != nil {
			s.T.Error(err)
		}
	})
	for _, grant := range grants {
		s.Exec(strings.ReplaceAll(grant, "ROLE", name))
	}
	return name, s.URLFor(name, cdctest.Canary)
}

// TestPollingUnderRowLevelSecurity: the relay halts instead of finding no rows, and so do all commands that read the
// table.
func TestPollingUnderRowLevelSecurity(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.MustRun("init")
	role := "relay_" + s.Slot()
	r := s.StartRelay()
	s.Exec(e2e.RefusedRow("failed", "Refused"))
	s.InsertRows(1)
	s.WaitUntilPolled()
	s.Exec("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
	s.InsertRows(2)
	r.WaitForLog(20*time.Second, `"halted"`)
	r.WaitForLog(6*time.Second, "row-level security hides rows of the outbox (PostgreSQL says ") // it came while the session went on
	if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "503") {
		t.Errorf("/readyz: %s", ready)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	says := `role "` + role + `" does not see all rows of public.outbox: run ` + "`ALTER ROLE \"" + role + "\" BYPASSRLS`"
	if status := s.Status(); !strings.Contains(status, says) || strings.Contains(status, "GRANT") { // the owner is a superuser
		t.Errorf("status:\n%s", status)
	}
	for _, command := range [][]string{{"dlq", "list"}, {"dlq", "redrive", "--all"}, {"where", "k1", "--since", "1h"}} {
		s.MustRefuse(says, command...)
	}
	s.Env["WALPOST_SOURCE_KIND"], s.Env["WALPOST_SOURCE_PUBLICATION"] = "wal", "walpost"
	s.MustRefuse(says, "migrate-source")
	s.Env["WALPOST_SOURCE_KIND"] = "polling"
	s.Env["WALPOST_ADMIN_URL"] = s.Env["WALPOST_SOURCE_URL"]
	s.MustRefuse("nothing was deleted", "cleanup", "--retention", "0s")
	s.Env["WALPOST_ADMIN_URL"] = s.AdminURL

	if plan := s.MustRun("init", "--dry-run"); !strings.Contains(plan, "ALTER ROLE \""+role+"\" BYPASSRLS;") {
		t.Errorf("init plans\n%s", plan)
	}
	s.MustRun("init")
	if plan := s.MustRun("init", "--dry-run"); strings.Contains(plan, "BYPASSRLS") {
		t.Errorf("init plans again\n%s", plan)
	}
	r = s.StartRelay()
	s.WaitUntilPolled()
	if n := len(s.EventIDs()); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}

	// The owner sees all, unless he is forced; a member of the owner does, too.
	s.Exec("ALTER ROLE " + role + " NOBYPASSRLS")
	owner, _ := s.createLogin("owner")
	s.Exec("ALTER TABLE outbox OWNER TO " + owner + "; GRANT " + owner + " TO " + role)
	if list := s.MustRun("dlq", "list"); !strings.Contains(list, "failed") {
		t.Errorf("dlq list:\n%s", list)
	}
	if plan := s.MustRun("init", "--dry-run"); strings.Contains(plan, "BYPASSRLS") {
		t.Errorf("init plans for a member of the owner\n%s", plan)
	}
	s.Exec("ALTER TABLE outbox FORCE ROW LEVEL SECURITY")
	s.MustRefuse("or `ALTER TABLE public.outbox NO FORCE ROW LEVEL SECURITY`", "dlq", "list")
	if plan := s.MustRun("init", "--dry-run"); !strings.Contains(plan, "BYPASSRLS") {
		t.Errorf("init plans for a member of the owner who is forced\n%s", plan)
	}
}

// TestStreamingUnderRowLevelSecurity: the relay streams on, because row-level security does not affect the WAL. It
// affects commands that read or clean up the table.
func TestStreamingUnderRowLevelSecurity(t *testing.T) {
	t.Parallel()
	for _, delivery := range []string{"at_least_once", "exactly_once"} {
		t.Run(delivery, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			s.Env["WALPOST_DELIVERY"] = delivery
			s.Env["WALPOST_CLEANUP_EVERY"], s.Env["WALPOST_CLEANUP_RETENTION"] = "1s", "1h"
			s.MustRun("init")
			role := "relay_" + s.Slot()
			r := s.StartRelay()
			r.WaitForLog(20*time.Second, `"streaming"`)
			s.Exec("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
			s.insertOldRows(3)
			s.InsertRows(2)
			s.WaitUntilConfirmed(20 * time.Second)
			r.WaitForLog(20*time.Second, `role \"`+role+`\" does not see all rows of public.outbox: run `)
			r.WaitForMetric("walpost_cleanup_refused", "1")
			if n := s.CountRows(); n != "5" {
				t.Errorf("%s rows are left, want 5", n)
			}

			// A reader, and an owner who is forced.
			reader, url := s.createLogin("reader", "GRANT SELECT ON outbox TO ROLE")
			hour, later := time.Now().Add(-time.Hour).Format(time.RFC3339), time.Now().Add(time.Hour).Format(time.RFC3339)
			sees := func(who, url, says string) {
				t.Helper()
				s.MustRefuse(says, "replay", "--admin-url", url, "--from", hour, "--to", later)
				s.MustRefuse(says, "cleanup", "--admin-url", url, "--retention", "1h")
				s.MustRefuse(says, "where", "--read-url", url, "nothing")
				if w := s.where("--read-url", url, "--since", "2h", "k1"); len(w.Notes) != 1 || !strings.Contains(w.Notes[0], says) || len(w.Events) == 0 {
					t.Errorf("where as %s: %+v", who, w)
				}
			}
			sees("a reader", url, `role "`+reader+`" does not see all rows of public.outbox: run `)
			owner, url := s.createLogin("owner")
			s.Exec("ALTER TABLE outbox OWNER TO " + owner)
			s.MustRefuse("BYPASSRLS`, or `GRANT "+owner+" TO ", "replay", "--admin-url", s.URLFor(reader, cdctest.Canary), "--from", hour, "--to", later)
			if out := s.MustRun("replay", "--dry-run", "--admin-url", url, "--from", hour, "--to", later); !strings.Contains(out, "2 rows were created") {
				t.Errorf("replay as the owner:\n%s", out)
			}
			s.Exec("ALTER TABLE outbox FORCE ROW LEVEL SECURITY")
			sees("the owner", url, "`ALTER TABLE public.outbox NO FORCE ROW LEVEL SECURITY`")

			if out := s.MustRun("init"); !strings.Contains(out, "ALTER ROLE \""+role+"\" BYPASSRLS;") {
				t.Errorf("init:\n%s", out)
			}
			r.WaitForMetric("walpost_cleanup_rows_total", "3")
			r.WaitForMetric("walpost_cleanup_refused", "0")
			if n := len(s.EventIDs()); n != 5 {
				t.Errorf("%d events, want 5", n)
			}
			if strings.Contains(r.Log.String(), `"halted"`) {
				t.Error("the relay halted")
			}
		})
	}
}

// TestPartitionIsNotDroppedUnseen: row-level security of a partition, to which its owner is subject, had hidden
// undelivered rows from cleanup.
func TestPartitionIsNotDroppedUnseen(t *testing.T) {
	t.Parallel()
	s, _ := newTestbedOnOwnServer(t)
	s.MustRun("init", "--partition-by-day")
	s.Exec("CREATE TABLE outbox_20200101 PARTITION OF outbox FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')")
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"streaming"`)
	owner, url := s.createLogin("owner")
	s.Exec("ALTER TABLE outbox OWNER TO " + owner + "; ALTER TABLE outbox_20200101 OWNER TO " + owner + "; ALTER TABLE outbox_20200101 ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
	late := s.Connect()
	defer func() { _ = late.Close(t.Context()) }()
	if _, err := late.Exec(t.Context(), `BEGIN; SELECT pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	s.Exec(`INSERT INTO outbox VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}', '{}', '2020-01-01 12:00+00')`)
	s.MustRefuse("does not see all rows of public.outbox_20200101", "cleanup", "--retention", "24h", "--admin-url", url)
	if n := s.CountRows(); n != "1" {
		t.Errorf("%s rows are left", n)
	}

	// A relay that is to clean up tells it when it starts, not when it is time.
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Env["WALPOST_CLEANUP_EVERY"], s.Env["WALPOST_CLEANUP_URL"] = "1h", url
	s.StartRelay().WaitForMetric("walpost_cleanup_refused", "1")
}
