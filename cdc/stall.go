package cdc

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"
)

const (
	lookEvery  = 5 * time.Second
	lookWithin = 10 * time.Second
	// without motion: three looks, so that a stall is reported within 30 s of the row's commit
	stallAfter   = 14 * time.Second
	sameFailures = 3 // sessions in a row that fail at one place: then streaming alone counts as no progress
)

// motion counts what moves while a session works. The reader writes seen and received, the publisher the rest; the
// watcher reads it.
type motion struct {
	seen      atomic.Uint64 // LSN that the stream has reached
	received  atomic.Int64  // messages except keepalives, and reads of a message that is skipped unread
	published atomic.Int64  // rows
	stuck     atomic.Bool   // Kafka has not answered for stallLog
}

// moves records one read. A message that is skipped unread yields only bytes.
func (m *motion) moves(seen LSN, messages, bytes int) {
	m.seen.Store(uint64(seen))
	if messages == 0 && bytes > 1<<10 {
		messages = 1
	}
	m.received.Add(int64(messages))
}

// moment is a copy of motion and covered at one look.
type moment struct {
	seen, covered       LSN
	received, published int64
}

// detector finds a stall from positions alone.
type detector struct {
	last  moment
	end   LSN       // end of the WAL at the first look that found last
	since time.Time // time of that look
}

// stalled reports whether nothing has moved for stallAfter although there was WAL that is not covered.
func (d *detector) stalled(now time.Time, m moment, end LSN) bool {
	if m != d.last || reached(m.covered, d.end) {
		d.last, d.end, d.since = m, end, now
		return false
	}
	return now.Sub(d.since) >= stallAfter
}

// place is the position of a relay: what it has covered, and the last row it has delivered.
type place struct {
	covered LSN
	row     Position
}

// troubles remembers which stalls and waiting commits the relay has reported, across its sessions.
type troubles struct {
	observer   *Observer
	place      place // place of the last session that failed before it had reached the WAL's end
	times      int   // number of sessions in a row that failed there
	reported   *StallError
	reportedAt place
	commit     string // the last report of waiting commits
	pid        uint32 // of the last session's walsender
}

// stall reports a stall once, and once when it is over.
func (t *troubles) stall(s *StallError, at place) {
	if s == nil && t.reported == nil || s != nil && t.reported != nil && s.Cause == t.reported.Cause && s.of == t.reported.of {
		return
	}
	t.reported, t.reportedAt = s, at
	t.observer.Stuck(s)
}

// commits reports commits that wait for this relay, when that changes.
func (t *troubles) commits(f *Facts) {
	err := f.CommitsWait()
	if text(err) != t.commit {
		t.commit = text(err)
		t.observer.CommitsWait(err)
	}
}

// commitsAgain checks whether the last report of waiting commits is still true while no session can: with Kafka away
// no session begins.
func (t *troubles) commitsAgain(ctx context.Context, source Source) {
	if t.commit == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	if f, err := source.Facts(ctx); err == nil {
		t.commits(&f)
	}
}

// rest ends all reports when the relay becomes a standby: another relay watches the rows now.
func (t *troubles) rest() {
	t.stall(nil, place{})
	t.commits(&Facts{})
	t.times = 0
}

// look is the watcher's last look at the server, and its time by this process's clock.
type look struct {
	facts Facts
	open  map[string]time.Time // of State.Open
	at    time.Time
}

// watcher looks at the server again and again while a session streams. A change of publication or table that hides
// rows ends the session. The positions tell it whether the stream has stalled or there is nothing to send.
type watcher struct {
	source   Source
	shared   *exchange
	observer *Observer
	troubles *troubles
	pid      uint32 // of the session's walsender
	every    time.Duration
}

func newWatcher(s *session, sh *exchange, cfg *Options, o *Observer, source Source, t *troubles) *watcher {
	return &watcher{source: source, shared: sh, observer: o, troubles: t, pid: s.id.PID, every: cfg.CheckInterval}
}

