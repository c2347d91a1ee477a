// Package config is what people write about a pipeline: the keys and their defaults, the rules they must keep, and
// their reading from a YAML file and the environment.
package config

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/identity"
)

// Config is the configuration of one pipeline. Every key can also be set in the environment, as WALPOST_ and the key's
// path in capitals (WALPOST_SOURCE_URL); the environment wins. HTTP, Pprof and ShutdownTimeout are those of the process.
type Config struct {
	Pipeline        string        `yaml:"pipeline" doc:"name of this pipeline, required; the state topic is called walpost.state. and this name"`
	Source          Source        `yaml:"source"`
	Kafka           Kafka         `yaml:"kafka"`
	Poison          Poison        `yaml:"poison"`
	Cleanup         Cleanup       `yaml:"cleanup"`
	Delivery        Delivery      `yaml:"delivery" doc:"at_least_once: a crash repeats what lies behind the state record, and consumers deduplicate by the header id; exactly_once: rows and state record in one Kafka transaction, and a read_committed consumer sees each row once"`
	Window          Window        `yaml:"window"`
	QueueTimeout    time.Duration `yaml:"queue_timeout" doc:"when Kafka has taken nothing for this long, the replication connection is given back until Kafka answers, so that PostgreSQL can be stopped"`
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout" doc:"how long SIGTERM waits for Kafka to take what was received"`
	HTTP            string        `yaml:"http" doc:"address of /livez, /readyz, /metrics and /status"`
	Pprof           string        `yaml:"pprof" doc:"address of Go's profiles, on loopback only: 127.0.0.1:6060; empty: none"`

	several bool // it is one of several pipelines in a file
}

// Source is where the outbox is.
type Source struct {
	Kind           Kind          `yaml:"kind" doc:"wal: logical replication; polling: the table is asked, where logical replication is not to be had"`
	URL            string        `yaml:"url" secret:"yes" doc:"PostgreSQL, as the relay's role (LOGIN, REPLICATION), required: postgres://walpost@host:5432/orders?sslmode=verify-full&sslrootcert=/etc/walpost/ca.crt; other hosts than this machine need an sslmode; certificates and passwords are read again at each connection: cdc/identity/README.md"`
	Slot           string        `yaml:"slot" doc:"replication slot; made by walpost init, never by the relay"`
	Publication    string        `yaml:"publication" doc:"publication that carries the outbox's inserts"`
	Table          string        `yaml:"table" doc:"outbox table, schema.name"`
	Columns        Columns       `yaml:"columns"`
	StatusInterval time.Duration `yaml:"status_interval" doc:"longest time between two status updates to the server, also while Kafka does not answer; under half of the server's wal_sender_timeout"`
	CheckInterval  time.Duration `yaml:"check_interval" doc:"longest time between two looks at publication and table while streaming (it looks every 5s, for stalls too): a change that hides rows halts the relay"`
	MaxRowBytes    ByteSize      `yaml:"max_row_bytes" doc:"a row larger than this is never read into memory: it halts the relay, or, polled, is refused; what is not the outbox's may have any size"`
	Polling        Polling       `yaml:"polling"`
}

// Kind is how rows are read from the table.
type Kind string

// The two kinds of source.
const (
	KindWAL     Kind = "wal"
	KindPolling Kind = "polling"
)

