package faults

import (
	"bytes"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// pollingLateCommit runs fault 75: transactions that commit late what they inserted early, in each order of their ids.
func pollingLateCommit(of *trial) {
	t := of.t
	s := e2e.NewPolled(t, of.program())
	s.MustRun("init")
	s.Exec(`CREATE TABLE other (n int)`)
	s.StartRelay().WaitForLog(time.Minute, `"streaming"`)
	a, b, c := s.Connect(), s.Connect(), s.Connect()
	for _, conn := range []*pgx.Conn{a, b, c} {
		t.Cleanup(func() { _ = conn.Close(t.Context()) })
	}
	waits := func(conn *pgx.Conn, key string) {
		t.Helper()
		pid := conn.PgConn().PID()
		cdctest.Eventually(t, 20*time.Second, func() error {
			b := s.Backlog()
			if b.Horizon == nil || b.Horizon.PID != int32(pid) || b.OldestSeconds < 0.6 || b.Horizon.Seconds < 0.6 {
				return fmt.Errorf("status does not say that rows have waited for pid %d: %+v, %+v", pid, b, b.Horizon)
			}
			return nil
		})
		if got := e2e.EventTypes(cdctest.ReadAll(t, s.Brokers, s.Topic), key); len(got) > 0 {
			t.Errorf("%s: %v came while an earlier row may still be committed", key, got)
		}
	}
	comes := func(key string, want ...string) {
		t.Helper()
		cdctest.Eventually(t, 20*time.Second, func() error {
			if got := e2e.EventTypes(cdctest.ReadAll(t, s.Brokers, s.Topic), key); fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Errorf("%s: got %v, want %v", key, got, want)
			}
			return nil
		})
	}

	// The earlier row's transaction is the older one.
	e2e.ExecOn(t, a, "BEGIN")
	e2e.InsertEvent(t, a, "older", "first")
	e2e.InsertEvent(t, b, "older", "second")
	waits(a, "older")
	if status := s.Status(); !strings.Contains(status, fmt.Sprintf("blocked    rows wait for the transaction of pid %d", a.PgConn().PID())) {
		t.Errorf("status:\n%s", status)
	}
	e2e.ExecOn(t, a, "COMMIT")
	comes("older", "first", "second")

	// The earlier row's transaction is the younger one.
	e2e.ExecOn(t, b, "BEGIN; INSERT INTO other VALUES (1)")
	e2e.ExecOn(t, a, "BEGIN")
	e2e.InsertEvent(t, a, "younger", "first")
	e2e.InsertEvent(t, b, "younger", "second")
	e2e.ExecOn(t, b, "COMMIT")
	waits(a, "younger")
	e2e.ExecOn(t, a, "COMMIT")
	comes("younger", "first", "second")

	// Both have ended, and a third transaction is between their ids.
	e2e.ExecOn(t, b, "BEGIN; INSERT INTO other VALUES (1)")
	e2e.ExecOn(t, c, "BEGIN; INSERT INTO other VALUES (1)")
	e2e.InsertEvent(t, a, "between", "first")
	e2e.InsertEvent(t, b, "between", "second")
	e2e.ExecOn(t, b, "COMMIT")
	waits(c, "between")
	e2e.ExecOn(t, c, "ROLLBACK")
	comes("between", "first", "second")

	// One transaction is prepared and forgotten.
	e2e.ExecOn(t, a, "BEGIN")
	e2e.InsertEvent(t, a, "prepared", "first")
	e2e.ExecOn(t, a, "PREPARE TRANSACTION '"+s.Name+"'")
	e2e.InsertEvent(t, b, "prepared", "second")
	cdctest.Eventually(t, 20*time.Second, func() error {
		if b := s.Backlog(); b.Horizon == nil || b.Horizon.Prepared != s.Name {
			return fmt.Errorf("status does not name the prepared transaction: %+v", b.Horizon)
		}
		return nil
	})
	e2e.ExecOn(t, a, "COMMIT PREPARED '"+s.Name+"'")
	comes("prepared", "first", "second")
}

