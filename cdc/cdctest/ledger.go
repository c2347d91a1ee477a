package cdctest

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Ledger is what a Writer committed, read from the database after it stopped: the truth to compare topics with.
type Ledger struct {
	// Events are all that were committed, by transaction and in the order of their inserts within it.
	Events []Event
	// RolledBack are ids that were inserted and then rolled back, with their transaction or a savepoint.
	RolledBack map[uuid.UUID]bool
	// Commits are what an Oracle knows; nil where none ran.
	Commits []Commit
	// Spread says that partitions were added while it was delivered: a key may go on in another one, and its order holds
	// within a partition only.
	Spread bool
	// Polled says that its records have no position in the WAL: order is that of each key.
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

// createLedger: the column tx finds out what a commit took with it, also when the connection was lost in it.
const createLedger = `
	CREATE TABLE IF NOT EXISTS ledger (
		id  uuid PRIMARY KEY,
		key text NOT NULL,
		seq bigint NOT NULL,
		tx  bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
		ord int NOT NULL,
		sum bytea NOT NULL
	)`

// insertLedger lets PostgreSQL hash what it made of the payload, so that the comparison is byte for byte.
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
