package cdc

import "fmt"

// Facts are what the server says of itself, read over SQL after the state record.
type Facts struct {
	Identity
	Slot        SlotFacts
	WALEnd      LSN // pg_current_wal_flush_lsn()
	Fingerprint string
}

// SlotFacts is the slot's row in pg_replication_slots.
type SlotFacts struct {
	Name           string
	Exists         bool
	Active         bool
	ConfirmedFlush LSN
	RestartLSN     LSN
	WALStatus      string // reserved, extended, unreserved, lost
}

// identify halts on what is certain even before the slot is owned: whose state and whose server this is, and that there
// is a slot to own.
func identify(pipeline string, st *State, f Facts) error {
	slot := f.Slot
	switch {
	case st == nil:
		return &Halt{
			Found: fmt.Sprintf("no state record for pipeline %q", pipeline),
			Means: "without it nobody knows what has been delivered; starting anyway could skip rows",
			Run:   "run `walpost init` (once per pipeline); if there was a record, find out who deleted the state topic first",
		}
	case st.Phase == PhaseCreating:
		return &Halt{
			Found: fmt.Sprintf("the state record of pipeline %q says that `walpost init` did not finish", pipeline),
			Means: "nothing has been published yet",
			Run:   "run `walpost init` again",
		}
	case st.Pipeline != pipeline:
		return &Halt{
			Found: fmt.Sprintf("the state record belongs to pipeline %q, this is %q", st.Pipeline, pipeline),
			Means: "two pipelines share a state topic, or the name was changed",
			Run:   "set `pipeline` to the name the topic was made for, or give this pipeline a name of its own and run `walpost init`",
		}
	case st.SystemID != f.SystemID:
		return &Halt{
			Found: fmt.Sprintf("the state record is of the PostgreSQL with system id %s, this server's is %s", st.SystemID, f.SystemID),
			Means: "another database: its LSNs mean nothing to this state, and rows could be skipped",
			Run:   "point source.url back at the right server; for a new database use a new pipeline name and run `walpost init`",
		}
	case !slot.Exists:
		return &Halt{
			Found: fmt.Sprintf("replication slot %q does not exist, and the state record says that rows up to %s were delivered", slot.Name, st.Covered),
			Means: "the slot was dropped, or this is a promoted standby without it: rows committed behind that LSN may never be streamed",
			Run:   "compare the outbox with the topic from " + st.LastCommitTime.UTC().Format("2006-01-02 15:04:05Z") + " on; then `walpost init --remove` and `walpost init` begin anew",
		}
	case slot.WALStatus == "lost":
		return &Halt{
			Found: fmt.Sprintf("replication slot %q is lost: the server removed WAL behind %s that it still needed", slot.Name, slot.ConfirmedFlush),
			Means: "rows committed behind that LSN can no longer be streamed; the slot will not recover",
			Run:   "raise max_slot_wal_keep_size, compare the outbox with the topic from " + st.LastCommitTime.UTC().Format("2006-01-02 15:04:05Z") + " on; then `walpost init --remove` and `walpost init` begin anew",
		}
	}
	return nil
}

// Reconcile compares the state record with the server and halts where going on could lose or repeat silently. Everything
// in f was read after st.
func Reconcile(pipeline string, st *State, f Facts) error {
	if err := identify(pipeline, st, f); err != nil {
		return err
	}
	slot := f.Slot
	switch {
	case st.Timeline != f.Timeline:
		return &Halt{
			Found: fmt.Sprintf("the state record is of timeline %d, the server is on timeline %d", st.Timeline, f.Timeline),
			Means: "a standby was promoted, or this is a stale primary: rows up to " + st.Covered.String() + " were published, and some of them may not exist here",
			Run:   "make sure that this is the primary you mean, compare outbox and topic around that LSN; then `walpost init --remove` and `walpost init` begin anew",
		}
	case st.Covered > f.WALEnd:
		return &Halt{
			Found: fmt.Sprintf("the state record covers %s, the server's WAL ends at %s", st.Covered, f.WALEnd),
			Means: "a restored backup or the wrong server: new commits would reuse positions that count as delivered",
			Run:   "point source.url at the right server; if the backup is meant to live on, `walpost init --remove` and `walpost init` begin anew",
		}
	case slot.ConfirmedFlush > st.Covered:
		return &Halt{
			Found: fmt.Sprintf("slot %q has confirmed %s, the state record covers %s only", slot.Name, slot.ConfirmedFlush, st.Covered),
			Means: "the slot was re-created or advanced, or the state topic lost its tail: rows committed between the two may be missing in Kafka",
			Run:   "compare the outbox with the topic from " + st.LastCommitTime.UTC().Format("2006-01-02 15:04:05Z") + " on; then `walpost init --remove` and `walpost init` begin anew",
		}
	case st.Fingerprint != f.Fingerprint:
		return &Halt{
			Found: fmt.Sprintf("publication or table changed: the state record knows %s, the server has %s", st.Fingerprint, f.Fingerprint),
			Means: "rows committed between " + st.LastCommitTime.UTC().Format("2006-01-02 15:04:05Z") + " and now may never have been streamed",
			Run:   "compare outbox and topic over that time; then `walpost init --remove` and `walpost init` begin anew",
		}
	}
	return nil
}
