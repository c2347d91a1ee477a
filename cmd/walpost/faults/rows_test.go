package faults

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// insertWithLedger inserts rows of one key, with a text of some bytes, in one transaction, and writes them into the
// ledger.
func (s *trial) insertWithLedger(key string, rows, bytes int) {
	s.t.Helper()
	s.Exec(`WITH new AS (
			INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
			SELECT gen_random_uuid(), 'order', $1, 'Written', jsonb_build_object('n', i, 'text', repeat('x', $3)) FROM generate_series(1, $2::int) i
			RETURNING id, aggregate_id, payload)
		INSERT INTO ledger (id, key, seq, ord, sum)
		SELECT id, aggregate_id, (payload->>'n')::int, (payload->>'n')::int, sha256(convert_to(payload::text, 'UTF8')) FROM new`, key, rows, bytes)
}

// limitLowered runs fault 13: the topic takes less than before, and a row is larger. The relay halts, names the row,
// and resumes when the topic takes it.
func limitLowered(s *trial) {
	s.prepare(setup{load: cdctest.WriterConfig{Rate: 60, Body: 100}})
	r := s.startStreaming()
	s.waitUntilDelivered()
	s.LimitTopic("3000")
	s.insertWithLedger("large", 1, 5000)
	r.WaitForLog(30*time.Second, `"halted"`)
	r.WaitForLog(3*time.Second, s.Query("SELECT id::text FROM outbox WHERE aggregate_id = 'large'"))
	s.waitForCommits(50)
	for _, record := range cdctest.ReadAll(s.t, s.Brokers, s.Topic) {
		if string(record.Key) == "large" {
			s.t.Error("Kafka has the row that is too large")
		}
	}
	r.Kill()
	s.LimitTopic("1048588")
	s.endFault()
	s.startStreaming()
	s.finish()
}

// unreadable runs fault 32: rows that the relay will not read, or that PostgreSQL cannot send. The relay halts at each
// with its LSN and the command that steps over it.
func unreadable(s *trial) {
	s.prepare(setup{quiet: true})
	s.deliverWithOneRelay(20)
	s.Exec("ALTER TABLE outbox DROP CONSTRAINT outbox_payload_size")
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		VALUES (gen_random_uuid(), 'order', 'k', 'Written', jsonb_build_object('text', repeat('x', 20000000)))`)
	s.wantNothingMoved(func() { s.waitUntilHalted(s.StartRelay(), "source.max_row_bytes", "walpost skip") })

	// Bytes that are no UTF-8, in a database that does not check.
	server := cdctest.Postgres(s.t)
	name := strings.ReplaceAll(cdctest.Name(s.t, "ascii"), "-", "_")
	s.Exec("CREATE DATABASE " + name + " ENCODING 'SQL_ASCII' TEMPLATE template0")
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, server.URL("postgres"))
		if err != nil {
			s.t.Error(err)
			return
		}
		defer func() { _ = conn.Close(ctx) }()
		if _, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1", name); err != nil {
			s.t.Error(err)
		}
		if _, err := conn.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			s.t.Error(err)
		}
	})
	u, err := url.Parse(server.URL(name))
	if err != nil {
		s.t.Fatal(err)
	}
	u.RawQuery += "&client_encoding=SQL_ASCII"
	s.Pipeline = e2e.NewOn(s.t, s.program(), u.String(), s.Brokers)
	s.Env["WALPOST_DELIVERY"] = string(s.mode)
	s.Env["WALPOST_SOURCE_URL"] = strings.Replace(s.Env["WALPOST_SOURCE_URL"], "&client_encoding=SQL_ASCII", "", 1)
	s.Exec("CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload text)")
	s.MustRun("init")
	s.deliverWithOneRelay(20)
	s.Exec(`INSERT INTO outbox VALUES (gen_random_uuid(), 'order', 'k', 'Written', '{"text": "' || convert_from('\xff', 'SQL_ASCII') || '"}')`)
	s.wantNothingMoved(func() { s.waitUntilHalted(s.StartRelay(), "SQLSTATE 22021", "walpost skip") })
}

// malformed runs fault 36: every kind of row that can never be published, each between two good ones of its key, under
// both policies.
func malformed(s *trial) {
	for _, policy := range []string{"dead_letter", "halt"} {
		s.Pipeline = e2e.NewForPoison(s.t, s.program(), policy)
		s.Env["WALPOST_DELIVERY"] = string(s.mode)
		kinds := e2e.Poisons
		if policy == "halt" {
			kinds = kinds[:1]
		}
		for i, kind := range kinds {
			key := map[string]string{"aggregate_id": fmt.Sprintf("'key-%d'", i)}
			s.InsertPoison(key)
			bad := map[string]string{"aggregate_id": key["aggregate_id"]}
			bad[kind.Column] = kind.Value
			s.InsertPoison(bad)
			s.InsertPoison(key)
		}
		r := s.StartRelay()
		if policy == "halt" {
			s.waitUntilHalted(r, kinds[0].Says)
			if n := len(s.PublishedIDs()); n != 1 {
				s.t.Errorf("halt: %d rows published, want the one before the malformed row", n)
			}
			continue
		}
		s.WaitUntilConfirmed(30 * time.Second)
		if n := len(s.PublishedIDs()); n != 2*len(kinds) {
			s.t.Errorf("%d rows published, want %d", n, 2*len(kinds))
		}
		if n := len(s.DeadLetters()); n != len(kinds) {
			s.t.Errorf("%d dead letters, want %d", n, len(kinds))
		}
		if err := r.Stop(); err != nil {
			s.t.Error(err)
		}
	}
}
