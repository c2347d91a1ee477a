package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cmd/internal/app"
)

// TestOperatingADebeziumPipeline takes rows of Debezium's table through everything that an operator does: streaming in
// transactions, a poison row with a held key, redrive, replay and where. The records stay those of the router.
func TestOperatingADebeziumPipeline(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	delete(s.Env, "WALPOST_KAFKA_TOPIC")
	delete(s.Env, "WALPOST_KAFKA_AGGREGATE_TYPES")
	s.Env["WALPOST_DELIVERY"], s.Env["WALPOST_POISON_POLICY"], s.Env["WALPOST_POISON_HOLD_KEY"] = "exactly_once", "dead_letter", "true"
	s.Env["WALPOST_KAFKA_CREATE_TOPICS"] = "true"
	s.Env["WALPOST_DEBEZIUM"] = fmt.Sprintf(`{topic.prefix: shop, route.topic.replacement: "%s.${routedByValue}", table.fields.additional.placement: "type:header,version:header:v,p:partition",
		value.converter: org.apache.kafka.connect.json.JsonConverter, value.converter.schemas.enable: false, key.converter: org.apache.kafka.connect.storage.StringConverter,
		table.expand.json.payload: true}`, s.Name)
	s.Exec(`CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload jsonb, version bigint, p int, created_at timestamptz DEFAULT clock_timestamp())`)
	s.MustRun("init")
	since := time.Now().Add(-time.Minute).Format(time.RFC3339)
	insert := func(key string, p any) string {
		id := s.Query("SELECT gen_random_uuid()::text")
		s.Exec(`INSERT INTO outbox VALUES ($1, 'order', $2, 'OrderPaid', '{"b": [1, 2], "a": "x"}', 9000000000, $3)`, id, key, p)
		return id
	}
	r := s.StartRelay()
	ids := []string{insert("k", 2), insert("k", 7), insert("k", 2), insert("other", nil)}
	s.WaitForEvent(ids[3])
	if dead := s.DeadLetters(); len(dead) != 2 || dead[0].Letter.Class != "partition" || dead[1].Letter.Class != "held" {
		t.Fatalf("dead letters: %v", dead)
	}
	check := func(want ...string) {
		t.Helper()
		var got []string
		records := cdctest.ReadAll(t, s.Brokers, s.Topic)
		slices.SortStableFunc(records, func(a, b *kgo.Record) int { return int(a.Partition - b.Partition) })
		for _, r := range records {
			if string(r.Value) != `{"a":"x","b":[1,2]}` || e2e.Header(r, "type") != "OrderPaid" || e2e.Header(r, "v") != "9000000000" || e2e.Header(r, "__debezium.context.connectorLogicalName") != "shop" {
				t.Errorf("a record that Debezium would not write: %s %s %v", r.Key, r.Value, r.Headers)
			}
			if string(r.Key) == "other" {
				continue // its hash chooses the partition
			}
			got = append(got, fmt.Sprintf("%d in %d", slices.Index(ids, e2e.Header(r, "id")), r.Partition))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("records %q, want %q", got, want)
		}
	}
	check("0 in 2")
	if out, err := s.Run("dlq", "redrive", "--all"); err == nil || !strings.Contains(out+err.Error(), "has 3") {
		t.Errorf("redrive before the topic has the partition: %v\n%s", err, out)
	}
	s.CreatePartitions(8)
	s.MustRun("dlq", "redrive", "--all")
	check("0 in 2", "2 in 2", "1 in 7")
	if w := s.where(ids[1], "--read-url", s.AdminURL); len(w.Events) != 1 || len(w.Events[0].Places) != 1 || w.Events[0].Places[0].Partition != 7 {
		t.Errorf("where: %+v", w)
	}
	s.WaitUntilConfirmed(20 * time.Second)
	s.MustRun("replay", "--from", since, "--to", time.Now().Add(time.Minute).Format(time.RFC3339))
	if n := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); n != 8 {
		t.Errorf("%d records after a replay of 4", n)
	}
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
}

// TestAnInterruptedCommandIsNotDone ends a command by a signal while Kafka does not answer: its error is an
// InterruptedError, and that of a relay, which a signal ends in order, is none.
func TestAnInterruptedCommandIsNotDone(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	s.Env["WALPOST_KAFKA_BROKERS"] = cdctest.Silent(t)
	for command, want := range map[string]bool{"adopt": true, "relay": false} {
		ctx, stop := context.WithCancel(t.Context())
		timer := time.AfterFunc(time.Second, stop)
		err := run(ctx, []string{command}, s.Getenv, io.Discard, io.Discard)
		timer.Stop()
		stop()
		if got := errors.As(err, new(*app.InterruptedError)); got != want {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// TestFatalUpdatesHalt sets table.op.invalid.behavior to fatal: init makes a publication that carries updates, one that
// does not halts the relay, and so does an update.
func TestFatalUpdatesHalt(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	delete(s.Env, "WALPOST_KAFKA_TOPIC")
	delete(s.Env, "WALPOST_KAFKA_AGGREGATE_TYPES")
	s.Env["WALPOST_KAFKA_CREATE_TOPICS"], s.Env["WALPOST_SOURCE_CHECK_INTERVAL"] = "true", "100ms"
	s.Env["WALPOST_DEBEZIUM"] = fmt.Sprintf(`{topic.prefix: shop, route.topic.replacement: "%s.${routedByValue}", table.op.invalid.behavior: fatal}`, s.Name)
	s.Exec(`CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload jsonb)`)
	if out := s.MustRun("init"); !strings.Contains(out, "inserts and updates only") {
		t.Errorf("init: %s", out)
	}
	r := s.StartRelay()
	s.Exec(`INSERT INTO outbox VALUES (gen_random_uuid(), 'order', 'k', 'x', '{}')`)
	s.WaitUntilConfirmed(20 * time.Second)
	s.Exec(`ALTER PUBLICATION walpost SET (publish = 'insert')`)
	r.WaitForLog(30*time.Second, "does not publish updates")
	s.Exec(`ALTER PUBLICATION walpost SET (publish = 'insert, update')`)
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
	s.MustRun("adopt")
	r = s.StartRelay()
	r.WaitForLog(30*time.Second, `"streaming"`)
	s.Exec(`UPDATE outbox SET payload = '[]'`)
	r.WaitForLog(30*time.Second, "a row of the outbox was updated, and table.op.invalid.behavior halts the relay then")
}
