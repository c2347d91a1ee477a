package main

import (
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// TestStatusBesideABusyRelay asks again and again while slot and state record move: it must never see one behind the other and
// tell an operator to begin anew.
func TestStatusBesideABusyRelay(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.env["WALPOST_SOURCE_STATUS_INTERVAL"] = "100ms"
	s.must("init")
	r := s.start()
	r.says(20*time.Second, `"streaming"`)
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 50})
	for range 150 {
		if status := s.must("status"); !strings.Contains(status, "by nothing") {
			t.Fatalf("a healthy relay is called blocked:\n%s", status)
		}
	}
	if out := s.must("init"); !strings.Contains(out, "covers") {
		t.Errorf("init beside a busy relay:\n%s", out)
	}
	s.settled(w.Stop())
}
