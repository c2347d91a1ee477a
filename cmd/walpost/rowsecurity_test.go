package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
)

// login makes a role that may read and clean up the outbox, and returns its name and URL.
func (s *stage) login(base string, grants ...string) (name, url string) {
	s.t.Helper()
	name = strings.ReplaceAll(cdctest.Name(s.t, base), "-", "_")
	s.exec("CREATE ROLE " + name + " LOGIN PASSWORD 'pw'")
	s.t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), s.admin)
		if err != nil {
			s.t.Error(err)
			return
		}
		defer func() { _ = conn.Close(context.Background()) }()
		if _, err := conn.Exec(context.Background(), "REASSIGN OWNED BY "+name+" TO CURRENT_USER; DROP OWNED BY "+name+"; DROP ROLE "+name); err != nil {
			s.t.Error(err)
		}
	})
	for _, grant := range grants {
		s.exec(strings.ReplaceAll(grant, "ROLE", name))
	}
	return name, s.as(name, "pw")
}

// TestPollingUnderRowLevelSecurity halts instead of finding nothing, and so do all who read the table.
func TestPollingUnderRowLevelSecurity(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.must("init")
	role := "relay_" + slot(s)
	r := s.start()
	s.exec(refusedRow("failed", "Refused"))
	s.insert(1)
	s.drained()
	s.exec("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
	s.insert(2)
	r.says(20*time.Second, `"halted"`)
	r.says(2*time.Second, "row-level security hides rows of the outbox (PostgreSQL says ") // it came while the session went on
	if ready := r.get(t, "/readyz"); !strings.HasPrefix(ready, "503") {
		t.Errorf("/readyz: %s", ready)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	says := `role "` + role + `" does not see all rows of public.outbox: run ` + "`ALTER ROLE \"" + role + "\" BYPASSRLS`"
	if status := s.must("status"); !strings.Contains(status, says) || strings.Contains(status, "GRANT") { // the owner is a superuser
		t.Errorf("status:\n%s", status)
	}
	for _, command := range [][]string{{"dlq", "list"}, {"dlq", "redrive", "--all"}, {"where", "k1", "--since", "1h"}} {
		s.refuses(says, command...)
	}
	s.env["WALPOST_SOURCE_KIND"], s.env["WALPOST_SOURCE_PUBLICATION"] = "wal", "walpost"
	s.refuses(says, "migrate-source")
	s.env["WALPOST_SOURCE_KIND"] = "polling"
	s.env["WALPOST_ADMIN_URL"] = s.env["WALPOST_SOURCE_URL"]
	s.refuses("nothing was deleted", "cleanup", "--retention", "0s")
	s.env["WALPOST_ADMIN_URL"] = s.admin

	if plan := s.must("init", "--dry-run"); !strings.Contains(plan, "ALTER ROLE \""+role+"\" BYPASSRLS;") {
		t.Errorf("init plans\n%s", plan)
	}
	s.must("init")
	if plan := s.must("init", "--dry-run"); strings.Contains(plan, "BYPASSRLS") {
		t.Errorf("init plans again\n%s", plan)
	}
	r = s.start()
	s.drained()
	if n := len(s.ids()); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	// The owner sees all, unless he is forced; a member of the owner does, too.
	s.exec("ALTER ROLE " + role + " NOBYPASSRLS")
	owner, _ := s.login("owner")
	s.exec("ALTER TABLE outbox OWNER TO " + owner + "; GRANT " + owner + " TO " + role)
	if list := s.must("dlq", "list"); !strings.Contains(list, "failed") {
		t.Errorf("dlq list:\n%s", list)
	}
	if plan := s.must("init", "--dry-run"); strings.Contains(plan, "BYPASSRLS") {
		t.Errorf("init plans for a member of the owner\n%s", plan)
	}
	s.exec("ALTER TABLE outbox FORCE ROW LEVEL SECURITY")
	s.refuses("or `ALTER TABLE public.outbox NO FORCE ROW LEVEL SECURITY`", "dlq", "list")
	if plan := s.must("init", "--dry-run"); !strings.Contains(plan, "BYPASSRLS") {
		t.Errorf("init plans for a member of the owner who is forced\n%s", plan)
	}
}

// TestStreamingUnderRowLevelSecurity goes on: the WAL does not know of it. Those who read or clean up the table do.
func TestStreamingUnderRowLevelSecurity(t *testing.T) {
	t.Parallel()
	for _, delivery := range []string{"at_least_once", "exactly_once"} {
		t.Run(delivery, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			s.env["WALPOST_DELIVERY"] = delivery
			s.env["WALPOST_CLEANUP_EVERY"], s.env["WALPOST_CLEANUP_RETENTION"] = "1s", "1h"
			s.must("init")
			role := "relay_" + slot(s)
			r := s.start()
			r.says(20*time.Second, `"streaming"`)
			s.exec("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
			s.insertOld(3)
			s.insert(2)
			s.confirmed(20 * time.Second)
			r.says(20*time.Second, `role \"`+role+`\" does not see all rows of public.outbox: run `)
			r.counts("walpost_cleanup_refused", "1")
			if n := s.rows(); n != "5" {
				t.Errorf("%s rows are left, want 5", n)
			}

			// A reader, and an owner who is forced.
			reader, url := s.login("reader", "GRANT SELECT ON outbox TO ROLE")
			hour, later := time.Now().Add(-time.Hour).Format(time.RFC3339), time.Now().Add(time.Hour).Format(time.RFC3339)
			sees := func(who, url, says string) {
				t.Helper()
				s.refuses(says, "replay", "--admin-url", url, "--from", hour, "--to", later)
				s.refuses(says, "cleanup", "--admin-url", url, "--retention", "1h")
				s.refuses(says, "where", "--read-url", url, "nothing")
				if w := s.where("--read-url", url, "--since", "2h", "k1"); len(w.Notes) != 1 || !strings.Contains(w.Notes[0], says) || len(w.Events) == 0 {
					t.Errorf("where as %s: %+v", who, w)
				}
			}
			sees("a reader", url, `role "`+reader+`" does not see all rows of public.outbox: run `)
			owner, url := s.login("owner")
			s.exec("ALTER TABLE outbox OWNER TO " + owner)
			s.refuses("BYPASSRLS`, or `GRANT "+owner+" TO ", "replay", "--admin-url", s.as(reader, "pw"), "--from", hour, "--to", later)
			if out := s.must("replay", "--dry-run", "--admin-url", url, "--from", hour, "--to", later); !strings.Contains(out, "2 rows were created") {
				t.Errorf("replay as the owner:\n%s", out)
			}
			s.exec("ALTER TABLE outbox FORCE ROW LEVEL SECURITY")
			sees("the owner", url, "`ALTER TABLE public.outbox NO FORCE ROW LEVEL SECURITY`")

			if out := s.must("init"); !strings.Contains(out, "ALTER ROLE \""+role+"\" BYPASSRLS;") {
				t.Errorf("init:\n%s", out)
			}
			r.counts("walpost_cleanup_rows_total", "3")
			r.counts("walpost_cleanup_refused", "0")
			if n := len(s.ids()); n != 5 {
				t.Errorf("%d events, want 5", n)
			}
			if strings.Contains(r.log.String(), `"halted"`) {
				t.Error("the relay halted")
			}
		})
	}
}

// TestPartitionIsNotDroppedUnseen: row-level security of a partition that its owner is subject to made it look as if all in it was
// delivered.
func TestPartitionIsNotDroppedUnseen(t *testing.T) {
	t.Parallel()
	s, _ := ownStage(t)
	s.must("init", "--partition-by-day")
	s.exec("CREATE TABLE outbox_20200101 PARTITION OF outbox FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')")
	r := s.start()
	r.says(20*time.Second, `"streaming"`)
	owner, url := s.login("owner")
	s.exec("ALTER TABLE outbox OWNER TO " + owner + "; ALTER TABLE outbox_20200101 OWNER TO " + owner + "; ALTER TABLE outbox_20200101 ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
	late := s.connect()
	defer func() { _ = late.Close(t.Context()) }()
	if _, err := late.Exec(t.Context(), `BEGIN; SELECT pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	s.exec(`INSERT INTO outbox VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}', '{}', '2020-01-01 12:00+00')`)
	s.refuses("does not see all rows of public.outbox_20200101", "cleanup", "--retention", "24h", "--admin-url", url)
	if n := s.rows(); n != "1" {
		t.Errorf("%s rows are left", n)
	}

	// A relay that is to clean up tells it when it starts, not when it is time.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.env["WALPOST_CLEANUP_EVERY"], s.env["WALPOST_CLEANUP_URL"] = "1h", url
	s.start().counts("walpost_cleanup_refused", "1")
}

const secure = `ALTER TABLE outbox ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY`

// streamUnderPolicy is fault 63: row-level security comes under load, and cleanup.every stops until it may see the rows.
func streamUnderPolicy(s *scene) {
	s.build(set{env: map[string]string{"WALPOST_CLEANUP_EVERY": "1s", "WALPOST_CLEANUP_RETENTION": "0s"}})
	r := s.run()
	s.grows(50)
	s.exec(secure)
	r.counts("walpost_cleanup_refused", "1")
	left := s.rows()
	s.grows(100)
	s.fixed()
	s.flows()
	if n := s.query(`SELECT (count(*) >= $1::int + 100)::text FROM outbox`, left); n != "true" {
		s.t.Errorf("rows were deleted that the relay does not see: %s are left of more than %s", s.rows(), left)
	}
	s.must("init")
	r.counts("walpost_cleanup_refused", "0")
	s.grows(50)
	s.once(s.settle())
	if strings.Contains(r.log.String(), `"halted"`) {
		s.t.Error("the relay halted")
	}
}

// pollUnderPolicy is fault 64: the same for a poller, which halts.
func pollUnderPolicy(of *scene) {
	s := polled(of.t)
	s.must("init")
	w := cdctest.StartWriter(of.t, cdctest.WriterConfig{URL: s.admin, Rate: 60})
	r := s.start()
	r.says(20*time.Second, `"streaming"`)
	s.eventuallyCommitted(w, 50)
	s.exec(secure)
	r.says(20*time.Second, "row-level security hides rows of the outbox")
	s.eventuallyCommitted(w, 50)
	if err := r.stop(); err != nil {
		of.t.Fatal(err)
	}
	s.must("init")
	s.start()
	s.delivered(w.Stop())
}
