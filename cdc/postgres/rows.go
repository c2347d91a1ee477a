package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// page is how many rows one query asks for. They are processed as they arrive, so it bounds no memory here.
const page = 1000

// Retained reads the rows of a time range that the outbox table still has: [From, To) on created_at.
type Retained struct {
	From, To time.Time

	admin   *Admin
	columns RowColumns
	created string // created_at, quoted
	age     Age    // of it
	id      string // id, quoted
	types   [2]string
}

// Retained prepares to read the outbox with the administrator's rights: the relay's role may not see the rows.
func (a *Admin) Retained(ctx context.Context, from, to time.Time) (*Retained, error) {
	c := a.source.cfg.Columns
	var err error
	if c.CreatedAt, err = a.source.written(ctx, a.conn); err != nil {
		return nil, err
	}
	if c.CreatedAt == "" {
		return nil, fmt.Errorf("%s has no column that shows when a row was written, and replay needs it: name it in source.columns.created_at", a.source.cfg.Table)
	}
	age, err := a.source.Age(ctx, a.conn, c.CreatedAt)
	if err != nil {
		return nil, err
	}
	if _, err := a.conn.Exec(ctx, `SET application_name = 'walpost replay'`); err != nil {
		return nil, classify("prepare to read the outbox", err)
	}
	if err := a.source.seesAll(ctx, a.conn, false); err != nil {
		return nil, err
	}
	columns, types, err := a.source.rowColumns(ctx, a.conn)
	if err != nil {
		return nil, err
	}
	r := &Retained{From: from, To: to, admin: a, columns: columns, age: age, id: Ident(c.ID), created: Ident(c.CreatedAt)}
	r.types = [2]string{types[c.CreatedAt], types[c.ID]}
	return r, nil
}

// RowColumn is a column of the outbox that fills a field of a row.
type RowColumn struct {
	SQL  string // an expression for its bytes; NULL if the table does not have it
	Body bool   // payload or headers: a row can be named without them

	field func(*cdc.Row) *[]byte
}

// RowColumns lists the columns that make a row.
type RowColumns struct {
	List []RowColumn

	shape *cdc.Shape // of a row, for a route that asks for it
}

// SQL returns the columns in the notation of a SELECT.
func (c RowColumns) SQL() string {
	sql := make([]string, len(c.List))
	for i := range c.List {
		sql[i] = c.List[i].SQL
	}
	return strings.Join(sql, ", ")
}

// Into returns the targets for a scan of the columns into a row.
func (c RowColumns) Into(row *cdc.Row) []any {
	if row.Shape = c.shape; c.shape != nil {
		row.Further = make([][]byte, len(c.shape.Further))
	}
	fields := make([]any, len(c.List))
	for i := range c.List {
		fields[i] = c.List[i].field(row)
	}
	return fields
}

// rowColumns returns the columns that make a row, and the types of all columns of the table.
func (s *Source) rowColumns(ctx context.Context, conn *pgx.Conn) (columns RowColumns, types map[string]string, err error) {
	if types, err = s.columnTypes(ctx, conn); err != nil {
		return RowColumns{}, nil, err
	}
	all, err := s.ownColumns(ctx, conn)
	if err != nil {
		return RowColumns{}, nil, err
	}
	m := mapColumns(s.cfg.Columns, all)
	if len(m.problems) > 0 {
		return RowColumns{}, nil, fmt.Errorf("%s: %s", s.cfg.Table, cdc.Sentences(m.problems))
	}
	for i, p := range purposes {
		sql := "NULL::bytea"
		switch from := m.from[i]; {
		case from.column >= 0 && s.cfg.Columns.Verbatim != nil:
			sql = all[from.column].verbatim()
		case from.column >= 0:
			sql = all[from.column].sql(p.field)
		case from.constant != nil:
			sql = "convert_to(" + Literal(string(from.constant)) + ", 'UTF8')"
		}
		columns.List = append(columns.List, RowColumn{SQL: sql, Body: p.field&(fieldPayload|fieldHeaders) != 0, field: p.of})
	}
	if s.cfg.Columns.Verbatim == nil {
		return columns, types, nil
	}
	columns.shape = m.shape(s.cfg.Table, all)
	for i, at := range m.further {
		sql := "NULL::bytea"
		if at >= 0 {
			sql = all[at].verbatim()
		}
		columns.List = append(columns.List, RowColumn{SQL: sql, Body: true, field: func(r *cdc.Row) *[]byte { return &r.Further[i] }})
	}
	return columns, types, nil
}

