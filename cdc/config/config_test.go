package config

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const goodConfig = `
pipeline: orders
source: {url: "postgres://walpost:secret@localhost/orders"}
kafka: {brokers: ["localhost:9092"], aggregate_types: [order]}
`

func noEnv(string) string { return "" }

func parseOne(text string, getenv func(string) string) (Config, error) {
	cfgs, err := parse("orders.yaml", []byte(text), getenv)
	if len(cfgs) == 0 {
		return Config{}, err
	}
	return cfgs[0], err
}

func TestConfigOfThreeLines(t *testing.T) {
	cfg, err := parseOne(goodConfig, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Source.Table != "public.outbox" || cfg.Window.Pace != 2*time.Millisecond || cfg.Kafka.Partitions != 3 || cfg.StateTopic() != "walpost.state.orders" {
		t.Errorf("defaults: %+v", cfg)
	}
}

// TestDebeziumOptionsAreText reads options of any kind as the text that was written, also from the environment, and needs
// no aggregate types.
func TestDebeziumOptionsAreText(t *testing.T) {
	const text = "{pipeline: p, source: {url: 'postgres://walpost@localhost/d'}, kafka: {brokers: ['k:9092']}, debezium: {"
	want := Debezium{"a.b": "true", "c": "${x}", "d": "12", "e": ""}
	for name, c := range map[string]struct{ options, env string }{
		"file":        {options: "a.b: true, c: '${x}', d: 12, e: "},
		"environment": {env: "{a.b: true, c: '${x}', d: 12, e: }"},
	} {
		cfg, err := parseOne(text+c.options+"}}", func(k string) string { return map[string]string{"WALPOST_DEBEZIUM": c.env}[k] })
		if err != nil || !maps.Equal(cfg.Debezium, want) {
			t.Errorf("%s: %v, %v, want %v", name, cfg.Debezium, err, want)
		}
	}
}

// TestConfigMistakesAreNamed: each mistake is one line that names the key and what to write.
func TestConfigMistakesAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"pipelin: x":                                          "pipelin: there is no such key",
		"pipeline: Über":                                      "pipeline:",
		"source: {slot: Bad-Slot}":                            "source.slot:",
		"source: {status_interval: soon}":                     "status_interval",
		"source: {status_interval: 1h}":                       "source.status_interval:",
		"source: {table: outbox}":                             "source.table:",
		"source: {columns: {id: ''}}":                         "source.columns.id:",
		"source: {columns: {ident: x}}":                       "source.columns.ident: there is no such key",
		"source: {url: 'mysql://x'}":                          "source.url:",
		"source: {url: 'host=h sslmode=disable'}":             "source.url: the URL names no database: write postgres://user@host:5432/database",
		"source: {publication: ''}":                           "source.publication:",
		"source: {max_row_bytes: 5}":                          "source.max_row_bytes:",
		"kafka: {brokers: [localhost]}":                       "kafka.brokers:",
		"kafka: {topic: 'a b'}":                               "kafka.topic:",
		"kafka: {topic: '__x'}":                               "kafka.topic:",
		"kafka: {topic: 'walpost.state.x'}":                   "kafka.topic:",
		"kafka: {topic: 'x.{nope}'}":                          "kafka.topic:",
		"kafka: {aggregate_types: ['a b']}":                   "kafka.aggregate_types:",
		"kafka: {max_request_bytes: 1KiB}":                    "kafka.max_request_bytes:",
		"kafka: {partitions: 0}":                              "kafka.partitions:",
		"{debezium: {a: b}, kafka: {topic: x}}":               "kafka.topic: the options under debezium decide it",
		"{debezium: {a: b}, kafka: {aggregate_types: [x]}}":   "kafka.aggregate_types: the options under debezium decide it",
		"{debezium: {a: b}, source: {columns: {payload: x}}}": "source.columns.payload: the options under debezium decide it",
		"debezium: {a: [b]}":                                  "debezium:",
		"debezium: x":                                         "debezium:",
		"kafka: {partitions: many}":                           "kafka.partitions: many is not a whole number",
		"kafka: {partitions: 1.5}":                            "kafka.partitions: 1.5 is not a whole number",
		"kafka: {brokers: 'localhost:9092'}":                  `kafka.brokers: "localhost:9092" is not a list of names: write [localhost:9092]`,
		"kafka: {agregate_types: [x]}":                        "kafka.agregate_types: there is no such key: did you mean kafka.aggregate_types?",
		"kafka: {aggregateTypes: [x]}":                        "did you mean kafka.aggregate_types?",
		"sorce: {slot: x}":                                    "sorce: there is no such key: did you mean source?",
		"source: {colums: {id: x}}":                           "did you mean source.columns?",
		"slot: x":                                             "slot: there is no such key: did you mean source.slot?",
		"columns: {id: x}":                                    "columns: there is no such key: did you mean source.columns or source.polling.columns?",
		"kafka: {url: x}":                                     "cdc/CONFIGURATION.md lists every key", // source's and cleanup's
		"1: x":                                                "1: there is no such key",
		"window: {pace: 5}":                                   "window.pace: 5 is not a duration: write 5ms, 2s or 1m",
		"kafka: {rename: {a: [b]}}":                           "kafka.rename: {a: [b]} does not hold pairs of names",
		"kafka: {sasl: {password: ['pw@']}}":                  "kafka.sasl.password: this is more than one value",
		"http: \"pw@":                                         "configuration line 1: ",
		"http: a\nhttp: b":                                    "configuration line 2: this key is there already",
		"---\nhttp: a\n---\nhttp: b\n":                        "more than one document",
		"orders":                                              "configuration: the file has no keys",
		"[pipeline]":                                          "configuration: the file has no keys",
		"source: {<<: 5}":                                     "configuration line 1: the text here is not a key or a value",
		"kafka: {replication: -1}":                            "kafka.replication:",
		"kafka: {headers: ce}":                                "kafka.headers:",
		"kafka: {cloudevents: {source: 'a b'}}":               "kafka.cloudevents.source:",
		"kafka: {cloudevents: {source: '%'}}":                 "kafka.cloudevents.source:",
		"kafka: {cloudevents: {content_type: /}}":             "kafka.cloudevents.content_type:",
		"kafka: {retention: -1s}":                             "kafka.retention:",
		"kafka: {compression: brotli}":                        "kafka.compression:",
		"kafka: {sasl: {mechanism: ntlm}}":                    "kafka.sasl.mechanism:",
		"kafka: {sasl: {mechanism: plain}}":                   "kafka.sasl.username: missing",
		"kafka: {tls_cert_file: /a}":                          "kafka.tls_cert_file: it is for connections with TLS",
		"kafka: {tls_ca_fil: /a}":                             "did you mean kafka.tls_ca_file?",
		"kafka: {tls: true, tls_ca_file: /none}":              "kafka.tls_ca_file: read the file: open /none",
		"kafka: {tls_ca_file: [a]}":                           "kafka.tls_ca_file: [a] is more than one value",
		"delivery: exactly_twice":                             "delivery:",
		"window: {rows: 0}":                                   "window.rows:",
		"window: {bytes: lots}":                               "not a size",
		"window: {bytes: 1GiB}":                               "window.bytes:",
		"window: {pace: 1m}":                                  "window.pace:",
		"queue_timeout: 0s":                                   "queue_timeout:",
		"shutdown_timeout: -1s":                               "shutdown_timeout:",
		"http: [1]":                                           "http",
		"pipeline: [":                                         "line",
		"source: {url: 'postgres://u:pw@h:x/db'}":             "source.url:",
		"source: {columns: {id: '=5'}}":                       "source.columns.id: \"=5\": only aggregate_type and event_type can be constants",
		"source: {columns: {payload: '-'}}":                   "source.columns.payload: \"-\": every row needs a value",
		"source: {columns: {aggregate_type: '='}}":            "write the word after the =",
		"source: {columns: {aggregate_type: '-'}}":            "source.columns.aggregate_type:",
		"source: {columns: {aggregate_id: '-'}}":              "kafka.null_key: publish",
		"source: {columns: {event_type: '-'}}\nkafka: {headers: cloudevents}":      "a CloudEvent needs a type",
		"source: {columns: {event_type: '-'}}\nkafka: {topic: 'x.{event_type}'}":   "kafka.topic contains {event_type}",
		"source: {columns: {aggregate_type: '=b'}}\nkafka: {aggregate_types: [a]}": "not in kafka.aggregate_types",
		"kafka: {aggregate_types: ['*', order]}":                                   "list it alone",
		"source: {columns: {created_at: '-'}}\ncleanup: {every: 1h}":               "cleanup.every: rows are deleted by their age",
		"kafka: {null_key: maybe}":                                                 "kafka.null_key: \"maybe\": write reject or publish",
		"kafka: {null_payload: maybe}":                                             "kafka.null_payload: \"maybe\": write reject or tombstone",
	} {
		_, err := parseOne(text, noEnv)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it to say %q", text, err, want)
			continue
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if strings.TrimSpace(line) == "" || strings.Contains(line, "pw@") {
				t.Errorf("%s: the error is no clear line, or tells a secret: %q", text, err)
			}
		}
	}
}