// Columns names the columns of the outbox table; other columns are ignored. One column may serve several purposes.
type Columns struct {
	ID            string `yaml:"id" doc:"uuid, text, an integer, numeric or bytea (its hex digits)"`
	AggregateType string `yaml:"aggregate_type" doc:"text or an enum; chooses the topic. =order: every row is of the type order, and no column is read"`
	AggregateID   string `yaml:"aggregate_id" doc:"text, uuid, an integer, numeric or bytea (its bytes); the record's key. -: no record has a key, which needs kafka.null_key: publish"`
	EventType     string `yaml:"event_type" doc:"text or an enum; the header type. =OrderPlaced: every row is of that type; -: no record has the header"`
	Payload       string `yaml:"payload" doc:"jsonb, json, text or bytea; the record's value (jsonb as PostgreSQL renders it, the others byte for byte)"`
	Headers       string `yaml:"headers" doc:"jsonb, json or text; the row's own record headers: a JSON object, or an array of pairs, [{\"key\": \"a\", \"value\": \"b\"}] or [[\"a\", \"b\"]]. Empty: headers, if the table has it and its type fits; -: none"`
	CreatedAt     string `yaml:"created_at" doc:"timestamptz or timestamp; the header created_at. Empty: created_at, if the table has it and its type fits; -: none"`
	CreatedAtZone string `yaml:"created_at_zone" doc:"the time zone that a created_at of type timestamp is of, Europe/Berlin for example, which walpost replay, cleanup and where need. Empty: UTC, if every default of the database says so; else they refuse"`
}

// None is written where a column could be named, and says that there is none.
const None = "-"

// AnyType is the aggregate type that stands for every one.
const AnyType = "*"

// Constant returns the word that a value =word puts in the place of a column.
func Constant(value string) (word string, ok bool) { return strings.CutPrefix(value, "=") }

// Kafka is where records go.
type Kafka struct {
	Brokers         []string `yaml:"brokers" doc:"seed brokers, host:port, required"`
	identity.Kafka  `yaml:",inline"`
	Topic           string            `yaml:"topic" doc:"template over {aggregate_type} and {event_type}; with {event_type} the order per key holds per topic only"`
	AggregateTypes  []string          `yaml:"aggregate_types" doc:"the aggregate types that may be published, required; a row of another one is poison. [\"*\"]: every one, for tables whose rows name their topic"`
	Rename          map[string]string `yaml:"rename" doc:"what stands in the topic for an aggregate or event type: {order: orders, OrderCreated: created}"`
	Headers         Headers           `yaml:"headers" doc:"walpost: id, type, lsn, seq, source, created_at; or cloudevents: ce_id, ce_type and the others of a CloudEvent 1.0 in binary mode"`
	CloudEvents     CloudEvents       `yaml:"cloudevents"`
	Payload         Payload           `yaml:"payload" doc:"any, or json: a payload that is not valid JSON is poison"`
	NullKey         NullKey           `yaml:"null_key" doc:"a row whose aggregate_id is NULL or empty: refuse: it is poison; publish: its record has no key. Records without a key go to any partition, in no order"`
	NullPayload     NullPayload       `yaml:"null_payload" doc:"a row whose payload is NULL: refuse: it is poison; tombstone: its record has no value, which deletes its key from a compacted topic"`
	Partitions      int               `yaml:"partitions" doc:"partitions of the topics that walpost init creates"`
	Replication     int               `yaml:"replication" doc:"replicas of the topics that walpost init creates; 0: as many as the brokers' default"`
	Retention       time.Duration     `yaml:"retention" doc:"retention of the topics that walpost init creates; 0: for ever"`
	Compression     Compression       `yaml:"compression" doc:"none, gzip, snappy, lz4 or zstd"`
	MaxRequestBytes ByteSize          `yaml:"max_request_bytes" doc:"most bytes of a request to a broker, and so of a record: its socket.request.max.bytes, or what the service takes before it closes the connection"`
	// TransactionTimeout is what read_committed consumers of a relay that died, and that nothing replaces, wait for.
	TransactionTimeout time.Duration `yaml:"transaction_timeout" doc:"exactly_once: a transaction that is not ended after this long is aborted by the broker; a window that takes longer is sent again in smaller ones"`
}

// CloudEvents is what a CloudEvent says beyond its row.
type CloudEvents struct {
	Source      string `yaml:"source" doc:"ce_source, a URI; empty: walpost: and the pipeline's name"`
	ContentType string `yaml:"content_type" doc:"the header content-type, of the payload; empty: none"`
}

// Headers is the set of headers that each record has.
type Headers string

