package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// family returns SQL for a table and all tables below it: partitions, their partitions, and children by inheritance.
func family(of string) string {
	return `
	WITH RECURSIVE family AS (
		SELECT ` + of + ` AS oid
		UNION
		SELECT i.inhrelid FROM family JOIN pg_inherits i ON i.inhparent = family.oid
	), member AS (
		SELECT c.oid, c.relkind, c.relpersistence, format('%I.%I', n.nspname, c.relname) AS name
		FROM family JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
	)`
}

// flags has what pg_class says of a table. PostgreSQL sets a flag with the first of its kind and keeps it at least as long as
// there is one (catalog pg_class: relhassubclass, relhasrules, relhastriggers). Most outboxes have none, and then the queries
// for relatives, rules and triggers are left out: they cost the server more than the rest of a look.
type flags struct{ relatives, rules, triggers bool }

// flagsOf returns the flags of a table; none if there is no such table.
func flagsOf(ctx context.Context, conn *pgx.Conn, oid uint32) (f flags, err error) {
	err = conn.QueryRow(ctx, `SELECT relkind = 'p' OR relhassubclass OR relispartition, relhasrules, relhastriggers FROM pg_class WHERE oid = $1`, oid).
		Scan(&f.relatives, &f.rules, &f.triggers)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return f, classify("look for relatives, rules and triggers of the table", err)
	}
	return f, nil
}

// detours returns the ways past the stream that the catalog shows for rows of the table: hidden is for people, and
// mark is for the fingerprint, so that a detour that is added later is a change of the table. A table without detours
// has no mark: its older records stay valid.
//
// Children by inheritance are refused and not relayed; the chunks of a hypertable are such children. Their rows have
// the child's OID, and a child that is created later is in no publication until an administrator adds it, so its
// first rows are never in the stream.
func (s *Source) detours(ctx context.Context, conn *pgx.Conn, oid uint32, has flags) (mark string, hidden []cdc.Finding, err error) {
	hypertable, err := s.hypertable(ctx, conn)
	if err != nil {
		return "", nil, err
	}
	if hypertable {
		mark = " hypertable"
		hidden = append(hidden, Problem("hypertable", "make an ordinary table for the outbox, or one partitioned by RANGE (created_at), which is relayed as a whole", "source.table: %s is a hypertable: its rows are in its chunks, which the WAL shows as other tables", s.cfg.Table))
	}
	if has.relatives || has.rules {
		found, findings, err := s.around(ctx, conn, oid, hypertable)
		if err != nil {
			return "", nil, err
		}
		mark, hidden = mark+found, append(hidden, findings...)
	}
	if !has.relatives && !has.triggers {
		return mark, hidden, nil
	}
	triggers, senders, err := s.senders(ctx, conn, oid)
	return mark + triggers, append(hidden, senders...), err
}

