package cdc

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// heard records the reports of a relay about stalls and commits, with their times.
type heard struct {
	mu     sync.Mutex
	stalls []string
	at     []time.Time
	commit []string
}

func (h *heard) list() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.stalls...)
}

func (h *heard) first() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at[0]
}

// listening runs bubble with a server that reports its WAL's end, and a relay whose reports are recorded. The stream
// has begun and is current.
func listening(t *testing.T, f func(s *server, b *broker, h *heard, relay *Relay)) {
	t.Helper()
	h := &heard{}
	observe = Observer{
		Stuck: func(s *StallError) {
			h.mu.Lock()
			defer h.mu.Unlock()
			cause := "over"
			if s != nil {
				cause = s.Cause
			}
			h.stalls, h.at = append(h.stalls, cause), append(h.at, time.Now())
		},
		CommitsWait: func(err error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.commit = append(h.commit, text(err))
		},
	}
	defer func() { observe = Observer{} }()
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.set(func(f *Facts) { f.WALEnd = 20 })
		s.fail(errors.New("begin again, with this server"))
		s.set(func(f *Facts) {
			f.PID, f.Slot.ActivePID, f.Walsender = 5, 5, Walsender{5, "Client", "WalSenderWaitForWAL"}
		})
		time.Sleep(2 * time.Second)
		s.send(Message{Kind: Keepalive, LSN: 20})
		time.Sleep(time.Minute)
		if got := h.list(); len(got) > 0 {
			t.Fatalf("told %q of a relay that is idle", got)
		}
		f(s, b, h, relay)
	})
}

// TestStallIsToldWithItsCause: a stall is reported once, within half a minute of the commit, at any time between two
// looks, and once when it is over.
func TestStallIsToldWithItsCause(t *testing.T) {
	for cause, is := range map[string]func(*Facts){
		"silent":      func(*Facts) {},
		"transaction": func(f *Facts) { f.Walsender.Wait, f.Walsender.For = "", "" },
		"standby": func(f *Facts) {
			f.Standbys = []StandbySlot{{Name: "sb1", Away: "it is inactive"}, {Name: "sb2", Restart: 100}}
		},
		"gone": func(f *Facts) { f.Slot.ActivePID, f.Walsender = 0, Walsender{} },
	} {
		for _, after := range []time.Duration{0, 2 * time.Second, 4999 * time.Millisecond} {
			listening(t, func(s *server, b *broker, h *heard, _ *Relay) {
				time.Sleep(after)
				began := time.Now()
				s.set(func(f *Facts) { f.WALEnd = 50; is(f) })
				for range 8 { // a waiting walsender continues to send
					time.Sleep(5 * time.Second)
					s.send(Message{Kind: Keepalive, LSN: 20})
				}
				if got := h.list(); fmt.Sprint(got) != "["+cause+"]" {
					t.Fatalf("told %q, want %s, once", got, cause)
				}
				if took := h.first().Sub(began); took > 30*time.Second || took < 14*time.Second {
					t.Errorf("%s was told after %s", cause, took)
				}
				s.send(commit(40, 50, 1)...)
				time.Sleep(6 * time.Second)
				if got := h.list(); fmt.Sprint(got) != "["+cause+" over]" {
					t.Errorf("told %q, want that it is over", got)
				}
			})
		}
	}
}

// TestStallIsNotOverWithItsSession: a new session at the same place has moved nothing.
func TestStallIsNotOverWithItsSession(t *testing.T) {
	listening(t, func(s *server, _ *broker, h *heard, _ *Relay) {
		s.set(func(f *Facts) { f.WALEnd = 50 })
		time.Sleep(25 * time.Second)
		s.fail(errors.New("cut"))
		time.Sleep(30 * time.Second)
		if got := h.list(); fmt.Sprint(got) != "[silent]" {
			t.Errorf("told %q, want one stall", got)
		}
	})
}

