package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
)

// OpenTable is the outbox table on an SQL connection, as the catalog describes it.
type OpenTable struct {
	Conn        *pgx.Conn
	Name        string // as in the configuration
	OID         uint32 // 0 if there is no such table
	Partitioned bool
	Publishes   string        // the setting publish of its publication: publish = 'insert'
	Missing     []cdc.Finding // the reasons why there is no such table
	Problems    []cdc.Finding // problems with its columns

	source *Source
}

// OpenTable connects as the relay's role, and reads the table's description. The caller closes the connection.
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

// Table reads the table's description on the administrator's connection.
func (a *Admin) Table(ctx context.Context) (*OpenTable, error) { return a.source.opened(ctx, a.conn) }

func (s *Source) opened(ctx context.Context, conn *pgx.Conn) (*OpenTable, error) {
	t, err := s.checkTable(ctx, conn)
	if err != nil {
		return nil, err
	}
	o := &OpenTable{Conn: conn, Name: s.cfg.Table, OID: t.oid, Partitioned: t.partitioned, Publishes: publishes(s.cfg, t), Problems: t.unfit, source: s}
	if t.oid == 0 {
		o.Missing = t.hidden
	}
	return o, nil
}

// SeesAll returns an ErrUnseen if row-level security shows the role less than all rows.
func (o *OpenTable) SeesAll(ctx context.Context) error { return o.source.seesAll(ctx, o.Conn, false) }

// Row returns the columns of the table that make a row.
func (o *OpenTable) Row(ctx context.Context) (RowColumns, error) {
	columns, _, err := o.source.rowColumns(ctx, o.Conn)
	return columns, err
}

// Written returns the column of a row's time; empty if the table has none.
func (o *OpenTable) Written(ctx context.Context) (string, error) {
	return o.source.written(ctx, o.Conn)
}

// Age returns the column's Age. ErrZone is as in Source.Age.
func (o *OpenTable) Age(ctx context.Context, column string) (Age, error) {
	return o.source.Age(ctx, o.Conn, column)
}

// Unfit returns the HaltError for a table that cannot be relayed as it is.
func (o *OpenTable) Unfit(problems ...cdc.Finding) error { return unfit(problems) }

// Classify turns the error of a query into the engine's decision, by its SQLSTATE. It names a missing right.
func (o *OpenTable) Classify(doing string, err error) error {
	return o.source.classify(o.Conn, doing, err, polling...)
}

// table is the catalog's description of the outbox.
type table struct {
	oid         uint32
	partitioned bool
	columns     []column
	hidden      []cdc.Finding // the reasons why its rows may not reach the stream
	unfit       []cdc.Finding // problems with its columns
	left        []string      // columns with a default name that are not used
	mapped      mapping
}

// checkTable looks for the outbox and its columns.
func (s *Source) checkTable(ctx context.Context, conn *pgx.Conn) (t table, err error) {
	schema, name := s.cfg.SchemaTable()
	var kind, persistence string
	err = conn.QueryRow(ctx, `
		SELECT c.oid, c.relkind::text, c.relpersistence::text
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2`, schema, name).Scan(&t.oid, &kind, &persistence)
	if errors.Is(err, pgx.ErrNoRows) {
		f := Problem("table_missing", "name the outbox table, or let `walpost init` create it", "source.table: %s does not exist in this database", s.cfg.Table)
		f.Init = true
		t.hidden = []cdc.Finding{f}
		return t, nil
	}
	if err != nil {
		return t, classify("look for the table", err)
	}
	if t.partitioned = kind == "p"; kind != "r" && !t.partitioned {
		t.hidden = append(t.hidden, Problem("table_kind", "name the outbox table", "source.table: %s is not a table", s.cfg.Table))
	}
	if persistence != "p" {
		t.hidden = append(t.hidden, Problem("table_unlogged", fmt.Sprintf("ALTER TABLE %s SET LOGGED", TableName(s.cfg)), "source.table: %s is unlogged or temporary and never reaches the WAL", s.cfg.Table))
	}
	if t.columns, err = readColumns(ctx, conn, t.oid); err != nil {
		return t, err
	}
	t.mapped = mapColumns(s.cfg.Columns, t.columns)
	t.unfit, t.left = slices.Concat(t.mapped.problems, s.problems(&t.mapped, t.columns)), t.mapped.left
	switch unknown, err := s.unknownZone(ctx, conn); {
	case err != nil:
		return t, err
	case unknown != "":
		t.unfit = append(t.unfit, parted("created_at_zone", unknown))
	}
	return t, nil
}