// around returns the detours through children, partitions, rules, and the table above. The children of a hypertable are its
// chunks, which detours has reported already.
func (s *Source) around(ctx context.Context, conn *pgx.Conn, oid uint32, hypertable bool) (mark string, hidden []cdc.Finding, err error) {
	table, quoted, publication := s.cfg.Table, TableName(s.cfg), Ident(s.cfg.Publication)
	says := map[string][2]string{ // what was found, and what to run
		"children":   {"source.table: rows of " + table + " may be in tables that inherit from it ({names}), which the WAL shows as other tables", "make it a table partitioned by RANGE (created_at), which is relayed as a whole, or take each child away (ALTER TABLE {first} NO INHERIT " + quoted + ") and, when the relay streams again, write its rows into the outbox, where the WAL shows them: INSERT INTO " + quoted + " SELECT * FROM {first}{others}"},
		"partitions": {"source.table: partitions of " + table + " are unlogged, temporary or foreign ({names}), and their rows never reach the WAL", "ALTER TABLE {first} SET LOGGED{others}; if you detach one instead, write its rows into the outbox again"},
		"rules":      {"source.table: rules on " + table + " replace an INSERT by something else ({names})", "DROP RULE {first} ON " + quoted + "{others}, and write the rows that went elsewhere into the outbox again"},
		"under":      {"source.table: " + table + " is a partition of {names}, and publication " + publication + " shows its rows as that table's", "name that one in source.table, or ALTER PUBLICATION " + publication + " SET (publish_via_partition_root = false)"},
	}
	rows, err := conn.Query(ctx, family("$1::oid")+`, above AS (
			SELECT i.inhparent AS oid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhrelid = $1 AND c.relispartition
			UNION
			SELECT i.inhparent FROM above JOIN pg_inherits i ON i.inhrelid = above.oid
		), detour AS (
			SELECT 1 AS n, 'children' AS kind, m.oid::text AS mark, m.name FROM member m JOIN pg_class root ON root.oid = $1 AND root.relkind <> 'p' WHERE m.oid <> $1
			UNION ALL
			SELECT 2, 'partitions', m.oid::text, m.name FROM member m JOIN pg_class root ON root.oid = $1 AND root.relkind = 'p'
			WHERE m.oid <> $1 AND m.relkind <> 'p' AND (m.relpersistence <> 'p' OR m.relkind = 'f')
			UNION ALL
			SELECT 3, 'rules', r.oid::text || '/' || r.xmin::text, quote_ident(r.rulename) FROM pg_rewrite r
			WHERE r.ev_class = $1 AND r.ev_type = '3' AND r.is_instead AND r.ev_enabled IN ('O', 'A')
			UNION ALL
			SELECT 4, 'under', c.oid::text, format('%I.%I', n.nspname, c.relname)
			FROM above JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_publication p ON p.pubname = $2 AND p.pubviaroot
			WHERE EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = p.pubname AND t.schemaname = n.nspname AND t.tablename = c.relname)
		)
		SELECT kind, string_agg(mark, ',' ORDER BY mark), array_agg(name ORDER BY name) FROM detour GROUP BY n, kind ORDER BY n`, oid, s.cfg.Publication)
	if err != nil {
		return "", nil, classify("look for what hides rows", err)
	}
	var kind, these string
	var names []string
	if _, err := pgx.ForEachRow(rows, []any{&kind, &these, &names}, func() error {
		mark += " " + kind + " " + these
		if kind != "children" || !hypertable { // otherwise they are its chunks
			others := ""
			if len(names) > 1 {
				others = ", and the same for the others"
			}
			in := strings.NewReplacer("{names}", few(names), "{first}", names[0], "{others}", others)
			hidden = append(hidden, Problem("table_"+kind, in.Replace(says[kind][1]), "%s", in.Replace(says[kind][0])))
		}
		return nil
	}); err != nil {
		return "", nil, classify("look for what hides rows", err)
	}
	return mark, hidden, nil
}

// hypertable asks TimescaleDB's own catalog, if there is one: a hypertable has no chunk until it has a row.
func (s *Source) hypertable(ctx context.Context, conn *pgx.Conn) (is bool, err error) {
	const catalog = `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '_timescaledb_catalog' AND c.relname = 'hypertable')`
	if err = conn.QueryRow(ctx, catalog).Scan(&is); err == nil && is {
		schema, name := s.cfg.SchemaTable()
		err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM _timescaledb_catalog.hypertable WHERE schema_name = $1 AND table_name = $2)`, schema, name).Scan(&is)
	}
	if err != nil {
		return false, classify("look for hypertables", err)
	}
	return is, nil
}

// few lists some names, and how many more there are.
func few(names []string) string {
	const most = 3
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

var (
	aside = regexp.MustCompile(`'(?:[^']|'')*'|--[^\n]*|/\*(?s:.*?)\*/`) // literals and comments
	steps = regexp.MustCompile(`(?is)\b(?:(return\s*\(*\s*null\b|new\s*:?=\s*null\b|return\s+["']?skip\b)|(return)\b|(insert\s+into|merge\s+into|update\s[^;]*\sset)\b[^;]*|(?:execute|copy|pg_notify|pg_logical_emit_message|dblink\w*|http_\w+)\b)`)
)

// sendsAway reports whether a trigger function's body writes the row to another table and then removes it: the first
// RETURN after such a write is NULL. A function that only removes rows, or writes at most an id into a table to
// recognize a repeat, hides nothing that is in a table. A function that writes and returns NEW is a log. In a
// language other than plpgsql every write counts.
func sendsAway(language, body, payload string) bool {
	row := regexp.MustCompile(`(?i)\bnew\s*(?:\.\s*\*|[,)]|$|\.\s*"?` + regexp.QuoteMeta(payload) + `\b)`)
	if language == "plpgsql" {
		body = aside.ReplaceAllString(body, " ")
	}
	wrote := false
	for _, step := range steps.FindAllStringSubmatch(body, -1) {
		switch null, other, table := step[1] != "", step[2] != "", step[3] != ""; {
		case null && wrote:
			return true
		case null, other:
			wrote = false
		default:
			wrote = wrote || !table || language != "plpgsql" || row.MatchString(step[0])
		}
	}
	return false
}

