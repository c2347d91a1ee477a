package cdc

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// agreeing returns a state record and a server that agree.
func agreeing() (*State, Facts) {
	at := func(sec int64) time.Time { return time.Unix(1800000000+sec, 0).UTC() }
	st := &State{
		Version: 1, Pipeline: "p", Slot: "s", SystemID: "7", Timeline: 3, Covered: 0x100, CommitLSN: 0xF0, Ordinal: 2, LastXID: 700,
		LastCommitTime: at(0), Fingerprint: "f", Checked: 0x90, CheckedAt: at(-20), Epoch: 4, Instance: "i",
	}
	return st, Facts{
		Identity: Identity{SystemID: "7", Timeline: 3, History: []PastTimeline{{1, 0x20}, {2, 0x80}}},
		Slot:     SlotFacts{Name: "s", Exists: true, ConfirmedFlush: 0x100, WALStatus: "reserved"}, WALEnd: 0x100, Time: at(60), Fingerprint: "f",
	}
}

// TestReconcileTable is the table of the design, row by row: which comparison halts, with which text, and whether the
// halt is latched.
func TestReconcileTable(t *testing.T) {
	const replay = "`walpost replay --from 2027-01-15T07:58:40Z --to 2027-01-15T08:01:01Z` publishes the rows"
	for name, c := range map[string]struct {
		change           func(*State, *Facts)
		says             string
		latched, history bool
	}{
		"no state": {nil, "no state record for pipeline \"p\", although replication slot \"s\" exists: the state topic was deleted, or the slot belongs to another pipeline: it is not known which rows were delivered, and a start could skip rows; if the slot belongs to this pipeline, `walpost adopt` continues from its position, 0/100; else name another slot under source.slot and run `walpost init`", false, false},
		"init not finished": {
			func(s *State, _ *Facts) { s.Phase = PhaseCreating },
			"the state record of pipeline \"p\" says that `walpost init` did not finish: nothing has been published yet; run `walpost init` again", false, false,
		},
		"take-over not finished": {
			func(s *State, _ *Facts) { s.Phase = PhaseBeginning },
			"the state record of pipeline \"p\" says that `walpost take-over` did not finish: nothing has been published yet, and the program before it may still have to publish rows that are older than those in the slot; run `walpost take-over` again", false, false,
		},
		"another pipeline": {
			func(s *State, _ *Facts) { s.Pipeline = "q" },
			"the state record belongs to pipeline \"q\", this is \"p\": two pipelines share a state topic, or the pipeline was renamed; nothing is published; set `pipeline` to the name that the topic was made for, or give this pipeline another name and run `walpost init`", false, false,
		},
		"another slot": {
			func(s *State, _ *Facts) { s.Slot = "t" },
			"the state record of pipeline \"p\" is of slot \"t\", this relay is configured for slot \"s\": two pipelines of one name share state and transactional id: they would fence each other, and each would skip rows of the other; give one of them another `pipeline` name and run `walpost init` for it; if the slot was renamed on purpose, `walpost adopt`", false, false,
		},
		"messages that an older walpost read": {
			func(s *State, f *Facts) {
				s.Configured, f.Configured = Configured{Publication: "w", Messages: "shop"}, Configured{Publication: "w", Table: "public.outbox"}
			},
			"source.table is \"public.outbox\", it was \"\", source.messages is \"\", it was \"shop\": the configuration has changed and nothing was read under the new name; if the earlier name is right, nothing is lost: rows wait in the slot; if it was wrong, the rows of the right table were never read; this walpost reads a table, not messages: run the older walpost that wrote the record until it has delivered the messages in the slot, then `walpost adopt` continues with the table", false, false,
		},
		"another database": {
			func(_ *State, f *Facts) { f.SystemID = "8" },
			"the state record is of the PostgreSQL with system id 7, this server's is 8: this is another database: the record's LSNs mean nothing here, and rows could be skipped; point source.url back at the right server; if this server replaces it, after an upgrade or a move, `walpost adopt --new-server` continues with it; for another database use a new pipeline name and run `walpost init`", false, false,
		},
		"stale primary": {
			func(s *State, _ *Facts) { s.Timeline = 4 },
			"the state record is of timeline 4, the server is on timeline 3: this server is a stale primary: a standby was promoted, and rows up to 0/100 came from there; rows written here are not part of that history; point source.url at the present primary and stop this server (target_session_attrs=read-write over all hosts does not help while the stale one takes writes); to keep this server instead, run `walpost adopt`", false, false,
		},
		"diverged branch": {
			func(s *State, f *Facts) { s.Timeline, f.History = 2, f.History[:1] },
			"the state record is of timeline 2, which is not in the history of the server's timeline 3: this server left the common history earlier: rows up to 0/100 were published from a timeline it never had; point source.url at the server that descends from timeline 2; to keep this server instead, run `walpost adopt`", false, false,
		},
		"state ahead of the server": {
			func(_ *State, f *Facts) { f.WALEnd = 0xFF },
			"the state record knows commits up to 0/100, the server's WAL ends at 0/FF: this is a restored backup, a clone or the wrong server: new commits would reuse positions that count as delivered, and would be skipped; point source.url at the right server; to keep the restored backup instead, run `walpost adopt`", false, true,
		},
		"slot missing": {
			func(_ *State, f *Facts) { f.Slot, f.WALEnd = SlotFacts{Name: "s"}, 0x150 },
			"replication slot \"s\" does not exist, and the state record says that rows up to 0/100 were delivered: the slot was dropped, or this is a promoted standby without it: a new slot will not stream the rows committed since, LSN range (0/100, 0/150]; `walpost adopt --create-slot` starts with a new slot, then " + replay + " between", false, false,
		},
		"slot missing, under Patroni": {
			func(_ *State, f *Facts) {
				f.Slot, f.WALEnd = SlotFacts{Name: "s", Patroni: "s: {type: logical}"}, 0x150
			},
			"replication slot \"s\" does not exist, and the state record says that rows up to 0/100 were delivered: Patroni drops a slot that its configuration does not name, and a promoted standby does not have it: a new slot will not stream the rows committed since, LSN range (0/100, 0/150]; name it with `patronictl edit-config`, slots: {s: {type: logical}}, and Patroni creates it; then `walpost adopt` continues from it, and prints the `walpost replay` that publishes the rows between", false, false,
		},
		"slot lost": {
			func(_ *State, f *Facts) { f.Slot.WALStatus, f.Slot.ConfirmedFlush, f.WALEnd = "lost", 0xA0, 0x150 },
			"replication slot \"s\" is lost (wal_status lost): the server no longer has the WAL after 0/A0: rows committed after that LSN can no longer be streamed; the slot will not recover, LSN range (0/100, 0/150]; raise max_slot_wal_keep_size (idle_replication_slot_timeout); `walpost adopt --create-slot` starts with a new slot, then " + replay + " between", false, false,
		},
		"slot invalidated": {
			func(_ *State, f *Facts) {
				f.Slot.WALStatus, f.Slot.Invalidation, f.Slot.ConfirmedFlush, f.WALEnd = "unreserved", "idle_timeout", 0xA0, 0x150
			},
			"replication slot \"s\" is lost (wal_status unreserved, invalidation_reason idle_timeout): the server no longer has the WAL after 0/A0: rows committed after that LSN can no longer be streamed; the slot will not recover, LSN range (0/100, 0/150]; raise max_slot_wal_keep_size (idle_replication_slot_timeout); `walpost adopt --create-slot` starts with a new slot, then " + replay + " between", false, false,
		},
		"slot ahead of the state": {
			func(_ *State, f *Facts) { f.Slot.ConfirmedFlush, f.WALEnd = 0x130, 0x150 },
			"slot \"s\" has confirmed 0/130, the state record covers only 0/100: the slot was re-created or advanced, or the state topic lost its tail: rows committed between the two may be missing in Kafka, LSN range (0/100, 0/130]; `walpost adopt` continues from the slot, and " + replay + " between", true, false,
		},
		"slot ahead of what two timelines share": {
			func(s *State, f *Facts) { s.Timeline, f.Slot.ConfirmedFlush = 2, 0x81 },
			"slot \"s\" has confirmed 0/81, the state record covers only 0/80: the slot was re-created or advanced, or the state topic lost its tail: rows committed between the two may be missing in Kafka, LSN range (0/80, 0/81]; `walpost adopt` continues from the slot, and " + replay + " between", true, false,
		},
		"changed and changed back": {
			func(_ *State, f *Facts) { f.Fingerprint, f.WALEnd = "g", 0x150 },
			"publication or table changed: the state record knows f, the server has g: rows committed since 2027-01-15T07:59:40Z may never have been streamed, or not whole, LSN range (0/90, 0/150]; `walpost adopt` accepts publication and table as they are now, and " + replay + " of that time", true, false,
		},
		"the publication's row was written": {
			func(s *State, f *Facts) {
				s.Fingerprint, f.Fingerprint, f.WALEnd = "publication 5/700 entry 6/700 table 7 s.t", "publication 5/701 entry 6/700 table 7 s.t", 0x150
			},
			"publication or table changed: the state record knows publication 5/700 entry 6/700 table 7 s.t, the server has publication 5/701 entry 6/700 table 7 s.t: the publication itself was written, by ALTER PUBLICATION … SET (…) or OWNER TO, and shows the rows now. A controller that sets the same values again does this, and hides nothing; but walpost cannot see whether a setting was changed and changed back: rows committed since 2027-01-15T07:59:40Z may never have been streamed, or not whole, LSN range (0/90, 0/150]; `walpost adopt` accepts publication and table as they are now, and " + replay + " of that time", true, false,
		},
		"the publication is another one": {
			func(s *State, f *Facts) {
				s.Fingerprint, f.Fingerprint, f.WALEnd = "publication 5/700 entry 6/700 table 7 s.t", "publication 8/701 entry 6/700 table 7 s.t", 0x150
			},
			"publication or table changed: the state record knows publication 5/700 entry 6/700 table 7 s.t, the server has publication 8/701 entry 6/700 table 7 s.t: rows committed since 2027-01-15T07:59:40Z may never have been streamed, or not whole, LSN range (0/90, 0/150]; `walpost adopt` accepts publication and table as they are now, and " + replay + " of that time", true, false,
		},
		"rows are hidden": {
			func(_ *State, f *Facts) {
				f.Fingerprint, f.Hidden, f.WALEnd = "g", []Finding{{Found: "a"}, {Found: "b"}}, 0x150
			},
			"publication or table changed: a; b: rows committed since 2027-01-15T07:59:40Z may never have been streamed, or not whole, LSN range (0/90, 0/150]; fix it, then `walpost adopt` accepts publication and table as they are now, and " + replay + " of that time", true, false,
		},
		"changed, and the record is of version 1": {
			func(s *State, f *Facts) { s.Checked, s.CheckedAt, f.Fingerprint = 0, time.Time{}, "g" },
			"publication or table changed: the state record knows f, the server has g: rows committed since 2027-01-15T08:00:00Z may never have been streamed, or not whole, LSN range (0/100, 0/100]; `walpost adopt` accepts publication and table as they are now, and `walpost replay --from 2027-01-15T07:59:00Z --to 2027-01-15T08:01:01Z` publishes the rows of that time", true, false,
		},
		"the table was rewritten": {
			func(s *State, f *Facts) { s.Fingerprint, f.Fingerprint, f.WALEnd = "f toast 7", "f toast 8", 0x150 },
			"publication or table changed: the state record knows f toast 7, the server has f toast 8: the table was rewritten, as by SET UNLOGGED and SET LOGGED (a publication FOR TABLE forbids those, and lets every other rewrite pass): rows committed since 2027-01-15T07:59:40Z may never have been streamed, or not whole, LSN range (0/90, 0/150]; `walpost adopt` accepts publication and table as they are now, and " + replay + " of that time", true, false,
		},
		"a column is missing": {
			func(_ *State, f *Facts) { f.Unfit = []Finding{{Found: "no column"}} },
			"no column: walpost cannot read the rows of the outbox like this; nothing is lost yet; fix this, and the relay resumes by itself; after a change of its configuration, restart it", false, false,
		},
		"latched": {func(s *State, _ *Facts) {
			s.Halt = (&HaltError{Found: "f", Means: "m", Run: "r", Risk: Range{1, 2}, Latch: true}).record(time.Now())
		}, "f: m, LSN range (0/1, 0/2]; r", true, false},
	} {
		st, f := agreeing()
		if c.change == nil {
			st = nil
		} else {
			c.change(st, &f)
		}
		var halt *HaltError
		if _, err := Reconcile("p", st, f); !errors.As(err, &halt) {
			t.Errorf("%s: %v, want a Halt", name, err)
		} else if halt.Error() != c.says || halt.Latch != c.latched || halt.History != c.history {
			t.Errorf("%s: latched %t, other history %t, says\n%s\nwant %t, %t,\n%s", name, halt.Latch, halt.History, halt, c.latched, c.history, c.says)
		}
	}
}

