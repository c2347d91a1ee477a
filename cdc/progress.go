package cdc

import "time"

const (
	stateEvery   = time.Second            // a state record at most this much behind what is durable …
	stateBytes   = 16 << 20               // … in time or in bytes: what a crash can repeat
	stateIdle    = 50 * time.Millisecond  // rows were published and nothing more came
	stateOnReply = 100 * time.Millisecond // the server asks for a reply, as it does when it wants to stop
)

// progress is the publisher's account of what is durable, and decides when it is written down (at least once; exactly
// once writes it with every window).
type progress struct {
	durable State // the last record that is durable: its Covered may be confirmed
	next    State // what a record may claim now: windows that are done, or, exactly once, that it is written with

	wrote    time.Time // when durable was written
	rowsAt   time.Time // when the last rows were done
	rows     bool      // rows were done since
	bytes    int       // of them
	askedFor bool
}

func newProgress(st *State, now time.Time) *progress {
	return &progress{durable: *st, next: *st, wrote: now}
}

// done counts rows in order, and raises what is covered with them. That never decreases: a keepalive can lag behind what an
// earlier session confirmed.
func (p *progress) done(rows []Row, covered LSN, now time.Time) {
	p.next.Covered = max(p.next.Covered, covered)
	if len(rows) == 0 {
		return
	}
	last := &rows[len(rows)-1]
	p.next.CommitLSN, p.next.Ordinal, p.next.LastXID, p.next.LastCommitTime = last.Commit, last.Ordinal, last.XID, last.CommitTime
	p.rows, p.rowsAt = true, now
	for i := range rows {
		p.bytes += rows[i].size()
	}
}

func (p *progress) moved() bool {
	return p.next.Covered != p.durable.Covered || p.next.Last() != p.durable.Last()
}

// due says whether a state record should be written, and if not, when to ask again (zero: when something happens).
func (p *progress) due(now time.Time) (bool, time.Duration) {
	if !p.moved() {
		p.askedFor = false
		return false, 0
	}
	at := p.wrote.Add(stateEvery)
	if p.rows && p.bytes >= stateBytes {
		return true, 0
	}
	if idle := p.rowsAt.Add(stateIdle); p.rows && idle.Before(at) {
		at = idle
	}
	if reply := p.wrote.Add(stateOnReply); p.askedFor && reply.Before(at) {
		at = reply
	}
	wait := at.Sub(now)
	return wait <= 0, max(wait, 0)
}

// record is what to write.
func (p *progress) record(now time.Time) *State {
	st := p.next
	st.Time = now.UTC()
	return &st
}

// written counts st as durable.
func (p *progress) written(st *State, now time.Time) {
	p.durable, p.wrote = *st, now
	p.rows, p.bytes, p.askedFor = false, 0, false
}
