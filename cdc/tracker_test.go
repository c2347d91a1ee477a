package cdc

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// history returns a stream as PostgreSQL sends it: transactions of one to three rows whose commits follow each other
// directly, so that the EndLSN of one is the CommitLSN of the next, with keepalives between some.
func history() (messages []Message) {
	lsn := LSN(1000)
	for tx := range 6 {
		at := time.Unix(int64(tx), 0)
		messages = append(messages, Message{Kind: Begin, LSN: lsn, Row: Row{XID: uint32(700 + tx), CommitTime: at}})
		for row := range 1 + tx%3 {
			messages = append(messages, Message{Kind: Insert, Row: Row{ID: fmt.Appendf(nil, "%d.%d", tx, row)}})
		}
		lsn += 48
		messages = append(messages, Message{Kind: Commit, LSN: lsn})
		if tx%2 == 1 {
			lsn += 100 // WAL of other tables
			messages = append(messages, Message{Kind: Keepalive, LSN: lsn})
		}
	}
	return messages
}

// deliverAll runs messages through a tracker and returns the rows to deliver and the state once all of them are
// durable.
func deliverAll(t *testing.T, messages []Message, st State) (rows []string, after State) {
	t.Helper()
	var slot LSN
	if len(messages) > 0 {
		slot = messages[0].LSN // position of a slot that sends these messages
	}
	tr := newTracker(&st, slot)
	p := newCheckpointer(&st, time.Now())
	for i := range messages {
		m := messages[i]
		var covered LSN
		var err error
		switch m.Kind {
		case Begin:
			err = tr.begin(&m)
		case Insert:
			var deliver bool
			deliver, err = tr.row(&m.Row)
			if deliver {
				rows = append(rows, string(m.Row.ID))
				p.done([]Row{m.Row}, 0, time.Now())
			}
		case Commit:
			covered, err = tr.commit(&m)
		case Keepalive:
			covered, err = tr.keepalive(&m)
		}
		if err != nil {
			t.Fatal(err)
		}
		p.done(nil, covered, time.Now())
	}
	return rows, p.next
}

// TestEveryCutDeliversEachRowOnce ends a session after every message, with everything before it durable and in the
// state record, and starts the next one from there, with the slot at that place or at any earlier one, as after a
// crash of PostgreSQL.
func TestEveryCutDeliversEachRowOnce(t *testing.T) {
	messages := history()
	all, _ := deliverAll(t, messages, State{})
	if len(all) != 12 {
		t.Fatalf("%d rows in the history", len(all))
	}
	for cut := range len(messages) + 1 {
		first, st := deliverAll(t, messages[:cut], State{})
		// The server sends transactions whose commit begins at or after the slot's position; any position up to
		// covered is possible.
		for start := 0; start < len(messages); start++ {
			if messages[start].Kind != Begin || messages[start].LSN > st.Covered && start > 0 && messages[start].LSN > lastEnd(messages[:cut]) {
				continue
			}
			second, _ := deliverAll(t, messages[start:], st)
			got := append(append([]string{}, first...), second...)
			if fmt.Sprint(got) != fmt.Sprint(all) {
				t.Fatalf("cut behind message %d, slot at %s: delivered %v, want %v", cut, messages[start].LSN, got, all)
			}
		}
	}
}

func lastEnd(messages []Message) (end LSN) {
	for _, m := range messages {
		if m.Kind == Commit || m.Kind == Keepalive {
			end = m.LSN
		}
	}
	return end
}

func TestAnotherHistoryHalts(t *testing.T) {
	messages := history()
	_, st := deliverAll(t, messages[:2], State{}) // the first row of the first transaction
	for name, change := range map[string]func(*Message){
		"another xid":         func(m *Message) { m.Row.XID++ },
		"another commit time": func(m *Message) { m.Row.CommitTime = m.Row.CommitTime.Add(time.Microsecond) },
	} {
		m := messages[0]
		change(&m)
		var halt *HaltError
		if err := newTracker(&st, 1000).begin(&m); !errors.As(err, &halt) {
			t.Errorf("%s at the position that was delivered: %v, want a Halt", name, err)
		}
	}
	m := messages[0]
	if err := newTracker(&st, 1000).begin(&m); err != nil {
		t.Errorf("the same transaction again: %v", err)
	}
}