func TestReconcileGoesOn(t *testing.T) {
	for name, change := range map[string]func(*State, *Facts){
		"as it was":                  func(*State, *Facts) {},
		"slot went back":             func(_ *State, f *Facts) { f.Slot.ConfirmedFlush = 0x10 },
		"server went on":             func(_ *State, f *Facts) { f.WALEnd = 0x1000 },
		"a record of version 1":      func(s *State, _ *Facts) { s.Slot = "" },
		"a record without toast":     func(_ *State, f *Facts) { f.Fingerprint = "f toast 7" },
		"a halt that is not latched": func(s *State, _ *Facts) { s.Halt = (&HaltError{}).record(time.Now()) },
	} {
		st, f := agreeing()
		change(st, &f)
		next, err := Reconcile("p", st, f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if next.Version != StateVersion || next.Slot != "s" || next.Covered != 0x100 || next.Last() != (Position{0xF0, 2}) || next.Halt != nil || next.Fingerprint != f.Fingerprint || next.Checked != f.WALEnd || next.Phantoms != nil {
			t.Errorf("%s: goes on from %+v", name, next)
		}
	}
}

// TestReconcileFollowsAFailover: the history that both timelines share stays covered; above it no position may drop a
// row.
func TestReconcileFollowsAFailover(t *testing.T) {
	for name, c := range map[string]struct {
		timeline        int32
		covered, commit LSN
		wantCovered     LSN
		wantLast        Position
		wantSkipped     LSN
		phantoms        *Phantoms
	}{
		"nothing lost":                      {2, 0x70, 0x60, 0x70, Position{0x60, 2}, 0x10, nil},
		"covered to the switch exactly":     {2, 0x80, 0x60, 0x80, Position{0x60, 2}, 0x10, nil},
		"covered beyond, last row before":   {2, 0x90, 0x60, 0x80, Position{0x60, 2}, 0x10, &Phantoms{Range: Range{0x80, 0x90}, Timeline: 2, Rows: -1}},
		"last row beyond":                   {2, 0x100, 0xF0, 0x80, Position{}, 0x80, &Phantoms{Range: Range{0x80, 0x100}, Timeline: 2, Rows: -1}},
		"last row at the switch, uncovered": {2, 0x80, 0x80, 0x80, Position{}, 0x80, &Phantoms{Range: Range{0x80, 0x80}, Timeline: 2, Rows: -1}},
		"two failovers, lost at the first":  {1, 0x70, 0x60, 0x20, Position{}, 0x20, &Phantoms{Range: Range{0x20, 0x70}, Timeline: 1, Rows: -1}},
		"last row before, rows not covered": {2, 0x50, 0x60, 0x50, Position{0x60, 2}, 0x10, nil},
	} {
		st, f := agreeing()
		st.Timeline, st.Covered, st.CommitLSN, st.Skipped = c.timeline, c.covered, c.commit, 0x10
		f.Slot.ConfirmedFlush, f.WALEnd = 0x10, 0x90
		next, err := Reconcile("p", st, f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if next.Timeline != 3 || next.Covered != c.wantCovered || next.Last() != c.wantLast || next.Skipped != c.wantSkipped {
			t.Errorf("%s: goes on from %+v", name, next)
		}
		if (next.Phantoms == nil) != (c.phantoms == nil) || next.Phantoms != nil && *next.Phantoms != *c.phantoms {
			t.Errorf("%s: phantoms %+v, want %+v", name, next.Phantoms, c.phantoms)
		}
		// The tracker delivers a commit of the new timeline that begins exactly at the switch.
		tr := newTracker(next, f.Slot.ConfirmedFlush)
		tr.awaited = false // its transaction has come again
		if c.wantCovered == 0x80 {
			if err := tr.begin(&Message{Kind: Begin, LSN: 0x80}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if deliver, err := tr.row(&Row{}); !deliver || err != nil {
				t.Errorf("%s: the first row of the new timeline: deliver %t, %v", name, deliver, err)
			}
		}
	}
}

// TestOpenTransactionsAreFollowed checks that each record keeps, for each transaction that is open, a time before
// which it had written nothing, from look to look and from record to record, and that a second replay command is
// printed for rows that the first does not reach.
func TestOpenTransactionsAreFollowed(t *testing.T) {
	st, f := agreeing()
	st.LastCommitTime = time.Time{}
	first := st.CheckedAt
	look := func(at time.Time, open ...string) {
		t.Helper()
		f.Time, f.Open = at, open
		next, err := Reconcile("p", st, f)
		if err != nil {
			t.Fatal(err)
		}
		st = next
	}
	minute := func(n int) time.Time { return first.Add(time.Duration(n) * time.Minute) }
	look(minute(1), "10")       // began after the first look
	look(minute(2), "10", "11") // 11 began after the second look
	look(minute(3), "11")       // 10 has ended
	look(minute(9), "11", "12")
	if len(st.Open) != 2 || !st.Open["11"].Equal(minute(1)) || !st.Open["12"].Equal(minute(3)) {
		t.Errorf("open: %v", st.Open)
	}
	f.Time = minute(10)
	want := "`walpost replay --from " + clock(minute(8)) + " --to " + clock(minute(10).Add(time.Second)) + "` (and, for rows of transactions that were open for longer, `walpost replay --from " +
		clock(minute(1).Add(-time.Second)) + " --to " + clock(minute(8)) + "`)"
	if got := replay(st, &f); got != want {
		t.Errorf("the replay is\n%s, want\n%s", got, want)
	}
	look(minute(11), "12")
	look(minute(12))
	if got := replay(st, &f); len(st.Open) != 0 || strings.Contains(got, "for longer") {
		t.Errorf("nothing is open, and the record has %v, the replay is %s", st.Open, got)
	}
	var many []string
	for i := range 3 * mostOpen {
		many = append(many, fmt.Sprint(1000+i))
	}
	look(minute(13), append(many, "7")...)
	if len(st.Open) != mostOpen {
		t.Errorf("%d open transactions are kept, want %d", len(st.Open), mostOpen)
	}
}
