package cdc

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Facts is what the server reports of itself, read over SQL after the state record.
type Facts struct {
	Identity
	Slot   SlotFacts
	WALEnd LSN       // pg_current_wal_flush_lsn()
	Time   time.Time // the server's clock
	// Open lists the ids of the database's transactions that had written something and had not ended before WALEnd
	// was read.
	Open []string
	// Fingerprint identifies publication and table as they are now. Configured has the names that the configuration
	// gives them.
	Fingerprint string
	Configured  Configured
	// Hidden lists the causes that keep outbox rows out of the stream, each with the way to fix it.
	Hidden []Finding
	// Standbys are the slots that rows of this slot wait for. Walsender is the server process that reads this slot.
	// Commits is not nil if commits wait for this relay.
	Standbys  []StandbySlot
	Walsender Walsender
	Commits   *CommitWaitError
	// Unfit lists what is wrong with the table's columns: its rows are streamed, but walpost cannot understand them.
	Unfit []Finding
	// Notes lists what an operator should know and what halts nothing.
	Notes []string
}

// SlotFacts is the slot's row in pg_replication_slots.
type SlotFacts struct {
	Name           string
	Exists         bool
	Active         bool
	ActivePID      uint32 // the process that owns the slot; 0 if there is none
	ConfirmedFlush LSN
	RestartLSN     LSN
	WALStatus      string // reserved, extended, unreserved, lost
	Invalidation   string // invalidation_reason, from 17 on
	SafeWALSize    *int64 // bytes of WAL that may be written before the slot can be lost; nil without a limit
	// the entry for this slot in Patroni's configuration, if Patroni drops the slot without it: up to 16
	Patroni string
}

// lost reports whether the slot can never be read again, and returns the server's words for it.
func (s *SlotFacts) lost() (how string, lost bool) {
	how = "wal_status " + s.WALStatus
	if s.Invalidation != "" {
		how += ", invalidation_reason " + s.Invalidation
	}
	return how, s.WALStatus == "lost" || s.Invalidation != ""
}

// Lost reports whether the slot does not exist or can never be read again.
func (s *SlotFacts) Lost() bool {
	_, lost := s.lost()
	return lost || !s.Exists
}

// branch returns the LSN at which a timeline ends in the server's history: rows published above it do not exist
// there.
func (f *Facts) branch(timeline int32) (end LSN, known bool) {
	if timeline == f.Timeline {
		return f.WALEnd, true
	}
	for _, past := range f.History {
		if past.Timeline == timeline {
			return past.End, true
		}
	}
	return 0, false
}

