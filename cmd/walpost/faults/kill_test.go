package faults

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/config"
)

// gaps records into which of the gaps between row, state record and slot a kill fell.
type gaps struct{ inFlight, beforeState, beforeConfirm bool }

// lookAtGaps compares the committed rows, the topic, the state record and the slot's confirmed position.
func (s *trial) lookAtGaps(committed int, topicToo bool) gaps {
	s.T.Helper()
	st := s.StateRecord()
	var confirmed cdc.LSN
	if err := confirmed.Scan(s.Query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot())); err != nil {
		s.T.Fatal(err)
	}
	if confirmed > st.Covered {
		s.T.Errorf("I2: the slot has confirmed %s, the state record covers %s", confirmed, st.Covered)
	}
	if !topicToo { // the topic grows
		return gaps{beforeConfirm: st.Covered > confirmed}
	}
	ids := map[string]bool{}
	var last cdc.Position
	for _, r := range cdctest.ReadAll(s.T, s.Brokers, s.Topic) {
		ids[e2e.Header(r, "id")] = true
		if p := e2e.PositionOf(s.T, r); p.Compare(last) > 0 {
			last = p
		}
	}
	return gaps{
		inFlight:      committed > len(ids),
		beforeState:   last.Compare(st.Last()) > 0,
		beforeConfirm: st.Covered > confirmed,
	}
}

// TestKillLosesNothing kills -9 under load until every gap between row, state and slot was hit: at random, and every
// other time as soon as a state record is durable, because servers that ask get the confirmation within milliseconds.
// WALPOST_KILLS sets the number of kills. With -short it kills twice, which is too seldom to hit every gap.
func TestKillLosesNothing(t *testing.T) {
	t.Parallel()
	built := newBinaries(t)
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			s := &trial{t: t, mode: m, binaries: built}
			s.prepare(setup{env: map[string]string{"LOG_LEVEL": "debug"}, load: cdctest.WriterConfig{Rate: 80, Prepared: true, Long: 300 * time.Millisecond}})
			var inFlight, beforeState, beforeConfirm, n int
			open := func() bool { // in exactly-once there is no gap between row and state record
				return inFlight == 0 || beforeConfirm == 0 || (beforeState == 0 && m == config.AtLeastOnce)
			}
			for ; n < e2e.Kills() || (n < 5*e2e.Kills() && open() && !testing.Short()); n++ {
				r := s.startStreaming()
				if n%2 == 0 {
					time.Sleep(rand.N(1000 * time.Millisecond)) // this makes the instant of the kill random
				} else {
					durable := make(chan struct{})
					r.Log.On("state record is durable", func() {
						_ = syscall.Kill(r.PID, syscall.SIGKILL)
						close(durable)
					})
					select {
					case <-durable:
					case <-time.After(cdctest.Patience(20 * time.Second)):
						t.Fatal("no state record in 20 s of load")
					}
				}
				committed := s.writer.Committed()
				r.Kill()
				h := s.lookAtGaps(committed, open() || n < 5)
				inFlight, beforeState, beforeConfirm = inFlight+count(h.inFlight), beforeState+count(h.beforeState), beforeConfirm+count(h.beforeConfirm)
			}
			t.Logf("%d kills: %d with rows in flight, %d between produce and state, %d between state and confirm", n, inFlight, beforeState, beforeConfirm)
			if open() && !testing.Short() {
				t.Error("a gap was never hit: this run proves nothing about it")
			}
			if m == config.ExactlyOnce && beforeState > 0 {
				t.Errorf("exactly once, but %d times Kafka had rows without their state record", beforeState)
			}
			s.endFault()
			s.startStreaming()
			if report := s.finish(); m == config.AtLeastOnce && report.Duplicates == 0 && !testing.Short() {
				t.Error("no kill led to a repeat: this run proves nothing")
			}
		})
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}
