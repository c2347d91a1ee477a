package postgres

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
)

// keyColumns can be an id or a key; %d is a number that no other row has.
var keyColumns = map[string][]string{
	"uuid": {`'0192f1a0-0000-7000-8000-00000000000%d'`}, "smallint": {"%d"}, "int": {"-%d"}, "bigint": {"%d000000000"},
	"numeric": {"%d.50", "'%de400'", "'NaN'"}, "text": {`'ü %d'`, "'%d  '"}, `varchar(20)`: {`'v%d '`}, "char(8)": {`'c%d'`, `'12345678'`}, "bytea": {`'\x00ff0%d'`, `''`},
	"raw": {`'\xab0%d'`}, "code": {`'d%d'`}, "tight text": {`'t%d'`},
}

// TestARowIsTheSameByBothWays: the WAL's decoder and the SQL of polling, replay and redrive return the same bytes for
// a row.
func TestARowIsTheSameByBothWays(t *testing.T) {
	url := cdctest.Database(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`CREATE SCHEMA "odd ""schema"; CREATE TYPE mood AS ENUM ('order', 'Stock "1"'); CREATE DOMAIN raw AS bytea; CREATE DOMAIN eight AS char(8); CREATE DOMAIN code AS eight;
		CREATE DOMAIN "tight text" AS text CHECK (VALUE <> ''); CREATE DOMAIN moment AS timestamptz; CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`)
	create, insert, values := "", "", map[string][]string{}
	name := func(typ string) string { return `k "` + typ + `"` }
	types := slices.Sorted(maps.Keys(keyColumns))
	for _, typ := range types {
		create += fmt.Sprintf(", %s %s", Ident(name(typ)), strings.Replace(typ, "tight text", `"tight text"`, 1))
		insert += ", " + Ident(name(typ))
		values[typ] = keyColumns[typ]
	}
	exec(`CREATE TABLE "odd ""schema"."out ""box" (gone int, mood mood, padded char(6), shared text COLLATE any_case, jsonb jsonb, json json, "text" text, bytea bytea, raw raw,
		pairs json, tz timestamptz, ts timestamp, moment moment` + create + `); ALTER TABLE "odd ""schema"."out ""box" DROP COLUMN gone; CREATE PUBLICATION walpost FOR TABLE "odd ""schema"."out ""box"`)
	cfg := defaults()
	cfg.URL, cfg.Slot, cfg.Table = url, cdctest.SlotName(t, "both"), `odd "schema.out "box`
	exec("SELECT pg_create_logical_replication_slot('" + cfg.Slot + "', 'pgoutput')")
	for i := range 3 {
		row := ""
		for _, typ := range types {
			v := values[typ][i%len(values[typ])]
			if strings.Contains(v, "%d") {
				v = fmt.Sprintf(v, i+1)
			}
			row += ", " + v
		}
		exec(`INSERT INTO "odd ""schema"."out ""box" (mood, padded, shared, jsonb, json, "text", bytea, raw, pairs, tz, ts, moment` + insert + `) VALUES
			('Stock "1"', 'or ', 'Key', '{"b": 1,"a":2}', '{"b": 1,"a":2}', ' text ', '\x0102', '\x', '[["a", "b"]]', '2026-11-22 08:00:00.5+02', 'infinity', '1999-12-31 23:59:59.999999+00'` + row + `)`)
	}
	exec(`INSERT INTO "odd ""schema"."out ""box" DEFAULT VALUES`)

	source := NewSource("both", cfg, zerolog.Nop())
	frames := framesOf(t, source, 4)
	read, err := source.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = read.Close(t.Context()) }()
	payloads, kinds, times := []string{"jsonb", "json", "text", "bytea", "raw"}, []string{"mood", "padded", "shared", `=Stock "1"`}, []string{"tz", "ts", "moment", config.None}
	n := 0
	for _, typ := range types {
		c := config.Columns{
			ID: name(typ), AggregateID: name(typ), AggregateType: kinds[n%len(kinds)], EventType: kinds[(n+1)%len(kinds)], Payload: payloads[n%len(payloads)],
			Headers: []string{"pairs", "jsonb", config.None}[n%3], CreatedAt: times[n%len(times)], CreatedAtZone: "Europe/Berlin",
		}
		if n%4 == 0 {
			c.AggregateID, c.EventType = "shared", config.None
		}
		n++
		cfg.Columns = c
		decoded := decodeAll(t, cfg, frames.table, frames.all)
		if len(decoded) != 4 {
			t.Fatalf("%s: %d rows", typ, len(decoded))
		}
		columns, _, err := NewSource("both", cfg, zerolog.Nop()).rowColumns(t.Context(), read)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		rows, err := read.Query(t.Context(), `SELECT `+columns.SQL()+` FROM "odd ""schema"."out ""box" ORDER BY ctid`)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		for i := 0; rows.Next(); i++ {
			var got cdc.Row
			if err := rows.Scan(columns.Into(&got)...); err != nil {
				t.Fatal(err)
			}
			if got, want := fields(&got), fields(&decoded[i]); got != want {
				t.Errorf("%+v:\nSQL %s\nWAL %s", c, got, want)
			}
			id := string(decoded[i].ID)
			if found, _, err := NewSource("both", cfg, zerolog.Nop()).Find(t.Context(), "--read-url", url, id); i < 3 && id != "" && (err != nil || len(found) == 0 || found[0].ID != id) {
				t.Errorf("%s: looking for %q: %v, %v", typ, id, found, err)
			}
		}
		if err := rows.Err(); err != nil {
			t.Error(err)
		}
	}
}

