package faults

import (
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

const secure = `ALTER TABLE outbox ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY`

// streamUnderPolicy runs fault 63: row-level security is switched on under load, and cleanup.every stops until its role
// may see the rows.
func streamUnderPolicy(s *trial) {
	s.prepare(setup{env: map[string]string{"WALPOST_CLEANUP_EVERY": "1s", "WALPOST_CLEANUP_RETENTION": "0s"}})
	r := s.startStreaming()
	s.waitForCommits(50)
	s.Exec(secure)
	r.WaitForMetric("walpost_cleanup_refused", "1")
	left := s.CountRows()
	s.waitForCommits(100)
	s.endFault()
	s.waitUntilDelivered()
	if n := s.Query(`SELECT (count(*) >= $1::int + 100)::text FROM outbox`, left); n != "true" {
		s.t.Errorf("rows were deleted that the relay does not see: %s are left of more than %s", s.CountRows(), left)
	}
	s.MustRun("init")
	r.WaitForMetric("walpost_cleanup_refused", "0")
	s.waitForCommits(50)
	s.wantNoDuplicates(s.finish())
	if strings.Contains(r.Log.String(), `"halted"`) {
		s.t.Error("the relay halted")
	}
}

// pollUnderPolicy runs fault 64: the same for a relay that polls, which halts.
func pollUnderPolicy(of *trial) {
	s := e2e.NewPolled(of.t, of.program())
	s.MustRun("init")
	w := cdctest.StartWriter(of.t, cdctest.WriterConfig{URL: s.AdminURL, Rate: 60})
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"streaming"`)
	e2e.WaitForCommits(s.T, w, 50)
	s.Exec(secure)
	r.WaitForLog(20*time.Second, "row-level security hides rows of the outbox")
	e2e.WaitForCommits(s.T, w, 50)
	if err := r.Stop(); err != nil {
		of.t.Fatal(err)
	}
	s.MustRun("init")
	s.StartRelay()
	s.CheckPolled(w.Stop())
}