// readColumns reads the catalog's description of a table's columns. A domain counts as its base type.
func readColumns(ctx context.Context, conn *pgx.Conn, table uint32) ([]column, error) {
	rows, err := conn.Query(ctx, `
		WITH RECURSIVE kind AS (
			SELECT a.attnum, t.oid, t.typtype, t.typcategory, t.typbasetype, a.atttypmod AS modifier, t.typtypmod, a.attnotnull AS filled FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
			UNION ALL
			SELECT k.attnum, t.oid, t.typtype, t.typcategory, t.typbasetype, k.typtypmod, t.typtypmod, k.filled FROM kind k JOIN pg_type t ON t.oid = k.typbasetype WHERE k.typtype = 'd'
		)
		SELECT a.attname::text, k.oid, k.typtype IN ('b', 'e') AND k.typcategory <> 'A',
		       format_type(a.atttypid, a.atttypmod) || CASE WHEN k.oid <> a.atttypid THEN ', a domain over ' || format_type(k.oid, NULL) ELSE '' END, a.attgenerated::text,
		       a.atttypid, format_type(k.oid, k.modifier), k.modifier, k.filled, coalesce(pg_get_expr(d.adbin, d.adrelid), ''),
		       ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = k.oid ORDER BY e.enumsortorder),
		       coalesce((SELECT array_position(i.indkey::int2[], a.attnum) + 1 FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary), 0)
		FROM pg_attribute a JOIN kind k ON k.attnum = a.attnum AND k.typtype <> 'd'
		LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE a.attrelid = $1 ORDER BY a.attnum`, table)
	if err != nil {
		return nil, classify("read the table's columns", err)
	}
	columns, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (column, error) {
		var c column
		var text bool
		s := &c.shape
		err := r.Scan(&c.name, &c.typeOID, &text, &c.typ, &c.generated, &c.declared, &s.TypeName, &s.Modifier, &s.NotNull, &s.Default, &s.Labels, &c.key)
		s.Name, s.Type, s.Domain = c.name, c.typeOID, c.declared != c.typeOID
		if len(s.Labels) == 0 {
			s.Labels = nil
		}
		if s.Type >= firstOther {
			s.Type = 0
		}
		switch {
		case c.typeOID >= firstOther && text:
			c.typeOID = otherText
		case c.typeOID >= firstOther:
			c.typeOID = otherUnfit
		}
		return c, err
	})
	if err != nil {
		return nil, classify("read the table's columns", err)
	}
	return columns, nil
}

// written returns the table's column of a row's time; empty if it has none.
func (s *Source) written(ctx context.Context, conn *pgx.Conn) (string, error) {
	columns, err := s.ownColumns(ctx, conn)
	if err != nil {
		return "", err
	}
	m := mapColumns(s.cfg.Columns, columns)
	if i := m.from[slices.IndexFunc(purposes, func(p purpose) bool { return p.field == fieldCreatedAt })].column; i >= 0 {
		return columns[i].name, nil
	}
	return "", nil
}

// ownColumns reads the outbox's columns; none if there is no such table.
func (s *Source) ownColumns(ctx context.Context, conn *pgx.Conn) ([]column, error) {
	var oid uint32
	if err := conn.QueryRow(ctx, `SELECT coalesce(`+oidOf("$1")+`, 0)`, TableName(s.cfg)).Scan(&oid); err != nil {
		return nil, classify("look for the table", err)
	}
	return readColumns(ctx, conn, oid)
}

// oidOf returns SQL for the OID of the table with a name that quotedTable has written; NULL if there is none. Unlike
// to_regclass it needs no right on the schema, which the relay's role does not have.
func oidOf(name string) string {
	ident := "(parse_ident(" + name + "::text))"
	return "(SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = " + ident + "[1] AND c.relname = " + ident + "[2])"
}

// columnTypes returns the outbox's columns and their types in SQL's notation, for a domain its base type; none if
// there is no such table.
func (s *Source) columnTypes(ctx context.Context, conn *pgx.Conn) (map[string]string, error) {
	rows, err := conn.Query(ctx, `
		WITH RECURSIVE kind AS (
			SELECT a.attname, t.oid, t.typtype, t.typbasetype FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			WHERE a.attrelid = `+oidOf("$1")+` AND a.attnum > 0 AND NOT a.attisdropped
			UNION ALL
			SELECT k.attname, t.oid, t.typtype, t.typbasetype FROM kind k JOIN pg_type t ON t.oid = k.typbasetype WHERE k.typtype = 'd'
		)
		SELECT attname::text, format_type(oid, -1) FROM kind WHERE typtype <> 'd'`, TableName(s.cfg))
	if err != nil {
		return nil, classify("read the table's columns", err)
	}
	types := map[string]string{}
	var name, typ string
	if _, err := pgx.ForEachRow(rows, []any{&name, &typ}, func() error { types[name] = typ; return nil }); err != nil {
		return nil, classify("read the table's columns", err)
	}
	return types, nil
}