// identify returns a halt for what is certain before this session owns the slot: the state record belongs to another
// pipeline or server, or there is no slot to own. It never latches: a relay that sees a wrong server, a clone or an
// old primary must neither stop nor fence the relay that sees the right one, and opening the sink could fence it.
func identify(pipeline string, st *State, f *Facts) error {
	slot := f.Slot
	switch {
	case st == nil && !slot.Exists:
		return &HaltError{
			Found: fmt.Sprintf("no state record for pipeline %q, and no replication slot %q", pipeline, slot.Name),
			Means: "the pipeline is not prepared yet; nothing is read or published",
			Run:   "run `walpost init` once, with an administrator's rights",
		}
	case st == nil:
		return &HaltError{
			Found: fmt.Sprintf("no state record for pipeline %q, although replication slot %q exists", pipeline, slot.Name),
			Means: "the state topic was deleted, or the slot belongs to another pipeline: it is not known which rows were delivered, and a start could skip rows",
			Run:   fmt.Sprintf("if the slot belongs to this pipeline, `walpost adopt` continues from its position, %s; else name another slot under source.slot and run `walpost init`", slot.ConfirmedFlush),
		}
	case st.Pipeline == pipeline && st.Phase == PhaseCreating:
		return &HaltError{
			Found: fmt.Sprintf("the state record of pipeline %q says that `walpost init` did not finish", pipeline),
			Means: "nothing has been published yet",
			Run:   "run `walpost init` again",
		}
	case st.Pipeline == pipeline && st.Phase == PhaseBeginning:
		return &HaltError{
			Found: fmt.Sprintf("the state record of pipeline %q says that `walpost take-over` did not finish", pipeline),
			Means: "nothing has been published yet, and the program before it may still have to publish rows that are older than those in the slot",
			Run:   "run `walpost take-over` again",
		}
	}
	if err := Foreign(pipeline, st, f); err != nil {
		return err
	}
	switch {
	case st.Timeline > f.Timeline:
		return &HaltError{
			Found: fmt.Sprintf("the state record is of timeline %d, the server is on timeline %d", st.Timeline, f.Timeline),
			Means: "this server is a stale primary: a standby was promoted, and rows up to " + st.Covered.String() + " came from there; rows written here are not part of that history",
			Run:   "point source.url at the present primary and stop this server (target_session_attrs=read-write over all hosts does not help while the stale one takes writes); to keep this server instead, run `walpost adopt`",
		}
	case !known(st, f):
		return &HaltError{
			Found: fmt.Sprintf("the state record is of timeline %d, which is not in the history of the server's timeline %d", st.Timeline, f.Timeline),
			Means: "this server left the common history earlier: rows up to " + st.Covered.String() + " were published from a timeline it never had",
			Run:   "point source.url at the server that descends from timeline " + fmt.Sprint(st.Timeline) + "; to keep this server instead, run `walpost adopt`",
		}
	case shared(st, f) > f.WALEnd:
		return &HaltError{
			Found:   fmt.Sprintf("the state record knows commits up to %s, the server's WAL ends at %s", shared(st, f), f.WALEnd),
			Means:   "this is a restored backup, a clone or the wrong server: new commits would reuse positions that count as delivered, and would be skipped",
			Run:     "point source.url at the right server; to keep the restored backup instead, run `walpost adopt`",
			History: true,
		}
	case st.Halt != nil && st.Halt.Latched:
		return st.Halt.Halt()
	case !slot.Exists:
		halt := &HaltError{
			Found: fmt.Sprintf("replication slot %q does not exist, and the state record says that rows up to %s were delivered", slot.Name, st.Covered),
			Means: "the slot was dropped, or this is a promoted standby without it: a new slot will not stream the rows committed since",
			Risk:  Range{st.Covered, f.WALEnd},
			Run:   "`walpost adopt --create-slot` starts with a new slot, then " + replay(st, f) + " publishes the rows between",
		}
		if slot.Patroni != "" {
			halt.Means = "Patroni drops a slot that its configuration does not name, and a promoted standby does not have it: a new slot will not stream the rows committed since"
			halt.Run = "name it with `patronictl edit-config`, slots: {" + slot.Patroni + "}, and Patroni creates it; then `walpost adopt` continues from it, and prints the `walpost replay` that publishes the rows between"
		}
		return halt
	}
	if how, lost := slot.lost(); lost {
		return &HaltError{
			Found: fmt.Sprintf("replication slot %q is lost (%s): the server no longer has the WAL after %s", slot.Name, how, slot.ConfirmedFlush),
			Means: "rows committed after that LSN can no longer be streamed; the slot will not recover",
			Risk:  Range{st.Covered, f.WALEnd},
			Run:   "raise max_slot_wal_keep_size (idle_replication_slot_timeout); `walpost adopt --create-slot` starts with a new slot, then " + replay(st, f) + " publishes the rows between",
		}
	}
	return nil
}

