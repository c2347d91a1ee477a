package main

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

// long says whether this is the long form of the suite.
func long() bool { return os.Getenv("WALPOST_TEST_LONG") != "" }

// kills is how often each test of that kind kills.
func kills() int {
	if n, err := strconv.Atoi(os.Getenv("WALPOST_KILLS")); err == nil {
		return n
	}
	if long() {
		return 15
	}
	return 5
}

// settled waits until everything committed is delivered and confirmed, and checks the topic against the ledger.
func (s *stage) settled(ledger cdctest.Ledger) cdctest.Report {
	s.t.Helper()
	s.confirmed(time.Minute)
	report := cdctest.Check(ledger, cdctest.ReadAll(s.t, s.brokers, s.topic))
	if err := report.Err(); err != nil {
		s.t.Errorf("%d events committed: %v", len(ledger.Events), err)
	}
	s.t.Logf("%d events, %d records, %d duplicates in %d replays", report.Events, report.Records, report.Duplicates, report.Replays)
	return report
}

// hit is what a kill found: which of the gaps between row, state record and slot it fell into.
type hit struct{ inFlight, beforeState, beforeConfirm bool }

// look compares what was committed, what is in the topic, what the state record says and what the slot has confirmed.
func (s *stage) look(committed int, topicToo bool) hit {
	s.t.Helper()
	st := s.state()
	var confirmed cdc.LSN
	if err := confirmed.Scan(s.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"])); err != nil {
		s.t.Fatal(err)
	}
	if confirmed > st.Covered {
		s.t.Errorf("I2: the slot has confirmed %s, the state record covers %s", confirmed, st.Covered)
	}
	if !topicToo { // it grows
		return hit{beforeConfirm: st.Covered > confirmed}
	}
	ids := map[string]bool{}
	var last cdc.Position
	for _, r := range cdctest.ReadAll(s.t, s.brokers, s.topic) {
		ids[header(r, "id")] = true
		if p := positionOf(s.t, r); p.Compare(last) > 0 {
			last = p
		}
	}
	return hit{
		inFlight:      committed > len(ids),
		beforeState:   last.Compare(st.Last()) > 0,
		beforeConfirm: st.Covered > confirmed,
	}
}

// header is one of ours, whichever kind they are of.
func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key || h.Key == "ce_"+key {
			return string(h.Value)
		}
	}
	return ""
}

func positionOf(t testing.TB, r *kgo.Record) (p cdc.Position) {
	t.Helper()
	seq, err := strconv.ParseUint(header(r, "seq"), 10, 32)
	if err := errors.Join(err, p.Commit.Scan(header(r, "lsn"))); err != nil {
		t.Fatal(err)
	}
	p.Ordinal = uint32(seq)
	return p
}

// TestKillLosesNothing kills -9 under load until every gap between row, state and slot was hit: at random, and every other time
// as soon as a state record is durable, for what is then not confirmed yet is confirmed within milliseconds on servers that ask.
// WALPOST_KILLS says how often.
func TestKillLosesNothing(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			s := &scene{t: t, mode: m}
			s.build(set{env: map[string]string{"LOG_LEVEL": "debug"}, load: cdctest.WriterConfig{Rate: 80, Prepared: true, Long: 300 * time.Millisecond}})
			var inFlight, beforeState, beforeConfirm, n int
			open := func() bool { // exactly once there is nothing between row and state
				return inFlight == 0 || beforeConfirm == 0 || (beforeState == 0 && m == atLeastOnce)
			}
			for ; n < kills() || (n < 5*kills() && open()); n++ {
				r := s.child()
				if n%2 == 0 {
					time.Sleep(rand.N(1000 * time.Millisecond)) // the instant of the kill is what is random here
				} else {
					durable := make(chan struct{})
					r.log.On("state record is durable", func() {
						_ = syscall.Kill(r.pid, syscall.SIGKILL)
						close(durable)
					})
					select {
					case <-durable:
					case <-time.After(20 * time.Second):
						t.Fatal("no state record in 20 s of load")
					}
				}
				committed := s.writer.Committed()
				r.kill()
				h := s.look(committed, open() || n < 5)
				inFlight, beforeState, beforeConfirm = inFlight+count(h.inFlight), beforeState+count(h.beforeState), beforeConfirm+count(h.beforeConfirm)
			}
			t.Logf("%d kills: %d with rows in flight, %d between produce and state, %d between state and confirm", n, inFlight, beforeState, beforeConfirm)
			if open() {
				t.Error("a gap was never hit: this run proves nothing about it")
			}
			if m == exactlyOnce && beforeState > 0 {
				t.Errorf("exactly once, and %d times rows were there without their state record", beforeState)
			}
			s.fixed()
			s.run()
			if report := s.settle(); m == atLeastOnce && report.Duplicates == 0 {
				t.Error("no kill led to a replay: the kills were too tame to prove anything")
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
