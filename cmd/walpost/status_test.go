package main

import (
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/pipeline"
)

// TestStatusPrintsAHaltInLines: an operator sees what was found, what it means and what to run, each on its own line.
func TestStatusPrintsAHaltInLines(t *testing.T) {
	var out strings.Builder
	status(&out, pipeline.Status{
		Pipeline: "orders", Blocked: []string{"the slot is lost: rows are missing; run `walpost adopt`", "b\nc"},
		BlockedBy: []pipeline.Blocker{{Found: "the slot is lost", Means: "rows are missing", Run: "run `walpost adopt`"}, {Found: "b\nc"}},
	})
	want := "blocked    the slot is lost\nmeans      rows are missing\nrun        run `walpost adopt`\nblocked    b; c\n"
	if !strings.HasSuffix(out.String(), want) {
		t.Errorf("walpost status prints\n%s\nwant it to end with\n%s", &out, want)
	}
}

// TestStatusOfASlotThatCouldNotBeRead: PostgreSQL may have answered, and refused the role or the database; blocked names
// the cause.
func TestStatusOfASlotThatCouldNotBeRead(t *testing.T) {
	var out strings.Builder
	status(&out, pipeline.Status{Pipeline: "orders", Slot: &pipeline.Slot{Name: "walpost"}})
	if want := "slot       walpost: unknown: PostgreSQL could not be read\n"; !strings.Contains(out.String(), want) {
		t.Errorf("walpost status prints\n%s\nwant %s", &out, want)
	}
}

// TestStatusBesideABusyRelay asks status and doctor again and again while slot and state record move: it must never see one behind the
// other and tell an operator to begin again.
func TestStatusBesideABusyRelay(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_SOURCE_STATUS_INTERVAL"] = "100ms"
	s.MustRun("init")
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"streaming"`)
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.AdminURL, Rate: 50})
	epoch := s.StateRecord().Epoch
	for i := range 20 {
		if status := s.Status(); !strings.Contains(status, "by nothing") {
			t.Fatalf("a healthy relay is called blocked:\n%s", status)
		}
		if i%4 > 0 {
			continue
		}
		if out, _ := s.Run("doctor"); !strings.Contains(out, "\nfound      0 problems") || !strings.Contains(out, "a relay reads it") {
			t.Fatalf("a healthy relay has problems:\n%s", out)
		}
	}
	if now := s.StateRecord().Epoch; now != epoch {
		t.Errorf("the relay began another session: epoch %d was %d", now, epoch)
	}
	if out := s.MustRun("init"); !strings.Contains(out, "covers") {
		t.Errorf("init beside a busy relay:\n%s", out)
	}
	s.CheckDelivered(w.Stop())
}
