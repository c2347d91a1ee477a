package cdc

import (
	"fmt"
	"time"
)

// tracker follows transactions on the wire: it gives rows their position, drops what the state record says is durable,
// and tells which LSN a window covers. It is pure: all ordering questions are answered here.
//
// While it drops, it watches for another history: a server that was restored from a snapshot and has written past what was
// delivered has the same timeline and plausible LSNs, and only its transactions give it away.
type tracker struct {
	covered  LSN      // of the state record
	skipped  LSN      // of the state record
	last     Position // of the last durable row
	lastXID  uint32
	lastTime time.Time
	// awaited says that the slot stands at or before the transaction of the last durable row: the server must send it again.
	awaited bool

	end  LSN  // of the last commit or in-order keepalive
	open bool // between Begin and Commit
	tx   Row  // position, xid and commit time of the open transaction
	seen LSN  // how far the stream has come: everything before was sent
}

// newTracker begins where the state record says, on a stream that began at the slot's confirmed position.
func newTracker(st *State, confirmed LSN) *tracker {
	return &tracker{
		covered: st.Covered, skipped: st.Skipped, end: st.Covered, last: st.Last(), lastXID: st.LastXID, lastTime: st.LastCommitTime,
		awaited: st.Ordinal > 0 && confirmed <= st.CommitLSN,
	}
}

// caughtUp says that the stream has passed what was delivered before, and it was the same. Nothing is confirmed before: a
// slot that has moved would not send again what gives another history away.
func (t *tracker) caughtUp() bool { return t.seen >= t.covered && !t.awaited }

func (t *tracker) begin(m *Message) error {
	if t.open {
		return fmt.Errorf("the stream began transaction %d at %s inside transaction %d", m.Row.XID, m.LSN, t.tx.XID)
	}
	t.open = true
	t.tx = Row{Position: Position{Commit: m.LSN}, XID: m.Row.XID, CommitTime: m.Row.CommitTime}
	if m.LSN == t.last.Commit && t.last.Ordinal > 0 {
		t.awaited = false
		if t.tx.XID != t.lastXID || !t.tx.CommitTime.Equal(t.lastTime) {
			return t.otherHistory(fmt.Sprintf("the transaction committed at %s is %d of %s, the state record knows %d of %s there", m.LSN,
				t.tx.XID, t.tx.CommitTime.UTC().Format(time.RFC3339Nano), t.lastXID, t.lastTime.UTC().Format(time.RFC3339Nano)))
		}
	}
	return t.passed(m.LSN)
}

// passed notes that everything before lsn was sent.
func (t *tracker) passed(lsn LSN) error {
	t.seen = max(t.seen, lsn)
	if t.awaited && t.seen > t.last.Commit {
		return t.otherHistory(fmt.Sprintf("the server has no outbox row in a transaction committed at %s, where the state record knows transaction %d of %s",
			t.last.Commit, t.lastXID, t.lastTime.UTC().Format(time.RFC3339Nano)))
	}
	return nil
}

func (t *tracker) otherHistory(found string) error {
	return &HaltError{
		Found: found,
		Means: "this server has another history: a snapshot was restored and has written past the position that was delivered, and rows would be taken for others",
		Risk:  Range{t.skipped, t.covered},
		Run:   "if this is the server to live on, `walpost adopt` goes on from its slot and delivers what stands there; else point source.url at the right one",
		Latch: true, History: true,
	}
}

// row gives the row its position. It reports false for a row that is durable already. The comparison with covered is
// strict: a commit may begin exactly where the one before it ends.
func (t *tracker) row(r *Row) (deliver bool, err error) {
	if !t.open {
		return false, fmt.Errorf("the stream sent a row outside a transaction, after %s", t.tx.Commit)
	}
	t.tx.Ordinal++
	r.Position, r.XID, r.CommitTime, r.prior = t.tx.Position, t.tx.XID, t.tx.CommitTime, t.end
	if r.Compare(t.last) <= 0 {
		return false, nil
	}
	if r.Commit < t.covered && r.Commit >= t.skipped {
		return false, t.otherHistory(fmt.Sprintf("row %d of the transaction committed at %s lies below %s, and the last row below that was row %d of the one at %s when it was delivered",
			r.Ordinal, r.Commit, t.covered, t.last.Ordinal, t.last.Commit))
	}
	return r.Commit >= t.covered, nil
}

func (t *tracker) commit(m *Message) (covered LSN, err error) {
	if !t.open {
		return 0, fmt.Errorf("the stream committed at %s without a begin", m.LSN)
	}
	t.open = false
	return t.covers(m.LSN), t.passed(m.LSN)
}

// covers raises what is covered, but not while this may be another history.
func (t *tracker) covers(lsn LSN) LSN {
	if !t.awaited {
		t.end = max(t.end, lsn)
	}
	return t.end
}

// keepalive returns the LSN that is covered with everything before it. Inside a transaction that is nothing new: its
// WALEnd stands before the commit. It goes backwards after a connect, hence the maximum.
func (t *tracker) keepalive(m *Message) (covered LSN, err error) {
	if t.open {
		return t.end, nil
	}
	return t.covers(m.LSN), t.passed(m.LSN)
}