func (r *Retained) where() string {
	return fmt.Sprintf("FROM %s WHERE %s", TableName(r.admin.source.cfg), r.age.within("$1::text::timestamptz", "$2::text::timestamptz"))
}

// Count returns the number of rows, and how many of them were created no later than delivered.
func (r *Retained) Count(ctx context.Context, delivered time.Time) (rows, before int64, err error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	err = r.admin.conn.QueryRow(ctx, fmt.Sprintf("SELECT count(*), count(*) FILTER (WHERE %s <= $3::text::timestamptz) %s", r.age.first(), r.where()),
		text(r.From), text(r.To), text(delivered)).Scan(&rows, &before)
	if err != nil {
		return 0, 0, r.admin.source.classify(r.admin.conn, "count the outbox", err, reading...)
	}
	return rows, before, nil
}

// Each calls f with each row, by created_at and id. f may keep the row.
func (r *Retained) Each(ctx context.Context, f func(*cdc.Row) error) error {
	order := fmt.Sprintf(" ORDER BY %s, %s LIMIT %d", r.created, r.id, page)
	query := "SELECT " + r.columns.SQL() + " " + r.where()
	args := []any{text(r.From), text(r.To)}
	for {
		n, last, err := r.page(ctx, query+order, args, f)
		if err != nil || n < page {
			return err
		}
		if len(args) == 2 {
			query += fmt.Sprintf(" AND (%s, %s) > (%s, %s)", r.created, r.id, fromText("$3", r.types[0]), fromText("$4", r.types[1]))
		}
		args = append(args[:2:2], string(last.CreatedAt), string(last.ID))
	}
}

// page calls f with each row of one query, and returns their number and the last of them. f may wait for Kafka.
func (r *Retained) page(ctx context.Context, query string, args []any, f func(*cdc.Row) error) (n int, last *cdc.Row, err error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	rows, err := r.admin.conn.Query(ctx, query, args...)
	if err != nil {
		return 0, nil, classify("read the outbox", err)
	}
	defer rows.Close()
	for rows.Next() {
		row := &cdc.Row{}
		if err := rows.Scan(r.columns.Into(row)...); err != nil {
			return n, nil, classify("read the outbox", err)
		}
		n, last = n+1, row
		if err := f(row); err != nil {
			return n, nil, err
		}
	}
	if err := rows.Err(); err != nil {
		return n, nil, classify("read the outbox", err)
	}
	return n, last, nil
}

