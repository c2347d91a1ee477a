package cdc

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// errSlotRead is returned by a decision while a relay reads the slot: the relay would overwrite it.
var errSlotRead = errors.New("the slot is in use: stop the relay, and run this again")

// free returns an error unless the slot exists and no process reads it. adopt is the command that creates a slot.
func free(f *Facts, adopt string) error {
	switch how, lost := f.Slot.lost(); {
	case !f.Slot.Exists:
		return fmt.Errorf("slot %q does not exist: run `%s` to start with a new one", f.Slot.Name, adopt)
	case lost:
		return fmt.Errorf("slot %q is lost (%s): run `%s` to start with a new one", f.Slot.Name, how, adopt)
	case f.Slot.Active:
		return errSlotRead
	}
	return nil
}

// SkipTo returns the state record that gives up every undelivered commit before to, for `walpost skip`. It returns an
// error if writing that record would not have this effect. A latched halt ends with it if everything that the halt
// put at risk lies before to and the fingerprint is unchanged; otherwise the halt stays.
func SkipTo(pipeline string, st *State, f Facts, to LSN) (*State, error) {
	plain := st
	if st != nil { // identify would refuse a latched halt, which is what skip is for
		without := *st
		without.Halt, plain = nil, &without
	}
	if err := identify(pipeline, plain, &f); err != nil {
		return nil, err
	}
	if err := free(&f, createSlot); err != nil {
		return nil, err
	}
	switch {
	case st.Timeline != f.Timeline:
		return nil, fmt.Errorf("the state record is of timeline %d, the server is on timeline %d: an LSN means something else there: start the relay once, it follows the failover, then run this again", st.Timeline, f.Timeline)
	case st.Halt != nil && st.Halt.Latched && st.Halt.History:
		return nil, errors.New("this server has another history than the state record, and skip cannot step over that: run `walpost adopt`, which continues from the server's slot")
	case to < st.Covered:
		return nil, fmt.Errorf("everything up to %[2]s is delivered, and %[1]s is before that: name a later LSN", to, st.Covered)
	case to < f.Slot.ConfirmedFlush:
		return nil, fmt.Errorf("slot %[3]q has confirmed %[2]s, and %[1]s is before that: name a later LSN, or run `walpost adopt`", to, f.Slot.ConfirmedFlush, f.Slot.Name)
	case to > f.WALEnd:
		return nil, fmt.Errorf("%s is after the end of the WAL, %s: PostgreSQL would accept it and silently lose every row until then: name an earlier LSN", to, f.WALEnd)
	}
	next := *st
	next.Version, next.Slot, next.Configured = StateVersion, f.Slot.Name, f.Configured
	next.Epoch, next.Instance, next.Time = st.Epoch+1, "skip", f.Time
	next.Covered, next.Skipped = to, to
	if h := st.Halt; h != nil && (!h.Latched || (to >= h.Risk.To && same(st.Fingerprint, f.Fingerprint))) {
		next.Halt = nil
	}
	return &next, nil
}

// Start is where a pipeline begins on a slot that another program has read.
type Start struct {
	// Covered is an LSN at or below which that program has made everything durable.
	Covered LSN
	// Last is its last durable row, with the id and the commit time of the row's transaction, if the row is in a
	// transaction that ends after Covered. Zero if there is none.
	Last   Position
	XID    uint32
	Commit time.Time
}

