package main

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// killed is fault 1: kill -9 at every instant that has a name, also of init.
func killed(s *scene) {
	s.build(set{quiet: true, env: map[string]string{"WALPOST_WINDOW_ROWS": "50"}})
	s.must("init", "--remove", "--yes")
	for _, point := range []string{"init_record", "init_slot", "init_record"} {
		at := 1
		if point == "init_record" {
			at = 1 + rand.IntN(2)
		}
		r := s.command(exec.Command(s.binary(), "init"), fmt.Sprintf("WALPOST_FAILPOINT=%s:kill@%d", point, at))
		r.ends(30 * time.Second)
		if !strings.Contains(r.log.String(), "failpoint "+point) {
			break // it was whole by then
		}
	}
	s.must("init")
	s.watch(cdctest.WriterConfig{})
	points := []string{"state_read", "after_open", "after_decode", "mid_produce", "mid_flush", "after_flush", "after_commit_before_ack", "after_ack"}
	if s.mode == exactlyOnce {
		points = append(points, "after_begin_txn", "before_end_txn", "after_end_txn")
	}
	for _, point := range points {
		at := 1 + rand.IntN(5)
		if point == "state_read" || point == "after_open" {
			at = 1
		}
		r := s.failing(fmt.Sprintf("%s:kill@%d", point, at))
		r.says(30*time.Second, "failpoint "+point+": kill")
		r.ends(10 * time.Second)
	}
	s.fixed()
	s.run()
	s.settle()
}

// stopped is fault 2: SIGTERM at any instant under load.
func stopped(s *scene) {
	s.build(set{})
	for range kills() {
		r := s.child()
		time.Sleep(rand.N(500 * time.Millisecond)) // the instant of the stop is what is random here
		if err := r.stop(); err != nil {
			s.t.Fatalf("asked to stop, the relay ended with %v:\n%s", err, r.log)
		}
		st := s.state()
		if confirmed := s.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"]); confirmed != st.Covered.String() {
			s.t.Errorf("after a stop the slot has confirmed %s, the state record covers %s", confirmed, st.Covered)
		}
	}
	s.fixed()
	s.run()
	s.once(s.settle())
}

// frozen is fault 3: a relay is stopped past wal_sender_timeout, replaced, and goes on.
func frozen(s *scene) {
	s.build(set{options: "-c wal_sender_timeout=2s", env: map[string]string{"WALPOST_WINDOW_ROWS": "50"}})
	s.mayMisplace = true // at least once: its one window may land late, a stale contiguous run
	points := []string{"after_decode", "mid_produce", "mid_flush"}
	if s.mode == exactlyOnce {
		points = []string{"mid_produce", "before_end_txn", "after_commit_before_ack"}
	}
	for _, point := range points {
		zombie := s.failing(point + ":stop@3")
		zombie.says(30*time.Second, "failpoint "+point+": stop")
		zombie.frozen(10 * time.Second)
		s.fixed()
		heir := s.spawn()
		heir.says(30*time.Second, `"streaming"`)
		s.relays = append(s.relays, heir)
		s.flows()
		zombie.signal(syscall.SIGCONT)
		zombie.says(30*time.Second, "standing by")
		s.flows()
		if s.mode == exactlyOnce {
			s.once(cdctest.Report{Duplicates: s.doubles()})
		}
		zombie.kill()
		heir.kill()
	}
	s.fixed()
	s.run()
	s.settle()
}

// doubles counts records of events that are there already.
func (s *scene) doubles() (n int) {
	ids := map[string]bool{}
	for _, r := range cdctest.ReadAll(s.t, s.brokers, s.topic) {
		id := header(r, "id")
		if ids[id] {
			n++
		}
		ids[id] = true
	}
	return n
}

// two is fault 4: several relays on one slot.
func two(s *scene) {
	s.build(set{})
	first := s.child()
	second := s.spawn()
	second.says(20*time.Second, "standing by")
	first.kill()
	s.fixed()
	s.streams(second)
	third := s.spawn()
	third.says(20*time.Second, "standing by")
	epoch := s.state().Epoch
	s.grows(50)
	if now := s.state().Epoch; now != epoch {
		s.t.Errorf("the standing by relay took epoch %d from %d", now, epoch)
	}
	if err := second.stop(); err != nil {
		s.t.Fatal(err)
	}
	s.streams(third)
	s.settle()
	if n := strings.Count(third.log.String(), "standing by"); n != 1 {
		s.t.Errorf("standing by is told once, not %d times", n)
	}
}

// named is fault 5: two pipelines of one name, and so of one transactional id, on different slots.
func named(s *scene) {
	s.build(set{})
	first := s.run()
	s.flows()
	slot := s.env["WALPOST_SOURCE_SLOT"]
	s.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot+"_b")
	s.env["WALPOST_SOURCE_SLOT"] = slot + "_b"
	second := s.spawn()
	second.says(30*time.Second, `"halted"`)
	second.kill()
	s.env["WALPOST_SOURCE_SLOT"] = slot
	s.exec("SELECT pg_drop_replication_slot($1)", slot+"_b")
	s.grows(50)
	s.once(s.settle())
	if strings.Contains(first.log.String(), "starting over") && s.mode == exactlyOnce {
		s.t.Errorf("the first relay was fenced by a second that had no right to:\n%s", first.log)
	}
}