// senders returns the triggers that send a row to another table before it is inserted, as far as their functions show
// it.
func (s *Source) senders(ctx context.Context, conn *pgx.Conn, oid uint32) (mark string, hidden []cdc.Finding, err error) {
	const row, before, insert = 1, 2, 4 // bits of pg_trigger.tgtype
	rows, err := conn.Query(ctx, family("$1::oid")+`
		SELECT t.oid, t.tgname::text, m.name, p.oid::regproc::text, l.lanname::text, p.prosrc, p.oid::text || '/' || md5(p.prosrc)
		FROM member m JOIN pg_trigger t ON t.tgrelid = m.oid JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_language l ON l.oid = p.prolang
		WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled IN ('O', 'A') AND t.tgtype & $2 = $2 AND l.lanname NOT IN ('internal', 'c')
		ORDER BY t.oid`, oid, row|before|insert)
	if err != nil {
		return "", nil, classify("read the table's triggers", err)
	}
	var trigger uint32
	var name, table, function, language, body, version string
	if _, err := pgx.ForEachRow(rows, []any{&trigger, &name, &table, &function, &language, &body, &version}, func() error {
		if sendsAway(language, body, s.cfg.Columns.Payload) {
			name = Ident(name)
			mark += fmt.Sprintf(" trigger %d/%s", trigger, version)
			hidden = append(hidden, Problem("table_triggers", fmt.Sprintf("ALTER TABLE %s DISABLE TRIGGER %s, or let it return NEW, and write the rows that went elsewhere into the outbox again", table, name),
				"source.table: trigger %s on %s sends rows to another table instead of inserting them (function %s writes them and returns NULL)", name, table, function))
		}
		return nil
	}); err != nil {
		return "", nil, classify("read the table's triggers", err)
	}
	return mark, hidden, nil
}

// moved names the partition keys that an UPDATE may change. The row then moves to another partition, and the WAL
// shows the move as an insert, which would publish the event again. The columns that an insert fixes for good are
// those of the event.
func (s *Source) moved(ctx context.Context, conn *pgx.Conn, oid uint32) (unfit []cdc.Finding, err error) {
	c := s.cfg.Columns
	fixed := []string{c.ID, c.AggregateType, c.AggregateID, c.EventType, createdAt(s.cfg)}
	rows, err := conn.Query(ctx, family("$1::oid")+`
		SELECT m.name, array_agg(DISTINCT quote_ident(a.attname))
		FROM member m JOIN pg_partitioned_table p ON p.partrelid = m.oid
		     CROSS JOIN LATERAL (SELECT unnest(p.partattrs)::int UNION SELECT (regexp_matches(p.partexprs::text, ':varattno (\d+)', 'g'))[1]::int) k(num)
		     JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = k.num
		WHERE NOT a.attname::text = ANY($2) GROUP BY m.name ORDER BY m.name`, oid, fixed)
	if err != nil {
		return nil, classify("read the table's partitioning", err)
	}
	var name string
	var columns []string
	if _, err := pgx.ForEachRow(rows, []any{&name, &columns}, func() error {
		unfit = append(unfit, Problem("table_partition_key", fmt.Sprintf("partition it by RANGE (%s), or use source.kind: polling", Ident(createdAt(s.cfg))),
			"source.table: %s is partitioned by %s, which an UPDATE can change: PostgreSQL then moves the row, the WAL shows that as another insert, and the event would be published again",
			name, strings.Join(columns, ", ")))
		return nil
	}); err != nil {
		return nil, classify("read the table's partitioning", err)
	}
	return unfit, nil
}

// createdAt returns the column of a row's time, whether the table has it or not.
func createdAt(cfg config.Source) string {
	if cfg.Columns.CreatedAt != "" && cfg.Columns.CreatedAt != config.None {
		return cfg.Columns.CreatedAt
	}
	return "created_at"
}