// The two sets of headers.
const (
	HeadersWalpost     Headers = "walpost"
	HeadersCloudEvents Headers = "cloudevents"
)

// Payload is what a row's payload may hold.
type Payload string

// The two kinds of payload.
const (
	PayloadAny  Payload = "any"
	PayloadJSON Payload = "json"
)

// NullKey is what becomes of a row without a key.
type NullKey string

// The two ways.
const (
	RefuseKey  NullKey = "refuse"
	PublishKey NullKey = "publish"
)

// NullPayload is what becomes of a row without a payload.
type NullPayload string

// The two ways.
const (
	RefusePayload NullPayload = "refuse"
	Tombstone     NullPayload = "tombstone"
)

// Compression is how batches of records are compressed.
type Compression string

// The kinds of compression.
const (
	Uncompressed Compression = "none"
	Gzip         Compression = "gzip"
	Snappy       Compression = "snappy"
	LZ4          Compression = "lz4"
	Zstd         Compression = "zstd"
)

// EventSource returns the source that a pipeline's records name.
func (k *Kafka) EventSource(pipeline string) string {
	if k.Headers != HeadersCloudEvents {
		return pipeline
	}
	return cmp.Or(k.CloudEvents.Source, "walpost:"+pipeline)
}

// Poison is what becomes of rows that can never be published.
type Poison struct {
	Policy  Policy `yaml:"policy" doc:"a row that can never be published: halt, or dead_letter: it goes, whole and with the reason, to the dead letter topic, and the rest goes on"`
	Topic   string `yaml:"topic" doc:"the dead letter topic; empty: walpost.dlq. and the pipeline's name"`
	HoldKey bool   `yaml:"hold_key" doc:"hold later rows of a key back too, in the dead letter topic, while an earlier one is unresolved; otherwise they are published before it. A row without a key holds none back, and is not held"`
}

// Cleanup is what becomes of rows that were delivered.
type Cleanup struct {
	Retention time.Duration `yaml:"retention" doc:"rows younger than this (created_at; polling: processed_at) stay in the table, for walpost replay and walpost where; what is not confirmed, or polled and pending or failed, stays in any case"`
	Every     time.Duration `yaml:"every" doc:"how often the relay deletes older rows, or drops their partitions and makes those of the days to come; 0: never, that is left to walpost cleanup"`
	URL       string        `yaml:"url" secret:"yes" doc:"PostgreSQL, as who may do so: the owner, if the table is partitioned; empty: source.url, whose role walpost init gives what a plain table needs"`
}

// CleanupURL returns the URL of the connection that cleans up, and the key that holds it.
func (c *Config) CleanupURL() (key, url string) {
	if c.Cleanup.URL == "" {
		return "source.url", c.Source.URL
	}
	return "cleanup.url", c.Cleanup.URL
}

// Policy is what the relay does with a row that can never be published.
type Policy string

// The two policies.
const (
	PolicyHalt       Policy = "halt"
	PolicyDeadLetter Policy = "dead_letter"
)

// Window bounds what is published as one. Two windows are all the row memory the relay uses.
type Window struct {
	Rows  int           `yaml:"rows" doc:"most rows in a window"`
	Bytes ByteSize      `yaml:"bytes" doc:"most bytes of rows in a window"`
	Pace  time.Duration `yaml:"pace" doc:"a quiet relay starts at most one window and one read in this time; after a silence the first row goes at once"`
}

// Delivery is the promise to consumers.
type Delivery string

// The two promises.
const (
	AtLeastOnce Delivery = "at_least_once"
	ExactlyOnce Delivery = "exactly_once"
)

// ByteSize is a number of bytes, written 1048576, 64KiB or 4MiB.
type ByteSize int64

var byteUnits = []struct {
	suffix string
	factor int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}}

