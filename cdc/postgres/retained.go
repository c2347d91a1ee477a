package postgres

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
)

// page is how many rows are asked for at once. They are read as they come, so it bounds no memory here.
const page = 1000

// Retained is what the outbox table still holds of a time, [From, To) on created_at.
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
	c.CreatedAt = createdAt(a.source.cfg)
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
	if types[c.CreatedAt] == "" {
		return nil, fmt.Errorf("%s has no column %q, by which rows would be replayed", a.source.cfg.Table, c.CreatedAt)
	}
	r := &Retained{From: from, To: to, admin: a, columns: columns, age: age, id: Ident(c.ID), created: Ident(c.CreatedAt)}
	r.types = [2]string{types[c.CreatedAt], types[c.ID]}
	return r, nil
}

// RowColumn is a column of the outbox that fills a field of a row.
type RowColumn struct {
	SQL  string // an expression of its bytes; NULL where the table does not have it
	Body bool   // it is payload or headers, without which a row can still be named

	field func(*cdc.Row) *[]byte
}

// RowColumns are the columns that make a row.
type RowColumns []RowColumn

// SQL returns the columns as a SELECT names them.
func (c RowColumns) SQL() string {
	sql := make([]string, len(c))
	for i := range c {
		sql[i] = c[i].SQL
	}
	return strings.Join(sql, ", ")
}

// Into returns where a scan of the columns puts the fields of a row.
func (c RowColumns) Into(row *cdc.Row) []any {
	fields := make([]any, len(c))
	for i := range c {
		fields[i] = c[i].field(row)
	}
	return fields
}

// rowColumns returns the columns that make a row, and the types of all columns of the table.
func (s *Source) rowColumns(ctx context.Context, conn *pgx.Conn) (columns RowColumns, types map[string]string, err error) {
	if types, err = s.columnTypes(ctx, conn); err != nil {
		return nil, nil, err
	}
	c := s.cfg.Columns
	for _, column := range []struct {
		name     string
		optional bool
		body     bool
		field    func(*cdc.Row) *[]byte
	}{
		{c.ID, false, false, func(r *cdc.Row) *[]byte { return &r.ID }},
		{c.AggregateType, false, false, func(r *cdc.Row) *[]byte { return &r.AggregateType }},
		{c.AggregateID, false, false, func(r *cdc.Row) *[]byte { return &r.AggregateID }},
		{c.EventType, false, false, func(r *cdc.Row) *[]byte { return &r.EventType }},
		{c.Payload, false, true, func(r *cdc.Row) *[]byte { return &r.Payload }},
		{cmp.Or(c.Headers, "headers"), true, true, func(r *cdc.Row) *[]byte { return &r.Headers }},
		{createdAt(s.cfg), true, false, func(r *cdc.Row) *[]byte { return &r.CreatedAt }},
	} {
		sql := "convert_to(" + Ident(column.name) + "::text, 'UTF8')"
		switch typ, ok := types[column.name]; {
		case ok && column.name == c.Payload && typ == "bytea":
			sql = Ident(column.name)
		case !ok && column.optional:
			sql = "NULL::bytea"
		case !ok:
			return nil, nil, fmt.Errorf("%s has no column %q", s.cfg.Table, column.name)
		}
		columns = append(columns, RowColumn{SQL: sql, Body: column.body, field: column.field})
	}
	return columns, types, nil
}

func (r *Retained) where() string {
	return fmt.Sprintf("FROM %s WHERE %s", TableName(r.admin.source.cfg), r.age.within("$1::text::timestamptz", "$2::text::timestamptz"))
}

// Count returns how many rows there are, and how many of them were created no later than delivered.
func (r *Retained) Count(ctx context.Context, delivered time.Time) (rows, before int64, err error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	err = r.admin.conn.QueryRow(ctx, fmt.Sprintf("SELECT count(*), count(*) FILTER (WHERE %s <= $3::text::timestamptz) %s", r.age.first(), r.where()),
		text(r.From), text(r.To), text(delivered)).Scan(&rows, &before)
	if err != nil {
		return 0, 0, classify("count the outbox", err)
	}
	return rows, before, nil
}

// Each calls f with each row, by created_at and id. The row is f's own.
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
			query += fmt.Sprintf(" AND (%s, %s) > ($3::text::%s, $4::text::%s)", r.created, r.id, r.types[0], r.types[1])
		}
		args = append(args[:2:2], string(last.CreatedAt), string(last.ID))
	}
}

// page calls f with each row of one query, and returns how many there were and the last of them. f may wait for Kafka.
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
