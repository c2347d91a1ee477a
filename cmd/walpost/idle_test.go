package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestIdleServerIsNoStall: a server with only its own writes has no rows that wait: a switched WAL file, checkpoints, a
// transaction that is rolled back and one that is open.
func TestIdleServerIsNoStall(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	// It is not to write a snapshot of running transactions soon, which would flush the rest of the record.
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"bgwriter_delay": "10s"}})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
	s.MustRun("init")
	r := s.StartRelay()
	s.InsertRows(5)
	s.WaitUntilConfirmed(20 * time.Second)
	s.Exec("CREATE TABLE foreigners (n int, t text)")
	for _, last := range []string{"SELECT pg_switch_wal()", "CHECKPOINT", "BEGIN; CREATE TABLE never (); ROLLBACK"} {
		s.Exec(last)
		cdctest.Eventually(t, 20*time.Second, func() error {
			if out := s.Status(); !strings.Contains(out, "lag        0 B and 0 s") {
				return errors.New(out)
			}
			return nil
		})
	}
	// Beside it the server flushes whole pages, of which the last ends inside a record.
	open := s.Connect()
	defer func() { _ = open.Close(context.Background()) }()
	e2e.ExecOn(t, open, "BEGIN; INSERT INTO foreigners SELECT n, repeat('x', 700) FROM generate_series(1, 1000) n")
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		time.Sleep(4 * time.Second) // what is not said is waited for in vain
		if out := s.Status(); !strings.Contains(out, "blocked    by nothing") {
			t.Errorf("beside an open transaction that has written, and now rests:\n%s", out)
		}
	}
	cdctest.Eventually(t, 20*time.Second, func() error { return contains(s.Status(), " and 0 s behind") })
	if log := r.Log.String(); strings.Contains(log, "stalled") {
		t.Errorf("a relay that is idle stalls:\n%s", log)
	}
}
