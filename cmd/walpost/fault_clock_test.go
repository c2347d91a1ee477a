package main

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
)

// jumpingBinary is a walpost with failpoints, built when it is first asked for, whose wall clock jumps between an hour ago, now and an
// hour ahead, every second. The clock is the one of the standard library, changed while walpost is built; the monotonic clock runs on,
// as it does when a machine's is set.
func jumpingBinary(t *testing.T) func() (string, error) {
	dir := t.TempDir()
	return sync.OnceValues(func() (string, error) {
		root, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return "", err
		}
		clock := filepath.Join(strings.TrimSpace(string(root)), "src/time/time.go")
		source, err := os.ReadFile(clock)
		if err != nil {
			return "", fmt.Errorf("the standard library's sources are needed: %w", err)
		}
		const asked = "\tsec, nsec, mono := runtimeNow()\n"
		jumping := strings.Replace(string(source), asked, asked+"\tsec += (mono/1e9%3 - 1) * 3600\n", 1)
		if jumping == string(source) {
			return "", errors.New("time.Now is not written as it was: see where it asks the runtime")
		}
		changed, overlay, binary := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "walpost")
		text, err := json.Marshal(map[string]any{"Replace": map[string]string{clock: changed}})
		if err := errors.Join(err, os.WriteFile(changed, []byte(jumping), 0o600), os.WriteFile(overlay, text, 0o600)); err != nil {
			return "", err
		}
		if out, err := exec.Command("go", "build", "-overlay", overlay, "-tags", "failpoints", "-o", binary, ".").CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build -overlay: %w\n%s", err, out)
		}
		return binary, nil
	})
}

// clockJumps is fault 38.
func clockJumps(s *scene) {
	binary, err := s.jumping()
	if err != nil {
		s.t.Fatal(err)
	}
	s.binary = func() string { return binary }
	s.build(set{options: "-c wal_sender_timeout=2s"})
	r := s.streams(s.command(exec.Command(binary, "relay")))
	s.grows(500)
	s.flows()
	r.signal(syscall.SIGTERM)
	r.ends(20 * time.Second)
	for range 2 {
		s.failing("after_flush:kill@3").ends(60 * time.Second)
	}
	s.streams(s.command(exec.Command(binary, "relay")))
	s.grows(500)
	hours := map[string]bool{}
	for _, r := range s.relays {
		for line := range strings.Lines(r.log.String()) {
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
	s.fixed()
	s.settle()
}
