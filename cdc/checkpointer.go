package cdc

import "time"

const (
	stateEvery   = time.Second            // a state record at most this much behind what is durable …
	stateBytes   = 16 << 20               // … in time or in bytes: what a crash can repeat
	stateIdle    = 50 * time.Millisecond  // rows were published and nothing more came
	stateOnReply = 100 * time.Millisecond // the server asks for a reply, as it does when it wants to stop
)

// checkpointer is the publisher's account of what is durable, and decides when it is written down (at least once;
// exactly once writes it with every window).
type checkpointer struct {
	durable State // the last record that is durable: its Covered may be confirmed
	next    State // what a record may claim now: windows that are done, or, exactly once, that it is written with

	wrote    time.Time // when durable was written
	rowsAt   time.Time // when the last rows were done
	rows     bool      // rows were done since
	bytes    int       // of them
	askedFor bool
}

func newCheckpointer(st *State, now time.Time) *checkpointer {
	return &checkpointer{durable: *st, next: *st, wrote: now}
}

// done counts rows in order, and raises what is covered with them. That never decreases: a keepalive can lag behind
// what an earlier session confirmed.
func (c *checkpointer) done(rows []Row, covered LSN, now time.Time) {
	c.next.Covered = max(c.next.Covered, covered)
	if len(rows) == 0 {
		return
	}
	last := &rows[len(rows)-1]
	c.next.CommitLSN, c.next.Ordinal, c.next.LastXID, c.next.LastCommitTime = last.Commit, last.Ordinal, last.XID, last.CommitTime
	c.rows, c.rowsAt = true, now
	for i := range rows {
		c.bytes += rows[i].size()
	}
}

func (c *checkpointer) moved() bool {
	return c.next.Covered != c.durable.Covered || c.next.Last() != c.durable.Last()
}

// due says whether a state record should be written, and if not, when to ask again (zero: when something happens).
func (c *checkpointer) due(now time.Time) (bool, time.Duration) {
	if !c.moved() {
		c.askedFor = false
		return false, 0
	}
	at := c.wrote.Add(stateEvery)
	if c.rows && c.bytes >= stateBytes {
		return true, 0
	}
	if idle := c.rowsAt.Add(stateIdle); c.rows && idle.Before(at) {
		at = idle
	}
	if reply := c.wrote.Add(stateOnReply); c.askedFor && reply.Before(at) {
		at = reply
	}
	wait := at.Sub(now)
	return wait <= 0, max(wait, 0)
}

// record is what to write.
func (c *checkpointer) record(now time.Time) *State {
	st := c.next
	st.Time = now.UTC()
	return &st
}

// written counts st as durable.
func (c *checkpointer) written(st *State, now time.Time) {
	c.durable, c.wrote = *st, now
	c.rows, c.bytes, c.askedFor = false, 0, false
}
