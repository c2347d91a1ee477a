package cdctest

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Ledger has the events that a Writer committed, read from the database after it stopped. Topics are compared with it.
type Ledger struct {
	// Events are all committed events, by transaction, and in the order of their inserts within it.
	Events []Event
	// RolledBack are the ids that were rolled back, with their transaction or a savepoint.
	RolledBack map[uuid.UUID]bool
	// Commits are the Oracle's commits; nil if no Oracle ran.
	Commits []Commit
	// Spread says that partitions were added during delivery: a key may move to another partition, and its order
	// holds only within a partition.
	Spread bool
	// Polled says that the records have no position in the WAL: only the order of each key counts.
	Polled bool
}

// Event is one committed outbox row.
type Event struct {
	ID  uuid.UUID
	Key string   // aggregate_id
	Seq int64    // 1, 2, 3, … per key, in commit order
	Tx  int64    // the transaction's id in PostgreSQL
	Ord int      // ascending within the transaction
	Sum [32]byte // SHA-256 of the payload as PostgreSQL renders it
}

// createLedger creates the ledger table. Its column tx shows what a commit contained, also if the connection was lost
// during the commit.
const createLedger = `
	CREATE TABLE IF NOT EXISTS ledger (
		id  uuid PRIMARY KEY,
		key text NOT NULL,
		seq bigint NOT NULL,
		tx  bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
		ord int NOT NULL,
		sum bytea NOT NULL
	)`

// insertLedger lets PostgreSQL hash the payload as it stores it, so that the comparison is byte for byte.
const insertLedger = `
	INSERT INTO ledger (id, key, seq, ord, sum)
	SELECT id, key, seq, ord, sha256(convert_to(payload::jsonb::text, 'UTF8'))
	FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::int[], $5::text[]) AS e (id, key, seq, ord, payload)`

func readLedger(ctx context.Context, url string) ([]Event, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, `SELECT id, key, seq, tx, ord, sum FROM ledger ORDER BY tx, ord`)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Event, error) {
		var e Event
		var id [16]byte
		var sum []byte
		err := row.Scan(&id, &e.Key, &e.Seq, &e.Tx, &e.Ord, &sum)
		e.ID = id
		copy(e.Sum[:], sum)
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	return events, nil
}