// Foreign returns a [HaltError] if the state record belongs to another pipeline, Kafka cluster, server, slot or
// configuration than this one, and nil if it does not.
func Foreign(pipeline string, st *State, f *Facts) error {
	switch slot := f.Slot; {
	case st.Pipeline != pipeline:
		return &HaltError{
			Found: fmt.Sprintf("the state record belongs to pipeline %q, this is %q", st.Pipeline, pipeline),
			Means: "two pipelines share a state topic, or the pipeline was renamed; nothing is published",
			Run:   "set `pipeline` to the name that the topic was made for, or give this pipeline another name and run `walpost init`",
		}
	case st.copied():
		return &HaltError{
			Found: fmt.Sprintf("the state record was written to Kafka cluster %s, but was read from cluster %s", st.Cluster, st.ReadFrom),
			Means: "this Kafka is a copy: rows that the record counts as delivered may be missing here, and nothing would report them",
			Run:   "point kafka.brokers back at the record's cluster; if this cluster replaces it, stop the relay there, wait until the copy is complete, then `walpost adopt` continues here",
		}
	case st.SystemID != f.SystemID:
		return &HaltError{
			Found: fmt.Sprintf("the state record is of the PostgreSQL with system id %s, this server's is %s", st.SystemID, f.SystemID),
			Means: "this is another database: the record's LSNs mean nothing here, and rows could be skipped",
			Run:   "point source.url back at the right server; if this server replaces it, after an upgrade or a move, `" + adoptServer(f) + "` continues with it; for another database use a new pipeline name and run `walpost init`",
		}
	case st.Slot != "" && st.Slot != slot.Name:
		return &HaltError{
			Found: fmt.Sprintf("the state record of pipeline %q is of slot %q, this relay is configured for slot %q", pipeline, st.Slot, slot.Name),
			Means: "two pipelines of one name share state and transactional id: they would fence each other, and each would skip rows of the other",
			Run:   "give one of them another `pipeline` name and run `walpost init` for it; if the slot was renamed on purpose, `walpost adopt`",
		}
	case !st.Configured.IsZero() && st.Configured != f.Configured:
		return misnamed(st, f)
	}
	return nil
}

// misnamed returns the halt for a configuration that names another publication or table than the state record. It is
// not latched: nothing in the database has changed.
func misnamed(st *State, f *Facts) *HaltError {
	how, keys := st.Configured.differs(f.Configured)
	halt := &HaltError{
		Found: how,
		Means: "the configuration has changed and nothing was read under the new name; if the earlier name is right, nothing is lost: rows wait in the slot; if it was wrong, the rows of the right table were never read",
		Run:   fmt.Sprintf("correct %s and restart the relay; if you want the change, `walpost adopt` accepts it", strings.Join(keys, " and ")),
	}
	if st.Configured.Messages != "" {
		halt.Run = "this walpost reads a table, not messages: run the older walpost that wrote the record until it has delivered the messages in the slot, then `walpost adopt` continues with the table"
	}
	if st.Halt != nil && st.Halt.Latched {
		halt.Found += fmt.Sprintf("; and a halt was latched at %s, under the earlier names: %s", clock(st.Halt.At), st.Halt.Found)
	}
	return halt
}

func known(st *State, f *Facts) bool {
	_, known := f.branch(st.Timeline)
	return known
}

// shared returns the last LSN that the state record knows of the history that it shares with the server: what it
// covers, or the commit record of a row after that.
func shared(st *State, f *Facts) LSN {
	known := st.Covered
	if st.Ordinal > 0 {
		known = max(known, st.CommitLSN+1)
	}
	if end, _ := f.branch(st.Timeline); st.Timeline != f.Timeline {
		return min(known, end)
	}
	return known
}

// Reconcile compares the state record with the server and returns the record to continue from. It returns a halt if
// continuing could silently lose or repeat rows. Everything in f was read after st. After a failover the returned
// record is of the new timeline, covers the history that both timelines share, and has the range that the failover
// took back in Phantoms.
func Reconcile(pipeline string, st *State, f Facts) (*State, error) {
	if err := identify(pipeline, st, &f); err != nil {
		return nil, err
	}
	next := *st
	next.Version, next.Slot, next.Halt = StateVersion, f.Slot.Name, nil
	if end, _ := f.branch(st.Timeline); st.Timeline != f.Timeline {
		next.failover(f.Timeline, end)
	}
	slot := f.Slot
	if slot.ConfirmedFlush > next.Covered {
		return nil, &HaltError{
			Found: fmt.Sprintf("slot %q has confirmed %s, the state record covers only %s", slot.Name, slot.ConfirmedFlush, next.Covered),
			Means: "the slot was re-created or advanced, or the state topic lost its tail: rows committed between the two may be missing in Kafka",
			Risk:  Range{next.Covered, slot.ConfirmedFlush}, Latch: true,
			Run: "`walpost adopt` continues from the slot, and " + replay(st, &f) + " publishes the rows between",
		}
	}
	if err := unchanged(&next, &f); err != nil {
		return nil, err
	}
	next.Configured = f.Configured
	next.Fingerprint, next.Open, next.Checked, next.CheckedAt = f.Fingerprint, stillOpen(st, &f), f.WALEnd, f.Time
	return &next, nil
}

