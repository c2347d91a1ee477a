package pipeline_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
)

// TestPolledRowsWithoutAKey: rows without a key are published although another one was rejected, and a generated column
// is read.
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
	for range 2 { // the second one finds the table that the first one created
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

// TestDeadLettersWithoutKeys: a dead letter without a key holds no other row. Redrive publishes the same record as the
// relay would, also for columns that are constants or missing.
func TestDeadLettersWithoutKeys(t *testing.T) {
	url, brokers := cdctest.Database(t), cdctest.Kafka(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for name, c := range map[string]struct {
		columns config.Columns
		event   string
	}{
		"none":                 {config.Columns{ID: "id", AggregateType: "=order", AggregateID: config.None, EventType: config.None, Payload: "payload"}, ""},
		"constants, NULL keys": {config.Columns{ID: "id", AggregateType: "=order", AggregateID: "key", EventType: "=paid", Payload: "payload", Headers: config.None, CreatedAt: config.None}, "\nheader type=paid"},
	} {
		for _, kind := range []config.Kind{config.KindWAL, config.KindPolling} {
			t.Run(name+"/"+string(kind), func(t *testing.T) {
				cfg := config.Default()
				cfg.Pipeline = cdctest.Name(t, "keyless")
				table := strings.ReplaceAll(cfg.Pipeline, "-", "_")
				cfg.Source.URL, cfg.Source.Kind, cfg.Source.Slot, cfg.Source.Publication, cfg.Source.Table = url, kind, table, table, "public."+table
				cfg.Source.Columns = c.columns
				cfg.Source.Polling.Attempts = 1
				cfg.Kafka.Brokers, cfg.Kafka.Replication, cfg.Kafka.AggregateTypes, cfg.Kafka.Topic = brokers, 1, []string{"order"}, cfg.Pipeline
				cfg.Kafka.NullKey, cfg.Kafka.Payload = config.PublishKey, config.PayloadJSON
				if kind == config.KindWAL {
					cfg.Poison.Policy, cfg.Poison.HoldKey = config.PolicyDeadLetter, true
				}
				if _, err := conn.Exec(t.Context(), `CREATE TABLE `+table+` (id text, key text, payload text)`); err != nil {
					t.Fatal(err)
				}
				p, err := pipeline.New(cfg, pipeline.Options{})
				if err == nil {
					_, err = p.Init(t.Context(), pipeline.InitOptions{AdminURL: url})
				}
				if err != nil {
					t.Fatal(err)
				}
				stop := run(t.Context(), p)
				if _, err := conn.Exec(t.Context(), `INSERT INTO `+table+` VALUES ('bad', NULL, 'no json'), ('a', NULL, '1'), ('worse', '', 'none either'), ('b', '', '2')`); err != nil {
					t.Fatal(err)
				}
				published := func(n int) (all []string) {
					for _, r := range cdctest.Consume(t, brokers, cfg.Pipeline, 20*time.Second, cdctest.AtLeast(n)) {
						text, _ := shown(r)
						text, _, _ = strings.Cut(text, "\nheader redriven=")
						all = append(all, text)
					}
					slices.Sort(all) // without a key there is no order
					return all
				}
				record := func(id, value string) string {
					return "topic " + cfg.Pipeline + "\nno key\nvalue " + value + "\nheader id=" + id + c.event
				}
				if got, want := published(2), []string{record("a", "1"), record("b", "2")}; !slices.Equal(got, want) {
					t.Fatalf("got  %q\nwant %q", got, want)
				}
				cdctest.Eventually(t, 20*time.Second, func() error {
					letters, err := p.DeadLetters(t.Context())
					if err == nil && len(letters) != 2 {
						err = fmt.Errorf("%d dead letters: %+v", len(letters), letters)
					}
					return err
				})
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				cfg.Kafka.Payload = config.PayloadAny
				if p, err = pipeline.New(cfg, pipeline.Options{}); err != nil {
					t.Fatal(err)
				}
				if _, err := p.Redrive(t.Context(), pipeline.RedriveOptions{}); err != nil {
					t.Fatal(err)
				}
				stop = run(t.Context(), p)
				defer func() { _ = stop() }()
				if got, want := published(4), []string{record("a", "1"), record("b", "2"), record("bad", "no json"), record("worse", "none either")}; !slices.Equal(got, want) {
					t.Errorf("got  %q\nwant %q", got, want)
				}
			})
		}
	}
}
