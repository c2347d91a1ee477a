package main

import (
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// TestStatusBesideABusyRelay asks again and again while slot and state record move: it must never see one behind the
// other and tell an operator to begin again.
func TestStatusBesideABusyRelay(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_SOURCE_STATUS_INTERVAL"] = "100ms"
	s.MustRun("init")
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"streaming"`)
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.AdminURL, Rate: 50})
	for range 50 {
		if status := s.Status(); !strings.Contains(status, "by nothing") {
			t.Fatalf("a healthy relay is called blocked:\n%s", status)
		}
	}
	if out := s.MustRun("init"); !strings.Contains(out, "covers") {
		t.Errorf("init beside a busy relay:\n%s", out)
	}
	s.CheckDelivered(w.Stop())
}
