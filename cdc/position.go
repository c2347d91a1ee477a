package cdc

import "github.com/jackc/pglogrepl"

// LSN is a position in the WAL, in bytes. Comparable only within one server (system id) and one timeline history.
type LSN = pglogrepl.LSN

// Position is the place of a row in the order of commits. LSNs alone are not unique: the rows of one COPY share one, and a
// row's own LSN is not monotone across transactions.
type Position struct {
	// Commit is the start of the transaction's commit record (Begin.FinalLSN).
	Commit LSN
	// Ordinal counts the inserts into the outbox on the wire within the transaction, from 1. Zero means before its first row.
	Ordinal uint32
}

// Compare returns -1, 0 or 1 as p stands before, at or behind q.
func (p Position) Compare(q Position) int {
	switch {
	case p.Commit < q.Commit, p.Commit == q.Commit && p.Ordinal < q.Ordinal:
		return -1
	case p == q:
		return 0
	}
	return 1
}
