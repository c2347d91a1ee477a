package config

import (
	"strings"
	"testing"
	"time"
)

const twoPipelines = `
http: ":80"
delivery: exactly_once
source: {check_interval: 5s, columns: {id: event_id}}
kafka: {brokers: ["a:1", "b:2"], compression: lz4, rename: {a: b}}
pipelines:
- pipeline: orders
  source: {url: "postgres://walpost@h/orders?sslmode=disable", slot: orders}
  kafka: {aggregate_types: [order], rename: {order: orders}}
- pipeline: stock-room
  delivery: at_least_once
  source: {url: "postgres://walpost@h/inventory?sslmode=disable", slot: stock, columns: {payload: body}}
  kafka: {aggregate_types: [stock], brokers: ["c:3"]}
`

// TestPipelinesTakeWhatTheyDoNotSay: a pipeline takes the keys that it does not set from the top level, and the
// variables with its name override both.
func TestPipelinesTakeWhatTheyDoNotSay(t *testing.T) {
	env := map[string]string{
		"WALPOST_KAFKA_COMPRESSION": "zstd", "WALPOST_DELIVERY": "exactly_once",
		"WALPOST_ORDERS_SOURCE_URL": "postgres://walpost:pw@h/orders?sslmode=disable", "WALPOST_STOCK_ROOM_KAFKA_RENAME": "{stock: s}", "WALPOST_STOCK_ROOM_QUEUE_TIMEOUT": "5s",
	}
	cfgs, err := parse("orders.yaml", []byte(twoPipelines), func(k string) string { return env[k] })
	if err != nil || len(cfgs) != 2 {
		t.Fatal(cfgs, err)
	}
	orders, stock := cfgs[0], cfgs[1]
	if orders.Pipeline != "orders" || orders.HTTP != ":80" || orders.Delivery != ExactlyOnce || orders.Source.CheckInterval != 5*time.Second ||
		orders.Source.Columns.ID != "event_id" || orders.Source.Columns.Payload != "payload" || orders.Source.URL != "postgres://walpost:pw@h/orders?sslmode=disable" ||
		len(orders.Kafka.Brokers) != 2 || orders.Kafka.Compression != "zstd" || orders.Kafka.Rename["order"] != "orders" || orders.QueueTimeout != time.Minute {
		t.Errorf("orders: %+v", orders)
	}
	if stock.Pipeline != "stock-room" || stock.HTTP != ":80" || stock.Delivery != AtLeastOnce || stock.Source.CheckInterval != 5*time.Second ||
		stock.Source.Columns.ID != "event_id" || stock.Source.Columns.Payload != "body" || stock.Source.URL != "postgres://walpost@h/inventory?sslmode=disable" ||
		len(stock.Kafka.Brokers) != 1 || stock.Kafka.Brokers[0] != "c:3" || stock.Kafka.Compression != "zstd" || stock.Kafka.Rename["stock"] != "s" || stock.QueueTimeout != 5*time.Second {
		t.Errorf("stock-room: %+v", stock)
	}
	if v := stock.Variable("ADMIN_URL"); v != "WALPOST_STOCK_ROOM_ADMIN_URL" {
		t.Error(v)
	}
}

