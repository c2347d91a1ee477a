package cdc

import (
	"strings"
	"testing"
	"time"
)

// TestSkipTo checks that skip gives up everything before its LSN and nothing else, and returns an error if it could
// not.
func TestSkipTo(t *testing.T) {
	latched := func(r Range, history bool) *HaltRecord {
		return (&HaltError{Found: "f", Means: "m", Run: "r", Risk: r, Latch: true, History: history}).record(time.Now())
	}
	for name, c := range map[string]struct {
		to     LSN
		change func(*State, *Facts)
		says   string // an error
		halted bool   // the latched halt stays
	}{
		"forward":                              {0x140, func(*State, *Facts) {}, "", false},
		"to where it is":                       {0x100, func(*State, *Facts) {}, "", false},
		"to the end of the WAL":                {0x150, func(*State, *Facts) {}, "", false},
		"beyond it":                            {0x151, func(*State, *Facts) {}, "after the end of the WAL", false},
		"backward":                             {0xFF, func(*State, *Facts) {}, "is delivered, and 0/FF is before that", false},
		"before the slot":                      {0x110, func(_ *State, f *Facts) { f.Slot.ConfirmedFlush = 0x120 }, "has confirmed", false},
		"while a relay reads":                  {0x140, func(_ *State, f *Facts) { f.Slot.Active = true }, "stop the relay", false},
		"without a slot":                       {0x140, func(_ *State, f *Facts) { f.Slot.Exists = false }, "does not exist", false},
		"another database":                     {0x140, func(_ *State, f *Facts) { f.SystemID = "8" }, "another database", false},
		"across a failover":                    {0x140, func(s *State, _ *Facts) { s.Timeline = 2 }, "an LSN means something else there", false},
		"a halt that is not latched":           {0x140, func(s *State, _ *Facts) { s.Halt = (&HaltError{}).record(time.Now()) }, "", false},
		"over what a halt put at risk":         {0x140, func(s *State, _ *Facts) { s.Halt = latched(Range{0x100, 0x140}, false) }, "", false},
		"over a part of it":                    {0x13F, func(s *State, _ *Facts) { s.Halt = latched(Range{0x100, 0x140}, false) }, "", true},
		"over it, and the record has no toast": {0x140, func(s *State, f *Facts) { s.Halt, f.Fingerprint = latched(Range{0x100, 0x140}, false), "f toast 7" }, "", false},
		"over it, but things are changed":      {0x140, func(s *State, f *Facts) { s.Halt, f.Fingerprint = latched(Range{0x100, 0x140}, false), "g" }, "", true},
		"in another history":                   {0x140, func(s *State, _ *Facts) { s.Halt = latched(Range{0x10, 0x100}, true) }, "another history", false},
	} {
		st, f := agreeing()
		f.WALEnd = 0x150
		c.change(st, &f)
		next, err := SkipTo("p", st, f, c.to)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if next.Covered != c.to || next.Skipped != c.to || next.Epoch != st.Epoch+1 || next.Version != StateVersion || next.Last() != st.Last() || (next.Halt != nil) != c.halted {
			t.Errorf("%s: %+v", name, next)
		}
	}
}

