package cdc

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// StateVersion is the version of the state record that this program writes, and the newest it reads. Version 1 had no slot,
// halt, skipped, checked and phantoms.
const StateVersion = 2

// PhaseCreating marks the record that `walpost init` writes before it creates the slot.
const PhaseCreating = "creating"

// State is the record in the compacted topic walpost.state.<pipeline>: how far rows are durable in Kafka.
type State struct {
	Version  int    `json:"version"`
	Pipeline string `json:"pipeline"`
	Slot     string `json:"slot,omitempty"`
	SystemID string `json:"system_id"`
	Timeline int32  `json:"timeline"`
	// Covered is the end of the last commit, or the last keepalive in order, whose rows are all durable. No LSN is
	// confirmed to the server before a record with Covered at or above it is durable. Never decreases within a timeline.
	Covered LSN `json:"covered"`
	// CommitLSN and Ordinal are the position of the last durable row.
	CommitLSN      LSN       `json:"commit_lsn"`
	Ordinal        uint32    `json:"ordinal"`
	LastXID        uint32    `json:"last_xid"`
	LastCommitTime time.Time `json:"last_commit_time"`
	// Skipped is where an operator's decision began anew: commits below it that are not durable were given up knowingly.
	Skipped LSN `json:"skipped"`
	// Fingerprint identifies publication and table. It changes even when a change of the publication was undone; what leads rows
	// past the stream stands in it as long as it is there. Checked and CheckedAt are the end of the WAL and the server's time when
	// they were last seen like this: no row was hidden before.
	Fingerprint string    `json:"fingerprint"`
	Checked     LSN       `json:"checked"`
	CheckedAt   time.Time `json:"checked_at,omitzero"`
	// Configured is what the configuration named when Fingerprint was taken. A record that an older walpost wrote does not have it.
	Configured Configured `json:"configured,omitzero"`
	// Open are the transactions that were open at Checked, by their ids, each with a time before which it had written nothing. Rows of
	// theirs can be older than CheckedAt, and hidden all the same.
	Open map[string]time.Time `json:"open,omitempty"`
	// CurrentAt is the server's time at which the WAL was last seen to end at or before Covered: what was written until then is delivered.
	CurrentAt time.Time `json:"current_at,omitzero"`
	// Instance names the process, Epoch its session. Readers take the highest epoch, then the highest Covered in it: a
	// relay that was frozen and replaced writes under its own old epoch only.
	Instance string    `json:"instance"`
	Epoch    int64     `json:"epoch"`
	Time     time.Time `json:"time"`
	Phase    string    `json:"phase,omitempty"`
	// Walpost is the version of the program that wrote the record, and Cluster the id of the Kafka that it wrote it to; empty where nobody
	// knows. ReadFrom is the id of the Kafka that it was read from: another one is a copy.
	Walpost  string `json:"walpost,omitempty"`
	Cluster  string `json:"kafka_cluster,omitempty"`
	ReadFrom string `json:"-"`
	// Partitions is how many the topics of the configuration had when the session began.
	Partitions map[string]int `json:"partitions,omitempty"`
	// Halt is why the last session ended, where it ended in a halt.
	Halt *HaltRecord `json:"halt,omitempty"`
	// Phantoms are what the last failover took back.
	Phantoms *Phantoms `json:"phantoms,omitempty"`
}

// Configured is what a configuration names in the database. A name that differs from the state record's is an error of the
// configuration, and no change of the database.
type Configured struct {
	Publication string `json:"publication"`
	Table       string `json:"table,omitempty"`
	Messages    string `json:"messages,omitempty"` // the prefix of those that an older walpost read instead of a table
}

// IsZero reports that nobody knows what was configured.
func (c Configured) IsZero() bool { return c == Configured{} }

// differs says which keys have another value in now, with both values, and which keys those are.
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

// HaltRecord is a [HaltError] as it stands in the state record. One that is latched ends only by an operator's command.
type HaltRecord struct {
	Found   string    `json:"found"`
	Means   string    `json:"means"`
	Run     string    `json:"run"`
	Risk    Range     `json:"risk,omitzero"`
	History bool      `json:"other_history,omitempty"`
	Latched bool      `json:"latched"`
	At      time.Time `json:"at"`
}

// Phantoms are rows that were published and then taken back by a failover: the new primary never had their commits.
type Phantoms struct {
	Range    Range `json:"range"`    // of their commits, on the old timeline
	Timeline int32 `json:"timeline"` // the old one
	// Rows is how many of them were found in Kafka; more when AtLeast, and -1 when nobody could count them.
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
	return fmt.Sprintf("a failover from timeline %d took back what was committed in %s: %s that were published no longer exist in the database", p.Timeline, p.Range, rows)
}

// Decision is what an operator's command did, a record of its own beside the state: key decision/<time>.
type Decision struct {
	Time    time.Time `json:"time"`
	Command string    `json:"command"`
	By      string    `json:"by"`
	What    string    `json:"what"`
	From    string    `json:"from,omitempty"` // an LSN or a time, as the command takes it
	To      string    `json:"to,omitempty"`
}

// DecisionPrefix begins the keys of decisions in the state topic.
const DecisionPrefix = "decision/"

// Key is the record's key.
func (d *Decision) Key() string { return DecisionPrefix + d.Time.UTC().Format(time.RFC3339Nano) }

// stateJSON carries LSNs in PostgreSQL's own notation: people read this record.
type stateJSON struct {
	plainState
	Covered   lsnText `json:"covered"`
	CommitLSN lsnText `json:"commit_lsn"`
	Skipped   lsnText `json:"skipped"`
	Checked   lsnText `json:"checked"`
}

// plainState is State without its methods, so that encoding it does not recurse.
type plainState State

// copied says that the record was read from another Kafka than it was written to.
func (s *State) copied() bool { return s.Cluster != "" && s.ReadFrom != "" && s.Cluster != s.ReadFrom }

// Last is the position of the last durable row.
func (s *State) Last() Position { return Position{s.CommitLSN, s.Ordinal} }

// Key is the record's key: one per session, so that no session overwrites another's.
func (s *State) Key() string { return fmt.Sprintf("%d/%s", s.Epoch, s.Instance) }

// newer says whether s is to be believed before t.
func (s *State) newer(t *State) bool {
	return t == nil || s.Epoch > t.Epoch || (s.Epoch == t.Epoch && (s.Covered > t.Covered || (s.Covered == t.Covered && s.Last().Compare(t.Last()) >= 0)))
}

// NewestState returns the state that holds: the highest epoch, then the highest covered in it. Nil when there is none.
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

// UnmarshalJSON refuses a record that this program cannot read.
func (s *State) UnmarshalJSON(b []byte) error {
	var v struct {
		Version int    `json:"version"`
		Walpost string `json:"walpost"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("read state record: %w", err)
	}
	if v.Version < 1 {
		return errors.New("read state record: it has no version, as all records of walpost have: somebody else wrote it")
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
