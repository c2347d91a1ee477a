package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc/config"
)

// OpenPolled connects for polling, and gives the table's oid and the expressions of a row's columns, in the order of a cdc.Row's
// fields. A table that cannot be polled is a Halt that names everything that is wrong.
func (s *Source) OpenPolled(ctx context.Context) (conn *pgx.Conn, oid uint32, columns []string, err error) {
	if conn, err = s.Open(ctx); err != nil {
		return nil, 0, nil, err
	}
	p, err := s.polled(ctx, conn)
	if err == nil && len(p.problems)+len(p.missing) > 0 {
		err = unfit(append(p.problems, p.missing...))
	}
	if err == nil {
		if err = s.seesAll(ctx, conn, false); errors.Is(err, ErrUnseen) {
			err = unfit([]string{err.Error()})
		}
	}
	if err == nil {
		err = s.unknownWords(ctx, conn)
	}
	if err == nil {
		columns, _, err = s.rowColumns(ctx, conn)
	}
	if err != nil {
		_ = conn.Close(ctx)
		return nil, 0, nil, err
	}
	return conn, p.oid, columns, nil
}

// polled is what polling finds of the table, and the SQL that makes what it needs.
type polled struct {
	oid      uint32
	problems []string // what nothing of ours fixes
	missing  []string // what init makes
	sql      []string // that makes it
}

