package polling

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/postgres"
)

// DDL returns the statements that create the table, for a service that has its own migrations. `walpost init` creates the same
// table, and adds columns and indexes that an existing table lacks.
func DDL(cfg config.Source) []string {
	o := NewOutbox("", cfg, zerolog.Nop())
	return slices.Concat([]string{postgres.TableDDL(cfg)}, o.columnDDL(nil), o.indexDDL())
}

// Plan returns the steps that prepare the role and the table for polling, in order.
func (o *Outbox) Plan(ctx context.Context, admin *postgres.Admin) ([]postgres.Step, error) {
	t, err := admin.Table(ctx)
	if err != nil {
		return nil, err
	}
	has, err := o.inspect(ctx, t)
	switch {
	case err != nil:
		return nil, err
	case len(has.problems) > 0:
		return nil, t.Unfit(has.problems...)
	}
	name := o.cfg.Table
	plan := postgres.TablePlan{OID: t.OID, Table: postgres.Step{SQL: has.sql}}
	switch {
	case t.OID == 0:
		plan.Table.What = fmt.Sprintf("table %s: create it, with the columns and indexes for polling", name)
	case len(has.sql) > 0:
		plan.Table.What = fmt.Sprintf("table %s: add the columns and indexes for polling; this locks the table, and its present rows become pending", name)
	default:
		plan.Table.What = fmt.Sprintf("table %s: exists, with the columns and indexes for polling", name)
	}
	return admin.PlanTable(ctx, plan)
}

// Marks returns the condition that is true for rows that were delivered or dropped, and the column with the time.
func (o *Outbox) Marks() *postgres.Marks {
	return &postgres.Marks{
		Delivered: o.sql("{status} IN ({sent}, {dropped})"), Column: o.cfg.Polling.Columns.ProcessedAt, Key: "source.polling.columns.processed_at",
	}
}

// check returns a HaltError that names every fault of the schema with which the table cannot be polled. Its cost does not depend on the
// number of rows.
func (o *Outbox) check(ctx context.Context, t *postgres.OpenTable) error {
	has, err := o.inspect(ctx, t)
	if err != nil {
		return err
	}
	if all := slices.Concat(has.problems, has.missing); len(all) > 0 {
		return t.Unfit(all...)
	}
	if err := t.SeesAll(ctx); errors.Is(err, postgres.ErrUnseen) {
		return t.Unfit(cdc.Finding{Found: err.Error()})
	} else if err != nil {
		return err
	}
	return nil
}

// inspection has the faults of a table, and the SQL that fixes those that init can fix.
type inspection struct {
	problems []cdc.Finding // faults that only an operator can fix
	missing  []cdc.Finding // columns and indexes that init creates
	sql      []string      // the statements that create them
}

// bad adds a fault that only an operator can fix, with how.
func (i *inspection) bad(run, format string, args ...any) {
	i.problems = append(i.problems, postgres.Problem("polling_table", run, format, args...))
}

// lacks adds something that init creates.
func (i *inspection) lacks(run, format string, args ...any) {
	f := postgres.Problem("polling_table", run, format, args...)
	f.Init = true
	i.missing = append(i.missing, f)
}

