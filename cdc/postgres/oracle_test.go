package postgres

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

// oracle reads a stream with pglogrepl and describes in one line what each message means to a relay.
type oracle struct {
	relations map[uint32]*pglogrepl.RelationMessage
}

func (o *oracle) tryRead(body []byte) (line string, ok bool) {
	defer func() {
		if recover() != nil {
			line, ok = "", false
		}
	}()
	line = o.read(body)
	return line, !strings.HasPrefix(line, "error")
}

func (o *oracle) read(body []byte) string {
	if body[0] == pglogrepl.PrimaryKeepaliveMessageByteID {
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(body[1:18])
		if err != nil {
			return "error " + err.Error()
		}
		return fmt.Sprintf("keepalive %s %v", k.ServerWALEnd, k.ReplyRequested)
	}
	x, err := pglogrepl.ParseXLogData(body[1:])
	if err != nil {
		return "error " + err.Error()
	}
	msg, err := pglogrepl.Parse(x.WALData)
	if err != nil {
		return "error " + err.Error()
	}
	switch m := msg.(type) {
	case *pglogrepl.BeginMessage:
		when := m.CommitTime.UTC()
		if real := timestamp(binary.BigEndian.Uint64(x.WALData[9:])); real.Year() < 1900 || real.Year() > 2200 {
			when = real // pglogrepl counts in nanoseconds, which overflow
		}
		return fmt.Sprintf("begin %s %d %s", m.FinalLSN, m.Xid, when)
	case *pglogrepl.CommitMessage:
		return fmt.Sprintf("commit %s", m.TransactionEndLSN)
	case *pglogrepl.RelationMessage:
		o.relations[m.RelationID] = m
	case *pglogrepl.InsertMessage:
		rel := o.relations[m.RelationID]
		if rel == nil {
			return "error unknown relation"
		}
		if rel.Namespace+"."+rel.RelationName != "public.outbox" {
			return "other"
		}
		if len(m.Tuple.Columns) != len(rel.Columns) {
			return "error columns"
		}
		values := map[string]string{}
		for i, c := range m.Tuple.Columns {
			if c.DataType == 't' {
				values[rel.Columns[i].Name] = string(c.Data)
				if rel.Columns[i].DataType == oidBytea {
					b, _ := hex.DecodeString(strings.TrimPrefix(string(c.Data), `\x`))
					values[rel.Columns[i].Name] = string(b)
				}
			}
		}
		return fmt.Sprintf("insert %q %q %q %q %q %q %q", values["id"], values["aggregate_type"], values["aggregate_id"],
			values["event_type"], values["payload"], values["headers"], values["created_at"])
	}
	return "other"
}

// render describes a decoded message in the same way.
func (o *oracle) render(m *cdc.Message) string {
	switch m.Kind {
	case cdc.Begin:
		return fmt.Sprintf("begin %s %d %s", m.LSN, m.Row.XID, m.Row.CommitTime.UTC())
	case cdc.Commit:
		return fmt.Sprintf("commit %s", m.LSN)
	case cdc.Keepalive:
		return fmt.Sprintf("keepalive %s %v", m.LSN, m.ReplyRequested)
	case cdc.Insert:
		r := &m.Row
		return fmt.Sprintf("insert %q %q %q %q %q %q %q", r.ID, r.AggregateType, r.AggregateID, r.EventType, r.Payload, r.Headers, r.CreatedAt)
	}
	return "other"
}

// TestRecord makes a recording from the present server: go test ./cdc/postgres -run TestRecord -record. Otherwise it
// checks that the decoder understands what today's server sends.
func TestRecord(t *testing.T) {
	admin := cdctest.Database(t)
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	cfg := defaults()
	cfg.URL, cfg.Slot = admin, cdctest.SlotName(t, "record")
	exec(`CREATE TABLE outbox (id uuid PRIMARY KEY, aggregate_type text, aggregate_id text, event_type text, payload jsonb, headers jsonb, created_at timestamptz, note text);
		CREATE TABLE other (id int PRIMARY KEY, t text); CREATE TYPE mood AS ENUM ('ok');
		CREATE PUBLICATION walpost FOR ALL TABLES`)
	exec("SELECT pg_create_logical_replication_slot('" + cfg.Slot + "', 'pgoutput')")
	row := func(key, payload string) string {
		return fmt.Sprintf(`INSERT INTO outbox VALUES (gen_random_uuid(), 'order', '%s', 'OrderPaid', '%s', '{"a": "b"}', '2026-11-22 08:00:00.25+00', NULL)`, key, payload)
	}
	exec("BEGIN;" + row("a", `{"n": 1}`) + ";" + row("b", `{"ü": "\u00e9"}`) + "; SAVEPOINT s;" + row("gone", "{}") + "; ROLLBACK TO s; COMMIT")
	exec(row("c", "{}"))
	exec(row("d", "{}")) // back to back: this commit begins where the one before it ends
	exec(`INSERT INTO other VALUES (1, 'x'); UPDATE other SET t = 'y'; DELETE FROM other; TRUNCATE other`)
	exec(`ALTER TABLE outbox ADD COLUMN feel mood DEFAULT 'ok', DROP COLUMN note`)
	exec(`INSERT INTO outbox SELECT gen_random_uuid(), 'order', 'k' || i, 'OrderPaid', jsonb_build_object('text', repeat('x', i)), NULL, NULL FROM generate_series(1, 20) i`)
	exec("ALTER TABLE outbox ALTER COLUMN payload TYPE bytea USING convert_to(payload::text, 'UTF8')")
	exec(`INSERT INTO outbox VALUES (gen_random_uuid(), 'order', 'bytes', 'OrderPaid', '\x00ff', NULL, NULL)`)
	var end cdc.LSN
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&end); err != nil {
		t.Fatal(err)
	}

	source := NewSource("record", cfg, zerolog.Nop())
	table, err := source.Preflight(ctx)
	if err != nil {
		t.Fatal(err)
	}
	opened, _, err := source.Connect(ctx, table)
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*stream)
	defer func() { _ = s.Close() }()
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var rec recording
	rows := 0
	for reached := cdc.LSN(0); reached < end; {
		if _, err := s.Fill(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			typ, body, ok := s.frame()
			if !ok {
				break
			}
			if typ != 'd' {
				t.Fatalf("frame %q", typ)
			}
			rec = append(rec, append([]byte{}, body...))
			var m cdc.Message
			if err := s.decoder.copyData(body, &m); err != nil {
				t.Fatal(err)
			}
			switch m.Kind {
			case cdc.Insert:
				rows++
			case cdc.Commit, cdc.Keepalive:
				reached = max(reached, m.LSN)
			}
		}
	}
	if rows != 25 {
		t.Errorf("%d rows of the outbox, want 25", rows)
	}
	if *record {
		path := filepath.Join("testdata", fmt.Sprintf("postgres%d.pgoutput", cdctest.Postgres(t).Major()))
		if err := os.WriteFile(path, rec.bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
