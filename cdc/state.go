package cdc

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// StateVersion is the version of the state record that this program writes, and the newest that it reads. Version 1
// had no slot, halt, skipped, checked and phantoms.
const StateVersion = 2

// PhaseCreating marks the record that `walpost init` writes before it creates the slot.
const PhaseCreating = "creating"

// PhaseBeginning marks the record of a pipeline that goes on from another program, which may still owe rows that are older
// than those in the slot.
const PhaseBeginning = "beginning"

// State is the record in the compacted topic walpost.state.<pipeline>: how far rows are durable in Kafka.
type State struct {
	Version  int    `json:"version"`
	Pipeline string `json:"pipeline"`
	Slot     string `json:"slot,omitempty"`
	SystemID string `json:"system_id"`
	Timeline int32  `json:"timeline"`
	// Covered is the end of the last commit, or the last keepalive in order, whose rows are all durable. No LSN is
	// confirmed to the server before a record with Covered at or above it is durable. It never decreases within a
	// timeline.
	Covered LSN `json:"covered"`
	// CommitLSN and Ordinal are the position of the last durable row.
	CommitLSN      LSN       `json:"commit_lsn"`
	Ordinal        uint32    `json:"ordinal"`
	LastXID        uint32    `json:"last_xid"`
	LastCommitTime time.Time `json:"last_commit_time"`
	// Skipped is the LSN at which an operator's decision made the pipeline continue: commits below it that are not
	// durable were given up knowingly.
	Skipped LSN `json:"skipped"`
	// Fingerprint identifies publication and table. It changes even if a change of the publication was undone. A
	// detour that leads rows past the stream is in it for as long as the detour exists. Checked and CheckedAt are the
	// end of the WAL and the server's time when both were last seen like this: no row was hidden before.
	Fingerprint string    `json:"fingerprint"`
	Checked     LSN       `json:"checked"`
	CheckedAt   time.Time `json:"checked_at,omitzero"`
	// Configured has the names in the configuration when Fingerprint was taken. The record of an older walpost does
	// not have it.
	Configured Configured `json:"configured,omitzero"`
	// Open has the ids of the transactions that were open at Checked, each with a time before which the transaction
	// had written nothing. Their rows can be older than CheckedAt and hidden nevertheless.
	Open map[string]time.Time `json:"open,omitempty"`
	// CurrentAt is the server's time at which the WAL was last seen to end at or before Covered: everything written
	// until then is delivered.
	CurrentAt time.Time `json:"current_at,omitzero"`
	// Instance names the process, Epoch its session. Readers take the highest epoch, then the highest Covered in it:
	// a relay that was frozen and replaced writes only under its old epoch.
	Instance string    `json:"instance"`
	Epoch    int64     `json:"epoch"`
	Time     time.Time `json:"time"`
	Phase    string    `json:"phase,omitempty"`
	// Walpost is the version of the program that wrote the record, and Cluster the id of the Kafka that it was
	// written to; empty if not known. ReadFrom is the id of the Kafka that it was read from: if the two differ, this
	// Kafka is a copy.
	Walpost  string `json:"walpost,omitempty"`
	Cluster  string `json:"kafka_cluster,omitempty"`
	ReadFrom string `json:"-"`
	// Appended is the broker's time at which it wrote the record; zero unless the topic has the timestamp type LogAppendTime.
	Appended time.Time `json:"-"`
	// Partitions has the number of partitions of each configured topic when the session began.
	Partitions map[string]int `json:"partitions,omitempty"`
	// Halt is the halt that ended the last session, if a halt ended it.
	Halt *HaltRecord `json:"halt,omitempty"`
	// Phantoms describes the rows that the last failover took back.
	Phantoms *Phantoms `json:"phantoms,omitempty"`
}

// Configured has the names that a configuration uses for objects of the database. A name that differs from the state
// record's is an error of the configuration, not a change of the database.
type Configured struct {
	Publication string `json:"publication"`
	Table       string `json:"table,omitempty"`
	// the prefix of the messages that an older walpost read instead of a table
	Messages string `json:"messages,omitempty"`
}

// IsZero reports whether the record does not have the configured names.
func (c Configured) IsZero() bool { return c == Configured{} }

// differs returns the configuration keys that have another value in now, and a sentence with both values of each.
func (c Configured) differs(now Configured) (how string, keys []string) {
	var said []string
	for _, key := range []struct{ name, then, now string }{
		{"source.publication", c.Publication, now.Publication},
		{"source.table", c.Table, now.Table},
		{"source.messages", c.Messages, now.Messages},
	} {
		if key.then != key.now {
			said = append(said, fmt.Sprintf("%s is %q, it was %q", key.name, key.now, key.then))
			keys = append(keys, key.name)
		}
	}
	return strings.Join(said, ", "), keys
}

// HaltRecord is a [HaltError] as the state record keeps it. A latched one is ended only by an operator's command.
type HaltRecord struct {
	Found   string    `json:"found"`
	Means   string    `json:"means"`
	Run     string    `json:"run"`
	Risk    Range     `json:"risk,omitzero"`
	History bool      `json:"other_history,omitempty"`
	Latched bool      `json:"latched"`
	At      time.Time `json:"at"`
}

