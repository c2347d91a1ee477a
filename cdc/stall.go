package cdc

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"
)

const (
	lookEvery    = 5 * time.Second
	lookWithin   = 10 * time.Second
	stallAfter   = 14 * time.Second // without motion: three looks, so that a stall is told within 30 s from the row's commit
	sameFailures = 3                // sessions in a row that fail at one place: streaming alone is no progress any more
)

// moving is what moves while a session works. Reader and publisher write it, the watcher reads it.
type moving struct {
	seen      atomic.Uint64 // LSN that the stream has reached
	received  atomic.Int64  // messages but keepalives, and gulps of a message that is skimmed over
	published atomic.Int64  // rows
	stuck     atomic.Bool   // Kafka has not answered for stallLog
}

// moves notes what one gulp held. Of a message that is skimmed over nothing comes but bytes.
func (m *moving) moves(seen LSN, messages, bytes int) {
	m.seen.Store(uint64(seen))
	if messages == 0 && bytes > 1<<10 {
		messages = 1
	}
	m.received.Add(int64(messages))
}

// motion is one look at it.
type motion struct {
	seen, covered       LSN
	received, published int64
}

// detector finds a stall by positions alone.
type detector struct {
	last  motion
	end   LSN       // of the WAL, at the first look that found last
	since time.Time // of that look
}

// stalled says that nothing has moved for stallAfter although there was WAL that is not covered.
func (d *detector) stalled(now time.Time, m motion, end LSN) bool {
	if m != d.last || reached(m.covered, d.end) {
		d.last, d.end, d.since = m, end, now
		return false
	}
	return now.Sub(d.since) >= stallAfter
}

// place is where a relay stands: what it has covered and delivered.
type place struct {
	covered LSN
	row     Position
}

// troubles is what a relay knows of stalls beyond one session. Only one session exists at a time, and of that only the watcher writes while
// it runs.
type troubles struct {
	place  place // of the last session that failed behind the WAL's end
	times  int   // how many have failed there
	told   *Stall
	toldAt place
	commit string // what was told of commits that wait
	pid    uint32 // of the last session's walsender
}

// stall reports a stall once, and once when it is over.
func (r *Relay) stall(s *Stall, at place) {
	t := &r.troubles
	if s == nil && t.told == nil || s != nil && t.told != nil && s.Cause == t.told.Cause && s.of == t.told.of {
		return
	}
	t.told, t.toldAt = s, at
	r.observer.stuck(s)
}

// commits reports commits that wait for this relay, when that changes.
func (r *Relay) commits(f *Facts) {
	err := f.CommitsWait()
	if text(err) != r.troubles.commit {
		r.troubles.commit = text(err)
		r.observer.commitsWait(err)
	}
}

// commitsAgain asks whether what was told of commits still holds, where no session can look: with Kafka away none begins.
func (r *Relay) commitsAgain(ctx context.Context) {
	if r.troubles.commit == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	if f, err := r.source.Facts(ctx); err == nil {
		r.commits(&f)
	}
}

// countFailure counts a session that had streamed and failed, if it had not reached the WAL's end. Where several fail at one place in a row,
// streaming is no sign of health.
func (s *session) countFailure(err error) {
	t := &s.troubles
	last, began := s.looked.Load(), s.place.Load()
	if err == nil || errors.As(err, new(*Halt)) || began == nil || reached(began.covered, last.facts.WALEnd) {
		return
	}
	here := *began
	if t.times++; here != t.place {
		t.place, t.times = here, 1
	}
	if t.times >= sameFailures {
		s.stall(failedHere(t.times, here.covered, err), here)
	}
}

// judge compares a look with those before and tells what it finds.
func (s *session) judge(d *detector, f *Facts, now time.Time) {
	here, t := *s.place.Load(), &s.troubles
	m := motion{
		seen: min(LSN(s.at.seen.Load()), here.covered), covered: here.covered, // what is ahead of it is not delivered
		received: s.at.received.Load(), published: s.at.published.Load(),
	}
	if s.at.stuck.Load() {
		m.received = -1 // the reader goes on until the queue is full
	}
	moved := !d.since.IsZero() && m != d.last
	current := reached(m.covered, f.WALEnd)
	stalled := d.stalled(now, m, f.WALEnd)
	if here != t.place || current {
		t.times = 0
	}
	switch {
	case t.times >= sameFailures: // told, and what comes is what came before
	case stalled:
		s.stall(s.cause(f, m.covered, d.end), here)
	case t.told != nil && (moved || current || here != t.toldAt):
		s.stall(nil, here)
	}
}

// rest is for a relay that stands by: how rows flow is another's concern.
func (r *Relay) rest() {
	r.stall(nil, place{})
	r.commits(&Facts{})
	r.troubles.times = 0
}

// remember keeps a look, and asks for a state record where the last one does not know until when all was delivered.
func (s *session) remember(f *Facts, open map[string]time.Time) {
	s.looked.Store(&look{*f, open, time.Now()})
	s.lag.Look(f.WALEnd, f.Time)
	s.commits(f)
	covered := s.place.Load().covered
	s.observer.current(s.lag.Current(covered))
	if !reached(covered, f.WALEnd) {
		signal(s.refresh)
	}
}

// stale says that a record is to be written again, for its time alone: WAL waits since a later time than the record knows.
func (s *session) stale(p *progress) bool {
	return s.lag.Current(p.durable.Covered).Sub(p.durable.CurrentAt) > 2*lookEvery
}

// look is what the watcher saw last, and when by this process's clock.
type look struct {
	facts Facts
	open  map[string]time.Time // of State.Open
	at    time.Time
}

// watch looks at the server again and again: at publication and table, of which a change that hides rows ends the session, and at what
// tells a stall from silence. That it cannot look ends nothing.
func (s *session) watch(ctx context.Context, st State) {
	timer := time.NewTimer(min(time.Second, s.cfg.CheckInterval))
	defer timer.Stop()
	var d detector
	blind := false
	var sightless detector // while the server cannot be looked at
	for {
		select {
		case <-timer.C:
			timer.Reset(min(lookEvery, s.cfg.CheckInterval))
		case <-ctx.Done():
			return
		}
		within, cancel := context.WithTimeout(ctx, lookWithin)
		facts, err := s.source.Facts(within)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if blind != (err != nil) {
			blind = !blind
			s.observer.watching(err)
		}
		if err != nil {
			// Where the WAL ends is not known then: what moves at all is no stall.
			m := motion{seen: LSN(s.at.seen.Load()), received: s.at.received.Load(), published: s.at.published.Load()}
			if sightless.stalled(time.Now(), m, math.MaxUint64) {
				s.stall(&Stall{Cause: "blind", Found: "the server cannot be looked at, rows may be waiting, and nothing has moved for a while: " + err.Error()}, *s.place.Load())
			}
			continue
		}
		sightless = detector{}
		if err := unchanged(&st, &facts); err != nil {
			s.found <- err
			s.stream.Interrupt()
			return
		}
		st.Open, st.Checked, st.CheckedAt = stillOpen(&st, &facts), facts.WALEnd, facts.Time
		s.remember(&facts, st.Open)
		s.judge(&d, &facts, time.Now())
	}
}

// stillBusy says that a server that has been silent for long is at work for this session, as the last look has it: through a huge
// transaction it reads a ping only every half wal_sender_timeout.
func (s *session) stillBusy() bool {
	last := s.looked.Load()
	return last != nil && time.Since(last.at) < 2*(lookEvery+lookWithin) && last.facts.Slot.ActivePID == s.id.PID && last.facts.Walsender.busy()
}