// TestWhatIsNoStall: a pause is no stall, nor rows of one huge transaction, another application's transaction, or one
// message that comes in many reads.
func TestWhatIsNoStall(t *testing.T) {
	for name, flows := range map[string]func(s *server, i int){
		"rows of one transaction": func(s *server, i int) { s.send(Message{Kind: Insert, Row: Row{ID: fmt.Append(nil, i)}}) },
		"others' rows in it":      func(s *server, _ int) { s.send(Message{Kind: Other}) },
		"keepalives that go on":   func(s *server, i int) { s.send(Message{Kind: Keepalive, LSN: LSN(100 + i)}) },
		"WAL that is covered at once": func(s *server, i int) {
			s.set(func(f *Facts) { f.WALEnd = LSN(100 + i) })
			s.send(Message{Kind: Keepalive, LSN: LSN(100 + i)})
		},
	} {
		listening(t, func(s *server, _ *broker, h *heard, _ *Relay) {
			s.set(func(f *Facts) { f.WALEnd = 1 << 30 })
			if strings.Contains(name, "transaction") || strings.Contains(name, "others") {
				s.send(Message{Kind: Begin, LSN: 40})
			}
			for i := range 12 {
				flows(s, i)
				time.Sleep(10 * time.Second)
			}
			if got := h.list(); len(got) > 0 {
				t.Errorf("%s: told %q", name, got)
			}
		})
	}
	m := &motion{}
	if m.moves(20, 0, 256<<10); m.received.Load() != 1 {
		t.Error("a read of a message that is skipped unread does not count as motion")
	}
	if m.moves(20, 0, 400); m.received.Load() != 1 {
		t.Error("a keepalive and a warning count as motion")
	}
}

// TestKafkaThatTakesNothingIsAStall checks that a Kafka that takes nothing is reported like any other stall.
func TestKafkaThatTakesNothingIsAStall(t *testing.T) {
	listening(t, func(s *server, b *broker, h *heard, _ *Relay) {
		stall := make(chan struct{})
		b.setStall(stall)
		s.set(func(f *Facts) { f.WALEnd = 1 << 30 })
		for i := range LSN(40) { // the server continues to write
			s.send(append(commit(40+20*i, 50+20*i, 0), Message{Kind: Other}, Message{Kind: Keepalive, LSN: 55 + 20*i})...)
			if i == 0 {
				s.send(commit(56, 57, 1)...)
			}
			time.Sleep(time.Second)
		}
		if got := h.list(); fmt.Sprint(got) != "[kafka]" {
			t.Errorf("told %q, want kafka", got)
		}
		b.setStall(nil)
		close(stall)
		time.Sleep(6 * time.Second)
		if got := h.list(); fmt.Sprint(got) != "[kafka over]" {
			t.Errorf("told %q, want that it is over", got)
		}
	})
}

// TestSilentServerIsGivenUpUnlessItIsAtWork: the last look tells whether the server works. It does not count if it is
// old, or if there is no such process.
func TestSilentServerIsGivenUpUnlessItIsAtWork(t *testing.T) {
	busy := Walsender{5, "IO", "ReorderBufferRead"}
	for _, c := range []struct {
		name  string
		is    Walsender
		blind bool
		gives bool
	}{
		{"computes", Walsender{PID: 5}, false, false},
		{"reads what it has spilled", busy, false, false},
		{"waits for its client", Walsender{5, "Client", "WalSenderWriteData"}, false, true},
		{"waits for WAL", Walsender{5, "Activity", "WalSenderMain"}, false, true},
		{"is gone", Walsender{}, false, true},
		{"was busy when it was last seen", busy, true, true},
	} {
		listening(t, func(s *server, _ *broker, _ *heard, _ *Relay) {
			s.set(func(f *Facts) { f.WALEnd, f.Walsender = 50, c.is })
			time.Sleep(6 * time.Second)
			if c.blind {
				s.mu.Lock()
				s.factsErr = errors.New("no answer")
				s.mu.Unlock()
			}
			opens := s.opens()
			time.Sleep(5 * time.Minute)
			if gave := s.opens() > opens; gave != c.gives {
				t.Errorf("the walsender %s: given up: %t", c.name, gave)
			}
		})
	}
}

