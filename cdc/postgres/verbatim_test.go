package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
)

// TestVerbatimColumnsAreTheSameByBothWays reads rows for a route that knows the types, from the WAL and by SQL: values
// are PostgreSQL's own text, and the shapes agree with the catalog.
func TestVerbatimColumnsAreTheSameByBothWays(t *testing.T) {
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
	cfg := defaults()
	cfg.URL, cfg.Slot, cfg.Table = url, cdctest.SlotName(t, "verbatim"), "public.box"
	exec(`CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN short AS varchar(9);
		CREATE TABLE box (id int PRIMARY KEY, text text, dest char(6) NOT NULL DEFAULT 'x', payload bytea, flag boolean DEFAULT false, mood mood, short short, f float8, at timestamp(3), list int[]);
		CREATE PUBLICATION walpost FOR TABLE box`)
	exec("SELECT pg_create_logical_replication_slot('" + cfg.Slot + "', 'pgoutput')")
	exec(`INSERT INTO box VALUES (1, 'k', 'ab', '\x00ff', true, 'glad', 's', 0.1, '2026-11-30 08:00:00.25', '{1,2}'); INSERT INTO box (id) VALUES (2)`)
	source := NewSource("verbatim", cfg, zerolog.Nop())
	frames := framesOf(t, source, 2)
	cfg.Columns = config.Columns{ID: "id", AggregateID: "text", AggregateType: "dest", EventType: "missing", Payload: "payload", Headers: config.None, CreatedAt: "at", Verbatim: &config.Verbatim{
		Further: []string{"flag", "nope", "mood", "short", "f", "list"}, Optional: true,
	}}
	source = NewSource("verbatim", cfg, zerolog.Nop())
	var walked []string
	d := newDecoder(cfg, frames.table)
	d.describe = source.describe
	for _, f := range frames.all {
		var m cdc.Message
		if err := d.copyData(bytes.Clone(f), &m); err != nil {
			t.Fatal(err)
		}
		if m.Kind == cdc.Insert {
			walked = append(walked, shown(t, &m.Row))
		}
	}
	if len(walked) != 2 {
		t.Fatalf("%d rows", len(walked))
	}
	const first = `id "1" type "ab    " key "k" event "" payload "\\x00ff" headers "" at "2026-11-30 08:00:00.25"false true false true false further ["t" "" "glad" "s" "0.1" "{1,2}"] [false true false false false false]`
	const shape = `{"table":"public.box","id":{"name":"id","type":23,"type_name":"integer","modifier":-1,"not_null":true},` +
		`"aggregate_type":{"name":"dest","type":1042,"type_name":"character(6)","modifier":10,"not_null":true,"default":"'x'::bpchar"},` +
		`"aggregate_id":{"name":"text","type":25,"type_name":"text","modifier":-1},"payload":{"name":"payload","type":17,"type_name":"bytea","modifier":-1},` +
		`"created_at":{"name":"at","type":1114,"type_name":"timestamp(3) without time zone","modifier":3},` +
		`"further":[{"name":"flag","type":16,"type_name":"boolean","modifier":-1,"default":"false"},null,{"name":"mood","type":0,"type_name":"mood","modifier":-1,"labels":["sad","glad"]},` +
		`{"name":"short","type":1043,"domain":true,"type_name":"character varying(9)","modifier":13},{"name":"f","type":701,"type_name":"double precision","modifier":-1},{"name":"list","type":1007,"type_name":"integer[]","modifier":-1}]}`
	if want := first + " " + shape; walked[0] != want {
		t.Errorf("from the WAL:\n got %s\nwant %s", walked[0], want)
	}

	read, err := source.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = read.Close(t.Context()) }()
	columns, _, err := source.rowColumns(t.Context(), read)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := read.Query(t.Context(), "SELECT "+columns.SQL()+" FROM box ORDER BY id")
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for ; rows.Next(); i++ {
		var row cdc.Row
		if err := rows.Scan(columns.Into(&row)...); err != nil {
			t.Fatal(err)
		}
		if got := shown(t, &row); got != walked[i] {
			t.Errorf("row %d:\nSQL %s\nWAL %s", i, got, walked[i])
		}
	}
	if i != 2 || rows.Err() != nil {
		t.Errorf("%d rows by SQL: %v", i, rows.Err())
	}

	source.Require(func(shape *cdc.Shape) error {
		return fmt.Errorf("the.option: %s is wrong\nanother: too", shape.ID.TypeName)
	})
	const says = "the.option: integer is wrong; another: too"
	if _, err := source.Preflight(t.Context()); err != nil {
		t.Fatal(err)
	}
	if facts, err := source.Facts(t.Context()); err != nil || cdc.Sentences(facts.Unfit) != says {
		t.Errorf("columns that the route does not take: %q, %v", facts.Unfit, err)
	}
	d = newDecoder(cfg, frames.table)
	d.describe, d.problems = source.describe, source.problems
	var undecodable *cdc.UndecodableError
	for _, f := range frames.all {
		if err := d.copyData(bytes.Clone(f), new(cdc.Message)); errors.As(err, &undecodable) || err != nil {
			break
		}
	}
	if undecodable == nil || !strings.Contains(undecodable.Found, says) {
		t.Errorf("columns that the route does not take, in the stream: %v", undecodable)
	}

	cfg.Columns.Verbatim.Optional, cfg.Columns.Verbatim.Options = false, map[string]string{"further": "debezium.x"}
	if m := mapColumns(cfg.Columns, []column{{name: "id"}, {name: "text"}, {name: "dest"}, {name: "payload"}, {name: "at"}}); len(m.problems) != 6 || m.problems[1].String() != `debezium.x: the table has no column "nope": name the right one` {
		t.Errorf("columns that must exist: %q", m.problems)
	}
}

