package cdc

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Facts are what the server says of itself, read over SQL after the state record.
type Facts struct {
	Identity
	Slot   SlotFacts
	WALEnd LSN       // pg_current_wal_flush_lsn()
	Time   time.Time // the server's clock
	// Open are the ids of the database's transactions that had written something and had not ended before WALEnd was read.
	Open []string
	// Fingerprint identifies publication and table as they are now, and Configured is what the configuration calls them.
	Fingerprint string
	Configured  Configured
	// Hidden is what keeps rows of the outbox out of the stream, each with the way to fix it.
	Hidden []string
	// Standbys are the slots that rows of this one wait for, Walsender is who reads it on the server, and Commits says that commits wait for
	// this relay; nil where they do not.
	Standbys  []StandbySlot
	Walsender Walsender
	Commits   *CommitWaitError
	// Unfit is what is wrong with the table's columns: its rows come, and cannot be understood.
	Unfit []string
	// Notes are what is worth a word and halts nothing.
	Notes []string
}

// SlotFacts is the slot's row in pg_replication_slots.
type SlotFacts struct {
	Name           string
	Exists         bool
	Active         bool
	ActivePID      uint32 // who owns it; 0 where nobody does
	ConfirmedFlush LSN
	RestartLSN     LSN
	WALStatus      string // reserved, extended, unreserved, lost
	Invalidation   string // invalidation_reason, from 17 on
	SafeWALSize    *int64 // bytes of WAL that may be written before the slot can be lost; nil without a limit
	Patroni        string // what names the slot in Patroni's configuration, where Patroni drops it otherwise: up to 16
}

// lost says whether the slot can never be read again, and how the server puts it.
func (s *SlotFacts) lost() (how string, lost bool) {
	how = "wal_status " + s.WALStatus
	if s.Invalidation != "" {
		how += ", invalidation_reason " + s.Invalidation
	}
	return how, s.WALStatus == "lost" || s.Invalidation != ""
}

// Lost says that there is no slot, or one that can never be read again.
func (s *SlotFacts) Lost() bool {
	_, lost := s.lost()
	return lost || !s.Exists
}

// branch is where a timeline ends in the server's history: what was published above it does not exist there.
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

