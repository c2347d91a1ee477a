package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// Relay is a running `walpost relay`, in the test's process or in its own.
type Relay struct {
	T    testing.TB
	Log  *cdctest.Log
	Stop func() error // SIGTERM, or the end of its context; returns how it ended

	// Only a relay in a separate process has these.
	Kill func() // SIGKILL
	PID  int
	Gone <-chan struct{} // closed when it has ended
}

// StartRelay runs a relay in the test's process where the program can, and otherwise in its own.
func (s *Pipeline) StartRelay() *Relay {
	s.T.Helper()
	if s.Main == nil {
		return s.SpawnRelay()
	}
	ctx, cancel := context.WithCancel(s.T.Context())
	r := &Relay{T: s.T, Log: &cdctest.Log{}}
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, []string{"relay"}, s.Env, r.Log) }()
	r.Stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Minute):
			return errors.New("the relay did not stop within a minute")
		}
	})
	s.T.Cleanup(func() { s.report(r, r.Stop()) })
	return r
}

// SpawnRelay runs a relay in its own process.
func (s *Pipeline) SpawnRelay() *Relay {
	s.T.Helper()
	return s.StartCommand(s.Command("relay"))
}

// StartCommand starts a command, with the configuration and more variables in its environment.
func (s *Pipeline) StartCommand(cmd *exec.Cmd, env ...string) *Relay {
	s.T.Helper()
	cmd.Env = append(cmd.Environ(), env...)
	for k, v := range s.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	r := &Relay{T: s.T, Log: &cdctest.Log{}}
	cmd.Stdout, cmd.Stderr = r.Log, r.Log
	if err := cmd.Start(); err != nil {
		s.T.Fatal(err)
	}
	r.PID = cmd.Process.Pid
	gone := make(chan struct{})
	r.Gone = gone
	var ended error
	go func() {
		ended = cmd.Wait()
		close(gone)
	}()
	r.Stop = func() error {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-gone:
			return ended
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-gone
			return errors.New("the relay did not stop within a minute")
		}
	}
	r.Kill = func() {
		_ = cmd.Process.Kill()
		<-gone
	}
	s.T.Cleanup(func() { s.report(r, r.Stop()) })
	return r
}

// report shows the end of the log of a relay whose test failed. What the race detector found in another process fails the test.
func (s *Pipeline) report(r *Relay, err error) {
	cdctest.NoSecret(s.T, "the relay", fmt.Sprint(r.Log.String(), "\n", err))
	if r.PID != 0 && strings.Contains(r.Log.String(), "WARNING: DATA RACE") {
		s.T.Error("the race detector found a race in the relay's process")
	}
	if s.T.Failed() {
		log := r.Log.String()
		s.T.Logf("relay ended with %v; the end of its log:\n%s", err, log[max(0, len(log)-4000):])
	}
}

// WaitForLog waits until the log holds the text.
func (r *Relay) WaitForLog(within time.Duration, text string) {
	r.T.Helper()
	cdctest.Eventually(r.T, within, func() error {
		if !strings.Contains(r.Log.String(), text) {
			return fmt.Errorf("the log does not say %q", text)
		}
		return nil
	})
}

// Get asks the relay's HTTP address, which its log tells, and returns status and body.
func (r *Relay) Get(t testing.TB, path string) string {
	t.Helper()
	r.WaitForLog(30*time.Second, `"serving HTTP"`)
	said, err := r.Ask(path)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// Ask is Get for a relay that may have ended.
func (r *Relay) Ask(path string) (string, error) {
	before, _, _ := strings.Cut(r.Log.String(), `"serving HTTP"`)
	_, rest, _ := strings.Cut(before[strings.LastIndexByte(before, '\n')+1:], `"address":"`)
	addr, _, _ := strings.Cut(rest, `"`)
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	cdctest.NoSecret(r.T, path, string(body))
	return fmt.Sprintf("%d %s", resp.StatusCode, body), err
}

// WaitForMetric waits until the relay's metric has a value.
func (r *Relay) WaitForMetric(metric, value string) {
	r.T.Helper()
	cdctest.Eventually(r.T, 20*time.Second, func() error {
		text, err := r.Ask("/metrics")
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, metric+"{") {
				if strings.HasSuffix(line, " "+value+"\n") {
					return nil
				}
				return fmt.Errorf("%s, want %s", strings.TrimSpace(line), value)
			}
		}
		return fmt.Errorf("no metric %s", metric)
	})
}

// Signal sends a signal to the relay's process.
func (r *Relay) Signal(sig syscall.Signal) {
	r.T.Helper()
	if err := syscall.Kill(r.PID, sig); err != nil {
		r.T.Fatalf("%s to the relay: %v", sig, err)
	}
}

// WaitUntilEnded waits until the relay's process has ended.
func (r *Relay) WaitUntilEnded(within time.Duration) {
	r.T.Helper()
	select {
	case <-r.Gone:
	case <-time.After(cdctest.Patience(within)):
		r.T.Fatalf("the relay has not ended within %s", within)
	}
}

// WaitUntilFrozen waits until a signal has stopped the relay's process.
func (r *Relay) WaitUntilFrozen(within time.Duration) {
	r.T.Helper()
	cdctest.Eventually(r.T, within, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.PID))
		if err != nil {
			return err
		}
		if _, rest, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(rest, "T") {
			return errors.New("it is not stopped")
		}
		return nil
	})
}

// Memory returns how much memory the relay's process has had resident at its highest, in bytes.
func (r *Relay) Memory() int {
	r.T.Helper()
	highest := PeakMemory(r.PID)
	if highest == 0 {
		r.T.Fatal("the relay has gone")
	}
	return int(highest)
}

// CPU returns the CPU time that the relay's process has used.
func (r *Relay) CPU() time.Duration {
	r.T.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.PID))
	if err != nil {
		r.T.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	user, err := strconv.Atoi(fields[11])
	system, serr := strconv.Atoi(fields[12])
	if err := errors.Join(err, serr); err != nil {
		r.T.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond // a hundred ticks a second
}

// PeakMemory returns how much memory a process has had resident at its highest, in bytes, or 0. What the kernel says of one that has ended is of no use: it
// begins with what its parent had.
func PeakMemory(pid int) int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kb int64
	_, _ = fmt.Sscan(rest, &kb)
	return kb << 10
}

// WaitForMetrics waits until the relay's metrics have all of these.
func (r *Relay) WaitForMetrics(t testing.TB, texts ...string) {
	t.Helper()
	cdctest.Eventually(t, 30*time.Second, func() error {
		metrics := r.Get(t, "/metrics")
		for _, text := range texts {
			if !strings.Contains(metrics, text) {
				return fmt.Errorf("/metrics lack %s", text)
			}
		}
		return nil
	})
}

// MustBeUndisturbed fails the test when a session of the relay has ended, or the relay could not look at the server.
func (r *Relay) MustBeUndisturbed() {
	r.T.Helper()
	if log := r.Log.String(); strings.Contains(log, "starting over") || strings.Contains(log, "cannot check publication and table") {
		r.T.Errorf("a session ended, or could not look:\n%s", log)
	}
}
