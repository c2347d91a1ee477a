package pipeline_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
)

// TestPolledRowsWithoutAKey are published in spite of one that was refused, and a generated column is read.
func TestPolledRowsWithoutAKey(t *testing.T) {
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.Kind, cfg.Source.URL = cdctest.Name(t, "keyless"), config.KindPolling, cdctest.Database(t)
	cfg.Source.Columns = config.Columns{ID: "id", AggregateType: "=order", AggregateID: config.None, EventType: "kind", Payload: "payload"}
	cfg.Kafka.Brokers, cfg.Kafka.Replication, cfg.Kafka.AggregateTypes, cfg.Kafka.NullKey = cdctest.Kafka(t), 1, []string{"order"}, config.PublishKey
	cfg.Kafka.Topic = cfg.Pipeline
	conn, err := pgx.Connect(t.Context(), cfg.Source.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), `CREATE TABLE outbox (id text, payload json, kind text GENERATED ALWAYS AS (payload ->> 'kind') STORED)`); err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New(cfg, pipeline.Options{})
	for range 2 { // what the first made, the second finds
		if err == nil {
			_, err = p.Init(t.Context(), pipeline.InitOptions{AdminURL: cfg.Source.URL})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t.Context(), p)
	defer func() { _ = stop() }()
	if _, err := conn.Exec(t.Context(), `INSERT INTO outbox VALUES ('a', NULL), ('b', '{"kind": "paid"}')`); err != nil {
		t.Fatal(err)
	}
	text, _ := shown(cdctest.Consume(t, cfg.Kafka.Brokers, cfg.Pipeline, 20*time.Second, cdctest.AtLeast(1))[0])
	if !strings.HasSuffix(text, "\nno key\nvalue {\"kind\": \"paid\"}\nheader id=b\nheader type=paid") {
		t.Errorf("%q", text)
	}
}