// identify halts on what is certain even before the slot is owned: whose state and whose server this is, and that there is
// a slot to own. None of it is ever latched: a relay that looks at the wrong server, a clone or an old primary must not stop
// the one that looks at the right server, nor fence it, which opening the sink could.
func identify(pipeline string, st *State, f *Facts) error {
	slot := f.Slot
	switch {
	case st == nil && !slot.Exists:
		return &HaltError{
			Found: fmt.Sprintf("no state record for pipeline %q, and no replication slot %q", pipeline, slot.Name),
			Means: "the pipeline was not prepared yet; nothing is read or published",
			Run:   "`walpost init` prepares it, once, with an administrator's rights",
		}
	case st == nil:
		return &HaltError{
			Found: fmt.Sprintf("no state record for pipeline %q, although replication slot %q exists", pipeline, slot.Name),
			Means: "the state topic was deleted, or the slot is another pipeline's: nobody knows what has been delivered, and starting anyway could skip rows",
			Run:   fmt.Sprintf("if the slot is this pipeline's, `walpost adopt` goes on from where it stands, %s; else name another under source.slot and run `walpost init`", slot.ConfirmedFlush),
		}
	case st.Pipeline == pipeline && st.Phase == PhaseCreating:
		return &HaltError{
			Found: fmt.Sprintf("the state record of pipeline %q says that `walpost init` did not finish", pipeline),
			Means: "nothing has been published yet",
			Run:   "run `walpost init` again",
		}
	}
	if err := Foreign(pipeline, st, f); err != nil {
		return err
	}
	switch {
	case st.Timeline > f.Timeline:
		return &HaltError{
			Found: fmt.Sprintf("the state record is of timeline %d, the server is on timeline %d", st.Timeline, f.Timeline),
			Means: "a stale primary: a standby was promoted and rows up to " + st.Covered.String() + " came from there; what is written here is not part of that history",
			Run:   "point source.url at the primary of today (target_session_attrs=read-write over all hosts finds no stale one that still takes writes), and stop this one; if this server is the one to live on, `walpost adopt`",
		}
	case !known(st, f):
		return &HaltError{
			Found: fmt.Sprintf("the state record is of timeline %d, which is not in the history of the server's timeline %d", st.Timeline, f.Timeline),
			Means: "this server branched off elsewhere: rows up to " + st.Covered.String() + " were published from a branch it never had",
			Run:   "point source.url at the server that descends from timeline " + fmt.Sprint(st.Timeline) + "; if this one is the one to live on, `walpost adopt`",
		}
	case shared(st, f) > f.WALEnd:
		return &HaltError{
			Found:   fmt.Sprintf("the state record knows of what was committed up to %s, the server's WAL ends at %s", shared(st, f), f.WALEnd),
			Means:   "a restored backup, a clone or the wrong server: new commits would reuse positions that count as delivered",
			Run:     "point source.url at the right server; if the backup is the one to live on, `walpost adopt`",
			History: true,
		}
	case st.Halt != nil && st.Halt.Latched:
		return st.Halt.Halt()
	case !slot.Exists:
		halt := &HaltError{
			Found: fmt.Sprintf("replication slot %q does not exist, and the state record says that rows up to %s were delivered", slot.Name, st.Covered),
			Means: "the slot was dropped, or this is a promoted standby without it: rows committed since will not be streamed by a new one",
			Risk:  Range{st.Covered, f.WALEnd},
			Run:   "`walpost adopt --create-slot` begins with a new slot, then " + replay(st, f) + " publishes the rows between",
		}
		if slot.Patroni != "" {
			halt.Means = "Patroni drops a slot that its configuration does not name, and a promoted standby has none of these: rows committed since will not be streamed by a new one"
			halt.Run = "name it with `patronictl edit-config`, slots: {" + slot.Patroni + "}, and Patroni makes it; `walpost adopt` goes on from there, and prints the `walpost replay` that publishes the rows between"
		}
		return halt
	}
	if how, lost := slot.lost(); lost {
		return &HaltError{
			Found: fmt.Sprintf("replication slot %q is lost (%s): the server no longer has the WAL behind %s", slot.Name, how, slot.ConfirmedFlush),
			Means: "rows committed behind that LSN can no longer be streamed; the slot will not recover",
			Risk:  Range{st.Covered, f.WALEnd},
			Run:   "raise max_slot_wal_keep_size (idle_replication_slot_timeout); `walpost adopt --create-slot` begins with a new slot, then " + replay(st, f) + " publishes the rows between",
		}
	}
	return nil
}

