package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// TestMigrateSourceWaitsForWhatNoSlotHas is every row that is older than the slot: a failed one is decided on before
// anything is made, and one that fails meanwhile ends it.
func TestMigrateSourceWaitsForWhatNoSlotHas(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
	s.MustRun("init")
	fails := func() {
		t.Helper()
		cdctest.Eventually(t, 20*time.Second, func() error {
			if n := s.Query("SELECT count(*)::text FROM outbox WHERE status = 'FAILED'"); n != "1" {
				return fmt.Errorf("%s rows have failed", n)
			}
			return nil
		})
	}
	wal := s.Copy()
	wal.Env["WALPOST_SOURCE_KIND"] = "wal"
	migrate := func() (string, error) { return wal.Run("migrate-source") }
	s.Exec(e2e.RefusedRow("k", "Refused"))
	r := s.StartRelay()
	fails()
	if out, err := migrate(); err == nil || !strings.Contains(err.Error(), "1 row has failed") || !strings.Contains(err.Error(), "walpost dlq") {
		t.Errorf("with a failed row: %v\n%s", err, out)
	}
	if made := s.Query("SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1) || ' ' || (SELECT count(*) FROM pg_publication)", s.Slot()); made != "0 0" {
		t.Errorf("slots and publications before the decision: %s", made)
	}
	s.MustRun("dlq", "drop", "--all", "--yes")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}

	s.Exec(e2e.RefusedRow("k", "RefusedMeanwhile"))
	ended := make(chan error, 1)
	go func() {
		_, err := migrate()
		ended <- err
	}()
	cdctest.Eventually(t, 20*time.Second, func() error {
		if s.Query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()) == "0" {
			return fmt.Errorf("no slot yet")
		}
		return nil
	})
	select {
	case err := <-ended:
		t.Fatalf("it did not wait for the pending row: %v", err)
	default:
	}
	r = s.StartRelay()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "1 row has failed") {
		t.Errorf("with a row that fails meanwhile: %v", err)
	}
	s.MustRun("dlq", "drop", "--all", "--yes")
	if out, err := migrate(); err != nil || !strings.Contains(out, "stop it, and start `walpost relay`") {
		t.Errorf("when all is decided: %v\n%s", err, out)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}

	wal.MustRun("init", "--remove", "--yes")
	s.MustRun("init")
	s.MustRun("init", "--remove", "--yes") // what it leaves: TestRemoveTakesOnlyWhatIsThisPipelinesAlone
}

// TestMigrateSourceWaits for no rows that the slot has, and says what to do when it is broken off.
func TestMigrateSourceWaits(t *testing.T) {
	t.Parallel()
	s := newPolledTestbed(t)
	s.MustRun("init")
	if _, err := s.Run("migrate-source"); err == nil || !strings.Contains(err.Error(), "run this with the new configuration, source.kind: wal") {
		t.Errorf("with source.kind: polling: %v", err)
	}
	s.Env["WALPOST_SOURCE_KIND"] = "wal"
	migrate := func() (out *cdctest.Log, stop func(), ended chan error) {
		ctx, stop := context.WithCancel(t.Context())
		t.Cleanup(stop)
		out, ended = &cdctest.Log{}, make(chan error, 1)
		go func() { ended <- run(ctx, []string{"migrate-source"}, s.Getenv, out, out) }()
		cdctest.Eventually(t, 30*time.Second, func() error {
			if !strings.Contains(out.String(), "2 rows that may be older than the slot are pending") {
				return fmt.Errorf("it says %s", out)
			}
			return nil
		})
		return out, stop, ended
	}
	s.InsertRows(2)
	_, stop, ended := migrate()
	stop()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "keep the poller running, and run this again") {
		t.Errorf("broken off: %v", err)
	}
	out, _, ended := migrate()
	s.Exec(`WITH old AS (UPDATE outbox SET status = 'SENT')
		INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'new', '{}')`)
	if err := <-ended; err != nil || !strings.Contains(out.String(), "everything that is older than the slot") {
		t.Errorf("with only newer rows: %v\n%s", err, out)
	}
}
