package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
)

// ByID reads rows of the outbox by their ids, with a role that may read the table.
type ByID struct {
	source  *Source
	conn    *pgx.Conn
	columns RowColumns
	id      string // id, quoted
	typ     string // its type
}

// ByID opens a connection with the URL that the configuration key holds.
func (s *Source) ByID(ctx context.Context, key, url string) (*ByID, error) {
	conn, err := s.connectAs(ctx, key, url, "walpost import")
	if err != nil {
		return nil, err
	}
	b := &ByID{source: s, conn: conn, id: Ident(s.cfg.Columns.ID)}
	if err := s.seesAll(ctx, conn, false); err != nil {
		b.Close(ctx)
		return nil, err
	}
	columns, types, err := s.rowColumns(ctx, conn)
	if err != nil {
		b.Close(ctx)
		return nil, err
	}
	b.columns, b.typ = columns, types[s.cfg.Columns.ID]
	return b, nil
}

// Close ends the connection.
func (b *ByID) Close(ctx context.Context) { _ = b.conn.Close(ctx) }

// Each calls f with each row that has one of the ids, which are in the notation of the column's type. f may keep the row.
func (b *ByID) Each(ctx context.Context, ids []string, f func(*cdc.Row)) error {
	err := b.each(ctx, fmt.Sprintf("%s = ANY(CAST($1::text[] AS %s[]))", b.id, b.typ), ids, f)
	switch SQLState(err) {
	case pgerrcode.InvalidTextRepresentation, pgerrcode.NumericValueOutOfRange, pgerrcode.InvalidDatetimeFormat:
		err = b.each(ctx, b.id+"::text = ANY($1::text[])", ids, f) // one of them is no value of the type
	}
	if err != nil {
		return b.source.classify(b.conn, "read the outbox", err, reading...)
	}
	return nil
}

func (b *ByID) each(ctx context.Context, where string, ids []string, f func(*cdc.Row)) error {
	ctx, cancel := patient(ctx)
	defer cancel()
	rows, err := b.conn.Query(ctx, "SELECT "+b.columns.SQL()+" FROM "+TableName(b.source.cfg)+" WHERE "+where, ids)
	if err != nil {
		return err
	}
	found, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (*cdc.Row, error) {
		row := &cdc.Row{}
		return row, r.Scan(b.columns.Into(row)...)
	})
	if err != nil {
		return err
	}
	for _, row := range found {
		f(row)
	}
	return nil
}
