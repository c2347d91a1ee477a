package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/kafka"
)

// NewForPoison returns a pipeline after init. Its outbox accepts any row. Rows of each event type have their own topic,
// and only one of these topics exists. If the policy asks for a dead letter topic, that topic has a name that a row
// could be routed to.
func NewForPoison(t testing.TB, program Program, policy string) *Pipeline {
	t.Helper()
	s := New(t, program)
	s.Topic += ".ok"
	s.Env["WALPOST_KAFKA_TOPIC"] = s.Name + ".{aggregate_type}.{event_type}"
	s.Env["WALPOST_KAFKA_PAYLOAD"] = "json"
	s.Env["WALPOST_POISON_TOPIC"] = s.Name + ".order.dead"
	s.Env["WALPOST_POISON_POLICY"] = strings.TrimSuffix(policy, "+hold_key")
	if strings.HasSuffix(policy, "+hold_key") {
		s.Env["WALPOST_POISON_HOLD_KEY"] = "true"
	}
	cdctest.CreateTopic(t, s.Brokers, s.Topic, 3)
	s.Exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload text, headers text, created_at timestamptz DEFAULT clock_timestamp())`)
	s.MustRun("init")
	return s
}

// InsertPoison writes one row of SQL expressions; other columns get harmless values. It returns the row's id.
func (s *Pipeline) InsertPoison(columns map[string]string) string {
	s.T.Helper()
	id := s.Query("SELECT gen_random_uuid()::text")
	row := map[string]string{"id": "'" + id + "'", "aggregate_type": "'order'", "aggregate_id": "'k'", "event_type": "'ok'", "payload": `'{"a": 1}'`, "headers": "'{}'"}
	for c, v := range columns {
		row[c] = v
	}
	s.Exec(fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES (%s, %s, %s, %s, %s, %s)`,
		row["id"], row["aggregate_type"], row["aggregate_id"], row["event_type"], row["payload"], row["headers"]))
	return id
}

// DeadLetters returns the entries of the dead letter topic.
func (s *Pipeline) DeadLetters() []kafka.Entry {
	s.T.Helper()
	entries, err := s.Sink().Entries(s.T.Context())
	if err != nil {
		s.T.Fatal(err)
	}
	return entries
}

// PublishedIDs returns the id of each record in the topic, in the order of each partition.
func (s *Pipeline) PublishedIDs() (ids []string) {
	s.T.Helper()
	for _, r := range cdctest.ReadAll(s.T, s.Brokers, s.Topic) {
		ids = append(ids, Header(r, "id"))
	}
	return ids
}

// Poison is a kind of poison row: a column's value, as SQL, and the words of the relay's error.
type Poison struct {
	Name, Column, Value string
	Class               cdc.Class
	Holds               bool // it has a key that others share
	Says                string
}

// Poisons lists all kinds of poison rows.
var Poisons = []Poison{
	{"type not listed", "aggregate_type", "'invoice'", cdc.BadType, false, "kafka.aggregate_types"},
	{"type NULL", "aggregate_type", "NULL", cdc.BadType, false, "kafka.aggregate_types"},
	{"illegal topic", "event_type", "'a b'", cdc.BadTopic, true, "does not allow"},
	{"the dead letter topic itself", "event_type", "'dead'", cdc.BadTopic, true, "which is the dead letter topic"},
	{"id NULL", "id", "NULL", cdc.BadID, true, "id is NULL"},
	{"key NULL", "aggregate_id", "NULL", cdc.BadKey, false, "aggregate_id is empty"},
	{"key empty", "aggregate_id", "''", cdc.BadKey, false, "aggregate_id is empty"},
	{"payload NULL", "payload", "NULL", cdc.BadPayload, true, "payload is NULL"},
	{"payload not JSON", "payload", "'{\"a\": '", cdc.BadPayload, true, "kafka.payload"},
	{"headers a list", "headers", "'[1]'", cdc.BadHeaders, true, "one of its elements is neither"},
	{"headers torn", "headers", "'{\"a\": '", cdc.BadHeaders, true, "not valid JSON"},
	{"10,000 headers", "headers", "(SELECT json_object_agg('h' || i, i)::text FROM generate_series(1, 10000) i)", cdc.BadHeaders, true, "more than 1000"},
	{"larger than the topic takes", "payload", "'\"' || repeat('y', 1100000) || '\"'", cdc.TooLarge, true, "max.message.bytes"},
	{"a giant key", "aggregate_id", "repeat('k', 1100000)", cdc.TooLarge, false, "max.message.bytes"},
}
