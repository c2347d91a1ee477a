package cdc

import (
	"errors"
	"fmt"
	"strings"
)

// errSlotRead keeps a decision from being taken under a relay's hands.
var errSlotRead = errors.New("the slot is being read: stop the relay, and run this again")

// free makes sure that there is a slot and that nobody reads it. adopt is the command that makes one.
func free(f *Facts, adopt string) error {
	switch how, lost := f.Slot.lost(); {
	case !f.Slot.Exists:
		return fmt.Errorf("slot %q does not exist: `%s` begins with a new one", f.Slot.Name, adopt)
	case lost:
		return fmt.Errorf("slot %q is lost (%s): `%s` begins with a new one", f.Slot.Name, how, adopt)
	case f.Slot.Active:
		return errSlotRead
	}
	return nil
}

// SkipTo is the record with which everything committed before to counts as given up, for `walpost skip`. It refuses what would
// not do what it says. A latched halt ends with it when what it put at risk lies before to and nothing else speaks against;
// otherwise it stays.
func SkipTo(pipeline string, st *State, f Facts, to LSN) (*State, error) {
	plain := st
	if st != nil { // a latched halt is what this is for
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
		return nil, fmt.Errorf("the state record is of timeline %d, the server is on timeline %d: LSNs have changed their meaning: start the relay once, it follows the failover", st.Timeline, f.Timeline)
	case st.Halt != nil && st.Halt.Latched && st.Halt.History:
		return nil, errors.New("this server has another history than the state record: there is nothing to step over; `walpost adopt` goes on from its slot")
	case to < st.Covered:
		return nil, fmt.Errorf("%s lies before %s, up to which everything is delivered: name a later LSN", to, st.Covered)
	case to < f.Slot.ConfirmedFlush:
		return nil, fmt.Errorf("%s lies before %s, which slot %q has confirmed: name a later LSN, or `walpost adopt`", to, f.Slot.ConfirmedFlush, f.Slot.Name)
	case to > f.WALEnd:
		return nil, fmt.Errorf("%s lies behind the end of the WAL, %s: PostgreSQL would take it and silently lose every row until then", to, f.WALEnd)
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

// Adoption is what `walpost adopt` found and accepts.
type Adoption struct {
	State *State // the record to write
	// Accepts says what is accepted, a line each.
	Accepts []string
	// Gap is what is left behind: commits whose rows may be missing in Kafka.
	Gap Range
	// Replay is the command that publishes what lies in the gap.
	Replay string
	// Advance is where the slot has to be moved to; zero when it stays.
	Advance LSN
}

const createSlot = "walpost adopt --create-slot"

// adoptServer is the command that accepts a new server.
func adoptServer(f *Facts) string {
	if f.Slot.Lost() {
		return "walpost adopt --new-server --create-slot"
	}
	return "walpost adopt --new-server"
}

// NewServer returns an error where this server cannot take the place of the one that the record is of.
func NewServer(pipeline string, st *State, f *Facts) error {
	switch {
	case st == nil:
		return fmt.Errorf("pipeline %q has no state record, and so none of another server: run this without --new-server", pipeline)
	case st.Pipeline != pipeline, st.Phase == PhaseCreating:
		return identify(pipeline, st, f)
	case st.SystemID == f.SystemID:
		return fmt.Errorf("the state record is of this very PostgreSQL, with system id %s: no new server is to be adopted: run this without --new-server, or correct source.url", st.SystemID)
	}
	return nil
}

// Adopt is the record that accepts slot, publication, table and timeline as they are now and, where newServer says so, another PostgreSQL
// in place of the one that the record is of. It refuses what no decision fixes.
func Adopt(pipeline string, st *State, f Facts, newServer bool) (*Adoption, error) {
	command := createSlot
	switch {
	case newServer:
		command = adoptServer(&f)
		if err := NewServer(pipeline, st, &f); err != nil {
			return nil, err
		}
	case st != nil && (st.Pipeline != pipeline || st.Phase == PhaseCreating || st.SystemID != f.SystemID):
		return nil, identify(pipeline, st, &f)
	}
	if err := free(&f, command); err != nil {
		return nil, err
	}
	if problems := append(f.Hidden, f.Unfit...); len(problems) > 0 {
		return nil, fmt.Errorf("rows would be hidden as it is: fix it first: %s", strings.Join(problems, "; "))
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
			accept("the Kafka cluster %s in place of %s: rows that were delivered there and not copied are missing here: a replay from before the copy was complete publishes them", st.ReadFrom, st.Cluster)
			next.Cluster = st.ReadFrom
		}
	}
	switch {
	case st == nil:
		accept("slot %q without a state record: what was committed before %s counts as delivered", slot.Name, slot.ConfirmedFlush)
		fromSlot()
	case newServer:
		accept("the PostgreSQL with system id %s, from %s on, in place of the one with system id %s", f.SystemID, slot.ConfirmedFlush, st.SystemID)
		accept("that the old server is read no more: its WAL was delivered up to %s, as of %s; a row that is committed there later is never published", st.Covered, clock(st.Current()))
		if last := max(st.Covered, st.CommitLSN); slot.ConfirmedFlush < last {
			accept("that the header lsn goes back, from %s to %s: a consumer that drops what has a lower lsn than before would drop every new event", last, slot.ConfirmedFlush)
		}
		next.SystemID, next.Timeline, next.Open, next.Phantoms = f.SystemID, f.Timeline, nil, nil
		fromSlot()
	default:
		other := st.Timeline > f.Timeline || !known(st, &f) || shared(st, &f) > f.WALEnd || (st.Halt != nil && st.Halt.History)
		switch {
		case other:
			accept("a server with another history (its timeline is %d, its WAL ends at %s): that rows up to %s were delivered is forgotten, and what it holds behind %s is published, some of it perhaps again",
				f.Timeline, f.WALEnd, st.Covered, slot.ConfirmedFlush)
			next.Timeline = f.Timeline
			fromSlot()
		case st.Timeline != f.Timeline:
			end, _ := f.branch(st.Timeline)
			accept("timeline %d, which left timeline %d at %s", f.Timeline, st.Timeline, end)
			next.failover(f.Timeline, end)
		}
		if slot.ConfirmedFlush > next.Covered {
			accept("slot %q where it stands, %s: the state record covers %s", slot.Name, slot.ConfirmedFlush, next.Covered)
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
			accept("that rows from before this publication can never be streamed: the slot is moved to the end of the WAL, %s", f.WALEnd)
			a.Gap.From = min(a.Gap.From, next.Covered)
			a.Advance = f.WALEnd
			next.Covered, next.Skipped = f.WALEnd, f.WALEnd
		}
	}
	if st != nil && st.Halt != nil && st.Halt.Latched {
		accept("the halt that was latched at %s: %s", clock(st.Halt.At), st.Halt.Found)
		if a.Gap.IsZero() && !st.Halt.Risk.IsZero() { // what hid rows is gone without a trace, and may have hidden them until now
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

// publicationOf is the publication's OID in a fingerprint.
func publicationOf(fingerprint string) string {
	oid, _, _ := strings.Cut(fingerprint, "/")
	return oid
}