// UnmarshalText reads a size with or without a unit.
func (b *ByteSize) UnmarshalText(text []byte) error {
	s, factor := string(text), int64(1)
	for _, u := range byteUnits {
		if n, ok := strings.CutSuffix(s, u.suffix); ok {
			s, factor = strings.TrimSpace(n), u.factor
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/factor {
		return fmt.Errorf("%q is no size", text)
	}
	*b = ByteSize(n * factor)
	return nil
}

func (b ByteSize) String() string {
	for _, u := range []int{2, 1, 0} {
		if u := byteUnits[u]; int64(b) >= u.factor && int64(b)%u.factor == 0 {
			return fmt.Sprintf("%d%s", int64(b)/u.factor, u.suffix)
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// Polling is how the outbox table is asked for what is pending. A batch is at most window.rows and window.bytes.
type Polling struct {
	Interval     time.Duration  `yaml:"interval" doc:"polling: how often the table is asked while little comes"`
	Order        Order          `yaml:"order" doc:"polling: key: one relay at a time, rows of a key in the order of their insertion (a row without a key waits for no other, and none waits for it); none: any number of relays share the rows, in no order"`
	AfterPublish AfterPublish   `yaml:"after_publish" doc:"polling: mark a row that was published, or delete it"`
	Attempts     int            `yaml:"attempts" doc:"polling: so often a row is tried that is itself at fault, before it is set to failed; Kafka being away is no attempt"`
	Backoff      time.Duration  `yaml:"backoff" doc:"polling: time before the second attempt, doubled for each further one, up to 1m"`
	Words        Words          `yaml:"words"`
	Columns      PollingColumns `yaml:"columns"`
}

// Order is the order in which polled rows are published.
type Order string

// The two orders.
const (
	OrderKey  Order = "key"
	OrderNone Order = "none"
)

// AfterPublish is what becomes of a polled row that was published.
type AfterPublish string

// The two ways.
const (
	MarkRow   AfterPublish = "mark"
	DeleteRow AfterPublish = "delete"
)

// Words are the values of the status column.
type Words struct {
	Pending string `yaml:"pending" doc:"polling: status of a row that is to be published, the column's default"`
	Sent    string `yaml:"sent" doc:"polling: status of a row that was published"`
	Failed  string `yaml:"failed" doc:"polling: status of a row that was refused so often; it holds later rows of its key back until walpost dlq redrive or drop"`
	Dropped string `yaml:"dropped" doc:"polling: status of a row that walpost dlq drop gave up"`
}

// All returns the words, each after its key.
func (w *Words) All() [][2]string {
	return [][2]string{{"pending", w.Pending}, {"sent", w.Sent}, {"failed", w.Failed}, {"dropped", w.Dropped}}
}

// PollingColumns names the columns that polling needs beside those of the event.
type PollingColumns struct {
	Transaction string `yaml:"transaction" doc:"polling: xid8, DEFAULT pg_current_xact_id(), before position in the table: a number is drawn by a transaction that can be seen"`
	Position    string `yaml:"position" doc:"polling: bigint identity, the order of the rows"`
	Status      string `yaml:"status" doc:"polling: text, DEFAULT source.polling.words.pending"`
	ProcessedAt string `yaml:"processed_at" doc:"polling: timestamptz, when the row was published, failed or dropped"`
	RetryCount  string `yaml:"retry_count" doc:"polling: integer, how often the row was refused"`
	LastError   string `yaml:"last_error" doc:"polling: text, why"`
}

func (c *PollingColumns) all() [][2]string {
	return [][2]string{
		{"transaction", c.Transaction},
		{"position", c.Position},
		{"status", c.Status},
		{"processed_at", c.ProcessedAt},
		{"retry_count", c.RetryCount},
		{"last_error", c.LastError},
	}
}

func defaultPolling() Polling {
	return Polling{
		Interval: time.Second, Order: OrderKey, AfterPublish: MarkRow, Attempts: 5, Backoff: time.Second,
		Words: Words{Pending: "PENDING", Sent: "SENT", Failed: "FAILED", Dropped: "DROPPED"},
		Columns: PollingColumns{
			Transaction: "transaction_id", Position: "position", Status: "status", ProcessedAt: "processed_at",
			RetryCount: "retry_count", LastError: "last_error",
		},
	}
}

// Default returns a Config with the defaults of all keys.
func Default() Config {
	return Config{
		Source: Source{
			Kind: KindWAL, Slot: "walpost", Publication: "walpost", Table: "public.outbox", StatusInterval: time.Second, CheckInterval: 30 * time.Second, MaxRowBytes: 16 << 20,
			Columns: Columns{ID: "id", AggregateType: "aggregate_type", AggregateID: "aggregate_id", EventType: "event_type", Payload: "payload"},
			Polling: defaultPolling(),
		},
		Kafka: Kafka{
			Topic: "outbox.event.{aggregate_type}", Headers: HeadersWalpost, CloudEvents: CloudEvents{ContentType: "application/json"}, Payload: PayloadAny, NullKey: RefuseKey, NullPayload: RefusePayload, Partitions: 3, Retention: 7 * 24 * time.Hour, Compression: Uncompressed, MaxRequestBytes: 100 << 20,
			TransactionTimeout: 30 * time.Second,
		},
		Poison:          Poison{Policy: PolicyHalt},
		Cleanup:         Cleanup{Retention: 7 * 24 * time.Hour},
		Delivery:        AtLeastOnce,
		Window:          Window{Rows: 5000, Bytes: 4 << 20, Pace: 2 * time.Millisecond},
		QueueTimeout:    time.Minute,
		ShutdownTimeout: 10 * time.Second,
		HTTP:            "127.0.0.1:8080",
	}
}

// TransactionalID returns the id by which Kafka fences a relay that was frozen and replaced, in exactly-once.
func (c *Config) TransactionalID() string { return "walpost." + c.Pipeline }

// topics returns the outbox's topics, with {event_type} left in.
func (c *Config) topics() []string {
	var names []string
	for _, t := range c.Kafka.AggregateTypes {
		if t == AnyType {
			continue
		}
		names = append(names, strings.ReplaceAll(c.Kafka.Topic, "{aggregate_type}", c.Kafka.inTopic(t)))
	}
	return names
}

// AnyType reports whether every aggregate type may be published.
func (k *Kafka) AnyType() bool { return slices.Contains(k.AggregateTypes, AnyType) }

// inTopic returns what stands in the topic for an aggregate type.
func (k *Kafka) inTopic(aggregateType string) string {
	if renamed, ok := k.Rename[aggregateType]; ok {
		return renamed
	}
	return aggregateType
}

// SchemaTable splits the table's name; both are empty when it is not schema.name.
func (s *Source) SchemaTable() (schema, table string) {
	schema, table, ok := strings.Cut(s.Table, ".")
	if !ok || strings.Contains(table, ".") || schema == "" || table == "" {
		return "", ""
	}
	return schema, table
}

// StateTopic returns the topic that holds the pipeline's state record.
func (c *Config) StateTopic() string { return "walpost.state." + c.Pipeline }

// DeadLetterTopic returns the topic for rows that can never be published.
func (c *Config) DeadLetterTopic() string {
	if c.Poison.Topic != "" {
		return c.Poison.Topic
	}
	return "walpost.dlq." + c.Pipeline
}

// Reference returns the table of all keys, as Markdown for CONFIGURATION.md.
func Reference() string {
	var b strings.Builder
	b.WriteString("| key | default | what it is |\n|---|---|---|\n")
	cfg := Default()
	eachKey(reflect.ValueOf(&cfg).Elem(), nil, func(path []string, v reflect.Value, tag reflect.StructTag) {
		def := fmt.Sprint(v.Interface())
		switch {
		case v.IsZero() && v.Kind() != reflect.Int:
			def = ""
		default:
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.Join(path, "."), def, cmp.Or(tag.Get("doc"), tag.Get("help")))
	})
	fmt.Fprintf(&b, "| `pipelines` |  | several pipelines in one process: a list of what stands above, but for http and shutdown_timeout; keys beside it are the defaults of all of them |\n")
	return b.String()
}