func TestConfigReportsEverythingTogether(t *testing.T) {
	_, err := parseOne("kafka: {partitions: -1}\nwindow: {rows: -1}", noEnv)
	for _, key := range []string{"pipeline:", "source.url:", "kafka.brokers:", "kafka.aggregate_types:", "kafka.partitions:", "window.rows:"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s is not reported: %v", key, err)
		}
	}
}

func TestEnvironmentWins(t *testing.T) {
	env := map[string]string{
		"WALPOST_PIPELINE": "other", "WALPOST_KAFKA_BROKERS": "a:1,b:2", "WALPOST_KAFKA_RENAME": "{order: orders}",
		"WALPOST_WINDOW_BYTES": "64KiB", "WALPOST_QUEUE_TIMEOUT": "5s", "WALPOST_KAFKA_TLS": "true", "WALPOST_KAFKA_SASL_PASSWORD": "123", "WALPOST_KAFKA_SASL_MECHANISM": "plain", "WALPOST_KAFKA_SASL_USERNAME": "walpost",
	}
	cfg, err := parseOne(goodConfig, func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Pipeline != "other" || len(cfg.Kafka.Brokers) != 2 || cfg.Kafka.Rename["order"] != "orders" || cfg.Window.Bytes != 64<<10 ||
		cfg.QueueTimeout != 5*time.Second || !cfg.Kafka.TLS || cfg.Kafka.SASL.Password != "123" {
		t.Errorf("%+v", cfg)
	}
	_, err = parseOne(goodConfig, func(k string) string { return map[string]string{"WALPOST_QUEUE_TIMEOUT": "soon"}[k] })
	if err == nil || !strings.Contains(err.Error(), "WALPOST_QUEUE_TIMEOUT") {
		t.Errorf("a wrong variable is not named: %v", err)
	}
}

// TestWrongKindsOfValues: for a wrong value, in the file, at one of several pipelines or in the environment, the error
// names the key, and does not name types of Go.
func TestWrongKindsOfValues(t *testing.T) {
	inside := regexp.MustCompile(`Go |struct|unmarshal|int64|float64|interface|time\.Duration|config\.|sequence|mapping|implemented|overflow`)
	var cfg Config
	eachKey(reflect.ValueOf(&cfg).Elem(), nil, func(path []string, v reflect.Value, tag reflect.StructTag) {
		key, variable := strings.Join(path, "."), envName(environment, path)
		text, list, pairs := v.Kind() == reflect.String, v.Kind() == reflect.Slice, v.Kind() == reflect.Map
		for value, wrong := range map[string]bool{
			"s3cret words": !text, "[s3cret, [2]]": true, "{s3cret: {b: c}}": true, "[]": !list, "{}": !pairs,
			"1.5": !text, "true": !text && v.Kind() != reflect.Bool, "99999999999999999999999": !text,
		} {
			file := value
			for _, key := range slices.Backward(path) {
				file = "{" + key + ": " + file + "}"
			}
			for _, c := range []struct {
				says, file string
				env        map[string]string
				wrong      bool
			}{
				{key + ": ", file, nil, wrong},
				{"pipelines[1]: " + key + ": ", "pipelines: [{pipeline: a}, " + file + "]", nil, wrong},
				{"environment " + variable + ": ", "", map[string]string{variable: value}, wrong && !text && (!list || value[0] == '[')},
			} {
				_, err := parse("orders.yaml", []byte(c.file), func(k string) string { return c.env[k] })
				said := fmt.Sprint(err)
				if c.wrong && !strings.Contains(said, c.says) {
					t.Errorf("%s: %s %v: it is not named: %s", key, c.file, c.env, said)
				}
				if inside.MatchString(said) || tag.Get("secret") != "" && strings.Contains(said, "s3cret") {
					t.Errorf("%s: %s %v: it speaks of the program, or tells a secret: %s", key, c.file, c.env, said)
				}
			}
		}
	})
}

// TestStrays: a name that is nearly one of ours is an error with the right name. Other unknown names are reported,
// except those of Kubernetes.
func TestStrays(t *testing.T) {
	cfgs, err := parse("orders.yaml", []byte(twoPipelines), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{"WALPOST_CONFIG", "WALPOST_ADMIN_URL", "LOG_LEVEL", "LOG_FORMAT"}
	for name, meant := range map[string]string{
		"WALPOST_KAFKA_BROKER": "WALPOST_KAFKA_BROKERS", "WALPOST_KAKFA_TLS": "WALPOST_KAFKA_TLS", "walpost_source_url": "WALPOST_SOURCE_URL",
		"WALPOST_KAFKA_AGGREGATETYPES": "WALPOST_KAFKA_AGGREGATE_TYPES", "WALPOST_ADMINURL": "WALPOST_ADMIN_URL", "WALPOST_CONFG": "WALPOST_CONFIG",
		"WALPOST_ORDERS_SOURCE_SLOTS": "WALPOST_ORDERS_SOURCE_SLOT", "WALPOST_STOCKROOM_ADMIN_URL": "WALPOST_STOCK_ROOM_ADMIN_URL",
		"LOG_LEVLE": "LOG_LEVEL", "LOG_FORMATS": "LOG_FORMAT",
	} {
		unknown, err := Strays([]string{"PATH", name, "WALPOST_SOURCE_SLOT"}, flags, cfgs)
		if want := "environment " + name + ": there is no such variable: did you mean " + meant + "?"; err == nil || err.Error() != want || len(unknown) > 0 {
			t.Errorf("%s: %v, %v, want %s", name, err, unknown, want)
		}
	}
	unknown, err := Strays([]string{
		"HOME", "KAFKA_BROKER", "LOG_DRIVER", "WALPOST_SOURCE_URL", "WALPOST_ORDERS_SOURCE_URL", "WALPOST_ORDERS_ADMIN_URL", "LOG_LEVEL",
		"WALPOST_SERVICE_HOST", "WALPOST_SERVICE_PORT", "WALPOST_SERVICE_PORT_HTTP", "WALPOST_PORT", "WALPOST_PORT_8080_TCP", "WALPOST_PORT_8080_TCP_ADDR",
		"WALPOST_HTTP_SERVICE_HOST", "WALPOST_HTTP_PORT", "WALPOST_ORDERZ_SOURCE_URL", "WALPOST_OTHER_ADMIN_URL", "WALPOST_SOURCE_PORT", "WALPOST_LOG_LEVEL", "WALPOST_TEST_LONG",
	}, flags, cfgs)
	if want := []string{"WALPOST_ORDERZ_SOURCE_URL", "WALPOST_OTHER_ADMIN_URL", "WALPOST_SOURCE_PORT", "WALPOST_LOG_LEVEL"}; err != nil || !slices.Equal(unknown, want) {
		t.Errorf("%v, %v, want %v", unknown, err, want)
	}
}

func TestReferenceHasEveryKey(t *testing.T) {
	ref := Reference()
	for _, key := range []string{"`pipeline`", "`source.columns.payload`", "`kafka.sasl.password`", "`window.pace`", "`2ms`", "`4MiB`", "`cleanup.every` | `0s` |"} {
		if !strings.Contains(ref, key) {
			t.Errorf("the reference lacks %s", key)
		}
	}
	for line := range strings.SplitSeq(strings.TrimSpace(ref), "\n") {
		if strings.HasSuffix(line, "|  |") {
			t.Errorf("a key without a word: %s", line)
		}
	}
}

func TestLegalTopic(t *testing.T) {
	for name, legal := range map[string]bool{
		"outbox.event.order": true, "A-b_c.9": true, "": false, ".": false, "..": false, "a b": false, "__consumer_offsets": false,
		"walpost.state.orders": false, strings.Repeat("x", 249): true, strings.Repeat("x", 250): false, "ü": false,
	} {
		if LegalTopic(name) != legal {
			t.Errorf("%q: %v", name, !legal)
		}
	}
}

// FuzzConfig: Load does not panic, and an accepted configuration is valid, and still valid after it is written and read
// again.
func FuzzConfig(f *testing.F) {
	f.Add(goodConfig)
	f.Add("window: {bytes: 4MiB, pace: 1ms}\nkafka:\n  rename: {a: b}\n")
	f.Add("kafka: {brokers: ['a:1'], aggregate_types: [x]}\npipelines:\n- {pipeline: a, source: {url: 'postgres://h/a?sslmode=disable', slot: a}}\n- {pipeline: b, source: {url: 'postgres://h/b?sslmode=disable', slot: b}}\n")
	f.Add("pipelines: [~, {}, [], x]\n")
	f.Add("source:\n  columns: {id: event_id}\nhttp: 0.0.0.0:1\n")
	f.Fuzz(func(t *testing.T, text string) {
		cfgs, err := parse("orders.yaml", []byte(text), noEnv)
		if err != nil {
			return
		}
		for i := range cfgs {
			if err := cfgs[i].Validate(); err != nil {
				t.Errorf("accepted, but not valid: %v", err)
			}
			if !LegalTopic(cfgs[i].StateTopic()[len("walpost."):]) {
				t.Errorf("state topic %q", cfgs[i].StateTopic())
			}
		}
	})
}

// TestCleanupRules: the error has the mistakes of all keys of the section.
func TestCleanupRules(t *testing.T) {
	cfg := Default()
	cfg.Cleanup.Every, cfg.Cleanup.URL, cfg.Cleanup.Retention = time.Millisecond, "x://", -1
	err := cfg.Validate()
	for _, text := range []string{"cleanup.every: 1ms: write at least 1s", "cleanup.url: not a PostgreSQL URL", "cleanup.retention: -1ns"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("it does not say %q: %v", text, err)
		}
	}
}

// A mistake in a URL that no server could accept is found without a connection, in each URL of the configuration.
func TestAURLForAnotherProgram(t *testing.T) {
	for parameter, whose := range map[string]string{"pool_max_conns=5": "pgx's pool", "default_query_exec_mode=exec": "pgx", "replication=database": "walpost, which sets it"} {
		cfg := Default()
		cfg.Source.URL = "postgres://walpost:s3cret@host/shop?" + parameter
		cfg.Cleanup.URL = cfg.Source.URL
		err := cfg.Validate()
		name, _, _ := strings.Cut(parameter, "=")
		for _, key := range []string{"source.url", "cleanup.url"} {
			if want := key + `: PostgreSQL does not know the parameter "` + name + `", it is for ` + whose; err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("got %v, want %s", err, want)
			}
		}
	}
}

func TestPoisonConfigMistakesAreNamed(t *testing.T) {
	const base = "pipeline: p\nsource: {url: 'postgres://u@h/d?sslmode=disable'}\n"
	const kafka = "kafka: {brokers: ['h:1'], aggregate_types: [order, Ü], rename: {Ü: overview}"
	for text, want := range map[string]string{
		kafka + "}\npoison: {policy: skip}":                      "poison.policy:",
		kafka + "}\npoison: {hold_key: true}":                    "poison.hold_key:",
		kafka + "}\npoison: {topic: 'a b'}":                      "poison.topic:",
		kafka + "}\npoison: {topic: walpost.state.p}":            "poison.topic:",
		kafka + "}\npoison: {topic: walpost.dlq.other}":          "poison.topic:",
		kafka + "}\npoison: {topic: outbox.event.order}":         "is a topic of the outbox",
		kafka + "}\npoison: {topic: outbox.event.overview}":      "is a topic of the outbox",
		kafka + ", payload: xml}":                                "kafka.payload:",
		kafka + "}\npoison: {policy: dead_letter, topic: dead}":  "",
		kafka + "}\npoison: {policy: dead_letter, hold_key: on}": "hold_key",
	} {
		_, err := parseOne(base+text, noEnv)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