// BeginAt returns the first state record of a pipeline that begins at a position on an existing slot. It returns an error
// if rows could be lost: the slot must be free and at or before the position.
func BeginAt(pipeline string, st *State, f Facts, at Start) (*State, error) {
	switch {
	case st != nil && st.Phase != PhaseBeginning:
		return nil, fmt.Errorf("pipeline %q has a state record already, which covers %s: it has begun, and nothing is left to do here: `walpost status` shows it, and `walpost relay` goes on", pipeline, st.Covered)
	case st != nil && (st.Pipeline != pipeline || st.copied() || st.SystemID != f.SystemID):
		return nil, Foreign(pipeline, st, &f)
	}
	switch slot := f.Slot; {
	case !slot.Exists:
		return nil, fmt.Errorf("slot %q does not exist: there is no position to begin at", slot.Name)
	case slot.Lost():
		how, _ := slot.lost()
		return nil, fmt.Errorf("slot %q is lost (%s): rows committed after %s can no longer be streamed from it", slot.Name, how, slot.ConfirmedFlush)
	case slot.Active:
		return nil, fmt.Errorf("slot %q is being read (pid %d): stop the program that reads it, and run this again", slot.Name, slot.ActivePID)
	case slot.ConfirmedFlush > at.Covered:
		return nil, fmt.Errorf("slot %q has confirmed %s, and %s is before that: rows committed between the two would be lost", slot.Name, slot.ConfirmedFlush, at.Covered)
	case at.Covered > f.WALEnd || at.Last.Commit > f.WALEnd:
		return nil, fmt.Errorf("the position %s is after the end of the WAL, %s: it is of another server", max(at.Covered, at.Last.Commit), f.WALEnd)
	}
	if problems := append(f.Hidden, f.Unfit...); len(problems) > 0 {
		return nil, fmt.Errorf("walpost cannot read the rows like this: fix it first: %s", Sentences(problems))
	}
	next := &State{
		Version: StateVersion, Pipeline: pipeline, Slot: f.Slot.Name, SystemID: f.SystemID, Timeline: f.Timeline, Configured: f.Configured,
		Covered: at.Covered, Skipped: at.Covered, Fingerprint: f.Fingerprint, Checked: f.WALEnd, CheckedAt: f.Time,
		Instance: "begin", Epoch: 1, Time: f.Time,
	}
	if at.Last.Commit >= at.Covered && at.Last.Ordinal > 0 {
		next.CommitLSN, next.Ordinal, next.LastXID, next.LastCommitTime = at.Last.Commit, at.Last.Ordinal, at.XID, at.Commit
	}
	if st != nil {
		next.Epoch = st.Epoch + 1
	}
	return next, nil
}

// Adoption describes what `walpost adopt` accepts.
type Adoption struct {
	State *State // the record to write
	// Accepts lists what is accepted, a line each.
	Accepts []string
	// Gap is the range that is given up: commits whose rows may be missing in Kafka.
	Gap Range
	// Replay is the command that publishes the rows in the gap.
	Replay string
	// Advance is the LSN to which the slot must be moved; zero if it stays.
	Advance LSN
}

const createSlot = "walpost adopt --create-slot"

// adoptServer returns the command that accepts a new server.
func adoptServer(f *Facts) string {
	if f.Slot.Lost() {
		return "walpost adopt --new-server --create-slot"
	}
	return "walpost adopt --new-server"
}

// NewServer returns an error if this server cannot replace the one in the state record.
func NewServer(pipeline string, st *State, f *Facts) error {
	switch {
	case st == nil:
		return fmt.Errorf("pipeline %q has no state record, so there is no other server to replace: run this without --new-server", pipeline)
	case st.Pipeline != pipeline, st.Phase != "":
		return identify(pipeline, st, f)
	case st.SystemID == f.SystemID:
		return fmt.Errorf("the state record is of this same PostgreSQL, with system id %s: run this without --new-server, or correct source.url", st.SystemID)
	}
	return nil
}

