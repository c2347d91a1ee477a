package main

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/outbox"
)

// emits writes events in one transaction.
func (s *testbed) inTransaction(events ...outbox.Event) {
	s.T.Helper()
	conn := s.Connect()
	defer func() { _ = conn.Close(s.T.Context()) }()
	if err := pgx.BeginFunc(s.T.Context(), conn, func(tx pgx.Tx) error {
		for _, ev := range events {
			if _, err := tx.Exec(s.T.Context(), `SELECT pg_logical_emit_message(true, 'shop', json_build_object('id', $1::text, 'aggregate_type', $2::text,
				'aggregate_id', $3::text, 'event_type', $4::text, 'payload', $5::json, 'headers', $6::json)::text)`,
				ev.ID.String(), ev.AggregateType, ev.AggregateID, ev.Type, string(ev.Payload), ev.Headers); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		s.T.Fatal(err)
	}
}

// order is an event of one key.
func order(typ string) outbox.Event {
	ev := outbox.NewEvent("order", "42", typ)
	ev.Payload = []byte(`{"a": "<ü>"}`)
	ev.Headers = map[string]string{"tenant": "t-1"}
	return ev
}

// TestMessagesInsteadOfATable: events of committed transactions arrive in order, nothing else does, and what
// cannot be done without a table says so.
func TestMessagesInsteadOfATable(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_SOURCE_MESSAGES"] = "shop"
	s.MustRun("init")
	s.MustRun("init")
	r := s.StartRelay()
	s.inTransaction(order("OrderCreated"), order("OrderPaid"))
	s.Exec(`SELECT pg_logical_emit_message(true, 'shop', jsonb_build_object('id', 'e-3', 'aggregate_type', 'order', 'aggregate_id', 42, 'event_type', 'OrderShipped',
		'payload', jsonb_build_object('n', 1))::text)`)
	s.Exec("SELECT pg_logical_emit_message(true, 'other', '{}'), pg_logical_emit_message(false, 'shop', 'x')")
	s.Exec("BEGIN; SELECT pg_logical_emit_message(true, 'shop', 'never'); ROLLBACK")
	s.Exec("CREATE TABLE outbox (id int); ALTER PUBLICATION walpost ADD TABLE outbox; INSERT INTO outbox VALUES (1)") // no outbox of ours
	s.WaitUntilConfirmed(20 * time.Second)
	var got []string
	for _, rec := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		got = append(got, strings.Join([]string{string(rec.Key), e2e.Header(rec, "type"), e2e.Header(rec, "seq"), e2e.Header(rec, "tenant"), string(rec.Value)}, " "))
	}
	if want := `42 OrderCreated 1 t-1 {"a": "<ü>"},42 OrderPaid 2 t-1 {"a": "<ü>"},42 OrderShipped 1  {"n": 1}`; strings.Join(got, ",") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ","), want)
	}
	if out := s.MustRun("where", "e-3", "--since", "1h"); !strings.Contains(out, "published: topic") {
		t.Errorf("where: %s", out)
	}
	s.MustRefuse("there is no outbox table (source.messages)", "cleanup")
	s.MustRefuse("there is no outbox table (source.messages)", "replay", "--from", "2026-11-22T00:00:00Z", "--to", "2026-11-23T00:00:00Z")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Exec("SELECT pg_logical_emit_message(true, 'shop', 'a'), pg_logical_emit_message(true, 'shop', 'b'), pg_logical_emit_message(true, 'shoq', 'b')")
	if out := s.MustRun("skip", "--to", s.Query("SELECT pg_current_wal_lsn()::text"), "--dry-run"); !strings.Contains(out, "2 outbox rows of 1 transactions") {
		t.Errorf("skip: %s", out)
	}
	s.MustRun("init", "--remove", "--yes")
}

// TestMalformedMessages go by the poison policy: a halt before the first, or each whole in the dead letter topic.
func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_SOURCE_MESSAGES"] = "shop"
	s.MustRun("init")
	good := func() { s.inTransaction(order("OrderPaid")) }
	good()
	s.Exec(`SELECT pg_logical_emit_message(true, 'shop', 'no event'), pg_logical_emit_message(true, 'shop', '{"id": "1"}'), pg_logical_emit_message(true, 'shop', '\xff00'::bytea)`)
	s.Exec(`SELECT pg_logical_emit_message(true, 'shop', jsonb_build_object('id', 'large', 'aggregate_type', 'order', 'aggregate_id', 1, 'event_type', 'T', 'payload', repeat('x', 2000000))::text)`)
	good()
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"halted"`)
	r.WaitForLog(3*time.Second, "the message is no JSON object of id, aggregate_type")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	if log := r.Log.String(); strings.Contains(log, "no event") {
		t.Error("the log holds a message's content")
	}
	s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
	s.MustRun("init")
	s.StartRelay()
	s.WaitUntilConfirmed(20 * time.Second)
	if n := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); n != 2 {
		t.Errorf("%d records, want the two good ones", n)
	}
	list := s.MustRun("dlq", "list")
	for _, text := range []string{"no JSON object", `aggregate type ""`, "not UTF-8", "max.message.bytes"} {
		if !strings.Contains(list, text) {
			t.Errorf("dlq list does not say %q:\n%s", text, list)
		}
	}
}

// TestInsertAndDeleteInOneTransaction: the event arrives, the table is empty.
func TestInsertAndDeleteInOneTransaction(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	s.StartRelay()
	conn := s.Connect()
	defer func() { _ = conn.Close(t.Context()) }()
	if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		for _, ev := range []outbox.Event{order("OrderCreated"), order("OrderPaid")} {
			if err := outbox.Table("outbox").Append(t.Context(), tx, ev); err != nil {
				return err
			}
			if _, err := tx.Exec(t.Context(), `DELETE FROM outbox WHERE id = $1`, ev.ID); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.Exec(`WITH new AS (INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ('00000000-0000-7000-8000-000000000001', 'order', '42', 'OrderShipped', '{}') RETURNING id)
		SELECT id FROM new; DELETE FROM outbox WHERE id = '00000000-0000-7000-8000-000000000001'`)
	if s.CountRows() != "0" {
		t.Errorf("%s rows are left", s.CountRows())
	}
	s.WaitUntilConfirmed(20 * time.Second)
	var types []string
	for _, rec := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		types = append(types, e2e.Header(rec, "type"))
	}
	if got := strings.Join(types, " "); got != "OrderCreated OrderPaid OrderShipped" {
		t.Errorf("published %q", got)
	}
}