func text(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.999999Z07:00") }

// ErrUnreadable is returned when the URL's role may not read the outbox, or when reading took too long.
var ErrUnreadable = errors.New("the outbox cannot be read")

// TableRow is a row in the outbox table.
type TableRow struct {
	ID, AggregateType, AggregateID, EventType string
	CreatedAt                                 time.Time // zero if the table does not have it
	Called                                    string    // the searched value in the row's notation: 1.50 for 1.5
}

const (
	mostFound = 10_000
	findIn    = 30 * time.Second
)

// Find returns the rows whose id is what or, if there are none, the rows whose aggregate id is what, oldest first.
// end is a WAL position at or after all their commits. key is the configuration key with the URL. The relay's own
// role may not read the table: that is ErrUnreadable. With ErrZone the rows are returned without their times.
func (s *Source) Find(ctx context.Context, key, url, what string) (rows []TableRow, end cdc.LSN, err error) {
	conn, err := s.connectAs(ctx, key, url, "walpost where")
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
	created, unzoned, err := s.writtenAt(ctx, conn)
	if err != nil {
		return nil, 0, err
	}
	columns, _, err := s.rowColumns(ctx, conn)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	for _, by := range []string{s.cfg.Columns.ID, s.cfg.Columns.AggregateID} {
		if by == config.None {
			continue
		}
		if types[by] == "" {
			return nil, 0, fmt.Errorf("%w: there is no %s with a column %q", ErrUnreadable, s.cfg.Table, by)
		}
		if rows, err = s.findBy(ctx, conn, columns, by, types[by], created, what); err != nil {
			return nil, 0, err
		}
		for i := range rows {
			if r := &rows[i]; by == s.cfg.Columns.ID {
				r.Called = r.ID
			} else {
				r.Called = r.AggregateID
			}
		}
		if len(rows) > 0 {
			break
		}
	}
	// Read after the rows: every visible row was committed before it.
	err = conn.QueryRow(ctx, `SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END`).Scan(&end)
	if err != nil {
		return nil, 0, classify("ask for the end of the WAL", err)
	}
	if len(rows) == 0 {
		unzoned = nil
	}
	return rows, end, unzoned
}

// writtenAt returns SQL for the time at which a row was written, in seconds; NULL if the table does not have it.
// unzoned is an ErrZone.
func (s *Source) writtenAt(ctx context.Context, conn *pgx.Conn) (sql string, unzoned, err error) {
	const unknown = "NULL::float8"
	at, err := s.written(ctx, conn)
	if err != nil || at == "" {
		return unknown, nil, err
	}
	age, err := s.Age(ctx, conn, at)
	switch {
	case errors.Is(err, ErrZone):
		return unknown, err, nil
	case err != nil:
		return "", nil, err
	}
	return fmt.Sprintf("extract(epoch FROM CASE WHEN isfinite(%s) THEN %s END)::float8", age.column, age.first()), nil, nil
}

// fromText returns SQL for the value of a type that a text means: a bytea is given by its hex digits, with or without
// \x.
func fromText(text, typ string) string {
	if typ == "bytea" {
		return `decode(regexp_replace(` + text + `::text, '^\\x', ''), 'hex')`
	}
	return "CAST(" + text + "::text AS " + typ + ")"
}

// findBy returns the rows that have what in a column, oldest first; none if what is not a value of the column's type.
func (s *Source) findBy(ctx context.Context, conn *pgx.Conn, columns RowColumns, by, typ, created, what string) ([]TableRow, error) {
	const doing = "look into the outbox"
	text := func(i int) string { return "coalesce(" + columns.List[i].SQL + ", '')" }
	found, err := conn.Query(ctx, fmt.Sprintf(`SELECT %s, %s, %s, %s, %s FROM %s WHERE %s = %s ORDER BY 5 LIMIT %d`,
		text(0), text(1), text(2), text(3), created, TableName(s.cfg), Ident(by), fromText("$1", typ), mostFound), what)
	var rows []TableRow
	if err == nil {
		rows, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (r TableRow, err error) {
			var seconds *float64
			var id, aggregateType, aggregateID, eventType []byte
			err = row.Scan(&id, &aggregateType, &aggregateID, &eventType, &seconds)
			r.ID, r.AggregateType, r.AggregateID, r.EventType = string(id), string(aggregateType), string(aggregateID), string(eventType)
			if seconds != nil {
				whole, part := math.Modf(*seconds)
				r.CreatedAt = time.Unix(int64(whole), int64(part*1e9)).UTC()
			}
			return r, err
		})
	}
	if hidden := unseen(doing, err); hidden != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, hidden)
	}
	switch SQLState(err) {
	case pgerrcode.InvalidTextRepresentation, pgerrcode.NumericValueOutOfRange, pgerrcode.InvalidParameterValue:
		return nil, nil
	case pgerrcode.InsufficientPrivilege:
		grant := ""
		if sql := s.lacking(ctx, conn, err, reading...); sql != "" {
			grant = "run `" + sql + "`, or "
		}
		return nil, fmt.Errorf("%w: role %q may not read it: %sname a role that may with --read-url", ErrUnreadable, conn.Config().User, grant)
	case pgerrcode.QueryCanceled:
		return nil, fmt.Errorf("%w: the search for %s took longer than %s: create an index on it", ErrUnreadable, by, findIn)
	}
	if err != nil {
		return nil, classify(doing, err)
	}
	return rows, nil
}
