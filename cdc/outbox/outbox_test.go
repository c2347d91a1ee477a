package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/outbox"
	migrations "github.com/walpost/walpost/sql"
)

const table outbox.Table = "outbox"

func TestMain(m *testing.M) { cdctest.Main(m) }

// service returns a connection of the owner and one of a role with the rights of a service.
func service(t testing.TB) (owner, conn *pgx.Conn) {
	t.Helper()
	admin := cdctest.Database(t)
	url := cdctest.As(admin, "orders_service")
	if err := migrations.Migrate(t.Context(), migrations.Orders, admin, url, io.Discard); err != nil {
		t.Fatal(err)
	}
	conns := make([]*pgx.Conn, 2)
	for i, u := range []string{admin, url} {
		var err error
		if conns[i], err = pgx.Connect(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conns[i].Close(context.Background()) })
	}
	return conns[0], conns[1]
}

func good() outbox.Event {
	ev := outbox.NewEvent("order", "1", "OrderPaid")
	ev.Payload = json.RawMessage(`{"eventId": "` + ev.ID.String() + `"}`)
	return ev
}

func TestAppendHappensWithItsTransaction(t *testing.T) {
	owner, conn := service(t)
	ev := good()
	ev.Headers = map[string]string{"traceparent": "00-1", "tenant": "ü"}
	for _, commit := range []bool{false, true} {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Append(t.Context(), tx, ev); err != nil {
			t.Fatal(err)
		}
		if commit {
			err = tx.Commit(t.Context())
		} else {
			err = tx.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		rows, _ := owner.Query(t.Context(), `SELECT id, aggregate_type, aggregate_id, event_type AS type, payload::text::bytea AS payload, headers FROM outbox`)
		got, err := pgx.CollectRows(rows, pgx.RowToStructByName[outbox.Event])
		if err != nil {
			t.Fatal(err)
		}
		if !commit {
			if len(got) != 0 {
				t.Fatalf("rolled back, and there: %+v", got)
			}
			continue
		}
		if len(got) != 1 || got[0].ID != ev.ID || got[0].AggregateType != "order" || got[0].AggregateID != "1" || got[0].Type != "OrderPaid" ||
			string(got[0].Payload) != string(ev.Payload) || len(got[0].Headers) != 2 || got[0].Headers["tenant"] != "ü" {
			t.Fatalf("got %+v, want %+v", got, ev)
		}
	}
}

func TestNewEventMintsAUUIDv7(t *testing.T) {
	a, b := outbox.NewEvent("order", "1", "OrderPaid"), outbox.NewEvent("order", "1", "OrderPaid")
	if a.ID == b.ID || a.ID.Version() != 7 || a.ID.String() > b.ID.String() {
		t.Errorf("got %s and %s", a.ID, b.ID)
	}
}

// appendSQL appends an event in a transaction, and rolls the transaction back.
func appendSQL(t *testing.T, db *sql.DB, ev outbox.Event) error {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	return table.AppendSQL(t.Context(), tx, ev)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Each limit is tested at its edge, where Go and the table's CHECK must both accept, and one beyond it, where both must refuse.
func TestAppendRefusesWhatTheTableRefuses(t *testing.T) {
	_, conn := service(t)
	db := stdlib.OpenDB(*conn.Config())
	defer func() { _ = db.Close() }()
	escapes := "\"\\\b\f\n\r\t\x01é\u2028</"
	header := func(bytes int) map[string]string {
		// {"k": "v", "…": ""}, with characters that are longer as JSON
		rest := bytes - len(`{"a": "", "k": ""}`) - len(`\"\\\b\f\n\r\t\u0001é`+"\u2028</")
		return map[string]string{"k": escapes + strings.Repeat("x", rest), "a": ""}
	}
	for _, c := range []struct {
		name string
		set  func(*outbox.Event)
		ok   bool
		says string // the error of Go's check; empty if only the database can find the mistake
	}{
		{"as it should be", func(*outbox.Event) {}, true, ""},
		{"longest aggregate type", func(e *outbox.Event) { e.AggregateType = strings.Repeat("a", 100) }, true, ""},
		{"too long aggregate type", func(e *outbox.Event) { e.AggregateType = strings.Repeat("a", 101) }, false, "aggregate type"},
		{"no aggregate type", func(e *outbox.Event) { e.AggregateType = "" }, false, "aggregate type"},
		{"aggregate type no topic can have", func(e *outbox.Event) { e.AggregateType = "a/b" }, false, "aggregate type"},
		{"aggregate type with a line break", func(e *outbox.Event) { e.AggregateType = "a\n" }, false, "aggregate type"},
		{"longest aggregate id", func(e *outbox.Event) { e.AggregateID = strings.Repeat("ä", 512) }, true, ""},
		{"too long aggregate id", func(e *outbox.Event) { e.AggregateID = strings.Repeat("ä", 512) + "a" }, false, "aggregate id"},
		{"no aggregate id", func(e *outbox.Event) { e.AggregateID = "" }, false, "aggregate id"},
		{"aggregate id with NUL", func(e *outbox.Event) { e.AggregateID = "a\x00" }, false, "aggregate id"},
		{"aggregate id not UTF-8", func(e *outbox.Event) { e.AggregateID = "\xff" }, false, "aggregate id"},
		{"longest type", func(e *outbox.Event) { e.Type = strings.Repeat("a", 255) }, true, ""},
		{"too long type", func(e *outbox.Event) { e.Type = strings.Repeat("a", 256) }, false, "event type"},
		{"no type", func(e *outbox.Event) { e.Type = "" }, false, "event type"},
		{"payload with space around", func(e *outbox.Event) { e.Payload = json.RawMessage("\n {} ") }, true, ""},
		{"no payload", func(e *outbox.Event) { e.Payload = nil }, false, "payload must"},
		{"payload an array", func(e *outbox.Event) { e.Payload = json.RawMessage(`[]`) }, false, "payload must"},
		{"payload null", func(e *outbox.Event) { e.Payload = json.RawMessage(`null`) }, false, "payload must"},
		{"payload torn", func(e *outbox.Event) { e.Payload = json.RawMessage(`{"a":`) }, false, "payload must"},
		{"payload not UTF-8", func(e *outbox.Event) { e.Payload = json.RawMessage("{\"a\": \"\xff\"}") }, false, "payload must"},
		{"payload with NUL", func(e *outbox.Event) { e.Payload = json.RawMessage(`{"a": "\u0000"}`) }, false, ""},
		{"payload with a number too large", func(e *outbox.Event) { e.Payload = json.RawMessage(`{"a": 1e400000}`) }, false, ""},
		{"largest payload", func(e *outbox.Event) { e.Payload = json.RawMessage(`{"a":"` + strings.Repeat("x", 900_000-9) + `"}`) }, true, ""},
		{"too large payload", func(e *outbox.Event) { e.Payload = json.RawMessage(`{"a":"` + strings.Repeat("x", 900_000-8) + `"}`) }, false, ""},
		{"largest headers", func(e *outbox.Event) { e.Headers = header(16_384) }, true, ""},
		{"too large headers", func(e *outbox.Event) { e.Headers = header(16_385) }, false, "headers must"},
		{"header with NUL", func(e *outbox.Event) { e.Headers = map[string]string{"a": "\x00"} }, false, "headers must"},
		{"header not UTF-8", func(e *outbox.Event) { e.Headers = map[string]string{"\xff": "a"} }, false, "headers must"},
		{"no id", func(e *outbox.Event) { e.ID = uuid.Nil }, false, "NewEvent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ev := good()
			c.set(&ev)
			other := appendSQL(t, db, ev)
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(t.Context()) }()
			err = table.Append(t.Context(), tx, ev)
			if text(other) != text(err) {
				t.Errorf("Append says %v, and AppendSQL %v", err, other)
			}
			if c.ok != (err == nil) || !c.ok && (!errors.Is(err, outbox.ErrRejected) || !strings.Contains(err.Error(), c.says)) {
				t.Fatalf("got %v", err)
			}
			if c.says == "" || ev.ID == uuid.Nil {
				return
			}
			headers, _ := json.Marshal(ev.Headers)
			if ev.Headers == nil {
				headers = []byte(`{}`)
			}
			_, err = tx.Exec(t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES ($1, $2, $3, $4, $5, $6)`,
				ev.ID, ev.AggregateType, ev.AggregateID, ev.Type, string(ev.Payload), string(headers))
			if err == nil && c.name != "header not UTF-8" { // encoding/json replaces the wrong bytes
				t.Error("Append refuses what the table takes")
			}
		})
	}
}

func TestAppendTellsAnEventApartThatIsRefusedFromADatabaseThatIsGone(t *testing.T) {
	_, conn := service(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ev := good()
	if err := table.Append(t.Context(), tx, ev); err != nil {
		t.Fatal(err)
	}
	err = table.Append(t.Context(), tx, ev)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != pgerrcode.UniqueViolation || errors.Is(err, outbox.ErrRejected) {
		t.Errorf("the same id twice: %v", err)
	}
	_ = conn.Close(t.Context())
	if err := table.Append(t.Context(), tx, ev); err == nil || errors.Is(err, outbox.ErrRejected) {
		t.Errorf("on a closed connection: %v", err)
	}
}

// TestAppendWhereNoPartitionIs: a missing partition is not the event's fault, so the error is not ErrRejected.
func TestAppendWhereNoPartitionIs(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), cdctest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(t.Context(), `CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, headers jsonb,
		created_at timestamptz DEFAULT now()) PARTITION BY RANGE (created_at)`); err != nil {
		t.Fatal(err)
	}
	err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return table.Append(t.Context(), tx, good()) })
	if err == nil || errors.Is(err, outbox.ErrRejected) || !strings.Contains(err.Error(), "no partition for the present time: `walpost cleanup`") {
		t.Errorf("append: %v", err)
	}
}

// TestTableIsQuoted writes to a table whose schema and name need quotes in SQL.
func TestTableIsQuoted(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), cdctest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(t.Context(), `CREATE SCHEMA "Billing"; 
		CREATE TABLE "Billing"."user events""" (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, headers jsonb)`); err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDB(*conn.Config())
	defer func() { _ = db.Close() }()
	const billing outbox.Table = `Billing.user events"`
	if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return billing.Append(t.Context(), tx, good()) }); err != nil {
		t.Error(err)
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(billing.AppendSQL(t.Context(), tx, good()), tx.Commit()); err != nil {
		t.Error(err)
	}
	var n int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM "Billing"."user events"""`).Scan(&n); err != nil || n != 2 {
		t.Errorf("%d rows (%v), want that of Append and that of AppendSQL", n, err)
	}
}