// Phantoms describes rows that were published and then taken back by a failover: the new primary never had their
// commits.
type Phantoms struct {
	Range    Range `json:"range"`    // of their commits, on the old timeline
	Timeline int32 `json:"timeline"` // the old one
	// Rows is how many of them were found in Kafka; there are more if AtLeast, and it is -1 if they could not be
	// counted.
	Rows    int       `json:"rows"`
	AtLeast bool      `json:"at_least,omitempty"`
	At      time.Time `json:"at"`
}

func (p *Phantoms) String() string {
	rows := fmt.Sprintf("%d rows", p.Rows)
	switch {
	case p.Rows < 0:
		rows = "an unknown number of rows"
	case p.AtLeast:
		rows = "at least " + rows
	}
	return fmt.Sprintf("a failover from timeline %d took back the commits in %s: %s that were published no longer exist in the database", p.Timeline, p.Range, rows)
}

// Decision records what an operator's command changed. It is a separate record in the state topic, with the key
// decision/<time>.
type Decision struct {
	Time    time.Time `json:"time"`
	Command string    `json:"command"`
	By      string    `json:"by"`
	What    string    `json:"what"`
	From    string    `json:"from,omitempty"` // an LSN or a time, in the command's notation
	To      string    `json:"to,omitempty"`
	// Missing describes the rows that the decision left behind. The record of an older walpost does not have it.
	Missing *Missing `json:"missing,omitempty"`
	// Complete is true for a replay that published every row which it found from From to To, and for an operator's
	// statement that no row of this time is missing.
	Complete bool `json:"complete,omitempty"`
}

// DecisionPrefix begins the keys of decisions in the state topic.
const DecisionPrefix = "decision/"

// Key returns the record's key.
func (d *Decision) Key() string { return DecisionPrefix + d.Time.UTC().Format(time.RFC3339Nano) }

// stateJSON has LSNs in PostgreSQL's notation: people read this record.
type stateJSON struct {
	plainState
	Covered   lsnText `json:"covered"`
	CommitLSN lsnText `json:"commit_lsn"`
	Skipped   lsnText `json:"skipped"`
	Checked   lsnText `json:"checked"`
}

// plainState is State without its methods, so that encoding it does not recurse.
type plainState State

// copied reports whether the record was read from another Kafka cluster than it was written to.
func (s *State) copied() bool { return s.Cluster != "" && s.ReadFrom != "" && s.Cluster != s.ReadFrom }

// Last returns the position of the last durable row.
func (s *State) Last() Position { return Position{s.CommitLSN, s.Ordinal} }

// DeliveredIn returns how many rows of a range's first transaction are delivered, according to the record. A relay that
// crashed before it wrote the record may have delivered more.
func (s *State) DeliveredIn(r Range) int64 {
	if s.CommitLSN >= r.From && s.CommitLSN < r.To {
		return int64(s.Ordinal)
	}
	return 0
}

// Key returns the record's key: each session has another, so that no session overwrites another's record.
func (s *State) Key() string { return fmt.Sprintf("%d/%s", s.Epoch, s.Instance) }

// newer reports whether s wins over t.
func (s *State) newer(t *State) bool {
	return t == nil || s.Epoch > t.Epoch || (s.Epoch == t.Epoch && (s.Covered > t.Covered || (s.Covered == t.Covered && s.Last().Compare(t.Last()) >= 0)))
}

// NewestState returns the state that is valid: the highest epoch, then the highest covered in it. It returns nil if
// there is none.
func NewestState(states []*State) *State {
	var best *State
	for _, s := range states {
		if s.newer(best) {
			best = s
		}
	}
	return best
}

// MarshalJSON writes LSNs as PostgreSQL does (0/16B3748).
func (s State) MarshalJSON() ([]byte, error) {
	return json.Marshal(stateJSON{plainState(s), lsnText(s.Covered), lsnText(s.CommitLSN), lsnText(s.Skipped), lsnText(s.Checked)})
}

// UnmarshalJSON reads a record, and returns an error for a record of a newer version.
func (s *State) UnmarshalJSON(b []byte) error {
	var v struct {
		Version int    `json:"version"`
		Walpost string `json:"walpost"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("read state record: %w", err)
	}
	if v.Version < 1 {
		return errors.New("read state record: it has no version, so walpost did not write it: find out which program writes to the state topic, and stop it")
	}
	if v.Version > StateVersion {
		return fmt.Errorf("read state record: version %d, this walpost reads up to %d: run walpost %s, which wrote it, or a newer one", v.Version, StateVersion, cmp.Or(v.Walpost, "in the newer version"))
	}
	var j stateJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("read state record: %w", err)
	}
	*s = State(j.plainState)
	s.Covered, s.CommitLSN, s.Skipped, s.Checked = LSN(j.Covered), LSN(j.CommitLSN), LSN(j.Skipped), LSN(j.Checked)
	return nil
}