// inspect checks the table's columns and indexes.
func (o *Outbox) inspect(ctx context.Context, t *postgres.OpenTable) (*inspection, error) {
	if t.OID == 0 {
		return &inspection{missing: t.Missing, sql: DDL(o.cfg)}, nil
	}
	i := &inspection{problems: t.Problems}
	has, err := o.readColumns(ctx, t)
	if err != nil {
		return nil, err
	}
	o.checkColumns(has, i)
	if _, there := has[o.cfg.Polling.Columns.Position]; t.Partitioned && !there {
		var barred bool
		err := t.Conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int < 170000 AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = $1)`, t.OID).Scan(&barred)
		if err != nil {
			return nil, classify(t, "look for partitions", err)
		}
		if barred {
			i.bad("detach them, let `walpost init` add the columns, and attach new ones", "source.table: %s has partitions, and PostgreSQL adds no identity column to such a table before version 17", o.cfg.Table)
		}
	}
	return i, o.checkIndexes(ctx, t, i)
}

// column is a column that polling needs. When init adds the columns to a table, the table's rows become pending.
type column struct {
	key, name string
	types     []string
	ddl       string
}

// columns returns the columns that polling needs, in their order.
func (o *Outbox) columns() []column {
	c := o.cfg.Polling.Columns
	var words []string
	for _, word := range o.cfg.Polling.Words.All() {
		words = append(words, postgres.Literal(word[1]))
	}
	return []column{
		{"transaction", c.Transaction, []string{"xid8"}, "xid8 NOT NULL DEFAULT pg_current_xact_id()"},
		{"position", c.Position, []string{"bigint"}, "bigint GENERATED ALWAYS AS IDENTITY"},
		{"status", c.Status, []string{"text", "character varying"}, o.sql("text NOT NULL DEFAULT {pending} CONSTRAINT ") + postgres.ConstraintName(o.cfg, "status_word") + o.sql(" CHECK ({status} IN (") + strings.Join(words, ", ") + "))"},
		{"processed_at", c.ProcessedAt, []string{"timestamp with time zone"}, "timestamptz"},
		{"retry_count", c.RetryCount, []string{"integer", "bigint"}, "integer NOT NULL DEFAULT 0"},
		{"last_error", c.LastError, []string{"text"}, "text"},
	}
}

// existing is a column as the catalog describes it.
type existing struct {
	num                  int
	typ, value, identity string
	cache                int64 // CACHE of the column's sequence
	enum                 bool  // the type is an enum, or a domain over one
}

// readColumns reads the table's columns from the catalog.
func (o *Outbox) readColumns(ctx context.Context, t *postgres.OpenTable) (map[string]existing, error) {
	rows, err := t.Conn.Query(ctx, `
		SELECT attname::text, attnum, format_type(atttypid, NULL), coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attidentity::text,
		       coalesce((SELECT seqcache FROM pg_sequence WHERE seqrelid = pg_get_serial_sequence($2, attname)::regclass), 0),
		       EXISTS (WITH RECURSIVE kind AS (SELECT atttypid AS oid UNION ALL SELECT typbasetype FROM kind JOIN pg_type USING (oid) WHERE typtype = 'd')
		               SELECT FROM kind JOIN pg_type USING (oid) WHERE typtype = 'e')
		FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped`, t.OID, postgres.TableName(o.cfg))
	if err != nil {
		return nil, classify(t, "read the table's columns", err)
	}
	columns := map[string]existing{}
	var name string
	var c existing
	if _, err := pgx.ForEachRow(rows, []any{&name, &c.num, &c.typ, &c.value, &c.identity, &c.cache, &c.enum}, func() error { columns[name] = c; return nil }); err != nil {
		return nil, classify(t, "read the table's columns", err)
	}
	return columns, nil
}

// checkColumns adds the faults of the columns.
func (o *Outbox) checkColumns(has map[string]existing, i *inspection) {
	for _, want := range o.columns() {
		switch c, there := has[want.name]; {
		case !there:
			i.lacks("`walpost init` adds it", "source.polling.columns.%s: the table has no column %q", want.key, want.name)
		case !slices.Contains(want.types, c.typ):
			i.bad("it must be "+want.types[0], "source.polling.columns.%s: column %q is %s", want.key, want.name, c.typ)
		}
	}
	i.sql = append(i.sql, o.columnDDL(has)...)
	if key := has[o.cfg.Columns.AggregateID]; key.enum {
		i.bad("name a column of another type, or use source.kind: wal", "source.columns.aggregate_id: column %q has the type %s, an enum, and PostgreSQL cannot index an enum's text, which polling needs", o.cfg.Columns.AggregateID, key.typ)
	}
	names, pending := o.cfg.Polling.Columns, o.cfg.Polling.Words.Pending
	if status, there := has[names.Status]; there && !strings.HasPrefix(status.value, postgres.Literal(pending)+"::") {
		i.bad("write the rows' word in the configuration, or run "+o.sql("ALTER TABLE {table} ALTER {status} SET DEFAULT {pending}"),
			"source.polling.words.pending: new rows have the %s %s, and the relay looks for %q", names.Status, cmp.Or(status.value, "NULL unless the writer names one"), pending)
	}
	tx, transacts := has[names.Transaction]
	position, orders := has[names.Position]
	if transacts && tx.value != "pg_current_xact_id()" {
		i.bad(o.sql("ALTER TABLE {table} ALTER {transaction} SET DEFAULT pg_current_xact_id()"), "source.polling.columns.transaction: column %q needs the default pg_current_xact_id(), or rows could be overtaken", names.Transaction)
	}
	if orders && (position.identity == "" || position.cache != 1) {
		i.bad("drop it and the column of source.polling.columns.transaction, and let `walpost init` add both", "source.polling.columns.position: column %q must be GENERATED ALWAYS AS IDENTITY with a sequence of CACHE 1, or rows could be overtaken", names.Position)
	}
	if orders && (!transacts || tx.num > position.num) {
		i.bad("drop both, and let `walpost init` add them", "source.polling.columns.transaction: column %q must come before %q in the table, or rows could be overtaken", names.Transaction, names.Position)
	}
}

// columnDDL returns the statement that adds the missing columns; nil if none is missing.
func (o *Outbox) columnDDL(has map[string]existing) []string {
	var add []string
	for _, want := range o.columns() {
		if _, there := has[want.name]; !there {
			add = append(add, "ADD COLUMN "+postgres.Ident(want.name)+" "+want.ddl)
		}
	}
	if len(add) == 0 {
		return nil
	}
	return []string{o.sql("ALTER TABLE {table}\n    ") + strings.Join(add, ",\n    ")}
}

// indexDDL returns the statements that create the indexes on pending rows and on rows that hold others. The second uses a hash of the
// key, because a key may be larger than an index entry.
func (o *Outbox) indexDDL() []string {
	all := []string{
		o.sql("CREATE INDEX ON {table} ({position}) WHERE {status} = {pending}"),
		o.sql("CREATE INDEX ON {table} (hashtextextended({key}::text, 0), {position}) WHERE {status} = {failed} OR {status} = {pending} AND {retry_count} > 0"),
	}
	if o.cfg.Columns.AggregateID == config.None { // no row holds another
		return all[:1]
	}
	return all
}

// checkIndexes adds the missing indexes.
func (o *Outbox) checkIndexes(ctx context.Context, t *postgres.OpenTable, i *inspection) error {
	rows, err := t.Conn.Query(ctx, `
		SELECT coalesce(a.attname::text, pg_get_indexdef(i.indexrelid, 1, false)), pg_get_expr(i.indpred, i.indrelid)
		FROM pg_index i LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
		WHERE i.indrelid = $1 AND i.indisvalid AND i.indpred IS NOT NULL`, t.OID)
	if err != nil {
		return classify(t, "read the table's indexes", err)
	}
	words := o.cfg.Polling.Words
	var column, predicate string
	var pending, holding bool
	if _, err := pgx.ForEachRow(rows, []any{&column, &predicate}, func() error {
		failed := strings.Contains(predicate, postgres.Literal(words.Failed))
		pending = pending || column == o.cfg.Polling.Columns.Position && strings.Contains(predicate, postgres.Literal(words.Pending)) && !failed
		holding = holding || strings.HasPrefix(column, "hashtextextended(") && strings.Contains(column, o.cfg.Columns.AggregateID) && failed
		return nil
	}); err != nil {
		return classify(t, "read the table's indexes", err)
	}
	there := []bool{pending, holding}
	for n, sql := range o.indexDDL() {
		if !there[n] {
			i.lacks("let `walpost init` create it, or create it yourself: "+sql, "source.table: %s has no index for polling", o.cfg.Table)
			i.sql = append(i.sql, sql)
		}
	}
	return nil
}

// Check returns a HaltError if the table cannot be polled.
func (o *Outbox) Check(ctx context.Context) error {
	t, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = t.Conn.Close(ctx) }()
	return o.unknownWords(ctx, t)
}

// unknownWords returns a HaltError if a row has a status that is none of the configured words: such a row would never be published. It
// reads the table, for up to 5 s, so a session calls it once, and no probe does.
func (o *Outbox) unknownWords(ctx context.Context, t *postgres.OpenTable) error {
	var words []string
	for _, w := range o.cfg.Polling.Words.All() {
		words = append(words, w[1])
	}
	var word string
	_, err := t.Conn.Exec(ctx, `SET statement_timeout = '5s'`)
	if err == nil {
		err = t.Conn.QueryRow(ctx, o.sql(`SELECT coalesce({status}, 'NULL') FROM {table} WHERE ({status} = ANY($1)) IS NOT TRUE LIMIT 1`), words).Scan(&word)
	}
	_, reset := t.Conn.Exec(ctx, `SET statement_timeout = 0`)
	switch {
	case errors.Is(err, pgx.ErrNoRows), postgres.SQLState(err) == pgerrcode.QueryCanceled:
		return reset
	case err != nil:
		return classify(t, "look for unknown status words", err)
	}
	return t.Unfit(postgres.Problem("polling_words", "name it there, or correct the row", "source.polling.words: a row has the %s %.100q, which is none of %s", o.sql("{status}"), word, strings.Join(words, ", ")))
}