// TestTheSameFailureIsNotReady: sessions that stream and fail at one place are a stall from the third on, whose text
// has the error and the count, until something is delivered. Elsewhere, or if no rows wait, they are no stall.
func TestTheSameFailureIsNotReady(t *testing.T) {
	listening(t, func(s *server, _ *broker, h *heard, relay *Relay) {
		for _, cut := range []error{errors.New("cut at once"), nil} { // no rows wait
			s.mu.Lock()
			s.first = cut
			s.mu.Unlock()
			s.fail(errors.New("cut"))
			time.Sleep(time.Minute)
		}
		if got := h.list(); len(got) > 0 {
			t.Fatalf("told %q of an idle relay whose connection was cut", got)
		}
		s.set(func(f *Facts) { f.WALEnd = 1 << 30 })
		for i := range LSN(5) { // the positions move in between
			s.fail(errors.New("cut"))
			time.Sleep(11 * time.Second)
			s.send(commit(40+20*i, 50+20*i, 1)...)
			time.Sleep(2 * time.Second)
		}
		if got := h.list(); len(got) > 0 {
			t.Fatalf("told %q of a relay that goes on", got)
		}
		for range 4 {
			s.fail(errors.New("terminating connection due to transaction timeout"))
			time.Sleep(11 * time.Second)
			s.send(Message{Kind: Begin, LSN: 200}) // the same transaction begins again each time
		}
		if got := h.list(); fmt.Sprint(got) != "[failures failures]" {
			t.Fatalf("told %q, want the third and the fourth failure", got)
		}
		if told := relay.memory.troubles.reported.Error(); !strings.Contains(told, "4 times in a row at 0/82") || !strings.Contains(told, "transaction timeout") {
			t.Errorf("told %q", told)
		}
		s.mu.Lock()
		s.messages = nil
		s.mu.Unlock()
		s.fail(errors.New("cut"))
		time.Sleep(11 * time.Second)
		s.send(commit(200, 210, 1)...)
		time.Sleep(6 * time.Second)
		if got := h.list(); fmt.Sprint(got) != "[failures failures failures over]" {
			t.Errorf("told %q, want that it is over", got)
		}
	})
}

// TestFormerSessionIsNoOtherRelay: the process of an ended session of this relay still holds the slot.
func TestFormerSessionIsNoOtherRelay(t *testing.T) {
	listening(t, func(s *server, _ *broker, _ *heard, relay *Relay) {
		s.mu.Lock()
		s.inUse = true
		s.mu.Unlock()
		s.fail(errors.New("cut"))
		time.Sleep(5 * time.Second)
		if role, err := relay.Role(); role != Retrying || !strings.Contains(text(err), "this relay's former session, PID 5") {
			t.Errorf("%s: %v", role, err)
		}
		s.set(func(f *Facts) { f.Slot.ActivePID = 6 })
		time.Sleep(5 * time.Second)
		if role, err := relay.Role(); role != Standby {
			t.Errorf("%s: %v; another process has the slot", role, err)
		}
	})
}

// TestCommitsThatWaitAreTold checks that a report comes at each change, and no other.
func TestCommitsThatWaitAreTold(t *testing.T) {
	listening(t, func(s *server, _ *broker, h *heard, _ *Relay) {
		for _, w := range []*CommitWaitError{{Names: "*", Surely: true}, {Names: "ANY 1 (*)"}, nil} {
			s.set(func(f *Facts) { f.Commits = w })
			time.Sleep(20 * time.Second)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.commit) != 3 || !strings.Contains(h.commit[0], "every commit") || !strings.Contains(h.commit[1], "ANY 1 (*)") || h.commit[2] != "" {
			t.Errorf("told %q", h.commit)
		}
	})
}

