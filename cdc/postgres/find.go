package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
)

// ErrUnreadable says that the URL's role may not read the outbox, or that it took too long.
var ErrUnreadable = errors.New("the outbox cannot be read")

// TableRow is a row as the outbox table has it.
type TableRow struct {
	ID, AggregateType, AggregateID, EventType string
	CreatedAt                                 time.Time // zero where the table does not tell
}

const (
	mostFound = 10_000
	findIn    = 30 * time.Second
)

// Find looks for rows whose id is what, or, if there is none, for those whose aggregate id it is, oldest first. end is a WAL
// position at or behind the commits of all of them. The relay's own role may not read the table: that is ErrUnreadable. With ErrZone the
// rows are there, without their times.
func (s *Source) Find(ctx context.Context, url, what string) (rows []TableRow, end cdc.LSN, err error) {
	conn, err := s.connectAs(ctx, "--read-url", url, "walpost where")
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, fmt.Sprintf("SET statement_timeout = %d", findIn.Milliseconds())); err != nil {
		return nil, 0, classify("set a timeout", err)
	}
	if err := s.seesAll(ctx, conn, false); errors.Is(err, ErrUnseen) {
		return nil, 0, fmt.Errorf("%w: %w", ErrUnreadable, err)
	} else if err != nil {
		return nil, 0, err
	}
	types, err := s.columnTypes(ctx, conn)
	if err != nil {
		return nil, 0, err
	}
	c := s.cfg.Columns
	created := "NULL::float8"
	var unzoned error
	if at := createdAt(s.cfg); types[at] != "" {
		age, err := s.Age(ctx, conn, at)
		switch {
		case errors.Is(err, ErrZone):
			unzoned = err
		case err != nil:
			return nil, 0, err
		default:
			created = fmt.Sprintf("extract(epoch FROM CASE WHEN isfinite(%s) THEN %s END)::float8", age.column, age.first())
		}
	}
	for _, by := range []string{c.ID, c.AggregateID} {
		if types[by] == "" {
			return nil, 0, fmt.Errorf("%w: there is no %s with a column %q", ErrUnreadable, s.cfg.Table, by)
		}
		text := func(column string) string { return "coalesce(" + Ident(column) + "::text, '')" }
		found, err := conn.Query(ctx, fmt.Sprintf(`SELECT %s, %s, %s, %s, %s FROM %s WHERE %s = CAST($1::text AS %s) ORDER BY 5 LIMIT %d`,
			text(c.ID), text(c.AggregateType), text(c.AggregateID), text(c.EventType), created, TableName(s.cfg), Ident(by), types[by], mostFound), what)
		if err == nil {
			rows, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (r TableRow, err error) {
				var seconds *float64
				err = row.Scan(&r.ID, &r.AggregateType, &r.AggregateID, &r.EventType, &seconds)
				if seconds != nil {
					whole, part := math.Modf(*seconds)
					r.CreatedAt = time.Unix(int64(whole), int64(part*1e9)).UTC()
				}
				return r, err
			})
		}
		if hidden := unseen("look into the outbox", err); hidden != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrUnreadable, hidden)
		}
		switch SQLState(err) {
		case pgerrcode.InvalidTextRepresentation, pgerrcode.NumericValueOutOfRange: // what is asked for is no value of the column's type
			continue
		case pgerrcode.InsufficientPrivilege:
			return nil, 0, fmt.Errorf("%w: role %q may not: name one that may with --read-url", ErrUnreadable, conn.Config().User)
		case pgerrcode.QueryCanceled:
			return nil, 0, fmt.Errorf("%w: looking for %s took longer than %s: an index on it helps", ErrUnreadable, by, findIn)
		}
		if err != nil {
			return nil, 0, classify("look into the outbox", err)
		}
		if len(rows) > 0 {
			break
		}
	}
	// Asked for behind the rows: what could be seen was committed before.
	err = conn.QueryRow(ctx, `SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END`).Scan(&end)
	if err != nil {
		return nil, 0, classify("ask for the end of the WAL", err)
	}
	if len(rows) == 0 {
		unzoned = nil
	}
	return rows, end, unzoned
}