// failover moves the record to another timeline, whose past is the record's own timeline up to end. New commits reuse
// the LSNs above end: no position above it may drop a row.
func (s *State) failover(timeline int32, end LSN) {
	if s.Covered > end || (s.CommitLSN >= end && s.Ordinal > 0) {
		s.Phantoms = &Phantoms{Range: Range{end, max(s.Covered, s.CommitLSN)}, Timeline: s.Timeline, Rows: -1}
	}
	s.Timeline = timeline
	s.Covered, s.Skipped, s.Checked = min(s.Covered, end), min(s.Skipped, end), min(s.Checked, end)
	if s.CommitLSN >= end {
		s.CommitLSN, s.Ordinal, s.LastXID = 0, 0, 0
		s.Skipped = s.Covered // rows below are delivered, and the last of them is no longer known
	}
}

// unchanged compares publication and table with the state record. Every start and every look of a session calls it.
func unchanged(st *State, f *Facts) error {
	if !same(st.Fingerprint, f.Fingerprint) && !unknown(st, f) {
		found := fmt.Sprintf("publication or table changed: the state record knows %s, the server has %s", st.Fingerprint, f.Fingerprint)
		if was, _, rewritten := strings.Cut(st.Fingerprint, ToastMark); rewritten && same(was, f.Fingerprint) {
			found += ": the table was rewritten, as by SET UNLOGGED and SET LOGGED (a publication FOR TABLE forbids those, and lets every other rewrite pass)"
		} else if writtenAgain(st.Fingerprint, f.Fingerprint) {
			found += ": the publication itself was written, by ALTER PUBLICATION … SET (…) or OWNER TO, and shows the rows now. A controller that sets the same values again does this, " +
				"and hides nothing; but walpost cannot see whether a setting was changed and changed back"
		}
		fix := ""
		if len(f.Hidden) > 0 {
			found = "publication or table changed: " + Sentences(f.Hidden)
			fix = "fix it, then "
		}
		return &HaltError{
			Found: found,
			Means: "rows committed since " + clock(lastSeen(st)) + " may never have been streamed, or not whole",
			Risk:  Range{st.checked(), f.WALEnd}, Latch: true,
			Run: fix + "`walpost adopt` accepts publication and table as they are now, and " + replay(st, f) + " publishes the rows of that time",
		}
	}
	if problems := append(f.Hidden, f.Unfit...); len(problems) > 0 {
		return &HaltError{
			Found: Sentences(problems),
			Means: "walpost cannot read the rows of the outbox like this; nothing is lost yet",
			Run:   "fix this, and the relay resumes by itself; after a change of its configuration, restart it",
		}
	}
	return nil
}

// unknown reports whether the record comes from an older walpost that did not check what is found now, or did not
// write down the configuration. Such a record cannot tell an old detour from a new one, nor a wrong name from a table
// that is gone. Nothing is newly hidden then: an object that is created again has another OID, and a table without
// detours has the recorded fingerprint.
func unknown(st *State, f *Facts) bool {
	return st.Configured.IsZero() && len(f.Hidden) > 0 &&
		(strings.HasPrefix(f.Fingerprint, st.Fingerprint) || strings.Contains(f.Fingerprint, "publication none") || strings.Contains(f.Fingerprint, "table none"))
}