// TestAdopt checks that adopt keeps the facts of the record that are still true, and starts at the slot if they are
// not.
func TestAdopt(t *testing.T) {
	recreated := "publication 9/9 entry 1/1 table 1 public.outbox"
	known := "publication 7/9 entry 1/1 table 1 public.outbox"
	for name, c := range map[string]struct {
		change  func(*State, *Facts)
		says    string // an error
		covered LSN
		last    Position
		gap     Range
		advance LSN
	}{
		"nothing":                     {func(*State, *Facts) {}, "nothing to adopt", 0, Position{}, Range{}, 0},
		"a record without toast":      {func(s *State, f *Facts) { s.Fingerprint, f.Fingerprint = "f/1", "f/1 toast 7" }, "nothing to adopt", 0, Position{}, Range{}, 0},
		"only what was changed":       {func(_ *State, f *Facts) { f.Fingerprint = "f/2" }, "", 0x100, Position{0xF0, 2}, Range{0x90, 0x150}, 0},
		"a slot that went ahead":      {func(_ *State, f *Facts) { f.Slot.ConfirmedFlush = 0x130 }, "", 0x130, Position{}, Range{0x100, 0x130}, 0},
		"both":                        {func(_ *State, f *Facts) { f.Slot.ConfirmedFlush, f.Fingerprint = 0x130, "f/2" }, "", 0x130, Position{}, Range{0x90, 0x150}, 0},
		"a publication created again": {func(s *State, f *Facts) { s.Fingerprint, f.Fingerprint = known, recreated }, "", 0x150, Position{0xF0, 2}, Range{0x90, 0x150}, 0x150},
		"a failover":                  {func(s *State, f *Facts) { s.Timeline, f.Slot.ConfirmedFlush = 2, 0x10 }, "", 0x80, Position{}, Range{}, 0},
		"a failover, slot made there": {func(s *State, f *Facts) { s.Timeline, f.Slot.ConfirmedFlush = 2, 0x90 }, "", 0x90, Position{}, Range{0x80, 0x90}, 0},
		"a stale primary":             {func(s *State, f *Facts) { s.Timeline, f.Slot.ConfirmedFlush = 9, 0x60 }, "", 0x60, Position{}, Range{}, 0},
		"a restored backup":           {func(_ *State, f *Facts) { f.WALEnd, f.Slot.ConfirmedFlush = 0x50, 0x40 }, "", 0x40, Position{}, Range{}, 0},
		"another history, latched": {func(s *State, f *Facts) {
			s.Halt, f.Slot.ConfirmedFlush = (&HaltError{Latch: true, History: true}).record(time.Now()), 0x60
		}, "", 0x60, Position{}, Range{}, 0},
		"what hid rows is gone": {func(s *State, _ *Facts) {
			s.Halt = (&HaltError{Latch: true, Risk: Range{0x90, 0x120}}).record(time.Now())
		}, "", 0x100, Position{0xF0, 2}, Range{0x90, 0x150}, 0},
		"another slot":          {func(s *State, _ *Facts) { s.Slot = "t" }, "", 0x100, Position{0xF0, 2}, Range{}, 0},
		"another database":      {func(_ *State, f *Facts) { f.SystemID = "8" }, "another database", 0, Position{}, Range{}, 0},
		"another pipeline":      {func(s *State, _ *Facts) { s.Pipeline = "q" }, "belongs to pipeline", 0, Position{}, Range{}, 0},
		"an unfinished init":    {func(s *State, _ *Facts) { s.Phase = PhaseCreating }, "did not finish", 0, Position{}, Range{}, 0},
		"a slot that is lost":   {func(_ *State, f *Facts) { f.Slot.WALStatus = "lost" }, "--create-slot", 0, Position{}, Range{}, 0},
		"a slot that is read":   {func(_ *State, f *Facts) { f.Slot.Active = true }, "stop the relay", 0, Position{}, Range{}, 0},
		"what still hides rows": {func(_ *State, f *Facts) { f.Fingerprint, f.Hidden = "f/2", []Finding{{Found: "no"}} }, "fix this first: no", 0, Position{}, Range{}, 0},
	} {
		st, f := agreeing()
		f.WALEnd = 0x150
		c.change(st, &f)
		a, err := Adopt("p", st, f, false)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		next := a.State
		if next.Covered != c.covered || next.Last() != c.last || a.Gap != c.gap || a.Advance != c.advance {
			t.Errorf("%s: covered %s, last %v, gap %s, advance %s", name, next.Covered, next.Last(), a.Gap, a.Advance)
		}
		// The relay continues from the adopted record, once the slot has been moved.
		if f.Slot.ConfirmedFlush = max(f.Slot.ConfirmedFlush, a.Advance); next.Epoch != st.Epoch+1 || next.Halt != nil {
			t.Errorf("%s: %+v", name, next)
		}
		if _, err := Reconcile("p", next, f); err != nil {
			t.Errorf("%s: adopted, it halts: %v", name, err)
		}
	}
	_, f := agreeing()
	if a, err := Adopt("p", nil, f, false); err != nil || a.State.Covered != 0x100 || a.State.Epoch != 1 || a.State.Skipped != 0x100 {
		t.Errorf("no state: %+v, %v", a, err)
	}
}

