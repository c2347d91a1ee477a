package faults

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/config"
)

// killAtEachInstant runs fault 1: kill -9 at every named instant, also of init.
func killAtEachInstant(s *trial) {
	s.prepare(setup{quiet: true, env: map[string]string{"WALPOST_WINDOW_ROWS": "50"}})
	s.MustRun("init", "--remove", "--yes")
	for _, point := range []string{"init_record", "init_slot", "init_record"} {
		at := 1
		if point == "init_record" {
			at = 1 + rand.IntN(2)
		}
		r := s.StartCommand(exec.Command(s.failpoints(), "init"), fmt.Sprintf("WALPOST_FAILPOINT=%s:kill@%d", point, at))
		r.WaitUntilEnded(30 * time.Second)
		if !strings.Contains(r.Log.String(), "failpoint "+point) {
			break // init was complete before this instant
		}
	}
	s.MustRun("init")
	s.startLoad(cdctest.WriterConfig{})
	points := []string{"state_read", "after_open", "after_decode", "mid_produce", "mid_flush", "after_flush", "after_commit_before_ack", "after_ack"}
	if s.mode == config.ExactlyOnce {
		points = append(points, "after_begin_txn", "before_end_txn", "after_end_txn")
	}
	for _, point := range points {
		at := 1 + rand.IntN(5)
		if point == "state_read" || point == "after_open" {
			at = 1
		}
		r := s.startWithFailpoints(fmt.Sprintf("%s:kill@%d", point, at))
		r.WaitForLog(30*time.Second, "failpoint "+point+": kill")
		r.WaitUntilEnded(10 * time.Second)
	}
	s.endFault()
	s.startStreaming()
	s.finish()
}

// stopAtAnyInstant runs fault 2: SIGTERM at any instant under load.
func stopAtAnyInstant(s *trial) {
	s.prepare(setup{})
	for range e2e.Kills() {
		r := s.startStreaming()
		time.Sleep(rand.N(500 * time.Millisecond)) // this makes the instant of the stop random
		if err := r.Stop(); err != nil {
			s.t.Fatalf("asked to stop, the relay ended with %v:\n%s", err, r.Log)
		}
		st := s.StateRecord()
		if confirmed := s.Query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); confirmed != st.Covered.String() {
			s.t.Errorf("after a stop the slot has confirmed %s, the state record covers %s", confirmed, st.Covered)
		}
	}
	s.endFault()
	s.startStreaming()
	s.wantNoDuplicates(s.finish())
}

// freezeAndReplace runs fault 3: a relay is frozen for longer than wal_sender_timeout, replaced, and continues.
func freezeAndReplace(s *trial) {
	s.prepare(setup{options: "-c wal_sender_timeout=2s", env: map[string]string{"WALPOST_WINDOW_ROWS": "50"}})
	s.mayMisplace = true // in at-least-once its one window may arrive late, a stale contiguous run
	points := []string{"after_decode", "mid_produce", "mid_flush"}
	if s.mode == config.ExactlyOnce {
		points = []string{"mid_produce", "before_end_txn", "after_commit_before_ack"}
	}
	for _, point := range points {
		zombie := s.startWithFailpoints(point + ":stop@3")
		zombie.WaitForLog(30*time.Second, "failpoint "+point+": stop")
		zombie.WaitUntilFrozen(30 * time.Second)
		s.endFault()
		heir := s.SpawnRelay()
		heir.WaitForLog(time.Minute, `"streaming"`)
		s.relays = append(s.relays, heir)
		s.waitUntilDelivered()
		zombie.Signal(syscall.SIGCONT)
		zombie.WaitForLog(30*time.Second, "standing by")
		s.waitUntilDelivered()
		if s.mode == config.ExactlyOnce {
			s.wantNoDuplicates(cdctest.Report{Duplicates: s.countDuplicates()})
		}
		zombie.Kill()
		heir.Kill()
	}
	s.endFault()
	s.startStreaming()
	s.finish()
}

// countDuplicates returns how many records repeat an event.
func (s *trial) countDuplicates() (n int) {
	ids := map[string]bool{}
	for _, r := range cdctest.ReadAll(s.t, s.Brokers, s.Topic) {
		id := e2e.Header(r, "id")
		if ids[id] {
			n++
		}
		ids[id] = true
	}
	return n
}

// runSeveralRelays runs fault 4: several relays on one slot.
func runSeveralRelays(s *trial) {
	s.prepare(setup{})
	first := s.startStreaming()
	second := s.SpawnRelay()
	second.WaitForLog(20*time.Second, "standing by")
	first.Kill()
	s.endFault()
	s.waitUntilStreaming(second)
	third := s.SpawnRelay()
	third.WaitForLog(20*time.Second, "standing by")
	epoch := s.StateRecord().Epoch
	s.waitForCommits(50)
	if now := s.StateRecord().Epoch; now != epoch {
		s.t.Errorf("the standby took epoch %d after %d", now, epoch)
	}
	if err := second.Stop(); err != nil {
		s.t.Fatal(err)
	}
	s.waitUntilStreaming(third)
	s.finish()
	if n := strings.Count(third.Log.String(), "standing by"); n != 1 {
		s.t.Errorf("the standby reported itself %d times, want once", n)
	}
}

// runOneNameOnTwoSlots runs fault 5: two pipelines of one name, and so of one transactional id, on different slots.
func runOneNameOnTwoSlots(s *trial) {
	s.prepare(setup{})
	first := s.startStreaming()
	s.waitUntilDelivered()
	slot := s.Slot()
	s.Exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot+"_b")
	s.Env["WALPOST_SOURCE_SLOT"] = slot + "_b"
	second := s.SpawnRelay()
	second.WaitForLog(30*time.Second, `"halted"`)
	second.Kill()
	s.Env["WALPOST_SOURCE_SLOT"] = slot
	s.Exec("SELECT pg_drop_replication_slot($1)", slot+"_b")
	s.waitForCommits(50)
	s.wantNoDuplicates(s.finish())
	if strings.Contains(first.Log.String(), "starting over") && s.mode == config.ExactlyOnce {
		s.t.Errorf("the first relay was fenced by a second that had no right to:\n%s", first.Log)
	}
}