// ToastMark begins the last part of the fingerprint of a table that a publication carries without naming it: the OID
// of its TOAST table, which changes with a rewrite.
const ToastMark = " toast "

// same reports whether the recorded fingerprint is equal to the present one. A record from before ToastMark existed
// has no such part.
func same(recorded, now string) bool {
	before, _, _ := strings.Cut(now, ToastMark)
	return recorded == now || recorded == before
}

// writtenAgain reports whether two fingerprints differ only in the transaction that last wrote the publication's
// catalog row. A catalog keeps no readable former versions of a row, so one harmless change cannot be told from two
// changes of which the first hid rows.
func writtenAgain(recorded, now string) bool {
	was, entries, _ := strings.Cut(recorded, " entry ")
	is, same, _ := strings.Cut(now, " entry ")
	return was != is && entries != "" && entries == same && publicationOf(was) == publicationOf(is)
}

// checked returns the end of the WAL at the last check that found publication and table as in the fingerprint. A
// record of version 1 does not have it.
func (s *State) checked() LSN {
	if s.Checked == 0 {
		return s.Covered
	}
	return s.Checked
}

// mostOpen is the number of open transactions that a record keeps; it keeps the oldest.
const mostOpen = 100

// stillOpen returns, for each transaction that is open now, a time before which it had written nothing: the time in
// st, or the time of st's last look if that look did not see the transaction.
func stillOpen(st *State, f *Facts) map[string]time.Time {
	if len(f.Open) == 0 {
		return nil
	}
	since := func(xid string) time.Time {
		if at, known := st.Open[xid]; known || st.CheckedAt.IsZero() {
			return at
		}
		return st.CheckedAt
	}
	xids := slices.SortedFunc(slices.Values(f.Open), func(a, b string) int { return since(a).Compare(since(b)) })
	open := map[string]time.Time{}
	for _, xid := range xids[:min(len(xids), mostOpen)] {
		if at := since(xid); !at.IsZero() {
			open[xid] = at
		}
	}
	return open
}

// replay returns the command that publishes the rows that may be missing. It begins a minute early, because a row may
// be committed after a row that was written later. It ends with the second that has not ended yet. A transaction that
// was open for more than a minute has older rows: a second command is for those.
func replay(st *State, f *Facts) string {
	seen := lastSeen(st).Add(-time.Minute)
	command := fmt.Sprintf("`walpost replay --from %s --to %s`", clock(seen), clock(f.Time.Add(time.Second)))
	if oldest := st.oldest(seen); oldest.Before(seen) {
		command += fmt.Sprintf(" (and, for rows of transactions that were open for longer, `walpost replay --from %s --to %s`)", clock(oldest), clock(seen))
	}
	return command
}

// oldest returns a time before which no transaction that was open at Checked had written anything, or seen if that is
// earlier.
func (s *State) oldest(seen time.Time) time.Time {
	for _, since := range s.Open {
		if since = since.Add(-time.Second); since.Before(seen) {
			seen = since
		}
	}
	return seen
}

// ReplayUntilNow returns the command that publishes the rows that may be missing. It also covers transactions that
// were open across a decision, once they have ended.
func ReplayUntilNow(st *State, f *Facts) string {
	if st == nil {
		st = &State{CheckedAt: f.Time}
	}
	return fmt.Sprintf("`walpost replay --from %s --to now`", clock(st.oldest(lastSeen(st).Add(-time.Minute))))
}

// InDoubt returns a time before which every row that was written is delivered, according to the record.
func (s *State) InDoubt() time.Time {
	return s.oldest(s.Current().Add(-time.Minute)).Truncate(time.Second)
}

// lastSeen returns the server's time up to which nothing is in doubt.
func lastSeen(st *State) time.Time {
	switch {
	case st.LastCommitTime.IsZero() && st.CheckedAt.IsZero():
		return st.Time
	case st.CheckedAt.IsZero(), !st.LastCommitTime.IsZero() && st.LastCommitTime.Before(st.CheckedAt):
		return st.LastCommitTime
	}
	return st.CheckedAt
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }
