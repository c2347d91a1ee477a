package cdc

import (
	"fmt"
	"time"
)

// tracker follows transactions on the wire: it gives rows their position, drops what the state record says is durable,
// and tells which LSN a window covers. It is pure: all ordering questions are answered here.
type tracker struct {
	covered  LSN      // of the state record
	last     Position // of the last durable row
	lastXID  uint32
	lastTime time.Time

	end  LSN  // of the last commit or in-order keepalive
	open bool // between Begin and Commit
	tx   Row  // position, xid and commit time of the open transaction
}

func newTracker(st *State) *tracker {
	return &tracker{covered: st.Covered, end: st.Covered, last: st.Last(), lastXID: st.LastXID, lastTime: st.LastCommitTime}
}

func (t *tracker) begin(m *Message) error {
	if t.open {
		return fmt.Errorf("the stream began transaction %d at %s inside transaction %d", m.Row.XID, m.LSN, t.tx.XID)
	}
	t.open = true
	t.tx = Row{Position: Position{Commit: m.LSN}, XID: m.Row.XID, CommitTime: m.Row.CommitTime}
	if m.LSN == t.last.Commit && t.last.Ordinal > 0 && (t.tx.XID != t.lastXID || !t.tx.CommitTime.Equal(t.lastTime)) {
		return &Halt{
			Found: fmt.Sprintf("the transaction committed at %s is %d of %s, the state record knows %d of %s there", m.LSN,
				t.tx.XID, t.tx.CommitTime.UTC().Format(time.RFC3339Nano), t.lastXID, t.lastTime.UTC().Format(time.RFC3339Nano)),
			Means: "this server has another history: a snapshot was restored and has written past the position that was delivered",
			Run:   "compare outbox and topic around that time; then `walpost init --remove` and `walpost init` begin anew",
		}
	}
	return nil
}

// row gives the row its position. It reports false for a row that is durable already. The comparison with covered is
// strict: a commit may begin exactly where the one before it ends.
func (t *tracker) row(r *Row) (deliver bool, err error) {
	if !t.open {
		return false, fmt.Errorf("the stream sent a row outside a transaction, after %s", t.tx.Commit)
	}
	t.tx.Ordinal++
	r.Position, r.XID, r.CommitTime, r.prior = t.tx.Position, t.tx.XID, t.tx.CommitTime, t.end
	done := r.Commit < t.covered || (r.Commit == t.last.Commit && r.Ordinal <= t.last.Ordinal)
	return !done, nil
}

func (t *tracker) commit(m *Message) (covered LSN, err error) {
	if !t.open {
		return 0, fmt.Errorf("the stream committed at %s without a begin", m.LSN)
	}
	t.open = false
	t.end = max(t.end, m.LSN)
	return t.end, nil
}

// keepalive returns the LSN that is covered with everything before it. Inside a transaction that is nothing new: its
// WALEnd stands before the commit. It goes backwards after a connect, hence the maximum.
func (t *tracker) keepalive(m *Message) (covered LSN) {
	if !t.open {
		t.end = max(t.end, m.LSN)
	}
	return t.end
}
