package cdc

import (
	"encoding/json"
	"fmt"
	"time"
)

// StateVersion is the version of the state record that this program writes, and the newest it reads.
const StateVersion = 1

// PhaseCreating marks the record that `walpost init` writes before it creates the slot.
const PhaseCreating = "creating"

// State is the record in the compacted topic walpost.state.<pipeline>: how far rows are durable in Kafka.
type State struct {
	Version  int    `json:"version"`
	Pipeline string `json:"pipeline"`
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
	// Fingerprint identifies publication and table. It changes even when a change was undone.
	Fingerprint string `json:"fingerprint"`
	// Instance names the process, Epoch its session. Readers take the highest epoch, then the highest Covered in it: a
	// relay that was frozen and replaced writes under its own old epoch only.
	Instance string    `json:"instance"`
	Epoch    int64     `json:"epoch"`
	Time     time.Time `json:"time"`
	Phase    string    `json:"phase,omitempty"`
}

// stateJSON carries LSNs in PostgreSQL's own notation: people read this record.
type stateJSON struct {
	plainState
	Covered   string `json:"covered"`
	CommitLSN string `json:"commit_lsn"`
}

// plainState is State without its methods, so that encoding it does not recurse.
type plainState State

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
	return json.Marshal(stateJSON{plainState(s), s.Covered.String(), s.CommitLSN.String()})
}

// UnmarshalJSON refuses a record that this program cannot read.
func (s *State) UnmarshalJSON(b []byte) error {
	var j stateJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("read state record: %w", err)
	}
	*s = State(j.plainState)
	if s.Version < 1 || s.Version > StateVersion {
		return fmt.Errorf("read state record: version %d, this walpost reads up to %d: run the newer walpost that wrote it", s.Version, StateVersion)
	}
	if err := s.Covered.Scan(j.Covered); err != nil {
		return fmt.Errorf("read state record: covered: %w", err)
	}
	if err := s.CommitLSN.Scan(j.CommitLSN); err != nil {
		return fmt.Errorf("read state record: commit_lsn: %w", err)
	}
	return nil
}