// TestPipelinesMistakesAreNamed: the error has the mistakes of all pipelines, each with its pipeline and key.
func TestPipelinesMistakesAreNamed(t *testing.T) {
	const base = "kafka: {brokers: ['k:1'], aggregate_types: [order]}\n"
	a, b := "{pipeline: a, source: {url: 'postgres://u@h/one?sslmode=disable', slot: a}}", "{pipeline: b, source: {url: 'postgres://u@h/two?sslmode=disable', slot: b}}"
	for text, wants := range map[string][]string{
		base + "pipelines: []":                       {"pipelines: list at least one"},
		base + "pipelines: orders":                   {"pipelines: write a list"},
		base + "pipelines: [orders, " + a + "]":      {"pipelines[0]: orders: write the keys"},
		base + "pipelines: [~]":                      {"pipelines[0]: pipeline:"},
		base + "pipeline: x\npipelines: [" + a + "]": {`pipeline: "x": each pipeline needs its own name`},
		base + "pipelines: [" + a + ", {pipeline: b, sourc: {}, kafka: {sasl: x}, source: {slott: x}, window: {rows: many}}]\nshutdown: 1": {
			"pipeline b: kafka.sasl: this key has no value", "pipeline b: sourc: there is no such key", "pipeline b: source.slott: there is no such key", "pipeline b: window.rows: many", "shutdown: there is no such key",
		},
		base + "pipelines: [{pipeline: a}, {pipeline: b, window: {rows: -1}}]": {
			"pipeline a: source.url: missing: write postgres://walpost@host:5432/database?sslmode=verify-full, or set WALPOST_A_SOURCE_URL", "pipeline b: source.url", "pipeline b: window.rows: -1",
		},
		base + "pipelines: [" + a + ", " + a + "]": {
			"pipeline a: pipeline: two pipelines have this name and would share the state topic walpost.state.a", `pipeline a: source.slot: pipeline a reads "a" on the same server`,
			"pipeline a: kafka.topic: pipeline a already publishes public.outbox to outbox.event.order",
		},
		base + "pipelines: [" + a + ", {pipeline: b, source: {url: 'postgres://v@x:1,H/two?sslmode=disable', slot: a}}]": {`pipeline b: source.slot: pipeline a reads "a" on the same server`},
		base + "pipelines: [" + a + ", {pipeline: b, source: {url: 'postgres://v@h/one?sslmode=disable', slot: b}}]":     {"pipeline b: kafka.topic: pipeline a already publishes public.outbox to outbox.event.order"},
		base + "poison: {policy: dead_letter, topic: aside}\npipelines: [" + a + ", " + b + "]":                          {`pipeline b: poison.topic: pipeline a has "aside" too`},
		base + "pipelines: [" + a + ", {pipeline: b, poison: {topic: outbox.event.order}, kafka: {topic: x}, source: {url: 'postgres://u@h/two?sslmode=disable', slot: b}}]": {
			`pipeline b: poison.topic: pipeline a publishes to "outbox.event.order"`,
		},
		base + "pipelines: [{pipeline: a, poison: {topic: x}, source: {url: 'postgres://u@h/one?sslmode=disable', slot: a}}, {pipeline: b, kafka: {topic: x}, source: {url: 'postgres://u@h/two?sslmode=disable', slot: b}}]": {
			"pipeline b: kafka.topic: x is the dead letter topic of pipeline a",
		},
		base + "pipelines: [" + a + ", {pipeline: b, http: ':1', shutdown_timeout: 1s, source: {url: 'postgres://u@h/two?sslmode=disable', slot: b}}]": {
			"pipeline b: http: the process has one", "pipeline b: shutdown_timeout: the process has one",
		},
		base + "pipelines: [{pipeline: a-b, source: {url: 'postgres://u@h/one?sslmode=disable', slot: a}}, {pipeline: a_b, source: {url: 'postgres://u@h/two?sslmode=disable', slot: b}}]": {
			"pipeline a_b: pipeline: pipeline a-b already reads the variable WALPOST_A_B_SOURCE_URL",
		},
	} {
		_, err := parse("orders.yaml", []byte(text), noEnv)
		for _, want := range wants {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v\nwant it to say %q", text, err, want)
			}
		}
	}
	for _, good := range []string{
		"pipelines: [" + a + ", " + b + "]",
		"pipelines: [" + a + ", {pipeline: b, source: {url: 'postgres://u@other/one?sslmode=disable', slot: a}}]",
		"pipelines: [" + a + ", {pipeline: b, source: {url: 'postgres://u@h/one?sslmode=disable', slot: b, table: public.other}}]",
		"pipelines: [" + a + ", {pipeline: b, kafka: {brokers: ['k:2']}, source: {url: 'postgres://u@h/one?sslmode=disable', slot: b}}]",
		"pipelines: [" + a + ", {pipeline: b, kafka: {aggregate_types: [stock]}, source: {url: 'postgres://u@h/one?sslmode=disable', slot: b}}]",
	} {
		if _, err := parse("orders.yaml", []byte(base+good), noEnv); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}