// TestRestoredSnapshotIsSeen has a server that was restored from a snapshot, on the same timeline, and has written
// beyond the delivered position. The slot went back with it. In every case the tracker halts before a row is taken
// for a delivered one, and is not caught up before that, so that nothing is confirmed.
func TestRestoredSnapshotIsSeen(t *testing.T) {
	st := &State{Covered: 200, CommitLSN: 100, Ordinal: 1, LastXID: 7, Skipped: 10}
	tx := func(lsn LSN, xid uint32, rows int) (m []Message) {
		m = append(m, Message{Kind: Begin, LSN: lsn, Row: Row{XID: xid}})
		for range rows {
			m = append(m, Message{Kind: Insert})
		}
		return append(m, Message{Kind: Commit, LSN: lsn + 10})
	}
	same := tx(100, 7, 1)
	for name, c := range map[string]struct {
		slot   LSN
		stream []Message
		halts  bool
	}{
		"same history, slot went back":                 {50, append(same, Message{Kind: Keepalive, LSN: 250}), false},
		"same history, slot behind the last row":       {150, []Message{{Kind: Keepalive, LSN: 250}}, false},
		"same history, rows that were skipped":         {0, append(tx(5, 3, 2), append(same, Message{Kind: Keepalive, LSN: 250})...), false},
		"the last row's transaction is another":        {50, tx(100, 8, 1), true},
		"the last row's transaction is missing":        {50, tx(90, 6, 1)[:0:0], true},
		"another one comes after it":                   {50, tx(120, 9, 1), true},
		"a row where nothing was delivered":            {110, tx(150, 9, 1), true},
		"one more row in the last transaction":         {50, tx(100, 7, 2), true},
		"a row before the last one that was delivered": {50, append(tx(60, 6, 1), same...), false}, // delivered earlier
	} {
		tr := newTracker(st, c.slot)
		var err error
		for _, m := range append(c.stream, Message{Kind: Keepalive, LSN: 250}) {
			if tr.caughtUp() && c.halts {
				t.Errorf("%s: caught up before it was seen", name)
			}
			switch m.Kind {
			case Begin:
				err = tr.begin(&m)
			case Insert:
				var deliver bool
				if deliver, err = tr.row(&m.Row); deliver {
					t.Errorf("%s: a row below covered was delivered", name)
				}
			case Commit:
				_, err = tr.commit(&m)
			case Keepalive:
				_, err = tr.keepalive(&m)
			}
			if err != nil {
				break
			}
		}
		var halt *HaltError
		if errors.As(err, &halt) != c.halts || c.halts && !(halt.Latch && halt.History) {
			t.Errorf("%s: %v", name, err)
		}
		if !c.halts && !tr.caughtUp() {
			t.Errorf("%s: never caught up", name)
		}
	}
}

func TestStreamOutOfProtocolIsAnError(t *testing.T) {
	tr := newTracker(&State{}, 0)
	if _, err := tr.row(&Row{}); err == nil {
		t.Error("a row outside a transaction was taken")
	}
	if _, err := tr.commit(&Message{}); err == nil {
		t.Error("a commit without a begin was taken")
	}
	if err := tr.begin(&Message{}); err != nil {
		t.Error(err)
	}
	if err := tr.begin(&Message{}); err == nil {
		t.Error("a begin in a transaction was taken")
	}
}

// TestKeepaliveInsideATransactionCoversNothing: its WALEnd may be anything while rows are on their way.
func TestKeepaliveInsideATransactionCoversNothing(t *testing.T) {
	tr := newTracker(&State{Covered: 10}, 10)
	if err := tr.begin(&Message{LSN: 20}); err != nil {
		t.Fatal(err)
	}
	if covered, _ := tr.keepalive(&Message{LSN: 99}); covered != 10 {
		t.Errorf("covered %s", covered)
	}
	if _, err := tr.commit(&Message{LSN: 30}); err != nil {
		t.Fatal(err)
	}
	if covered, _ := tr.keepalive(&Message{LSN: 5}); covered != 30 {
		t.Errorf("a keepalive that goes backwards covers %s", covered)
	}
}

// TestNothingIsCoveredWhileTheHistoryIsInDoubt: commits between covered and the last row's transaction raise nothing.
// Otherwise the slot could pass the transactions that show another history.
func TestNothingIsCoveredWhileTheHistoryIsInDoubt(t *testing.T) {
	tr := newTracker(&State{Covered: 200, CommitLSN: 300, Ordinal: 1, LastXID: 7}, 150)
	begin := func(lsn LSN, xid uint32) error {
		return tr.begin(&Message{LSN: lsn, Row: Row{XID: xid}})
	}
	if err := begin(220, 5); err != nil {
		t.Fatal(err)
	}
	if covered, err := tr.commit(&Message{LSN: 230}); err != nil || covered != 200 {
		t.Errorf("a commit covers %s (%v)", covered, err)
	}
	if covered, err := tr.keepalive(&Message{LSN: 240}); err != nil || covered != 200 {
		t.Errorf("a keepalive covers %s (%v)", covered, err)
	}
	if err := begin(300, 7); err != nil {
		t.Fatal(err)
	}
	if covered, err := tr.commit(&Message{LSN: 310}); err != nil || covered != 310 {
		t.Errorf("the last row's transaction came again, and its commit covers %s (%v)", covered, err)
	}
}