// shown returns the row with its shape as text.
func shown(t *testing.T, r *cdc.Row) string {
	t.Helper()
	var null []bool
	for _, value := range r.Further {
		null = append(null, value == nil)
	}
	shape, err := json.Marshal(r.Shape)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s further %q %v %s", fields(r), r.Further, null, shape)
}

// TestUpdatesOfTheOutbox decodes an update of the outbox and of another table: it is ignored, named once, or undecodable.
func TestUpdatesOfTheOutbox(t *testing.T) {
	const outbox, other = 7, 8
	update := func(oid byte) []byte { return []byte{'U', 0, 0, 0, oid, 'N', 0, 0} }
	for _, updates := range []config.Updates{"", config.WarnOfUpdate, config.HaltAtUpdate} {
		cfg := defaults()
		cfg.Columns.Verbatim = &config.Verbatim{Updates: updates, Options: map[string]string{"updates": "the.option"}}
		d := newDecoder(cfg, outbox)
		d.relations[outbox], d.relations[other] = &relation{}, nil
		named := 0
		if updates == config.WarnOfUpdate {
			d.onUpdate = func() { named++ }
		}
		var m cdc.Message
		if err := d.message(update(other), &m); err != nil || m.Kind != cdc.Other || named > 0 {
			t.Errorf("%s: an update of another table: %v", updates, err)
		}
		for range 2 {
			err := d.message(update(outbox), &m)
			if halt := errors.As(err, new(*cdc.UndecodableError)); halt != (updates == config.HaltAtUpdate) {
				t.Errorf("%s: %v", updates, err)
			}
			head := append([]byte{'w', 24: 0}, update(outbox)...)
			if unread, err := d.foreign(head); unread == (updates == config.HaltAtUpdate) || unread != (err == nil) {
				t.Errorf("%s: a large update: left unread %v, %v", updates, unread, err)
			}
		}
		if want := map[bool]int{true: 1}[updates == config.WarnOfUpdate]; named != want {
			t.Errorf("%s: named %d times, want %d", updates, named, want)
		}
	}
}

// TestUpdatesOfTheKey decodes updates of the outbox for a route that takes one of the primary key for an insert.
func TestUpdatesOfTheKey(t *testing.T) {
	const outbox = 7
	text := func(s string) []byte { return append([]byte{'t', 0, 0, 0, byte(len(s))}, s...) }
	update := func(kind string, former []byte, id string, payload []byte) []byte {
		b := []byte{'U', 0, 0, 0, outbox}
		if kind != "" {
			b = append(append(append(b, kind[0], 0, 2), text(string(former))...), 'n')
		}
		return append(append(append(b, 'N', 0, 2), text(id)...), payload...)
	}
	for name, c := range map[string]struct {
		message []byte
		want    string
		unread  bool // if it is large
	}{
		"another column":                  {update("", nil, "1", text("p")), "", true},
		"the key":                         {update("K", []byte("1"), "2", text("p")), "2 p was 1", false},
		"the key, identity full":          {update("O", []byte("1"), "2", text("p")), "2 p was 1", false},
		"another column, identity full":   {update("O", []byte("1"), "1", text("p")), "", false},
		"the key beside a large value":    {update("K", []byte("1"), "2", []byte{'u'}), "undecodable", false},
		"a large value that stayed":       {update("O", []byte("1"), "1", []byte{'u'}), "", false},
		"a message that is cut off":       {update("K", []byte("1"), "2", text("p"))[:9], "truncated", false},
		"the key, in a table without one": {update("K", []byte("1"), "2", text("p")), "", true},
	} {
		cfg := defaults()
		cfg.Columns.Verbatim = &config.Verbatim{Rekeyed: true}
		d := newDecoder(cfg, outbox)
		rel := &relation{field: []field{fieldID, fieldPayload}, form: make([]form, 2), key: []int{0}}
		if name == "the key, in a table without one" {
			rel.key = nil
		}
		d.relations[outbox] = rel
		var m cdc.Message
		err := d.message(c.message, &m)
		got := ""
		switch {
		case errors.As(err, new(*cdc.UndecodableError)):
			got = "undecodable"
		case errors.Is(err, errTruncated):
			got = "truncated"
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case m.Kind == cdc.Insert:
			got = fmt.Sprintf("%s %s was %s", m.Row.ID, m.Row.Payload, m.Row.Former[0])
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if unread, err := d.foreign(append([]byte{'w', 24: 0}, c.message...)); unread != c.unread || err != nil {
			t.Errorf("%s: left unread if it is large: %v, %v", name, unread, err)
		}
	}
}
