package cdc

import "time"

const (
	stateEvery   = time.Second            // longest time that durable rows wait for their state record …
	stateBytes   = 16 << 20               // … and most bytes of them: a crash can repeat this much
	stateIdle    = 50 * time.Millisecond  // rows were published and no more came
	stateOnReply = 100 * time.Millisecond // the server asks for a reply, as it does when it wants to stop
)

// checkpointer keeps account of what is durable, and decides when the publisher writes it into a state record. That
// is for at least once; exactly once writes a state record with every window.
type checkpointer struct {
	durable State // the last durable state record: its Covered may be confirmed
	next    State // what a record may say now: the windows that are done, in exactly-once also the one it is written with

	wrote    time.Time // when durable was written
	rowsAt   time.Time // when the last rows were done
	rows     bool      // rows were done since durable was written
	bytes    int       // size of these rows
	askedFor bool      // the server has asked for a reply
}

func newCheckpointer(st *State, now time.Time) *checkpointer {
	return &checkpointer{durable: *st, next: *st, wrote: now}
}

// done counts rows in order as durable, and raises covered. Covered never decreases: a keepalive can be older than
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
		c.bytes += rows[i].Size()
	}
}

func (c *checkpointer) moved() bool {
	return c.next.Covered != c.durable.Covered || c.next.Last() != c.durable.Last()
}

// due reports whether a state record should be written now, and if not, how long to wait before the next check (zero:
// until something happens).
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

// record returns the state record for everything that is done.
func (c *checkpointer) record(now time.Time) *State {
	st := c.next
	st.Time = now.UTC()
	return &st
}

// written notes that st is durable.
func (c *checkpointer) written(st *State, now time.Time) {
	c.durable, c.wrote = *st, now
	c.rows, c.bytes, c.askedFor = false, 0, false
}
