package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// OpenTable is the outbox table on an SQL connection, as the catalog describes it.
type OpenTable struct {
	Conn        *pgx.Conn
	Name        string // as the configuration has it
	OID         uint32 // 0 where there is no such table
	Partitioned bool
	Missing     []string // why there is no such table
	Problems    []string // what is wrong with its columns

	source *Source
}

// OpenTable connects as the relay's role, and looks at the table. The caller closes the connection.
func (s *Source) OpenTable(ctx context.Context) (*OpenTable, error) {
	conn, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	o, err := s.opened(ctx, conn)
	if err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return o, nil
}

// Table looks at the table on the administrator's connection.
func (a *Admin) Table(ctx context.Context) (*OpenTable, error) { return a.source.opened(ctx, a.conn) }

func (s *Source) opened(ctx context.Context, conn *pgx.Conn) (*OpenTable, error) {
	t, err := s.checkTable(ctx, conn)
	if err != nil {
		return nil, err
	}
	o := &OpenTable{Conn: conn, Name: s.cfg.Table, OID: t.oid, Partitioned: t.partitioned, Problems: t.unfit, source: s}
	if t.oid == 0 {
		o.Missing = t.hidden
	}
	return o, nil
}

// SeesAll returns an ErrUnseen where row-level security shows the role less than all rows.
func (o *OpenTable) SeesAll(ctx context.Context) error { return o.source.seesAll(ctx, o.Conn, false) }

// Row returns the columns of the table that make a row.
func (o *OpenTable) Row(ctx context.Context) (RowColumns, error) {
	columns, _, err := o.source.rowColumns(ctx, o.Conn)
	return columns, err
}

// Age returns the column that says when a row was written. ErrZone is as in Source.Age.
func (o *OpenTable) Age(ctx context.Context, column string) (Age, error) {
	return o.source.Age(ctx, o.Conn, column)
}

// Unfit returns the Halt for a table that cannot be relayed as it is.
func (o *OpenTable) Unfit(problems ...string) error { return unfit(problems) }

// Classify turns the error of a query into the engine's decision, by its SQLSTATE.
func (o *OpenTable) Classify(doing string, err error) error { return classify(doing, err) }
