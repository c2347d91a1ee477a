package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// Where wal_sender_timeout is minutes, a walsender with a twentieth of a core that replays somebody else's large
// transaction answers no ping for longer than the reader waits: the relay's session has a timeout that keeps it
// answering. Only in the long form.
func TestASlowWalsender(t *testing.T) {
	cdctest.Long(t, endToEnd)
	if !cdctest.LongForm() {
		return
	}
	t.Parallel()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"wal_sender_timeout": "10min"}})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
	s.MustRun("init")
	s.Exec("CREATE TABLE other (n int)")
	r := s.StartRelay()
	r.WaitForLog(30*time.Second, `"streaming"`)
	pid, err := strconv.Atoi(s.Query("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()))
	if err != nil {
		t.Fatal(err)
	}
	s.Exec("INSERT INTO other SELECT generate_series(1, 6000000)")
	for deadline := time.Now().Add(2 * time.Minute); !replays(pid); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the walsender does not replay what it has spilled")
		}
	}
	for began := time.Now(); time.Since(began) < 75*time.Second; time.Sleep(5 * time.Millisecond) {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
		time.Sleep(95 * time.Millisecond)
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	s.InsertRows(1)
	s.WaitUntilConfirmed(time.Minute)
	r.MustBeUndisturbed()
}

// replays reports whether a walsender reads the changes that it has spilled to disk.
func replays(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		to, _ := os.Readlink(dir + e.Name())
		info, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, e.Name()))
		for line := range strings.Lines(string(info)) {
			if flags, ok := strings.CutPrefix(line, "flags:"); ok && strings.Contains(to, ".spill") && strings.HasSuffix(strings.TrimSpace(flags), "0") { // O_RDONLY
				return true
			}
		}
	}
	return false
}
