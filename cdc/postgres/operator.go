package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
)

const (
	countWithin   = 30 * time.Second
	advanceWithin = 10 * time.Minute // PostgreSQL decodes all that it passes
	countLimit    = 1_000_000        // changes
)

// Operator is an Admin with the relay's own rights, which are enough for the slot.
func (s *Source) Operator(ctx context.Context) (*Admin, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	// A role that its login takes on (ALTER ROLE … SET role) is for tables, and may not replicate.
	if _, err := conn.Exec(ctx, "SET ROLE NONE"); err != nil {
		_ = conn.Close(ctx)
		return nil, classify("take the relay's own rights", err)
	}
	return &Admin{source: s, conn: conn}, nil
}

// Advance moves the slot to an LSN that the server has reached. It runs no output plugin, so it passes what cannot be decoded.
func (a *Admin) Advance(ctx context.Context, to cdc.LSN) error {
	ctx, cancel := context.WithTimeout(ctx, advanceWithin)
	defer cancel()
	if _, err := a.conn.Exec(ctx, `SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)`, a.source.cfg.Slot, to.String()); err != nil {
		return classify("advance the slot", err)
	}
	return nil
}

// Waiting counts what the slot holds for the outbox: transactions committed from from on and before to, and their rows. It
// takes nothing from the slot.
func (a *Admin) Waiting(ctx context.Context, from, to cdc.LSN) (transactions, rows int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, countWithin)
	defer cancel()
	// A Begin carries the start of the commit record, an Insert the table's OID, a Message flags, LSN and prefix.
	is, of, messages := `get_byte(data, 0) = ascii('I') AND substring(data FROM 2 FOR 4) = oidsend(to_regclass($5)::oid)`, quotedTable(a.source.cfg), "false"
	if p := a.source.cfg.Messages; p != "" {
		is, of, messages = `get_byte(data, 0) = ascii('M') AND get_byte(data, 1) = 1 AND substring(data FROM 11 FOR octet_length($5::text) + 1) = convert_to($5::text, 'UTF8') || '\x00'::bytea`, p, "true"
	}
	err = a.conn.QueryRow(ctx, `
		WITH m AS MATERIALIZED (
			SELECT xid::text AS xid, data FROM pg_logical_slot_peek_binary_changes($1, $2::text::pg_lsn, $3, 'proto_version', '1', 'publication_names', $4, 'messages', '`+messages+`')
		), tx AS (
			SELECT xid, ('x' || encode(substring(data FROM 2 FOR 8), 'hex'))::bit(64)::bigint AS commit FROM m WHERE get_byte(data, 0) = ascii('B')
		)
		SELECT count(DISTINCT xid), count(*) FROM m JOIN tx USING (xid)
		WHERE `+is+` AND commit >= $6 AND commit < $7`,
		a.source.cfg.Slot, to.String(), countLimit, pgx.Identifier{a.source.cfg.Publication}.Sanitize(), of, int64(from), int64(to),
	).Scan(&transactions, &rows)
	if err != nil {
		return 0, 0, fmt.Errorf("count what waits in the slot: %w", err)
	}
	return transactions, rows, nil
}
