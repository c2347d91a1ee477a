package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestDecisionsNameAStandbyThatIsAway: PostgreSQL would not move the slot before the standbys of
// synchronized_standby_slots have everything. skip and adopt say so at once, by the standby slot's name, and change
// nothing; when it is back or taken out they do what they say.
func TestDecisionsNameAStandbyThatIsAway(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Version: "17"})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
	s.MustRun("init")
	r := s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	s.WaitUntilConfirmed(20 * time.Second)
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Exec("SELECT pg_create_physical_replication_slot('sb1', true)")
	waits := func(names string) {
		t.Helper()
		s.Exec("ALTER SYSTEM SET synchronized_standby_slots = '" + names + "'")
		s.Exec("SELECT pg_reload_conf()")
		cdctest.Eventually(t, 30*time.Second, func() error {
			if is := s.Query("SHOW synchronized_standby_slots"); is != names {
				return fmt.Errorf("synchronized_standby_slots is %q", is)
			}
			return nil
		})
	}
	quick := func(says string, args ...string) {
		t.Helper()
		before, began := s.positions(), time.Now()
		s.MustRefuse(says, args...)
		if took := time.Since(began); took > cdctest.Patience(20*time.Second) {
			t.Errorf("%v took %s to be refused", args, took)
		}
		if after := s.positions(); after != before {
			t.Errorf("%v was refused and changed\n%s\nto\n%s", args, before, after)
		}
	}
	s.InsertRows(3)
	end := s.Query("SELECT pg_current_wal_flush_lsn()::text")
	waits("sb1")
	quick(`"sb1": it is inactive`, "skip", "--to", end)
	waits("sb1, nosuch")
	quick(`"nosuch": there is no such slot`, "skip", "--to", end)
	waits("")
	s.MustRun("skip", "--to", end)

	s.Exec("DROP PUBLICATION walpost; CREATE PUBLICATION walpost FOR TABLE outbox WITH (publish = 'insert')")
	waits("sb1")
	quick(`"sb1": it is inactive`, "adopt")
	waits("")
	s.MustRun("adopt")
	s.StartRelay()
	s.WaitForEvent(s.InsertRow())
}
