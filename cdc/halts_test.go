package cdc

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// set changes the facts that the server reports.
func (s *server) set(change func(*Facts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.facts)
}

func (s *server) confirmed() (max LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.statuses {
		if u.confirmed > max {
			max = u.confirmed
		}
	}
	return max
}

// TestChangeIsWatchedAndLatched changes the publication while the relay streams. The relay halts within the interval,
// and stays halted after the change is undone, until an operator's record ends the halt.
func TestChangeIsWatchedAndLatched(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.send(commit(20, 30, 2)...)
		s.set(func(f *Facts) { f.WALEnd = 1<<40 + 50 })
		time.Sleep(40 * time.Second) // the first look finds nothing
		s.set(func(f *Facts) { f.Fingerprint, f.WALEnd = "changed", 1<<40+77 })
		time.Sleep(30 * time.Second)
		role, err := relay.Role()
		var halt *HaltError
		if role != Halted || !errors.As(err, &halt) || !halt.Latch || halt.Risk != (Range{1<<40 + 50, 1<<40 + 77}) {
			t.Fatalf("role %s, %v", role, err)
		}
		if !s.isClosed() {
			t.Error("a halted relay keeps the slot")
		}
		st := b.now()
		if st.Halt == nil || !st.Halt.Latched || st.Halt.Halt().Error() != err.Error() || st.Covered != 30 || st.Checked != 1<<40+50 {
			t.Errorf("the state record does not hold the halt: %+v", st)
		}
		s.set(func(f *Facts) { f.Fingerprint = "" })
		opened := s.opens()
		time.Sleep(5 * time.Minute)
		if role, again := relay.Role(); role != Halted || again.Error() != err.Error() {
			t.Errorf("undone, it is %s: %v", role, again)
		}
		if s.opens() < opened+8 || b.now() != st {
			t.Errorf("%d sessions in five minutes; a latched halt must be checked, and not written again", s.opens()-opened)
		}
		decided := *st
		decided.Epoch, decided.Halt = st.Epoch+1, nil
		b.mu.Lock()
		b.state = &decided
		b.mu.Unlock()
		time.Sleep(31 * time.Second)
		s.send(commit(40, 50, 1)...)
		time.Sleep(time.Second)
		if role, err := relay.Role(); role != Streaming || b.got() != "[20.1 20.2 40.1]" {
			t.Errorf("decided, it is %s: %v, published %s", role, err, b.got())
		}
	})
}

// TestHaltOfTheStreamNamesWhatIsAtRisk: the stream does not know since when rows were hidden, but the last look does.
func TestHaltOfTheStreamNamesWhatIsAtRisk(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.set(func(f *Facts) { f.WALEnd = 1<<40 + 50 })
		time.Sleep(40 * time.Second)
		s.set(func(f *Facts) { f.WALEnd = 1<<40 + 77 })
		s.fail(&HaltError{Found: "the publication is gone", Run: "create it", Latch: true})
		time.Sleep(time.Second)
		want := Range{1<<40 + 50, 1<<40 + 77}
		role, err := relay.Role()
		var halt *HaltError
		if role != Halted || !errors.As(err, &halt) || halt.Risk != want || !strings.HasPrefix(halt.Run, "create it, and `walpost replay --from ") {
			t.Errorf("role %s, %v", role, err)
		}
		if st := b.now(); st.Halt == nil || st.Halt.Risk != want {
			t.Errorf("state %+v", st.Halt)
		}
	})
}

// TestHaltIsNotWrittenWithAClientThatFailed: a window fails while the halt waits to be written. The next session
// latches the halt.
func TestHaltIsNotWrittenWithAClientThatFailed(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		stall := make(chan struct{})
		b.setStall(stall)
		b.mu.Lock()
		b.fail = errors.New("broker lost")
		b.mu.Unlock()
		s.send(commit(20, 30, 2)...)
		s.set(func(f *Facts) { f.Fingerprint = "changed" })
		time.Sleep(10 * time.Second)
		if role, err := relay.Role(); role != Halted {
			t.Errorf("role %s, %v", role, err)
		}
		b.setStall(nil)
		close(stall)
		time.Sleep(time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.reused || b.state.Halt == nil || !b.state.Halt.Latched {
			t.Errorf("used after it had failed: %t; state %+v", b.reused, b.state)
		}
	})
}

// TestChangeFoundAtAStartIsLatched: publication and table were changed while no relay ran.
func TestChangeFoundAtAStartIsLatched(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.set(func(f *Facts) { f.Slot.ConfirmedFlush = 500 })
		s.fail(errors.New("connection reset"))
		time.Sleep(10 * time.Second)
		if st := b.now(); st.Halt == nil || !st.Halt.Latched || st.Epoch != 2 || st.Covered != 10 {
			t.Errorf("state %+v", st)
		}
		if !s.isClosed() {
			t.Error("a halted relay keeps the slot")
		}
		s.set(func(f *Facts) { f.Slot.ConfirmedFlush = 5 })
		time.Sleep(time.Minute)
		if role, err := relay.Role(); role != Halted || !strings.Contains(err.Error(), "re-created or advanced") {
			t.Errorf("role %s, %v", role, err)
		}
	})
}