// Foreign returns a [HaltError] if the state record is of another pipeline, server, slot or configuration than the one that is asked about,
// and nil if it may be gone on from as far as that goes.
func Foreign(pipeline string, st *State, f *Facts) error {
	switch slot := f.Slot; {
	case st.Pipeline != pipeline:
		return &HaltError{
			Found: fmt.Sprintf("the state record belongs to pipeline %q, this is %q", st.Pipeline, pipeline),
			Means: "two pipelines share a state topic, or the name was changed; nothing is published",
			Run:   "set `pipeline` to the name the topic was made for, or give this pipeline a name of its own and run `walpost init`",
		}
	case st.copied():
		return &HaltError{
			Found: fmt.Sprintf("the state record was written to the Kafka cluster %s, and was read from the cluster %s", st.Cluster, st.ReadFrom),
			Means: "this Kafka is a copy: what it lacks of the rows that the record counts as delivered nobody would notice",
			Run:   "point kafka.brokers back at the cluster that the record is of; if this one takes its place, stop the relay there, let the copy catch up, and `walpost adopt` goes on with it",
		}
	case st.SystemID != f.SystemID:
		return &HaltError{
			Found: fmt.Sprintf("the state record is of the PostgreSQL with system id %s, this server's is %s", st.SystemID, f.SystemID),
			Means: "another database: its LSNs mean nothing to this state, and rows could be skipped",
			Run:   "point source.url back at the right server; if this one takes its place, after an upgrade or a move, `" + adoptServer(f) + "` goes on with it; for another database use a new pipeline name and run `walpost init`",
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

// misnamed is the halt for a configuration that names another publication or table than the one this pipeline has read so far. It is
// not latched: nothing in the database has changed.
func misnamed(st *State, f *Facts) *HaltError {
	how, keys := st.Configured.differs(f.Configured)
	halt := &HaltError{
		Found: how,
		Means: "the configuration names something else than this pipeline has read so far; nothing was read from it; if the former name is right, nothing is lost: rows wait in the slot; if it was wrong, the rows of the right table were never read",
		Run:   fmt.Sprintf("correct %s, and the relay goes on by itself; if the change is meant, `walpost adopt` accepts it", strings.Join(keys, " and ")),
	}
	if st.Configured.Messages != "" {
		halt.Run = "this walpost reads a table and no messages: let the one that wrote the record deliver those that wait in the slot, then `walpost adopt` goes on with the table"
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

// shared is how far the state knows the history that it has in common with the server: what it covers, or the commit record
// of a row behind that.
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

// Reconcile compares the state record with the server and returns the record to go on from, or halts where going on could
// lose or repeat silently. Everything in f was read after st. After a failover the record is of the new timeline, covers
// what both histories share, and names in Phantoms the range that the failover took back.
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
			Found: fmt.Sprintf("slot %q has confirmed %s, the state record covers %s only", slot.Name, slot.ConfirmedFlush, next.Covered),
			Means: "the slot was re-created or advanced, or the state topic lost its tail: rows committed between the two may be missing in Kafka",
			Risk:  Range{next.Covered, slot.ConfirmedFlush}, Latch: true,
			Run: "`walpost adopt` goes on from the slot, and " + replay(st, &f) + " publishes the rows between",
		}
	}
	if err := unchanged(&next, &f); err != nil {
		return nil, err
	}
	next.Configured = f.Configured
	next.Fingerprint, next.Open, next.Checked, next.CheckedAt = f.Fingerprint, stillOpen(st, &f), f.WALEnd, f.Time
	return &next, nil
}

// failover takes the record to another timeline of which its own, up to end, is the past. New commits reuse the LSNs above
// end: no position above it may drop a row.
func (s *State) failover(timeline int32, end LSN) {
	if s.Covered > end || (s.CommitLSN >= end && s.Ordinal > 0) {
		s.Phantoms = &Phantoms{Range: Range{end, max(s.Covered, s.CommitLSN)}, Timeline: s.Timeline, Rows: -1}
	}
	s.Timeline = timeline
	s.Covered, s.Skipped, s.Checked = min(s.Covered, end), min(s.Skipped, end), min(s.Checked, end)
	if s.CommitLSN >= end {
		s.CommitLSN, s.Ordinal, s.LastXID = 0, 0, 0
		s.Skipped = s.Covered // rows below are delivered, and which was the last of them is not known any more
	}
}

// unchanged compares publication and table with what the state record knows. It is asked at every start and at each look of a session.
func unchanged(st *State, f *Facts) error {
	if !same(st.Fingerprint, f.Fingerprint) && !unknown(st, f) {
		found := fmt.Sprintf("publication or table changed: the state record knows %s, the server has %s", st.Fingerprint, f.Fingerprint)
		if was, _, rewritten := strings.Cut(st.Fingerprint, ToastMark); rewritten && same(was, f.Fingerprint) {
			found += ": the table was rewritten, as by SET UNLOGGED and SET LOGGED (a publication FOR TABLE forbids those, and lets every other rewrite pass)"
		} else if writtenAgain(st.Fingerprint, f.Fingerprint) {
			found += ": the publication itself was written, by ALTER PUBLICATION … SET (…) or OWNER TO, and shows the rows now. A controller that sets again what is there does this, " +
				"and hides nothing; but it cannot be seen that nothing was changed and put back"
		}
		fix := ""
		if len(f.Hidden) > 0 {
			found = "publication or table changed: " + strings.Join(f.Hidden, "; ")
			fix = "fix it, then "
		}
		return &HaltError{
			Found: found,
			Means: "rows committed since " + clock(lastSeen(st)) + " may never have been streamed, or not whole",
			Risk:  Range{st.checked(), f.WALEnd}, Latch: true,
			Run: fix + "`walpost adopt` accepts what is there, and " + replay(st, f) + " publishes the rows of that time",
		}
	}
	if problems := append(f.Hidden, f.Unfit...); len(problems) > 0 {
		return &HaltError{
			Found: strings.Join(problems, "; "),
			Means: "rows of the outbox cannot be streamed or understood like this; nothing is lost yet",
			Run:   "fix it and the relay goes on by itself",
		}
	}
	return nil
}

// unknown says that the record is an older walpost's, which did not look for what is found now or did not write down what was configured:
// then it tells neither a detour that was always there from a new one, nor a wrong name from a table that is gone. Nothing new is hidden:
// what is created again has another OID, and a table without detours has the fingerprint that is recorded.
func unknown(st *State, f *Facts) bool {
	return st.Configured.IsZero() && len(f.Hidden) > 0 &&
		(strings.HasPrefix(f.Fingerprint, st.Fingerprint) || strings.Contains(f.Fingerprint, "publication none") || strings.Contains(f.Fingerprint, "table none"))
}

// ToastMark begins the last part of the fingerprint of a table that a publication carries without naming it: its TOAST table, which
// changes with a rewrite.
const ToastMark = " toast "

// same says whether a recorded fingerprint is the one that is there. A record of before there was a ToastMark has none.
func same(recorded, now string) bool {
	before, _, _ := strings.Cut(now, ToastMark)
	return recorded == now || recorded == before
}

// writtenAgain reports whether two fingerprints differ only in the transaction that wrote the publication's row last. A catalog keeps no
// former versions of a row that can be read, so one harmless change cannot be told from two of which the first hid rows.
func writtenAgain(recorded, now string) bool {
	was, entries, _ := strings.Cut(recorded, " entry ")
	is, same, _ := strings.Cut(now, " entry ")
	return was != is && entries != "" && entries == same && publicationOf(was) == publicationOf(is)
}

// checked is up to where publication and table were as the fingerprint says. A record of version 1 does not know.
func (s *State) checked() LSN {
	if s.Checked == 0 {
		return s.Covered
	}
	return s.Checked
}

// mostOpen is how many open transactions a record keeps, the oldest.
const mostOpen = 100

// stillOpen returns, of the transactions that are open now, a time before which each had written nothing: the one that st knows, or that of
// st's look, which has not seen it.
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

// replay is the command for the rows that may be missing. It begins a minute early, because what was written before another
// row may have been committed after it, and ends with the second that has not ended yet. A transaction that was open for longer than
// that has its rows further back: a second command is for those.
func replay(st *State, f *Facts) string {
	seen := lastSeen(st).Add(-time.Minute)
	command := fmt.Sprintf("`walpost replay --from %s --to %s`", clock(seen), clock(f.Time.Add(time.Second)))
	if oldest := st.oldest(seen); oldest.Before(seen) {
		command += fmt.Sprintf(" (and, for rows of transactions that were open for longer, `walpost replay --from %s --to %s`)", clock(oldest), clock(seen))
	}
	return command
}

// oldest is a time before which no transaction had written anything that was open at Checked, or seen where that is earlier.
func (s *State) oldest(seen time.Time) time.Time {
	for _, since := range s.Open {
		if since = since.Add(-time.Second); since.Before(seen) {
			seen = since
		}
	}
	return seen
}

// ReplayUntilNow returns the command that publishes the rows that may be missing, with those of transactions that were open across a
// decision, once these have ended.
func ReplayUntilNow(st *State, f *Facts) string {
	if st == nil {
		st = &State{CheckedAt: f.Time}
	}
	return fmt.Sprintf("`walpost replay --from %s --to now`", clock(st.oldest(lastSeen(st).Add(-time.Minute))))
}

// InDoubt returns a time before which every row that was written is delivered, as far as the record tells.
func (s *State) InDoubt() time.Time {
	return s.oldest(s.Current().Add(-time.Minute)).Truncate(time.Second)
}

// lastSeen is the server's time up to which nothing is in doubt.
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
