package main

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestFrozenInTheMiddleOfAnEvent stops a process in an open transaction, as a hypervisor does. Its group gives the
// partitions to another process, which must continue, and when the first one wakes up it applies nothing.
func TestFrozenInTheMiddleOfAnEvent(t *testing.T) {
	cdctest.Long(t, "freezes a process past its session")
	t.Parallel()
	s := newService(t)
	if _, err := s.conn.Exec(t.Context(), `INSERT INTO stock VALUES ('tea', 10)`); err != nil {
		t.Fatal(err)
	}
	tx, err := s.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM stock FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	order := uuid.NewString()
	produce := func(eventType string) {
		t.Helper()
		if err := s.client.ProduceSync(t.Context(), s.event(eventType, order, map[string]int{"tea": 3})).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produce("OrderPaid")
	frozen := s.start()
	s.waitsForStock()
	if err := frozen.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil { // the server executes the statement, and its answer is lost
		t.Fatal(err)
	}
	cdctest.Evict(t, s.client, s.group)
	first := s.env["INVENTORY_HTTP"]
	port, err := devenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	s.env["INVENTORY_HTTP"] = fmt.Sprintf("127.0.0.1:%d", port)
	heir := s.start()
	s.waitApplied(1)
	produce("OrderCancelled")
	s.waitApplied(2)

	if err := frozen.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.env["INVENTORY_HTTP"] = first
	s.ready()
	order = uuid.NewString()
	produce("OrderPaid")
	s.waitApplied(3)
	if available := s.number(`SELECT available FROM stock`); available != 7 {
		t.Errorf("%d in stock, want 7", available)
	}
	if n := s.number(`SELECT count(*) FROM stock_movements`); n != 3 {
		t.Errorf("%d movements, want 3", n)
	}
	s.terminate(frozen)
	s.terminate(heir)
}
