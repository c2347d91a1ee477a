package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// TestUsersOwnTable relays the tables people know from articles, with the values they hold, byte for byte.
func TestUsersOwnTable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		env     map[string]string
		ddl     string
		insert  string
		id      string
		value   string
		headers map[string]string
	}{
		{
			name: "outbox_events with a status column",
			env:  map[string]string{"WALPOST_SOURCE_TABLE": "public.outbox_events"},
			ddl: `CREATE TABLE outbox_events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_type varchar(255) NOT NULL, aggregate_id varchar(255) NOT NULL,
				event_type varchar(255) NOT NULL, payload text NOT NULL, status varchar(20) NOT NULL DEFAULT 'PENDING', created_at timestamp NOT NULL DEFAULT '2026-11-22 08:00:00.5',
				processed_at timestamp, retry_count int NOT NULL DEFAULT 0)`,
			insert: `INSERT INTO outbox_events (aggregate_type, aggregate_id, event_type, payload) VALUES ('order', '42', 'OrderPaid', E'{ "b" :1,\n"a": "ü"}')`,
			id:     "1", value: "{ \"b\" :1,\n\"a\": \"ü\"}", headers: map[string]string{"type": "OrderPaid", "created_at": "2026-11-22T08:00:00.5"},
		},
		{
			name: "outbox with event_id and payload_json",
			env:  map[string]string{"WALPOST_SOURCE_COLUMNS_ID": "event_id", "WALPOST_SOURCE_COLUMNS_PAYLOAD": "payload_json"},
			ddl:  `CREATE TABLE outbox (event_id uuid PRIMARY KEY, aggregate_type text, aggregate_id uuid, event_type text, payload_json json, status text DEFAULT 'NEW')`,
			insert: `INSERT INTO outbox (event_id, aggregate_type, aggregate_id, event_type, payload_json)
				VALUES ('0192f1a0-0000-7000-8000-000000000001', 'order', '0192f1a0-0000-7000-8000-00000000000a', 'OrderPaid', '{"z":1, "z":2}')`,
			id: "0192f1a0-0000-7000-8000-000000000001", value: `{"z":1, "z":2}`, headers: map[string]string{"type": "OrderPaid", "created_at": ""},
		},
		{
			name:   "the smallest, with jsonb as PostgreSQL renders it",
			ddl:    `CREATE TABLE outbox (id text PRIMARY KEY, aggregate_type text, aggregate_id text, event_type text, payload jsonb)`,
			insert: `INSERT INTO outbox VALUES ('e-1', 'order', 'k', 'OrderPaid', '{"z":1,   "a":2}')`,
			id:     "e-1", value: `{"a": 2, "z": 1}`, headers: map[string]string{"source": ""},
		},
		{
			name:   "bytea, own headers, its own schema and mixed case",
			env:    map[string]string{"WALPOST_SOURCE_TABLE": "Shop.OutBox", "WALPOST_SOURCE_COLUMNS_HEADERS": "meta"},
			ddl:    `CREATE SCHEMA "Shop"; CREATE TABLE "Shop"."OutBox" (id uuid, aggregate_type text, aggregate_id text, event_type text, payload bytea, meta jsonb, "other Column" int)`,
			insert: `INSERT INTO "Shop"."OutBox" VALUES ('0192f1a0-0000-7000-8000-000000000002', 'order', 'k', 'OrderPaid', '\x00ff10', '{"traceparent": "00-ab", "n": 5, "id": "stolen", "x": {"y": [1]}}')`,
			id:     "0192f1a0-0000-7000-8000-000000000002", value: "\x00\xff\x10", headers: map[string]string{"traceparent": "00-ab", "n": "5", "x": `{"y": [1]}`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			for k, v := range c.env {
				s.Env[k] = v
			}
			s.Exec(c.ddl)
			s.MustRun("init")
			s.StartRelay()
			s.Exec(c.insert)
			r := cdctest.Consume(t, s.Brokers, s.Topic, 20*time.Second, cdctest.AtLeast(1))[0]
			if got := e2e.Header(r, "id"); got != c.id {
				t.Errorf("header id is %q, want %q", got, c.id)
			}
			if string(r.Value) != c.value {
				t.Errorf("value is %q, want %q", r.Value, c.value)
			}
			for k, want := range c.headers {
				if k == "source" {
					want = s.Name
				}
				if got := e2e.Header(r, k); got != want {
					t.Errorf("header %s is %q, want %q", k, got, want)
				}
			}
			if since := time.Since(r.Timestamp); since < 0 || since > time.Minute {
				t.Errorf("the record's timestamp is %s, want the time of publishing", r.Timestamp)
			}
		})
	}
}