// pollingKilled runs fault 73: kills -9 under load between any two steps, then loses the connection before the marking,
// and the answer after it.
func pollingKilled(of *trial) {
	t := of.t
	s := e2e.NewPolled(t, of.program())
	s.Env["WALPOST_WINDOW_ROWS"] = "50"
	s.MustRun("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.AdminURL, Rate: 60, Prepared: true, Long: 200 * time.Millisecond})
	binary := of.failpoints()
	for i, point := range []string{"poll_fetched", "mid_produce", "mid_flush", "after_flush", "poll_published", "poll_marked"} {
		r := s.StartCommand(exec.Command(binary, "relay"), fmt.Sprintf("WALPOST_FAILPOINT=%s:kill@%d", point, 1+i%3))
		r.WaitForLog(30*time.Second, "failpoint "+point+": kill")
		<-r.Gone
	}
	// The connection, and with it the lock, is lost between publishing and marking.
	r := s.StartCommand(exec.Command(binary, "relay"), "WALPOST_FAILPOINT=poll_published:sleep=500ms@2")
	r.WaitForLog(30*time.Second, "failpoint poll_published: sleep")
	s.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1`, "walpost "+s.Name)
	r.WaitForLog(30*time.Second, "session ended, starting over")
	r.Kill()
	// The rows are marked, but the answer is lost.
	var lost atomic.Bool
	u, err := url.Parse(s.Env["WALPOST_SOURCE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	proxy := cdctest.StartProxy(t, u.Host, func(f cdctest.Frame) cdctest.Verdict {
		if f.FromServer && f.Type == 'C' && bytes.Contains(f.Bytes, []byte("UPDATE")) && lost.CompareAndSwap(false, true) {
			return cdctest.Lose
		}
		return cdctest.Pass
	})
	s.Env["WALPOST_SOURCE_URL"] = proxy.URL(t, s.Env["WALPOST_SOURCE_URL"])
	s.SpawnRelay().WaitForLog(30*time.Second, "session ended, starting over")
	report := s.CheckPolled(w.Stop())
	if report.Duplicates == 0 {
		t.Error("nothing came twice: this run proves nothing")
	}
}

// pollingClock runs fault 76: the clock of fault 38 for a relay that polls, with a row that is rejected until it has
// failed.
func pollingClock(of *trial) {
	t := of.t
	binary := of.jumping()
	s := e2e.NewPolled(t, of.program())
	s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "3"
	s.Env["WALPOST_SOURCE_POLLING_BACKOFF"] = "100ms"
	s.MustRun("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.AdminURL, Rate: 60, Long: 200 * time.Millisecond})
	for range 2 {
		s.StartCommand(exec.Command(binary, "relay"), "WALPOST_FAILPOINT=poll_published:kill@3").WaitUntilEnded(60 * time.Second)
	}
	conn := s.Connect()
	defer func() { _ = conn.Close(t.Context()) }()
	e2e.ExecOn(t, conn, e2e.RefusedRow("late", "1"))
	r := s.StartCommand(exec.Command(binary, "relay"))
	r.WaitForLog(time.Minute, `"streaming"`)
	cdctest.Eventually(t, time.Minute, func() error {
		if b := s.Backlog(); b.Failed != 1 {
			return fmt.Errorf("%d rows have failed, want 1: the backoff goes by the clock", b.Failed)
		}
		return nil
	})
	s.CheckPolled(w.Stop())
}

// twoPollers runs fault 74: a second relay stands by and takes over, again and again.
func twoPollers(of *trial) {
	t := of.t
	s := e2e.NewPolled(t, of.program())
	s.MustRun("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.AdminURL, Rate: 60, Long: 200 * time.Millisecond})
	active := s.SpawnRelay()
	active.WaitForLog(20*time.Second, `"streaming"`)
	for range e2e.Kills() {
		next := s.SpawnRelay()
		next.WaitForLog(20*time.Second, "standing by")
		if strings.Contains(next.Log.String(), `"streaming"`) {
			t.Fatal("two relays have the table")
		}
		active.Kill()
		next.WaitForLog(20*time.Second, `"streaming"`)
		active = next
	}
	s.CheckPolled(w.Stop())
}
