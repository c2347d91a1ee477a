//go:build debezium

package connect_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/debezium/connect"
)

func TestMain(m *testing.M) { cdctest.Main(m) }

// table creates an outbox with its publication, and Debezium's slot.
func table(t *testing.T) (url string, exec func(sql string)) {
	t.Helper()
	url = cdctest.Database(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	exec = func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, aggregateid text NOT NULL, type text NOT NULL, payload jsonb)`)
	exec(`CREATE PUBLICATION dbz_pub FOR TABLE outbox`)
	return url, exec
}

// kafkas are the brokers that a test runs with: one in the process, and a real one.
var kafkas = map[string]func(testing.TB) []string{"in the process": connect.FakeKafka, "real": connect.Kafka}

// TestWorker checks that a worker delivers rows, stops, resumes, is killed, comes back and ends, with both forms of a
// worker.
func TestWorker(t *testing.T) {
	for name, kafka := range kafkas {
		t.Run(name, func(t *testing.T) {
			brokers := kafka(t)
			for name, distributed := range map[string]bool{"standalone": false, "distributed": true} {
				t.Run(name, func(t *testing.T) { checkWorker(t, brokers, distributed) })
			}
		})
	}
}

func checkWorker(t *testing.T, brokers []string, distributed bool) {
	url, exec := table(t)
	slot := cdctest.SlotName(t, "debezium")
	exec(`SELECT pg_create_logical_replication_slot('` + slot + `', 'pgoutput')`)
	topic := cdctest.Name(t, "orders")
	insert := func(key string) {
		t.Helper()
		exec(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('Order', '` + key + `', 'Paid', '{"a": 1}')`)
	}
	config := connect.Connector(url, map[string]string{"slot.name": slot, "transforms.outbox.route.topic.replacement": topic})
	w := connect.Start(t, connect.Config{Brokers: brokers, Distributed: distributed, Settings: map[string]string{"offset.flush.interval.ms": "500"}})
	w.Deploy("outbox", config)
	insert("first")
	first := cdctest.Consume(t, brokers, topic, time.Minute, cdctest.AtLeast(1))[0]
	if string(first.Key) != "first" || string(first.Value) != `{"a": 1}` {
		t.Errorf("the first record is %s: %s", first.Key, first.Value)
	}
	w.Await(time.Minute, func() error {
		offsets, err := w.Offsets("outbox")
		if err == nil && len(offsets) == 0 {
			return errNoOffsets
		}
		return err
	})
	w.Stop("outbox")
	insert("second")
	w.Resume("outbox")
	cdctest.Consume(t, brokers, topic, time.Minute, cdctest.AtLeast(2))
	w.Kill()
	insert("third")
	w.Begin()
	if !distributed {
		w.Deploy("outbox", config)
	}
	w.AwaitStreaming("outbox")
	cdctest.Consume(t, brokers, topic, time.Minute, func(all []*kgo.Record) bool {
		return slices.ContainsFunc(all, func(r *kgo.Record) bool { return string(r.Key) == "third" })
	})
	w.Delete("outbox")
	w.Terminate()
	if !strings.Contains(w.Log(), "Kafka Connect stopped") {
		t.Errorf("the log does not say that the worker stopped")
	}
}

var errNoOffsets = errors.New("no offset has been flushed")
