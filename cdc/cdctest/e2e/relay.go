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

// Relay is a running `walpost relay`, in the test's process or in a separate one.
type Relay struct {
	T    testing.TB
	Log  *cdctest.Log
	Stop func() error // sends SIGTERM, or ends its context; returns the relay's error

	// Only a relay in a separate process has these.
	Kill func() // SIGKILL
	PID  int
	Gone <-chan struct{} // closed when the process has ended
}

// StartRelay runs a relay in the test's process if the program can do that, and otherwise in a separate one.
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

// SpawnRelay runs a relay in a separate process.
func (s *Pipeline) SpawnRelay() *Relay {
	s.T.Helper()
	return s.StartCommand(s.Command("relay"))
}

// StartCommand starts a command with the configuration and further variables in its environment.
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

// report prints the end of a relay's log if the test failed. It fails the test if the race detector found a race in the
// relay's process.
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

// WaitForLog waits until the log contains the text.
func (r *Relay) WaitForLog(within time.Duration, text string) {
	r.T.Helper()
	cdctest.Eventually(r.T, within, func() error {
		if !strings.Contains(r.Log.String(), text) {
			return fmt.Errorf("the log does not say %q", text)
		}
		return nil
	})
}

// Get requests a path from the relay's HTTP address, which it takes from the log, and returns status and body.
func (r *Relay) Get(t testing.TB, path string) string {
	t.Helper()
	r.WaitForLog(30*time.Second, `"serving HTTP"`)
	said, err := r.Ask(path)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// Ask does the same as Get for a relay that may have ended.
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

// Memory returns the highest resident memory of the relay's process, in bytes.
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

// PeakMemory returns the highest resident memory of a running process, in bytes, or 0. The kernel's figure for an ended
// process is useless: it starts with its parent's memory.
func PeakMemory(pid int) int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kb int64
	_, _ = fmt.Sscan(rest, &kb)
	return kb << 10
}

// WaitForMetrics waits until the relay's metrics contain all of these texts.
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

// MustBeUndisturbed fails the test if a session of the relay has ended, or if the relay could not look at the server.
func (r *Relay) MustBeUndisturbed() {
	r.T.Helper()
	if log := r.Log.String(); strings.Contains(log, "starting over") || strings.Contains(log, "cannot check publication and table") {
		r.T.Errorf("a session ended, or could not look:\n%s", log)
	}
}
