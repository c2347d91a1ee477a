package cdc

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
)

// LSN is a position in the WAL, in bytes. Comparable only within one server (system id) and one timeline history.
type LSN = pglogrepl.LSN

// Position is a row's place in the order of commits. An LSN alone is not unique: the rows of one COPY share one, and
// a row's LSN is not monotone across transactions.
type Position struct {
	// Commit is the start of the transaction's commit record (Begin.FinalLSN).
	Commit LSN
	// Ordinal counts the inserts into the outbox on the wire within the transaction, from 1. Zero means before its first row.
	Ordinal uint32
}

// Compare returns -1, 0 or 1 if p is before, equal to or after q.
func (p Position) Compare(q Position) int {
	switch {
	case p.Commit < q.Commit, p.Commit == q.Commit && p.Ordinal < q.Ordinal:
		return -1
	case p == q:
		return 0
	}
	return 1
}

// Range is the set of commits whose end lies in (From, To].
type Range struct{ From, To LSN }

func (r Range) String() string { return fmt.Sprintf("(%s, %s]", r.From, r.To) }

// IsZero reports whether there is no range.
func (r Range) IsZero() bool { return r == Range{} }

// MarshalJSON writes LSNs as PostgreSQL does.
func (r Range) MarshalJSON() ([]byte, error) {
	return json.Marshal(rangeJSON{lsnText(r.From), lsnText(r.To)})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (r *Range) UnmarshalJSON(b []byte) error {
	var j rangeJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*r = Range{LSN(j.From), LSN(j.To)}
	return nil
}

type rangeJSON struct {
	From lsnText `json:"from"`
	To   lsnText `json:"to"`
}

// lsnText is an LSN in JSON.
type lsnText LSN

// MarshalText writes the LSN as PostgreSQL does.
func (l lsnText) MarshalText() ([]byte, error) { return []byte(LSN(l).String()), nil }

// UnmarshalText reads an LSN from PostgreSQL's notation.
func (l *lsnText) UnmarshalText(b []byte) error {
	lsn, err := ParseLSN(string(b))
	*l = lsnText(lsn)
	return err
}

var lsnPattern = regexp.MustCompile(`^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$`)

// ParseLSN returns the LSN in PostgreSQL's notation, and an error for text that only resembles one: pglogrepl's own
// parser accepts 0/12GARBAGE.
func ParseLSN(text string) (LSN, error) {
	if !lsnPattern.MatchString(text) {
		return 0, fmt.Errorf("%q is not an LSN: write it as PostgreSQL does, 0/16B3748 for example", text)
	}
	high, low, _ := strings.Cut(text, "/")
	h, _ := strconv.ParseUint(high, 16, 32)
	l, _ := strconv.ParseUint(low, 16, 32)
	return LSN(h<<32 | l), nil
}