func fields(r *cdc.Row) string {
	return fmt.Sprintf("id %q type %q key %q event %q payload %q headers %q at %q", r.ID, r.AggregateType, r.AggregateID, r.EventType, r.Payload, r.Headers, r.CreatedAt) +
		fmt.Sprint(r.AggregateID == nil, r.EventType == nil, r.Payload == nil, r.Headers == nil, r.CreatedAt == nil)
}

type recorded struct {
	table uint32
	all   [][]byte
}

// framesOf returns the frames that the server sends for the next inserts.
func framesOf(t *testing.T, source *Source, inserts int) (r recorded) {
	t.Helper()
	var err error
	cfg := source.cfg
	cfg.Columns = config.Columns{ID: "text", AggregateType: "text", AggregateID: "text", EventType: "text", Payload: "text", CreatedAt: config.None}
	source = NewSource("both", cfg, zerolog.Nop())
	if r.table, err = source.Preflight(t.Context()); err != nil {
		t.Fatal(err)
	}
	opened, _, err := source.Connect(t.Context(), r.table)
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*stream)
	defer func() { _ = s.Close() }()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for inserts > 0 {
		if _, err := s.Fill(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			_, body, ok := s.frame()
			if !ok {
				break
			}
			r.all = append(r.all, append([]byte{}, body...))
			var m cdc.Message
			if err := s.decoder.copyData(body, &m); err != nil {
				t.Fatal(err)
			}
			if m.Kind == cdc.Insert {
				inserts--
			}
		}
	}
	return r
}

func decodeAll(t *testing.T, cfg config.Source, table uint32, frames [][]byte) (rows []cdc.Row) {
	t.Helper()
	d := newDecoder(cfg, table)
	for _, f := range frames {
		var m cdc.Message
		if err := d.copyData(append([]byte{}, f...), &m); err != nil {
			t.Fatalf("%+v: %v", cfg.Columns, err)
		}
		if m.Kind == cdc.Insert {
			row := m.Row // its bytes are valid until the next message
			for _, b := range []*[]byte{&row.ID, &row.AggregateType, &row.AggregateID, &row.EventType, &row.Payload, &row.Headers, &row.CreatedAt} {
				*b = bytes.Clone(*b)
			}
			rows = append(rows, row)
		}
	}
	return rows
}