// polled looks at the table's columns and indexes.
func (s *Source) polled(ctx context.Context, conn *pgx.Conn) (p polled, err error) {
	t, err := s.checkTable(ctx, conn)
	if err != nil {
		return p, err
	}
	if t.oid == 0 {
		p.missing = t.hidden
		p.sql = PolledDDL(s.cfg)
		return p, nil
	}
	p.oid, p.problems = t.oid, t.unfit
	bad := func(format string, args ...any) { p.problems = append(p.problems, fmt.Sprintf(format, args...)) }

	type found struct {
		num                 int
		typ, value, inserts string
		cache               int64
	}
	columns := map[string]found{}
	rows, err := conn.Query(ctx, `
		SELECT attname::text, attnum, format_type(atttypid, NULL), coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attidentity::text,
		       coalesce((SELECT seqcache FROM pg_sequence WHERE seqrelid = pg_get_serial_sequence($2, attname)::regclass), 0)
		FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped`, t.oid, quotedTable(s.cfg))
	if err != nil {
		return p, classify("read the table's columns", err)
	}
	var name string
	var f found
	if _, err := pgx.ForEachRow(rows, []any{&name, &f.num, &f.typ, &f.value, &f.inserts, &f.cache}, func() error { columns[name] = f; return nil }); err != nil {
		return p, classify("read the table's columns", err)
	}
	c := s.cfg.Polling.Columns
	have := map[string]bool{}
	for _, want := range []struct {
		key, name string
		types     []string
	}{
		{"transaction", c.Transaction, []string{"xid8"}},
		{"position", c.Position, []string{"bigint"}},
		{"status", c.Status, []string{"text", "character varying"}},
		{"processed_at", c.ProcessedAt, []string{"timestamp with time zone"}},
		{"retry_count", c.RetryCount, []string{"integer", "bigint"}},
		{"last_error", c.LastError, []string{"text"}},
	} {
		switch f, there := columns[want.name]; {
		case !there:
			p.missing = append(p.missing, fmt.Sprintf("source.polling.columns.%s: the table has no column %q: `walpost init` adds it", want.key, want.name))
		case !slices.Contains(want.types, f.typ):
			bad("source.polling.columns.%s: column %q is %s: it must be %s", want.key, want.name, f.typ, want.types[0])
			fallthrough
		default:
			have[want.name] = true
		}
	}
	if f := columns[c.Status]; have[c.Status] && !strings.HasPrefix(f.value, quote(s.cfg.Polling.Words.Pending)+"::") {
		bad("source.polling.words.pending: new rows have the %s %s, and %q would never be found: make them the same", c.Status, cmp.Or(f.value, "NULL"), s.cfg.Polling.Words.Pending)
	}
	tx, position := columns[c.Transaction], columns[c.Position]
	if have[c.Transaction] && tx.value != "pg_current_xact_id()" {
		bad("source.polling.columns.transaction: column %q needs the default pg_current_xact_id(), or rows could be overtaken", c.Transaction)
	}
	if have[c.Position] && (position.inserts == "" || position.cache != 1) {
		bad("source.polling.columns.position: column %q must be GENERATED ALWAYS AS IDENTITY with a sequence of CACHE 1, or rows could be overtaken", c.Position)
	}
	if have[c.Position] && (!have[c.Transaction] || tx.num > position.num) {
		bad("source.polling.columns.transaction: column %q must stand before %q in the table, or rows could be overtaken: drop both, and let `walpost init` add them", c.Transaction, c.Position)
	}
	p.sql = s.columnDDL(have)
	if t.partitioned && !have[c.Position] {
		var barred bool
		err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int < 170000 AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = $1)`, t.oid).Scan(&barred)
		if err != nil {
			return p, classify("look for partitions", err)
		}
		if barred {
			bad("source.table: %s has partitions, and PostgreSQL adds no identity column to such a table before version 17: detach them, let `walpost init` add the columns, and attach new ones", s.cfg.Table)
		}
	}
	return p, s.polledIndexes(ctx, conn, &p)
}

func (s *Source) polledIndexes(ctx context.Context, conn *pgx.Conn, p *polled) error {
	rows, err := conn.Query(ctx, `
		SELECT coalesce(a.attname::text, pg_get_indexdef(i.indexrelid, 1, false)), pg_get_expr(i.indpred, i.indrelid)
		FROM pg_index i LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
		WHERE i.indrelid = $1 AND i.indisvalid AND i.indpred IS NOT NULL`, p.oid)
	if err != nil {
		return classify("read the table's indexes", err)
	}
	first, words := s.cfg.Polling.Columns.Position, s.cfg.Polling.Words
	var column, predicate string
	var pending, troubled bool
	if _, err := pgx.ForEachRow(rows, []any{&column, &predicate}, func() error {
		failed := strings.Contains(predicate, quote(words.Failed))
		pending = pending || column == first && strings.Contains(predicate, quote(words.Pending)) && !failed
		troubled = troubled || strings.HasPrefix(column, "hashtextextended(") && strings.Contains(column, s.cfg.Columns.AggregateID) && failed
		return nil
	}); err != nil {
		return classify("read the table's indexes", err)
	}
	for i, there := range []bool{pending, troubled} {
		if sql := s.indexDDL()[i]; !there {
			p.missing = append(p.missing, fmt.Sprintf("source.table: %s has no index for polling: let `walpost init` make it, or run it yourself: %s", s.cfg.Table, sql))
			p.sql = append(p.sql, sql)
		}
	}
	return nil
}

// unknownWords looks for a status that nobody would ever do anything about. A large table is not read to its end for it.
func (s *Source) unknownWords(ctx context.Context, conn *pgx.Conn) error {
	var words []string
	for _, w := range s.cfg.Polling.Words.All() {
		words = append(words, w[1])
	}
	status := pgx.Identifier{s.cfg.Polling.Columns.Status}.Sanitize()
	var word string
	_, err := conn.Exec(ctx, `SET statement_timeout = '5s'`)
	if err == nil {
		err = conn.QueryRow(ctx, fmt.Sprintf(`SELECT coalesce(%[1]s, 'NULL') FROM %[2]s WHERE (%[1]s = ANY($1)) IS NOT TRUE LIMIT 1`, status, quotedTable(s.cfg)), words).Scan(&word)
	}
	_, reset := conn.Exec(ctx, `SET statement_timeout = 0`)
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows), errors.As(err, &pg) && pg.Code == "57014":
		return reset
	case err != nil:
		return classify("look for unknown status words", err)
	}
	return unfit([]string{fmt.Sprintf("source.polling.words: a row has the %s %.100q, which is none of %s: name it there, or correct the row", status, word, strings.Join(words, ", "))})
}

func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", "''") + "'" }

// PolledDDL makes a table that can be polled where there is none.
func PolledDDL(cfg config.Source) []string {
	s := NewSource("", cfg)
	return append(append([]string{TableDDL(cfg)}, s.columnDDL(nil)...), s.indexDDL()...)
}

// columnDDL adds the columns that are not there yet. Rows that are in the table are pending then.
func (s *Source) columnDDL(have map[string]bool) []string {
	c, w := s.cfg.Polling.Columns, s.cfg.Polling.Words
	var words []string
	for _, word := range w.All() {
		words = append(words, quote(word[1]))
	}
	var add []string
	for _, column := range []struct{ name, is string }{
		{c.Transaction, "xid8 NOT NULL DEFAULT pg_current_xact_id()"},
		{c.Position, "bigint GENERATED ALWAYS AS IDENTITY"},
		{c.Status, fmt.Sprintf("text NOT NULL DEFAULT %s CHECK (%s IN (%s))", quote(w.Pending), pgx.Identifier{c.Status}.Sanitize(), strings.Join(words, ", "))},
		{c.ProcessedAt, "timestamptz"},
		{c.RetryCount, "integer NOT NULL DEFAULT 0"},
		{c.LastError, "text"},
	} {
		if !have[column.name] {
			add = append(add, "ADD COLUMN "+pgx.Identifier{column.name}.Sanitize()+" "+column.is)
		}
	}
	if len(add) == 0 {
		return nil
	}
	return []string{"ALTER TABLE " + quotedTable(s.cfg) + "\n    " + strings.Join(add, ",\n    ")}
}

// indexDDL are the indexes on what is pending, and on what holds others back: by a hash, for a key may be larger than an index takes.
func (s *Source) indexDDL() []string {
	p, c := s.cfg.Polling, s.cfg.Columns
	id := func(name string) string { return pgx.Identifier{name}.Sanitize() }
	status, position := id(p.Columns.Status), id(p.Columns.Position)
	return []string{
		fmt.Sprintf("CREATE INDEX ON %s (%s) WHERE %s = %s", quotedTable(s.cfg), position, status, quote(p.Words.Pending)),
		fmt.Sprintf("CREATE INDEX ON %s (hashtextextended(%s::text, 0), %s) WHERE %s = %s OR %s = %s AND %s > 0", quotedTable(s.cfg),
			id(c.AggregateID), position, status, quote(p.Words.Failed), status, quote(p.Words.Pending), id(p.Columns.RetryCount)),
	}
}

// PlanPolled returns the steps that role and table need for polling, in order.
func (a *Admin) PlanPolled(ctx context.Context) ([]Step, error) {
	role, err := a.planPollingRole(ctx)
	if err != nil {
		return nil, err
	}
	cfg := a.source.cfg
	p, err := a.source.polled(ctx, a.conn)
	switch {
	case err != nil:
		return nil, err
	case len(p.problems) > 0:
		return nil, unfit(p.problems)
	}
	outbox := Step{What: fmt.Sprintf("table %s: there, with the columns and indexes that polling needs", cfg.Table), SQL: p.sql}
	switch {
	case p.oid == 0:
		outbox.What = fmt.Sprintf("table %s: create it, with the columns and indexes that polling needs", cfg.Table)
	case len(p.sql) > 0:
		outbox.What = fmt.Sprintf("table %s: add what polling needs; it is locked meanwhile, and rows that are in it are pending then", cfg.Table)
	}
	lacks, err := a.privileges(ctx, p.oid, len(p.sql) > 0, false)
	if err != nil {
		return nil, err
	}
	refused, err := a.try(ctx, role)
	if err != nil {
		return nil, err
	}
	if refused {
		lacks = append(lacks, fmt.Sprintf("%s: the role of %s may not do that: let one who may run it, or name a role in source.url that is there", strings.Join(role.SQL, "; "), adminURL))
	}
	if len(lacks) > 0 {
		return nil, errForbidden(lacks)
	}
	schema, _ := cfg.SchemaTable()
	user := pgx.Identifier{role.role}.Sanitize()
	grants := Step{What: fmt.Sprintf("role %s: let it read, mark and delete rows of %s", role.role, cfg.Table), SQL: []string{
		fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s", pgx.Identifier{schema}.Sanitize(), user),
		fmt.Sprintf("GRANT SELECT, UPDATE, DELETE ON %s TO %s", quotedTable(cfg), user),
	}}
	sight, err := a.planSight(ctx, true) // it cleans partitions up by their names
	if err != nil {
		return nil, err
	}
	steps := append([]Step{role, outbox, grants}, sight...)
	notes, err := a.source.notes(ctx, a.conn, table{})
	for _, note := range notes {
		steps = append(steps, Step{What: note})
	}
	return steps, err
}

// planPollingRole gives the relay's role LOGIN, and CONNECT where PUBLIC has it not: polling does not replicate.
func (a *Admin) planPollingRole(ctx context.Context) (Step, error) {
	step, there, login, _, err := a.theirRole(ctx, false)
	if err != nil {
		return Step{}, err
	}
	name := pgx.Identifier{step.role}.Sanitize()
	var sql []string
	switch {
	case !there:
		step.What, sql = fmt.Sprintf("role %s: create it with LOGIN", step.role), []string{"CREATE ROLE " + name + " LOGIN CONNECTION LIMIT 24" + step.password()}
	case !login:
		step.What, sql = fmt.Sprintf("role %s: give it LOGIN", step.role), []string{"ALTER ROLE " + name + " LOGIN"}
	case len(step.SQL) > 0:
		step.What = fmt.Sprintf("role %s: let it connect to the database", step.role)
	default:
		step.What = fmt.Sprintf("role %s: there, with LOGIN", step.role)
	}
	step.SQL = append(sql, step.SQL...)
	return step, nil
}
