package cdc

import (
	"strings"
	"testing"
	"time"
)

// TestSkipTo goes exactly as far as it says, and refuses the rest.
func TestSkipTo(t *testing.T) {
	latched := func(r Range, history bool) *HaltRecord {
		return (&Halt{Found: "f", Means: "m", Run: "r", Risk: r, Latch: true, History: history}).record(time.Now())
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
		"beyond it":                            {0x151, func(*State, *Facts) {}, "behind the end of the WAL", false},
		"backward":                             {0xFF, func(*State, *Facts) {}, "up to which everything is delivered", false},
		"before the slot":                      {0x110, func(_ *State, f *Facts) { f.Slot.ConfirmedFlush = 0x120 }, "has confirmed", false},
		"while a relay reads":                  {0x140, func(_ *State, f *Facts) { f.Slot.Active = true }, "stop the relay", false},
		"without a slot":                       {0x140, func(_ *State, f *Facts) { f.Slot.Exists = false }, "does not exist", false},
		"another database":                     {0x140, func(_ *State, f *Facts) { f.SystemID = "8" }, "another database", false},
		"across a failover":                    {0x140, func(s *State, _ *Facts) { s.Timeline = 2 }, "LSNs have changed their meaning", false},
		"a halt that is not latched":           {0x140, func(s *State, _ *Facts) { s.Halt = (&Halt{}).record(time.Now()) }, "", false},
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

// TestAdopt keeps what is still true, and begins at the slot where it is not.
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
		"a publication made anew":     {func(s *State, f *Facts) { s.Fingerprint, f.Fingerprint = known, recreated }, "", 0x150, Position{0xF0, 2}, Range{0x90, 0x150}, 0x150},
		"a failover":                  {func(s *State, f *Facts) { s.Timeline, f.Slot.ConfirmedFlush = 2, 0x10 }, "", 0x80, Position{}, Range{}, 0},
		"a failover, slot made there": {func(s *State, f *Facts) { s.Timeline, f.Slot.ConfirmedFlush = 2, 0x90 }, "", 0x90, Position{}, Range{0x80, 0x90}, 0},
		"a stale primary":             {func(s *State, f *Facts) { s.Timeline, f.Slot.ConfirmedFlush = 9, 0x60 }, "", 0x60, Position{}, Range{}, 0},
		"a restored backup":           {func(_ *State, f *Facts) { f.WALEnd, f.Slot.ConfirmedFlush = 0x50, 0x40 }, "", 0x40, Position{}, Range{}, 0},
		"another history, latched": {func(s *State, f *Facts) {
			s.Halt, f.Slot.ConfirmedFlush = (&Halt{Latch: true, History: true}).record(time.Now()), 0x60
		}, "", 0x60, Position{}, Range{}, 0},
		"what hid rows is gone": {func(s *State, _ *Facts) { s.Halt = (&Halt{Latch: true, Risk: Range{0x90, 0x120}}).record(time.Now()) }, "", 0x100, Position{0xF0, 2}, Range{0x90, 0x150}, 0},
		"another slot":          {func(s *State, _ *Facts) { s.Slot = "t" }, "", 0x100, Position{0xF0, 2}, Range{}, 0},
		"another database":      {func(_ *State, f *Facts) { f.SystemID = "8" }, "another database", 0, Position{}, Range{}, 0},
		"another pipeline":      {func(s *State, _ *Facts) { s.Pipeline = "q" }, "belongs to pipeline", 0, Position{}, Range{}, 0},
		"an unfinished init":    {func(s *State, _ *Facts) { s.Phase = PhaseCreating }, "did not finish", 0, Position{}, Range{}, 0},
		"a slot that is lost":   {func(_ *State, f *Facts) { f.Slot.WALStatus = "lost" }, "--create-slot", 0, Position{}, Range{}, 0},
		"a slot that is read":   {func(_ *State, f *Facts) { f.Slot.Active = true }, "stop the relay", 0, Position{}, Range{}, 0},
		"what still hides rows": {func(_ *State, f *Facts) { f.Fingerprint, f.Hidden = "f/2", []string{"no"} }, "fix it first: no", 0, Position{}, Range{}, 0},
	} {
		st, f := agreeing()
		f.WALEnd = 0x150
		c.change(st, &f)
		a, err := Adopt("p", st, f)
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
		// The relay goes on from it, once the slot is where it was moved to.
		if f.Slot.ConfirmedFlush = max(f.Slot.ConfirmedFlush, a.Advance); next.Epoch != st.Epoch+1 || next.Halt != nil {
			t.Errorf("%s: %+v", name, next)
		}
		if _, err := Reconcile("p", next, f); err != nil {
			t.Errorf("%s: adopted, it halts: %v", name, err)
		}
	}
	_, f := agreeing()
	if a, err := Adopt("p", nil, f); err != nil || a.State.Covered != 0x100 || a.State.Epoch != 1 || a.State.Skipped != 0x100 {
		t.Errorf("no state: %+v, %v", a, err)
	}
}
