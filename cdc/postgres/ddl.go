package postgres

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/config"
)

// daysAhead is how many partitions are created before they are needed.
const daysAhead = 7

// TableDDL returns the SQL for the outbox table that `walpost init` creates if there is none. Its CHECKs fail a
// writer's INSERT for a row that the relay or Kafka could never take.
func TableDDL(cfg config.Source) string {
	c := cfg.Columns
	names := []string{
		"{table}", TableName(cfg), "{id}", Ident(c.ID), "{aggregate_type}", Ident(made(c.AggregateType, "aggregate_type")), "{aggregate_id}", Ident(made(c.AggregateID, "aggregate_id")),
		"{event_type}", Ident(made(c.EventType, "event_type")), "{payload}", Ident(c.Payload), "{headers}", Ident(made(c.Headers, "headers")), "{created_at}", Ident(createdAt(cfg)),
	}
	for _, holds := range []string{"aggregate_type", "aggregate_id", "event_type", "payload_object", "payload_size", "headers_object", "headers_size"} {
		names = append(names, "{_"+holds+"}", ConstraintName(cfg, holds))
	}
	return strings.NewReplacer(names...).Replace(`CREATE TABLE {table} (
    {id} uuid PRIMARY KEY,
    {aggregate_type} text NOT NULL
        CONSTRAINT {_aggregate_type} CHECK ({aggregate_type} ~ '^[A-Za-z0-9._-]{1,100}$'),
    {aggregate_id} text NOT NULL
        CONSTRAINT {_aggregate_id} CHECK (octet_length({aggregate_id}) BETWEEN 1 AND 1024),
    {event_type} text NOT NULL
        CONSTRAINT {_event_type} CHECK (octet_length({event_type}) BETWEEN 1 AND 255),
    {payload} jsonb NOT NULL
        CONSTRAINT {_payload_object} CHECK (jsonb_typeof({payload}) = 'object')
        CONSTRAINT {_payload_size} CHECK (octet_length({payload}::text) <= 900000),
    {headers} jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT {_headers_object} CHECK (jsonb_typeof({headers}) = 'object')
        CONSTRAINT {_headers_size} CHECK (octet_length({headers}::text) <= 16384),
    {created_at} timestamptz NOT NULL DEFAULT clock_timestamp()
)`)
}

// made returns the name of a column in a table that init creates, which has all columns.
func made(value, otherwise string) string {
	if _, constant := config.Constant(value); constant || value == config.None || value == "" {
		return otherwise
	}
	return value
}

// ConstraintName returns the quoted name of a constraint of the outbox, which says what it checks. PostgreSQL would
// cut two long names to the same 63 bytes.
func ConstraintName(cfg config.Source, holds string) string {
	_, table := cfg.SchemaTable()
	if most := 62 - len(holds); len(table) > most {
		table = strings.ToValidUTF8(table[:most], "")
	}
	return Ident(table + "_" + holds)
}

// partitionedDDL returns TableDDL for a table partitioned by day. The key of a partitioned table contains the
// partition key. The default partition takes the rows of a day without a partition: a service must not fail because
// its partition was not created.
func partitionedDDL(cfg config.Source) (sql []string) {
	c := cfg.Columns
	created := Ident(createdAt(cfg))
	id := Ident(c.ID)
	root := strings.Replace(TableDDL(cfg), id+" uuid PRIMARY KEY", id+" uuid NOT NULL", 1)
	schema, table := cfg.SchemaTable()
	sql = append(sql, strings.TrimSuffix(root, "\n)")+fmt.Sprintf(",\n    PRIMARY KEY (%s, %s)\n) PARTITION BY RANGE (%s)", id, created, created),
		fmt.Sprintf("CREATE TABLE %s PARTITION OF %s DEFAULT", Ident(schema, table+"_default"), TableName(cfg)))
	for _, day := range days(time.Now()) {
		_, ddl := partitionDDL(cfg, day)
		sql = append(sql, ddl...)
	}
	return sql
}

// days returns today and the coming days, for a local time now.
func days(now time.Time) (all []time.Time) {
	today := now.UTC().Truncate(24 * time.Hour)
	for i := range daysAhead + 1 {
		all = append(all, today.AddDate(0, 0, i))
	}
	return all
}

// partitionDDL returns the SQL that creates a day's partition as a separate table and attaches it. Writers can
// continue meanwhile; PARTITION OF would block them.
func partitionDDL(cfg config.Source, day time.Time) (name string, sql []string) {
	schema, table := cfg.SchemaTable()
	table += day.Format("_20060102")
	quoted := Ident(schema, table)
	const at = "2006-01-02 15:04:05+00" // a timestamp without time zone ignores the zone
	return schema + "." + table, []string{
		fmt.Sprintf("CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY)", quoted, TableName(cfg)),
		fmt.Sprintf("ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')", TableName(cfg), quoted, day.Format(at), day.AddDate(0, 0, 1).Format(at)),
	}
}

// carriesUpdates reports whether a publication of the outbox carries updates: if a route asks for them, and the table
// has a primary key. Without a key PostgreSQL would reject every update of a table whose publication carries them.
func carriesUpdates(cfg config.Source, t table) bool {
	v := cfg.Columns.Verbatim
	return v != nil && (v.Rekeyed || v.Updates == config.HaltAtUpdate) && slices.ContainsFunc(t.columns, func(c column) bool { return c.key > 0 })
}

// operations returns what a publication of the outbox carries, in words.
func operations(cfg config.Source, t table) string {
	if carriesUpdates(cfg, t) {
		return "inserts and updates"
	}
	return "inserts"
}

// publishes returns the setting publish of a publication of the outbox.
func publishes(cfg config.Source, t table) string {
	if carriesUpdates(cfg, t) {
		return "publish = 'insert, update'"
	}
	return "publish = 'insert'"
}

// publicationDDL returns the SQL for a publication of the outbox alone.
func publicationDDL(cfg config.Source, name string, t table) string {
	with := publishes(cfg, t)
	if t.partitioned {
		with += ", publish_via_partition_root = true"
	}
	if named, _ := t.generated(&cfg.Columns); len(named) > 0 { // from PostgreSQL 18 on
		with += ", publish_generated_columns = stored"
	}
	return fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (%s)", Ident(name), TableName(cfg), with)
}
