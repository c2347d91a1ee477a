package cdc

import (
	"fmt"
	"time"
)

// tracker follows the transactions on the wire: it gives rows their position, drops rows that are durable according
// to the state record, and returns the LSN that a window covers. It does no I/O: all questions of order are decided
// here.
//
// While it drops rows, it checks for another history: a server that was restored from a snapshot and has written
// beyond the delivered position has the same timeline and plausible LSNs. Only its transactions differ.
type tracker struct {
	covered  LSN      // of the state record
	skipped  LSN      // of the state record
	last     Position // of the last durable row
	lastXID  uint32
	lastTime time.Time
	// awaited is true if the slot is at or before the transaction of the last durable row: the server must send that
	// transaction again.
	awaited bool

	end  LSN  // end of the last commit or in-order keepalive
	open bool // between Begin and Commit
	tx   Row  // position, xid and commit time of the open transaction
	seen LSN  // everything before it was sent
}

// newTracker returns a tracker that starts from the state record, on a stream that starts at the slot's confirmed
// position.
func newTracker(st *State, confirmed LSN) *tracker {
	return &tracker{
		covered: st.Covered, skipped: st.Skipped, end: st.Covered, last: st.Last(), lastXID: st.LastXID, lastTime: st.LastCommitTime,
		awaited: st.Ordinal > 0 && confirmed <= st.CommitLSN,
	}
}

// caughtUp reports whether the stream has passed everything that was delivered before, and sent the same
// transactions. Nothing is confirmed earlier: a slot that has moved would not send the transactions again that show
// another history.
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
			return t.otherHistory(fmt.Sprintf("the transaction committed at %s is %d of %s, the state record has %d of %s there", m.LSN,
				t.tx.XID, t.tx.CommitTime.UTC().Format(time.RFC3339Nano), t.lastXID, t.lastTime.UTC().Format(time.RFC3339Nano)))
		}
	}
	return t.passed(m.LSN)
}

// passed records that everything before lsn was sent.
func (t *tracker) passed(lsn LSN) error {
	t.seen = max(t.seen, lsn)
	if t.awaited && t.seen > t.last.Commit {
		return t.otherHistory(fmt.Sprintf("the server has no outbox row in a transaction committed at %s, where the state record has transaction %d of %s",
			t.last.Commit, t.lastXID, t.lastTime.UTC().Format(time.RFC3339Nano)))
	}
	return nil
}

func (t *tracker) otherHistory(found string) error {
	return &HaltError{
		Found: found,
		Means: "this server has another history: it was restored from a snapshot and has written beyond the delivered position, so its rows would be taken for delivered ones",
		Risk:  Range{t.skipped, t.covered},
		Run:   "point source.url at the right server; to keep this server instead, run `walpost adopt`, which continues from its slot and delivers the rows there",
		Latch: true, History: true,
	}
}

// row gives the row its position, and returns false for a row that is durable already. The comparison with covered is
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
		return false, t.otherHistory(fmt.Sprintf("row %d of the transaction committed at %s is below %s, but the last row delivered below that was row %d of the transaction at %s",
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

// covers raises the covered LSN and returns it. It does not raise it while this may be another history.
func (t *tracker) covers(lsn LSN) LSN {
	if !t.awaited {
		t.end = max(t.end, lsn)
	}
	return t.end
}

// keepalive returns the covered LSN. Inside a transaction a keepalive covers nothing new, because its WALEnd is before
// the commit. WALEnd goes back after a connect, hence the maximum.
func (t *tracker) keepalive(m *Message) (covered LSN, err error) {
	if t.open {
		return t.end, nil
	}
	return t.covers(m.LSN), t.passed(m.LSN)
}