// TestChangeFoundAtAStartIsLatchedWithoutTheStream: the server has ended the stream, which the session notices only
// at its second status update, while Kafka is slow.
func TestChangeFoundAtAStartIsLatchedWithoutTheStream(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.set(func(f *Facts) { f.Slot.ConfirmedFlush = 500 })
		s.mu.Lock()
		s.onceOnly = true
		s.mu.Unlock()
		b.mu.Lock()
		b.slow = 3 * time.Second
		b.mu.Unlock()
		s.fail(errors.New("connection reset"))
		time.Sleep(20 * time.Second)
		if role, err := relay.Role(); role != Halted || b.now().Halt == nil || !b.now().Halt.Latched {
			t.Errorf("role %s, %v; state %+v", role, err, b.now())
		}
	})
}

// TestHaltThatIsNotLatchedEndsWithItsCause checks that such a halt ends by itself and leaves no trace in the state
// record.
func TestHaltThatIsNotLatchedEndsWithItsCause(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.set(func(f *Facts) { f.Unfit = []Finding{{Found: "a column is gone"}} })
		time.Sleep(31 * time.Second)
		if role, err := relay.Role(); role != Halted || !strings.Contains(err.Error(), "a column is gone") {
			t.Fatalf("role %s, %v", role, err)
		}
		if st := b.now(); st.Halt == nil || st.Halt.Latched {
			t.Errorf("the state record does not have the halt: %+v", st)
		}
		s.set(func(f *Facts) { f.Unfit = nil })
		time.Sleep(31 * time.Second)
		if role, err := relay.Role(); role != Streaming || b.now().Halt != nil {
			t.Errorf("fixed, it is %s: %v, state %+v", role, err, b.now())
		}
	})
}

// TestBlindWatcherIsNoHalt: a failed look at the server is reported once, and rows continue.
func TestBlindWatcherIsNoHalt(t *testing.T) {
	var told []string
	observe = Observer{Watching: func(err error) { told = append(told, text(err)) }}
	defer func() { observe = Observer{} }()
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.mu.Lock()
		s.factsErr = errors.New("too many connections")
		s.mu.Unlock()
		for range 10 {
			time.Sleep(30 * time.Second)
			s.send(Message{Kind: Keepalive, LSN: 15})
		}
		s.send(commit(20, 30, 1)...)
		time.Sleep(time.Second)
		if role, err := relay.Role(); role != Streaming || b.got() != "[20.1]" {
			t.Errorf("role %s, %v, published %s", role, err, b.got())
		}
		s.mu.Lock()
		s.factsErr = nil
		s.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if strings.Join(told, "|") != "too many connections|" {
			t.Errorf("told %q", told)
		}
	})
}

// TestEachLookTellsThePositions: what is durable in Kafka, and the end of the WAL.
func TestEachLookTellsThePositions(t *testing.T) {
	var told []LSN
	observe = Observer{Looked: func(covered, end LSN, _, _ time.Time) { told = append(told, covered, end) }}
	defer func() { observe = Observer{} }()
	bubble(t, func(s *server, _ *broker, _ func() error, _ *Relay) {
		s.set(func(f *Facts) { f.WALEnd = 100 })
		s.send(commit(20, 30, 1)...)
		time.Sleep(14 * time.Second)
		synctest.Wait()
		if n := len(told); n < 4 || n > 8 || told[n-2] != 30 || told[n-1] != 100 {
			t.Errorf("the looks tell %v", told)
		}
	})
}

// TestNothingIsConfirmedBeforeTheHistoryIsKnown: a slot that has moved would not send again the transactions that
// show a restored snapshot.
func TestNothingIsConfirmedBeforeTheHistoryIsKnown(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.send(commit(20, 30, 1)...)
		s.send(Message{Kind: Keepalive, LSN: 60})
		time.Sleep(2 * time.Second)
		if s.confirmed() != 60 {
			t.Fatalf("confirmed %s", s.confirmed())
		}
		s.fail(errors.New("the server was restored"))
		synctest.Wait()
		s.mu.Lock()
		s.statuses = nil
		s.facts.Slot.ConfirmedFlush = 15 // the snapshot's
		s.mu.Unlock()
		time.Sleep(5 * time.Second)
		s.send(Message{Kind: Keepalive, LSN: 18}) // before everything delivered has come again
		time.Sleep(5 * time.Second)
		if s.confirmed() != 0 {
			t.Errorf("confirmed %s before the stream had passed what was delivered", s.confirmed())
		}
		s.send(commit(40, 50, 1)...) // but not the transaction at 20
		time.Sleep(5 * time.Second)
		role, err := relay.Role()
		if role != Halted || !strings.Contains(err.Error(), "another history") || !b.now().Halt.History {
			t.Errorf("role %s, %v, state %+v", role, err, b.now())
		}
		if s.confirmed() != 0 || b.got() != "[20.1]" {
			t.Errorf("confirmed %s, published %s", s.confirmed(), b.got())
		}
	})
}

