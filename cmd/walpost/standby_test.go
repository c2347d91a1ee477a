package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestDecisionsNameAStandbyThatIsAway: PostgreSQL would not move the slot before the standbys of synchronized_standby_slots have everything.
// skip and adopt say so at once, by the standby slot's name, and change nothing; when it is back or taken out they do what they say.
func TestDecisionsNameAStandbyThatIsAway(t *testing.T) {
	t.Parallel()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Version: "17"})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := stageOn(t, server.URL("shop"), cdctest.Kafka(t))
	s.must("init")
	r := s.start()
	s.arrives(s.one())
	s.confirmed(20 * time.Second)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.exec("SELECT pg_create_physical_replication_slot('sb1', true)")
	waits := func(names string) {
		t.Helper()
		s.exec("ALTER SYSTEM SET synchronized_standby_slots = '" + names + "'")
		s.exec("SELECT pg_reload_conf()")
		cdctest.Eventually(t, 10*time.Second, func() error {
			if is := s.query("SHOW synchronized_standby_slots"); is != names {
				return fmt.Errorf("synchronized_standby_slots is %q", is)
			}
			return nil
		})
	}
	quick := func(says string, args ...string) {
		t.Helper()
		before, began := s.standing(), time.Now()
		s.refuses(says, args...)
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%v took %s to be refused", args, took)
		}
		if after := s.standing(); after != before {
			t.Errorf("%v was refused and changed\n%s\nto\n%s", args, before, after)
		}
	}
	s.insert(3)
	end := s.query("SELECT pg_current_wal_flush_lsn()::text")
	waits("sb1")
	quick(`"sb1": it is inactive`, "skip", "--to", end)
	waits("sb1, nosuch")
	quick(`"nosuch": there is no such slot`, "skip", "--to", end)
	waits("")
	s.must("skip", "--to", end)

	s.exec("DROP PUBLICATION walpost; CREATE PUBLICATION walpost FOR TABLE outbox WITH (publish = 'insert')")
	waits("sb1")
	quick(`"sb1": it is inactive`, "adopt")
	waits("")
	s.must("adopt")
	s.start()
	s.arrives(s.one())
}