// run looks at the server until ctx ends, and then returns nil, or until it finds a change that must end the session,
// and then returns that error. A failed look ends nothing. st is the record that publication and table are compared
// with.
func (w *watcher) run(ctx context.Context, st State) error {
	timer := time.NewTimer(min(time.Second, w.every))
	defer timer.Stop()
	var d detector
	blind := false
	var sightless detector // while the server cannot be looked at
	for {
		select {
		case <-timer.C:
			timer.Reset(min(lookEvery, w.every))
		case <-ctx.Done():
			return nil
		}
		within, cancel := context.WithTimeout(ctx, lookWithin)
		facts, err := w.source.Facts(within)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if blind != (err != nil) {
			blind = !blind
			w.observer.Watching(err)
		}
		if err != nil {
			// The end of the WAL is not known now: any motion at all means that there is no stall.
			if sightless.stalled(time.Now(), w.moment(), math.MaxUint64) {
				w.troubles.stall(&StallError{Cause: "blind", Found: "the relay cannot query the server, rows may be waiting, and nothing has moved for a while: " + err.Error()}, *w.shared.place.Load())
			}
			continue
		}
		sightless = detector{}
		if err := unchanged(&st, &facts); err != nil {
			return err
		}
		st.Open, st.Checked, st.CheckedAt = stillOpen(&st, &facts), facts.WALEnd, facts.Time
		w.remember(&facts, st.Open)
		w.judge(&d, &facts, time.Now())
	}
}

// moment returns the present state of motion.
func (w *watcher) moment() moment {
	at := &w.shared.motion
	return moment{seen: LSN(at.seen.Load()), received: at.received.Load(), published: at.published.Load()}
}

// remember keeps a look, and asks for a new state record if the last one may not have the newest time up to which
// everything is delivered.
func (w *watcher) remember(f *Facts, open map[string]time.Time) {
	w.shared.looked.Store(&look{*f, open, time.Now()})
	w.shared.lag.Look(f.WALEnd, f.Time)
	w.troubles.commits(f)
	covered := w.shared.place.Load().covered
	w.observer.Looked(covered, f.WALEnd, f.Time, w.shared.lag.Current(covered))
	if !reached(covered, f.WALEnd) {
		signal(w.shared.refresh)
	}
}

// judge compares a look with the earlier ones and reports a stall, or its end.
func (w *watcher) judge(d *detector, f *Facts, now time.Time) {
	here, t := *w.shared.place.Load(), w.troubles
	m := w.moment()
	m.covered = here.covered
	m.seen = min(m.seen, here.covered) // what is ahead of covered is not delivered
	if w.shared.motion.stuck.Load() {
		m.received = -1 // the reader continues until the queue is full
	}
	moved := !d.since.IsZero() && m != d.last
	current := reached(m.covered, f.WALEnd)
	stalled := d.stalled(now, m, f.WALEnd)
	if here != t.place || current {
		t.times = 0
	}
	switch {
	case t.times >= sameFailures: // reported already; a new session only repeats what failed
	case stalled:
		t.stall(w.cause(f, m.covered, d.end), here)
	case t.reported != nil && (moved || current || here != t.reportedAt):
		t.stall(nil, here)
	}
}

// assess sets the range at risk in a halt that the stream found without knowing it: everything since the last look
// that found no change.
func (w *watcher) assess(ctx context.Context, halt *HaltError) {
	last := w.shared.looked.Load()
	if !halt.Latch || !halt.Risk.IsZero() || last == nil {
		return
	}
	halt.Risk = Range{last.facts.WALEnd, last.facts.WALEnd}
	if facts, err := w.source.Facts(ctx); err == nil {
		halt.Risk.To = facts.WALEnd
		halt.Run += ", and " + replay(&State{CheckedAt: last.facts.Time, Open: last.open}, &facts) + " publishes the rows of that time"
	}
}

// countFailure counts a session that had streamed and then failed before it reached the WAL's end. If several fail at
// one place in a row, streaming is no sign of health.
func (w *watcher) countFailure(err error) {
	t, here := w.troubles, *w.shared.place.Load()
	if err == nil || errors.As(err, new(*HaltError)) || reached(here.covered, w.shared.looked.Load().facts.WALEnd) {
		return
	}
	if t.times++; here != t.place {
		t.place, t.times = here, 1
	}
	if t.times >= sameFailures {
		t.stall(failedHere(t.times, here.covered, err), here)
	}
}