// TestPublicationThatCarriesMore relays over a publication of all tables and all operations: inserts into the outbox
// are published, the rest is counted.
func TestPublicationThatCarriesMore(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Exec(`CREATE TABLE outbox (id text PRIMARY KEY, aggregate_type text, aggregate_id text, event_type text, payload jsonb);
		CREATE TABLE other (id int PRIMARY KEY, t text); CREATE PUBLICATION walpost FOR ALL TABLES`)
	s.MustRun("init")
	r := s.StartRelay()
	s.Exec(`INSERT INTO other SELECT i, 'x' FROM generate_series(1, 100) i;
		INSERT INTO outbox VALUES ('a', 'order', 'k', 'OrderPaid', '{}'), ('b', 'order', 'k', 'OrderPaid', '{}');
		UPDATE outbox SET payload = '{"x": 1}' WHERE id = 'b'; UPDATE other SET t = 'y'; DELETE FROM outbox WHERE id = 'a'; TRUNCATE other`)
	s.Exec(`TRUNCATE outbox; INSERT INTO outbox VALUES ('c', 'order', 'k', 'OrderPaid', '{}')`)
	s.WaitUntilConfirmed(20 * time.Second)
	var ids []string
	for _, r := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		ids = append(ids, e2e.Header(r, "id")+string(r.Value)+e2e.Header(r, "seq"))
	}
	if got := strings.Join(ids, " "); got != "a{}1 b{}2 c{}1" {
		t.Errorf("published %q, want the inserts as they were: a, b, c", got)
	}
	if metrics := r.Get(t, "/metrics"); !strings.Contains(metrics, "walpost_other_messages_total") || strings.Contains(metrics, `walpost_other_messages_total{pipeline="`+s.Name+`"} 0`) {
		t.Error("what was not published is not counted")
	}
}

// TestTemplateOverEventType has a topic for each event type, with renamed types.
func TestTemplateOverEventType(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_KAFKA_TOPIC"] = s.Name + ".{aggregate_type}.{event_type}"
	s.Env["WALPOST_KAFKA_RENAME"] = "{order: orders, OrderPaid: paid}"
	s.Env["WALPOST_KAFKA_PARTITIONS"], s.Env["WALPOST_KAFKA_RETENTION"] = "5", "1h"
	topic := s.Name + ".orders.paid"
	create := "kafka-topics.sh --bootstrap-server " + strings.Join(s.Brokers, ",") + " --create --topic " + s.Name + ".orders.%s --partitions 5 --replication-factor 1 --config retention.ms=3600000"
	for _, args := range [][]string{{"init", "--dry-run"}, {"init"}} { // which makes the topic of the event type that is known
		out := s.MustRun(args...)
		for _, text := range []string{"topic " + topic + ": create it with 5 partitions", "topics " + s.Name + ".orders.{event_type}: their names depend on the types in the rows", fmt.Sprintf(create, "EVENT_TYPE")} {
			if !strings.Contains(out, text) {
				t.Errorf("%v does not say %q:\n%s", args, text, out)
			}
		}
	}
	r := s.StartRelay()
	s.InsertRows(5)
	cdctest.Consume(t, s.Brokers, topic, 20*time.Second, cdctest.AtLeast(5))
	// One that is not known, and that init would not make, is made by the command that the halt prints.
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'shipped', '{}')`)
	r.WaitForLog(20*time.Second, "create it ("+fmt.Sprintf(create, "shipped")+")")
	if strings.Contains(r.Log.String(), "run `walpost init`") {
		t.Errorf("the halt sends to init, which does not make the topic: %s", r.Log)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	cdctest.CreateTopic(t, s.Brokers, s.Name+".orders.shipped", 5)
	s.StartRelay()
	cdctest.Consume(t, s.Brokers, s.Name+".orders.shipped", 20*time.Second, cdctest.AtLeast(1))
}

// TestPartitionsAreTheJavaClients compares with values of Kafka's own tests of murmur2.
func TestPartitionsAreTheJavaClients(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	s.StartRelay()
	murmur2 := map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	}
	for key := range murmur2 {
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', $1, 'OrderPaid', '{}')`, key)
	}
	for _, r := range cdctest.Consume(t, s.Brokers, s.Topic, 20*time.Second, cdctest.AtLeast(len(murmur2))) {
		if want := (murmur2[string(r.Key)] & 0x7fffffff) % 3; r.Partition != want {
			t.Errorf("key %q is in partition %d, the Java client has it in %d", r.Key, r.Partition, want)
		}
	}
}
