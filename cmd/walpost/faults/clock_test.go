package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// jumpingBinary returns a function that builds, at its first call, a walpost with failpoints whose wall clock jumps
// between an hour ago, now and an hour ahead, every second. The clock is the one of the standard library, changed
// while walpost is built; the monotonic clock continues, as it does when a machine's clock is set.
func jumpingBinary(t *testing.T) func() string {
	t.Helper()
	overlay := filepath.Join(t.TempDir(), "overlay.json")
	build := e2e.Build(t, "..", "-race=false", "-overlay", overlay, "-tags", "failpoints")
	prepare := sync.OnceValue(func() error {
		root, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return err
		}
		clock := filepath.Join(strings.TrimSpace(string(root)), "src/time/time.go")
		source, err := os.ReadFile(clock)
		if err != nil {
			return fmt.Errorf("the standard library's sources are needed: %w", err)
		}
		const asked = "\tsec, nsec, mono := runtimeNow()\n"
		jumping := strings.Replace(string(source), asked, asked+"\tsec += (mono/1e9%3 - 1) * 3600\n", 1)
		if jumping == string(source) {
			return errors.New("the source of time.Now has changed: find where it calls the runtime")
		}
		changed := filepath.Join(filepath.Dir(overlay), "time.go")
		text, err := json.Marshal(map[string]any{"Replace": map[string]string{clock: changed}})
		return errors.Join(err, os.WriteFile(changed, []byte(jumping), 0o600), os.WriteFile(overlay, text, 0o600))
	})
	return func() string {
		if err := prepare(); err != nil {
			t.Error(err)
		}
		return build()
	}
}

// clockJumps runs fault 38.
func clockJumps(s *trial) {
	binary := s.jumping()
	s.failpoints = func() string { return binary }
	s.prepare(setup{options: "-c wal_sender_timeout=2s"})
	r := s.waitUntilStreaming(s.StartCommand(exec.Command(binary, "relay")))
	s.waitForCommits(500)
	s.waitUntilDelivered()
	r.Signal(syscall.SIGTERM)
	r.WaitUntilEnded(20 * time.Second)
	for range 2 {
		s.startWithFailpoints("after_flush:kill@3").WaitUntilEnded(60 * time.Second)
	}
	s.waitUntilStreaming(s.StartCommand(exec.Command(binary, "relay")))
	s.waitForCommits(500)
	hours := map[string]bool{}
	for _, r := range s.relays {
		for line := range strings.Lines(r.Log.String()) {
			if _, rest, found := strings.Cut(line, `"time":"`); found {
				at, err := time.Parse(time.RFC3339Nano, strings.SplitN(rest, `"`, 2)[0])
				if err == nil {
					hours[time.Until(at).Round(time.Hour).String()] = true
				}
			}
		}
	}
	s.t.Logf("hours off in the logs: %v", hours)
	if len(hours) < 2 {
		s.t.Error("the clock did not jump")
	}
	s.endFault()
	s.finish()
}
