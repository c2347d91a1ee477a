package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// foreignGiants is fault 54: messages of others, in front of, between and behind the outbox's rows of one transaction, each many times what
// a row may be and what the relay may hold.
func foreignGiants(s *scene) {
	s.build(set{quiet: true})
	s.exec("DROP PUBLICATION walpost; CREATE PUBLICATION walpost FOR ALL TABLES")
	s.exec("ALTER TABLE outbox REPLICA IDENTITY FULL; CREATE TABLE blobs (id int PRIMARY KEY, b bytea); ALTER TABLE blobs REPLICA IDENTITY FULL")
	s.must("adopt")
	s.watch(cdctest.WriterConfig{Rate: 30})
	r := s.child()
	s.flows()
	s.exec("CREATE TEMPORARY TABLE none (); " + strings.Join([]string{ // one transaction
		ledgerRow("before", 1),
		"INSERT INTO blobs SELECT 1, decode(repeat('ab', 30000000), 'hex')",
		ledgerRow("between", 2),
		"UPDATE blobs SET b = decode(repeat('cd', 25000000), 'hex')", // the old row with it
		"SELECT pg_logical_emit_message(true, 'other tool', repeat('x', 30000000))",
		"UPDATE outbox SET event_type = event_type WHERE aggregate_id = 'before'",
		"DELETE FROM blobs",
		ledgerRow("behind", 3),
	}, "; "))
	s.mended()
	s.once(s.settle())
	if log := r.log.String(); strings.Contains(log, "halted") || strings.Contains(log, "starting over") {
		s.t.Errorf("somebody else's messages stopped the relay:\n%s", log)
	}
	if most := r.memory(); most > 150<<20 {
		s.t.Errorf("the relay held %d MiB", most>>20)
	}
	s.giantMessages()
}

// ledgerRow is SQL for a row of the outbox, the n-th of its transaction, and its line in the ledger.
func ledgerRow(key string, n int) string {
	return strings.NewReplacer("KEY", key, "ORD", strconv.Itoa(n)).Replace(`WITH new AS (
			INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'KEY', 'Written', '{"n": 1}')
			RETURNING id, aggregate_id, payload)
		INSERT INTO ledger (id, key, seq, ord, sum) SELECT id, aggregate_id, 1, ORD, sha256(convert_to(payload::text, 'UTF8')) FROM new`)
}

// giantMessages is the same without a table: another tool's messages, and those of our own prefix that are in no transaction.
func (s *scene) giantMessages() {
	s.stage = stageOn(s.t, cdctest.Database(s.t), s.brokers)
	s.env["WALPOST_SOURCE_MESSAGES"], s.env["WALPOST_DELIVERY"] = "shop", string(s.mode)
	s.must("init")
	r := s.spawn()
	r.says(30*time.Second, `"streaming"`)
	event := func(id string) string {
		return `SELECT pg_logical_emit_message(true, 'shop', jsonb_build_object('id', '` + id + `', 'aggregate_type', 'order', 'aggregate_id', 1, 'event_type', 'Written', 'payload', 1)::text)`
	}
	s.exec("CREATE TEMPORARY TABLE none (); " + strings.Join([]string{
		event("before"),
		"SELECT pg_logical_emit_message(true, 'other tool', repeat('x', 100000000))",
		"SELECT pg_logical_emit_message(true, 'shop of others', repeat('x', 20000000))",
		"SELECT pg_logical_emit_message(false, 'shop', repeat('x', 60000000))",
		event("behind"),
	}, "; "))
	s.confirmed(30 * time.Second)
	var got []string
	for _, record := range cdctest.ReadAll(s.t, s.brokers, s.topic) {
		got = append(got, header(record, "id"))
	}
	if strings.Join(got, " ") != "before behind" {
		s.t.Errorf("events %v, want before and behind", got)
	}
	if most := r.memory(); most > 150<<20 {
		s.t.Errorf("the relay held %d MiB", most>>20)
	}
}