// Adopt returns the record that accepts slot, publication, table and timeline as they are now and, if newServer is
// true, another PostgreSQL in place of the one in the record. It returns an error if the problem is one that no
// decision fixes.
func Adopt(pipeline string, st *State, f Facts, newServer bool) (*Adoption, error) {
	command := createSlot
	switch {
	case newServer:
		command = adoptServer(&f)
		if err := NewServer(pipeline, st, &f); err != nil {
			return nil, err
		}
	case st != nil && (st.Pipeline != pipeline || st.Phase != "" || st.SystemID != f.SystemID):
		return nil, identify(pipeline, st, &f)
	}
	if err := free(&f, command); err != nil {
		return nil, err
	}
	if problems := append(f.Hidden, f.Unfit...); len(problems) > 0 {
		return nil, fmt.Errorf("rows would stay hidden: fix this first: %s", Sentences(problems))
	}
	a := &Adoption{}
	accept := func(format string, args ...any) { a.Accepts = append(a.Accepts, fmt.Sprintf(format, args...)) }
	slot := f.Slot
	next := State{Pipeline: pipeline, SystemID: f.SystemID, Timeline: f.Timeline}
	fromSlot := func() {
		next.Covered, next.Skipped = slot.ConfirmedFlush, slot.ConfirmedFlush
		next.CommitLSN, next.Ordinal, next.LastXID = 0, 0, 0
	}
	if st != nil {
		next = *st
		if st.Slot != "" && st.Slot != slot.Name {
			accept("slot %q instead of %q", slot.Name, st.Slot)
		}
		if how, _ := st.Configured.differs(f.Configured); how != "" && !st.Configured.IsZero() {
			accept("the configuration: %s", how)
		}
		if st.copied() {
			accept("Kafka cluster %s in place of %s: rows that were delivered there and not copied are missing here: a replay that starts before the copy was complete publishes them", st.ReadFrom, st.Cluster)
			next.Cluster = st.ReadFrom
		}
	}
	switch {
	case st == nil:
		accept("slot %q without a state record: every commit before %s counts as delivered", slot.Name, slot.ConfirmedFlush)
		fromSlot()
	case newServer:
		accept("the PostgreSQL with system id %s, from %s on, in place of the one with system id %s", f.SystemID, slot.ConfirmedFlush, st.SystemID)
		accept("that the old server is no longer read: its WAL was delivered up to %s, as of %s; a row that is committed there later is never published", st.Covered, clock(st.Current()))
		if last := max(st.Covered, st.CommitLSN); slot.ConfirmedFlush < last {
			accept("that the header lsn goes back, from %s to %s: a consumer that drops records with a lower lsn than before would drop every new event", last, slot.ConfirmedFlush)
		}
		next.SystemID, next.Timeline, next.Open, next.Phantoms = f.SystemID, f.Timeline, nil, nil
		fromSlot()
	default:
		other := st.Timeline > f.Timeline || !known(st, &f) || shared(st, &f) > f.WALEnd || (st.Halt != nil && st.Halt.History)
		switch {
		case other:
			accept("a server with another history (its timeline is %d, its WAL ends at %s): that rows up to %s were delivered is forgotten, and its rows after %s are published, some of them perhaps again",
				f.Timeline, f.WALEnd, st.Covered, slot.ConfirmedFlush)
			next.Timeline = f.Timeline
			fromSlot()
		case st.Timeline != f.Timeline:
			end, _ := f.branch(st.Timeline)
			accept("timeline %d, which left timeline %d at %s", f.Timeline, st.Timeline, end)
			next.failover(f.Timeline, end)
		}
		if slot.ConfirmedFlush > next.Covered {
			accept("slot %q at its position, %s: the state record covers %s", slot.Name, slot.ConfirmedFlush, next.Covered)
			a.Gap = Range{next.Covered, slot.ConfirmedFlush}
			fromSlot()
		}
		if !same(st.Fingerprint, f.Fingerprint) {
			accept("publication and table as they are: %s instead of %s", f.Fingerprint, st.Fingerprint)
			if a.Gap.To = f.WALEnd; a.Gap.From == 0 || st.checked() < a.Gap.From {
				a.Gap.From = st.checked()
			}
		}
		if publicationOf(st.Fingerprint) != publicationOf(f.Fingerprint) {
			accept("that rows older than this publication can never be streamed: the slot is moved to the end of the WAL, %s", f.WALEnd)
			a.Gap.From = min(a.Gap.From, next.Covered)
			a.Advance = f.WALEnd
			next.Covered, next.Skipped = f.WALEnd, f.WALEnd
		}
	}
	if st != nil && st.Halt != nil && st.Halt.Latched {
		accept("the halt that was latched at %s: %s", clock(st.Halt.At), st.Halt.Found)
		// the cause that hid rows left no trace, and may have hidden them until now
		if a.Gap.IsZero() && !st.Halt.Risk.IsZero() {
			a.Gap = Range{st.Halt.Risk.From, f.WALEnd}
			if newServer {
				a.Gap = st.Halt.Risk // of the old server
			}
		}
	}
	if len(a.Accepts) == 0 {
		return nil, errors.New("state record and server agree: there is nothing to adopt")
	}
	next.Version, next.Slot, next.Halt, next.Phase = StateVersion, slot.Name, nil, ""
	if st != nil && !newServer {
		next.Open = stillOpen(st, &f)
	}
	next.Fingerprint, next.Configured, next.Checked, next.CheckedAt = f.Fingerprint, f.Configured, f.WALEnd, f.Time
	next.Epoch, next.Instance, next.Time = next.Epoch+1, "adopt", f.Time
	a.State = &next
	if st != nil {
		a.Replay = replay(st, &f)
	}
	return a, nil
}

// publicationOf returns the publication's OID in a fingerprint.
func publicationOf(fingerprint string) string {
	oid, _, _ := strings.Cut(fingerprint, "/")
	return oid
}