// TestAdoptNewServer: adopt starts at the slot of a server whose positions have nothing to do with the record's,
// keeps the facts that are true on any server, and returns an error if the server is not a new one.
func TestAdoptNewServer(t *testing.T) {
	const other = "publication 9/9 entry 1/1 table 1 public.outbox"
	halt := (&HaltError{Found: "f", Latch: true, Risk: Range{0x90, 0x100}}).record(time.Now())
	for name, c := range map[string]struct {
		change  func(*State, *Facts)
		says    string   // an error
		accepts []string // the accepted lines, besides the new server itself
		gap     Range
	}{
		"a slot that pg_upgrade brought, ahead": {func(_ *State, f *Facts) { f.Slot.ConfirmedFlush, f.WALEnd = 0x480, 0x500 }, "", []string{"is no longer read"}, Range{}},
		"a new slot, behind what was delivered": {func(_ *State, f *Facts) { f.Slot.ConfirmedFlush, f.WALEnd = 0x40, 0x50 }, "", []string{"is no longer read", "the header lsn goes back, from 0/100 to 0/40"}, Range{}},
		"an earlier timeline":                   {func(_ *State, f *Facts) { f.Timeline, f.History = 1, nil }, "", []string{"is no longer read"}, Range{}},
		"a later timeline, with a history":      {func(_ *State, f *Facts) { f.Timeline = 5 }, "", []string{"is no longer read"}, Range{}},
		"a publication that was restored":       {func(_ *State, f *Facts) { f.Fingerprint = other }, "", []string{"is no longer read"}, Range{}},
		"another slot, another table":           {func(s *State, f *Facts) { s.Slot, s.Configured.Table, f.Configured.Table = "t", "public.a", "public.b" }, "", []string{`slot "s" instead of "t"`, `source.table is "public.b"`, "is no longer read"}, Range{}},
		"a halt that the old server left":       {func(s *State, f *Facts) { s.Halt, f.WALEnd = halt, 0x500 }, "", []string{"is no longer read", "the halt that was latched"}, Range{0x90, 0x100}},
		"another history of the old server": {func(s *State, _ *Facts) {
			s.Halt = (&HaltError{Found: "f", Latch: true, History: true}).record(time.Now())
		}, "", []string{"is no longer read", "the halt that was latched"}, Range{}},
		"phantoms and transactions of the old": {func(s *State, _ *Facts) {
			s.Phantoms, s.Open = &Phantoms{Rows: 3}, map[string]time.Time{"7": time.Now()}
		}, "", []string{"is no longer read"}, Range{}},
		"a server that is at the same position":     {func(*State, *Facts) {}, "", []string{"is no longer read"}, Range{}},
		"the same server":                           {func(s *State, f *Facts) { f.SystemID = s.SystemID }, "of this same PostgreSQL", nil, Range{}},
		"a clone of the same server":                {func(s *State, f *Facts) { f.SystemID, f.Timeline = s.SystemID, 4 }, "of this same PostgreSQL", nil, Range{}},
		"the record of another pipeline":            {func(s *State, _ *Facts) { s.Pipeline = "q" }, "belongs to pipeline", nil, Range{}},
		"an unfinished init":                        {func(s *State, _ *Facts) { s.Phase = PhaseCreating }, "did not finish", nil, Range{}},
		"no slot":                                   {func(_ *State, f *Facts) { f.Slot = SlotFacts{Name: "s"} }, "`walpost adopt --new-server --create-slot`", nil, Range{}},
		"a slot that is lost":                       {func(_ *State, f *Facts) { f.Slot.WALStatus = "lost" }, "`walpost adopt --new-server --create-slot`", nil, Range{}},
		"a slot that a relay reads":                 {func(_ *State, f *Facts) { f.Slot.Active = true }, "stop the relay", nil, Range{}},
		"rows that the new server hides":            {func(_ *State, f *Facts) { f.Hidden = []Finding{{Found: "no"}} }, "fix this first: no", nil, Range{}},
		"columns that the new server does not have": {func(_ *State, f *Facts) { f.Unfit = []Finding{{Found: "no"}} }, "fix this first: no", nil, Range{}},
	} {
		st, f := agreeing()
		f.SystemID = "8"
		c.change(st, &f)
		before := *st
		a, err := Adopt("p", st, f, true)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		said := strings.Join(a.Accepts, "\n")
		for _, text := range append(c.accepts, "system id 8, from "+f.Slot.ConfirmedFlush.String()+" on, in place of the one with system id 7") {
			if !strings.Contains(said, text) {
				t.Errorf("%s: it does not say %q:\n%s", name, text, said)
			}
		}
		if len(a.Accepts) != len(c.accepts)+1 || a.Gap != c.gap || a.Advance != 0 {
			t.Errorf("%s: gap %s, advance %s, accepts\n%s", name, a.Gap, a.Advance, said)
		}
		next := a.State
		if next.SystemID != "8" || next.Timeline != f.Timeline || next.Covered != f.Slot.ConfirmedFlush || next.Skipped != next.Covered || next.Last() != (Position{}) || next.LastXID != 0 {
			t.Errorf("%s: goes on from %+v", name, next)
		}
		if next.Epoch != before.Epoch+1 || NewestState([]*State{&before, next}) != next || !next.LastCommitTime.Equal(before.LastCommitTime) || next.Open != nil || next.Phantoms != nil || next.Halt != nil {
			t.Errorf("%s: %+v", name, next)
		}
		if st.SystemID != "7" || st.Epoch != before.Epoch {
			t.Errorf("%s: the old record was changed", name)
		}
		// The relay continues from the adopted record, and delivers the first row after the slot's position, with any
		// LSN.
		if next, err = Reconcile("p", next, f); err != nil {
			t.Errorf("%s: adopted, it halts: %v", name, err)
			continue
		}
		tr := newTracker(next, f.Slot.ConfirmedFlush)
		if err := tr.begin(&Message{Kind: Begin, LSN: f.Slot.ConfirmedFlush, Row: Row{XID: 3}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if deliver, err := tr.row(&Row{}); !deliver || err != nil {
			t.Errorf("%s: the first row of the new server: deliver %t, %v", name, deliver, err)
		}
		// A relay that still reads the old server halts, and adopting a second time returns an error.
		old, f := agreeing()
		if _, err := Reconcile("p", next, f); err == nil || !strings.Contains(err.Error(), "the state record is of the PostgreSQL with system id 8") {
			t.Errorf("%s: the old server is still accepted: %v", name, err)
		}
		if f.SystemID = "8"; old.SystemID == f.SystemID {
			t.Fatal("the table is wrong")
		}
		if _, err := Adopt("p", next, f, true); err == nil {
			t.Errorf("%s: it was adopted twice", name)
		}
	}
	_, f := agreeing()
	if _, err := Adopt("p", nil, f, true); err == nil || !strings.Contains(err.Error(), "no state record") {
		t.Errorf("no record: %v", err)
	}
}

// TestBeginAt checks that a pipeline begins on another program's slot only where no row could be lost, and that the engine
// then drops what that program has delivered, and nothing else.
func TestBeginAt(t *testing.T) {
	clock := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	row := Start{Covered: 0x100, Last: Position{0x120, 2}, XID: 7, Commit: clock}
	for name, c := range map[string]struct {
		st     *State
		at     Start
		change func(*Facts)
		says   string // an error
	}{
		"between transactions": {nil, Start{Covered: 0x100}, func(*Facts) {}, ""},
		"in a transaction":     {nil, row, func(*Facts) {}, ""},
		"a pipeline that runs": {&State{Covered: 0x90}, row, func(*Facts) {}, "has a state record already, which covers 0/90"},
		"no slot":              {nil, row, func(f *Facts) { f.Slot.Exists = false }, "does not exist"},
		"a lost slot":          {nil, row, func(f *Facts) { f.Slot.WALStatus = "lost" }, "is lost (wal_status lost)"},
		"a slot that is read":  {nil, row, func(f *Facts) { f.Slot.Active, f.Slot.ActivePID = true, 99 }, "is being read (pid 99)"},
		"a slot that is ahead": {nil, row, func(f *Facts) { f.Slot.ConfirmedFlush = 0x101 }, "rows committed between the two would be lost"},
		"another server":       {nil, row, func(f *Facts) { f.WALEnd = 0x110 }, "is after the end of the WAL"},
		"hidden rows":          {nil, row, func(f *Facts) { f.Hidden = []Finding{{Found: "a rule"}} }, "fix it first: a rule"},
	} {
		f := Facts{Identity: Identity{SystemID: "1", Timeline: 1}, WALEnd: 0x200, Time: clock, Slot: SlotFacts{Name: "dbz", Exists: true, ConfirmedFlush: 0x100}}
		c.change(&f)
		st, err := BeginAt("p", c.st, f, c.at)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		next, err := Reconcile("p", st, f)
		if err != nil || next.Covered != 0x100 || next.Skipped != 0x100 || next.Last() != c.at.Last {
			t.Errorf("%s: %+v, %v", name, next, err)
			continue
		}
		tr := newTracker(next, f.Slot.ConfirmedFlush)
		for _, tx := range []struct {
			commit LSN
			xid    uint32
			want   [3]bool // which of its rows are delivered
		}{{0xF0, 5, [3]bool{}}, {0x120, 7, [3]bool{c.at.Last.Ordinal == 0, c.at.Last.Ordinal == 0, true}}, {0x140, 6, [3]bool{true, true, true}}} {
			if err := tr.begin(&Message{Kind: Begin, LSN: tx.commit, Row: Row{XID: tx.xid, CommitTime: clock}}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for i, want := range tx.want {
				if got, err := tr.row(&Row{}); err != nil || got != want {
					t.Errorf("%s: row %d of the commit at %s is delivered: %v, %v", name, i+1, tx.commit, got, err)
				}
			}
			if _, err := tr.commit(&Message{Kind: Commit, LSN: tx.commit + 8}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}