// TestFailoverCountsPhantomsAndGoesOn checks the phantoms, and that the relay continues on the new timeline, where
// LSNs are used again.
func TestFailoverCountsPhantomsAndGoesOn(t *testing.T) {
	var told *Phantoms
	observe = Observer{Phantoms: func(p *Phantoms) { told = p }}
	defer func() { observe = Observer{} }()
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.send(append(commit(20, 30, 1), commit(30, 40, 1)...)...)
		time.Sleep(2 * time.Second)
		s.fail(errors.New("failover"))
		synctest.Wait()
		s.set(func(f *Facts) {
			f.Identity = Identity{SystemID: "7", Timeline: 2, History: []PastTimeline{{1, 30}}}
			f.Slot.ConfirmedFlush = 15
		})
		time.Sleep(10 * time.Second)
		s.send(append(commit(20, 30, 1), commit(30, 45, 2)...)...)
		time.Sleep(2 * time.Second)
		if role, err := relay.Role(); role != Streaming || b.got() != "[20.1 30.1 30.1 30.2]" {
			t.Errorf("role %s, %v, published %s", role, err, b.got())
		}
		if told == nil || told.Rows != 3 || told.Range != (Range{30, 40}) || b.now().Phantoms == nil || b.now().Timeline != 2 || b.now().Covered != 45 {
			t.Errorf("phantoms %v, state %+v", told, b.now())
		}
	})
}

// TestWedgeNamesTheWayPastIt: the halt names the transaction, which is known from its Begin.
func TestWedgeNamesTheWayPastIt(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.send(append(commit(0x20, 0x30, 1), commit(0x30, 0x50, 3)[:2]...)...)
		synctest.Wait()
		s.fail(&UndecodableError{Found: "cannot decode"})
		time.Sleep(time.Second)
		role, err := relay.Role()
		if role != Halted || !strings.Contains(err.Error(), "`walpost skip --to 0/38`") || !strings.Contains(err.Error(), "transaction 48, committed at 0/30") {
			t.Errorf("role %s, %v", role, err)
		}
		if st := b.now(); st.Halt == nil || st.Halt.Latched || st.Last() != (Position{0x30, 1}) || st.Covered != 0x30 {
			t.Errorf("state %+v", st)
		}
	})
}

// TestServerThatEndsTheStreamAtOnceIsHeard: the server cannot decode the first change, and the slot is free again
// before the session has begun. No other relay took the slot in between, so this session must report the halt.
func TestServerThatEndsTheStreamAtOnceIsHeard(t *testing.T) {
	for _, came := range []bool{false, true} {
		bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
			s.set(func(f *Facts) { f.PID = 5 }) // no process has the slot
			s.mu.Lock()
			s.first = &UndecodableError{Found: "cannot decode"}
			s.mu.Unlock()
			if came { // another relay took the slot and left it again
				b.mu.Lock()
				b.onState = func() {
					st := *b.state
					st.Epoch++
					b.state = &st
				}
				b.mu.Unlock()
			}
			s.fail(errors.New("connection reset"))
			time.Sleep(10 * time.Second)
			want := Halted
			if came {
				want = Retrying
			}
			if role, err := relay.Role(); role != want {
				t.Errorf("another one came: %t; role %s, %v", came, role, err)
			}
		})
	}
}

// TestWhatCameWithTheStartIsHeard: a server that cannot decode the first change may send its error in one packet with
// its answer to START_REPLICATION, and then send nothing more.
func TestWhatCameWithTheStartIsHeard(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.fail(errors.New("connection reset"))
		synctest.Wait()
		s.mu.Lock()
		s.early = &UndecodableError{Found: "cannot decode"}
		s.mu.Unlock()
		time.Sleep(5 * time.Second)
		if role, err := relay.Role(); role != Halted {
			t.Errorf("role %s, %v", role, err)
		}
	})
}

// TestNotesAreToldAtEachSession: each session reports the notes, which halt nothing.
func TestNotesAreToldAtEachSession(t *testing.T) {
	var told []string
	observe = Observer{Noted: func(notes []string) { told = append(told, strings.Join(notes, ",")) }}
	defer func() { observe = Observer{} }()
	bubble(t, func(s *server, _ *broker, _ func() error, _ *Relay) {
		s.set(func(f *Facts) { f.Notes = []string{"a clock is wrong"} })
		s.fail(errors.New("begin again"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := fmt.Sprintf("%q", told); got != `["" "a clock is wrong"]` {
			t.Errorf("told %s", got)
		}
	})
}