// TestCommitsAreAskedForWhileKafkaIsAway: no session begins then, and the setting may have been changed.
func TestCommitsAreAskedForWhileKafkaIsAway(t *testing.T) {
	listening(t, func(s *server, b *broker, h *heard, _ *Relay) {
		s.set(func(f *Facts) { f.Commits = &CommitWaitError{Names: "*", Surely: true} })
		time.Sleep(10 * time.Second)
		b.mu.Lock()
		b.away = errors.New("no broker answers")
		b.mu.Unlock()
		s.fail(errors.New("cut"))
		time.Sleep(30 * time.Second)
		s.set(func(f *Facts) { f.Commits = nil })
		time.Sleep(30 * time.Second)
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.commit) != 2 || h.commit[1] != "" {
			t.Errorf("told %q", h.commit)
		}
	})
}

// TestStateRecordKnowsUntilWhenAllWasDelivered: also after a long time without writes, when then something is written
// that does not arrive.
func TestStateRecordKnowsUntilWhenAllWasDelivered(t *testing.T) {
	listening(t, func(s *server, b *broker, _ *heard, _ *Relay) {
		// so that the walsender is not taken for dead
		clock := func(f *Facts) { f.Time, f.Walsender = time.Now(), Walsender{PID: 5} }
		for range 60 {
			s.set(clock)
			time.Sleep(time.Minute)
		}
		s.set(clock)
		idle, opens := time.Now(), s.opens()
		time.Sleep(5 * time.Second)
		s.set(func(f *Facts) { f.WALEnd = 50 })
		for range 10 {
			s.set(clock)
			time.Sleep(time.Minute)
		}
		if at := b.now().Current(); at.Before(idle) || at.After(idle.Add(6*time.Second)) {
			t.Errorf("all was delivered at %s, the record says %s", idle, at)
		}
		if s.opens() != opens {
			t.Error("another session wrote it")
		}
	})
}

// TestPageThatEndsInsideARecordIsTheEnd: the WAL ends like that while a transaction is open. After a whole record, or
// far away, something waits.
func TestPageThatEndsInsideARecordIsTheEnd(t *testing.T) {
	for _, c := range []struct {
		covered, end LSN
		want         bool
	}{
		{0x193FFF0, 0x1940000, true},
		{0x19FBEB8, 0x19FC000, true},
		{0x1940000, 0x1940000, true},
		{0x1940C40, 0x1940000, true},
		{0x193FFF0, 0x1940C08, false},
		{0x193FFF0, 0x1940008, false},
		{0x1000000, 0x2000000, false},
	} {
		if got := reached(c.covered, c.end); got != c.want {
			t.Errorf("%s reaches %s: %t", c.covered, c.end, got)
		}
	}
}

// TestLagIsNeverZeroWhileSomethingIsStuck: the lag is unknown rather than wrong.
func TestLagIsNeverZeroWhileSomethingIsStuck(t *testing.T) {
	began := time.Unix(1_000_000, 0)
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	var l Lag
	if _, known := Behind(10, 20, l.Current(10), at(0)); known {
		t.Error("it is known although nobody has looked")
	}
	if d, known := Behind(20, 20, time.Time{}, at(0)); d != 0 || !known {
		t.Error("all is confirmed, and the lag is", d, known)
	}
	for i := range 1000 { // a busy server, of which nothing was confirmed for a long time
		l.Look(LSN(100+i), at(i))
	}
	if got := l.Current(99); !got.IsZero() {
		t.Error("current at", got)
	}
	if len(l.ends) > lagLooks {
		t.Errorf("%d looks are kept", len(l.ends))
	}
	got := l.Current(600)
	if got.After(at(500)) || got.Before(at(400)) {
		t.Errorf("600 was the end 500 s after the beginning, it says %s", got.Sub(began))
	}
	if d, known := Behind(600, 1099, got, at(999)); d < 499*time.Second || !known {
		t.Error("the lag is", d, known)
	}
}
