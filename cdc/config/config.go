// Package config holds the configuration of a pipeline: the keys, their defaults and rules. It reads them from a YAML
// file and the environment.
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
// path in capitals (WALPOST_SOURCE_URL); the environment wins. HTTP, Page, Pprof and ShutdownTimeout belong to the
// process: all its pipelines have the same.
type Config struct {
	Pipeline        string        `yaml:"pipeline" doc:"name of this pipeline, required; the state topic is walpost.state.<pipeline>"`
	Source          Source        `yaml:"source"`
	Kafka           Kafka         `yaml:"kafka"`
	Debezium        Debezium      `yaml:"debezium" doc:"options of Debezium's Outbox Event Router under their own names, for a pipeline whose records are those that Debezium would write: {route.topic.replacement: \"events.${routedByValue}\", value.converter: org.apache.kafka.connect.storage.StringConverter}; they choose columns, topics, keys and headers, and the keys of walpost that do so stay unset: cdc/debezium/README.md"`
	Poison          Poison        `yaml:"poison"`
	Cleanup         Cleanup       `yaml:"cleanup"`
	Delivery        Delivery      `yaml:"delivery" doc:"at_least_once: after a crash, rows that are newer than the state record are published again, and consumers drop repeats by the header id; exactly_once: a Kafka transaction holds the rows and the state record, and a read_committed consumer sees each row once"`
	Window          Window        `yaml:"window"`
	QueueTimeout    time.Duration `yaml:"queue_timeout" doc:"when Kafka has taken nothing for this long, the relay closes the replication connection until Kafka answers, so that PostgreSQL can shut down meanwhile"`
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout" doc:"how long the relay waits after SIGTERM for Kafka to take the rows that it has received"`
	HTTP            string        `yaml:"http" doc:"address that serves the page, /livez, /readyz, /metrics and /status"`
	Page            Page          `yaml:"page"`
	Pprof           string        `yaml:"pprof" doc:"address that serves Go's profiles, on loopback only: 127.0.0.1:6060; empty: no profiles"`

	several bool   // the file lists this one among several pipelines
	loaded  loaded // nil: Load has not read it
}

// Source says where the outbox is, and how its rows are read.
type Source struct {
	Kind           Kind          `yaml:"kind" doc:"wal: the relay reads rows from the WAL by logical replication; polling: it queries the table, for servers without logical replication"`
	URL            string        `yaml:"url" secret:"yes" doc:"URL of PostgreSQL with the relay's role (LOGIN, REPLICATION), required: postgres://walpost@host:5432/orders?sslmode=verify-full&sslrootcert=/etc/walpost/ca.crt; a host other than this machine needs an sslmode; the relay reads certificates and passwords again for each connection: cdc/identity/README.md"`
	Slot           string        `yaml:"slot" doc:"name of the replication slot; walpost init creates it, the relay never does"`
	Publication    string        `yaml:"publication" doc:"name of the publication that contains the outbox table's inserts"`
	Table          string        `yaml:"table" doc:"outbox table, schema.name"`
	Columns        Columns       `yaml:"columns"`
	StatusInterval time.Duration `yaml:"status_interval" doc:"longest time between two status updates to the server, also while Kafka does not answer; must be under half of the server's wal_sender_timeout"`
	CheckInterval  time.Duration `yaml:"check_interval" doc:"longest time between two checks of publication and table while the relay streams (it checks every 5s, for stalls too); a change that hides rows halts the relay"`
	MaxRowBytes    ByteSize      `yaml:"max_row_bytes" doc:"largest row; a larger one is not read into memory: it halts the relay, or, with polling, is rejected; rows of other tables may have any size"`
	Polling        Polling       `yaml:"polling"`
}

// Kind is how the relay reads rows.
type Kind string

// The two kinds of source.
const (
	KindWAL     Kind = "wal"
	KindPolling Kind = "polling"
)

// Columns names the columns of the outbox table. The relay ignores other columns. Several keys may name the same column.
type Columns struct {
	ID            string `yaml:"id" doc:"uuid, text, an integer, numeric or bytea (its hex digits)"`
	AggregateType string `yaml:"aggregate_type" doc:"text or an enum; it chooses the topic. =order: every row has the type order, and no column is read"`
	AggregateID   string `yaml:"aggregate_id" doc:"text, uuid, an integer, numeric or bytea (its bytes); it is the record's key. -: no record has a key; that needs kafka.null_key: publish"`
	EventType     string `yaml:"event_type" doc:"text or an enum; it is the header type. =OrderPlaced: every row has that type; -: no record has the header"`
	Payload       string `yaml:"payload" doc:"jsonb, json, text or bytea; it is the record's value (jsonb as PostgreSQL prints it, the others byte for byte)"`
	Headers       string `yaml:"headers" doc:"jsonb, json or text; further record headers of the row: a JSON object, or an array of pairs, [{\"key\": \"a\", \"value\": \"b\"}] or [[\"a\", \"b\"]]. Empty: the column headers, if the table has it and its type fits; -: no column"`
	CreatedAt     string `yaml:"created_at" doc:"timestamptz or timestamp; it is the header created_at. Empty: the column created_at, if the table has it and its type fits; -: no column"`
	CreatedAtZone string `yaml:"created_at_zone" doc:"time zone of a created_at of type timestamp, Europe/Berlin for example; walpost replay, cleanup and where need it. Empty: UTC, if every default of the database is UTC; otherwise these commands refuse"`

	Verbatim *Verbatim `yaml:"-"`
}

// Debezium holds options of Debezium's Outbox Event Router; cdc/debezium reads them.
type Debezium map[string]string

// UnmarshalYAML reads a value that is no text, true for example, as the text that was written.
func (d *Debezium) UnmarshalYAML(decode func(any) error) error {
	var options map[string]any
	if err := decode(&options); err != nil {
		return err
	}
	*d = nil
	if len(options) > 0 {
		*d = Debezium{}
	}
	for name, value := range options {
		switch value.(type) {
		case nil:
			(*d)[name] = ""
		case string, bool, int, int64, uint64, float64:
			(*d)[name] = fmt.Sprint(value)
		default:
			return fmt.Errorf("debezium: %s: write one value, in quotes if it has a comma or a colon", name)
		}
	}
	return nil
}

// Verbatim is a request for columns of any type, with their values as PostgreSQL prints them and a description in
// Row.Shape. A route that writes types differently makes it; no file sets it.
type Verbatim struct {
	Further  []string          // columns besides those of Columns
	Optional bool              // the table may lack columns of Further
	Options  map[string]string // the option that names a column, by its key in source.columns, or further; for messages
	Updates  Updates
	Rekeyed  bool // an update that changes the primary key counts as an insert, with Row.Former
}

// Updates is what the relay does with an UPDATE of the outbox that the publication carries.
type Updates string

// The choices; an empty one ignores updates.
const (
	WarnOfUpdate Updates = "warn"
	HaltAtUpdate Updates = "halt"
)

// None, in place of a column's name, means that the table has no such column.
const None = "-"

// AnyType, in place of the aggregate types, allows every type.
const AnyType = "*"

// Constant returns the word of a value =word, which replaces a column.
func Constant(value string) (word string, ok bool) { return strings.CutPrefix(value, "=") }

// Kafka says which cluster and topics the records go to, and what they look like.
type Kafka struct {
	Brokers         []string `yaml:"brokers" doc:"seed brokers, host:port, required"`
	identity.Kafka  `yaml:",inline"`
	Topic           string            `yaml:"topic" doc:"template of the topic's name, with {aggregate_type} and {event_type}; with {event_type}, the order of a key holds within each topic only"`
	AggregateTypes  []string          `yaml:"aggregate_types" doc:"the aggregate types that may be published, required; a row with another type is a poison row. [\"*\"]: every type, for tables whose rows name their topic"`
	Rename          map[string]string `yaml:"rename" doc:"names to use in the topic in place of an aggregate or event type: {order: orders, OrderCreated: created}"`
	Headers         Headers           `yaml:"headers" doc:"walpost: each record has the headers id, type, lsn, seq, source and created_at; cloudevents: ce_id, ce_type and the others of a CloudEvent 1.0 in binary mode"`
	CloudEvents     CloudEvents       `yaml:"cloudevents"`
	Payload         Payload           `yaml:"payload" doc:"any: a payload may hold anything; json: a payload that is not valid JSON makes a poison row"`
	NullKey         NullKey           `yaml:"null_key" doc:"for a row whose aggregate_id is NULL or empty: reject: it is a poison row; publish: its record has no key. Records without a key go to any partition, in no order"`
	NullPayload     NullPayload       `yaml:"null_payload" doc:"for a row whose payload is NULL: reject: it is a poison row; tombstone: its record has no value, which deletes its key from a compacted topic"`
	CreateTopics    bool              `yaml:"create_topics" doc:"true: the relay creates a topic that a row names and Kafka does not have; false: it halts, because the name may be misspelt"`
	Partitions      int               `yaml:"partitions" doc:"number of partitions of the topics that walpost creates"`
	Replication     int               `yaml:"replication" doc:"number of replicas of the topics that walpost creates; 0: the brokers' default"`
	Retention       time.Duration     `yaml:"retention" doc:"retention of the topics that walpost creates; 0: unlimited"`
	Compression     Compression       `yaml:"compression" doc:"compression of the records: none, gzip, snappy, lz4 or zstd"`
	MaxRequestBytes ByteSize          `yaml:"max_request_bytes" doc:"largest request to a broker, and so the largest record: the broker's socket.request.max.bytes, or the size at which the service closes the connection"`
	// TransactionTimeout bounds how long read_committed consumers stall when a relay dies in a transaction and no other takes over.
	TransactionTimeout time.Duration `yaml:"transaction_timeout" doc:"exactly_once: the broker aborts a transaction that has not ended after this long; the relay sends a window that takes longer again, in smaller ones"`
}

// CloudEvents holds the attributes of a CloudEvent that no row has.
type CloudEvents struct {
	Source      string `yaml:"source" doc:"the header ce_source, a URI; empty: walpost:<pipeline>"`
	ContentType string `yaml:"content_type" doc:"the header content-type, the media type of the payload; empty: no such header"`
}

// Headers is the set of headers that each record has.
type Headers string

// The two sets of headers.
const (
	HeadersWalpost     Headers = "walpost"
	HeadersCloudEvents Headers = "cloudevents"
)

// Payload is the format that each row's payload must have.
type Payload string

// The two kinds of payload.
const (
	PayloadAny  Payload = "any"
	PayloadJSON Payload = "json"
)

// NullKey is what the relay does with a row without a key.
type NullKey string

// The two choices.
const (
	RejectKey  NullKey = "reject"
	PublishKey NullKey = "publish"
)

// NullPayload is what the relay does with a row without a payload.
type NullPayload string

// The two choices.
const (
	RejectPayload NullPayload = "reject"
	Tombstone     NullPayload = "tombstone"
)

// Compression is the compression of batches of records.
type Compression string

// The kinds of compression.
const (
	Uncompressed Compression = "none"
	Gzip         Compression = "gzip"
	Snappy       Compression = "snappy"
	LZ4          Compression = "lz4"
	Zstd         Compression = "zstd"
)

// EventSource returns the value of the header source, or ce_source, of a pipeline's records.
func (k *Kafka) EventSource(pipeline string) string {
	if k.Headers != HeadersCloudEvents {
		return pipeline
	}
	return cmp.Or(k.CloudEvents.Source, "walpost:"+pipeline)
}

// Poison says what the relay does with rows that can never be published.
type Poison struct {
	Policy  Policy `yaml:"policy" doc:"for a row that can never be published: halt: the relay halts; dead_letter: the relay writes the whole row with the reason to the dead letter topic, and publishes the other rows"`
	Topic   string `yaml:"topic" doc:"the dead letter topic; empty: walpost.dlq.<pipeline>"`
	HoldKey bool   `yaml:"hold_key" doc:"true: while a dead letter is unresolved, later rows of its key are kept in the dead letter topic too; false: they are published before it. A row without a key holds no other, and is never held"`
}

// Cleanup says when delivered rows are deleted.
type Cleanup struct {
	Retention time.Duration `yaml:"retention" doc:"younger rows than this (created_at; polling: processed_at) stay in the table, for walpost replay and walpost where; rows that are not confirmed stay in any case, and with polling those that are pending or failed"`
	Every     time.Duration `yaml:"every" doc:"how often the relay deletes older rows; in a partitioned table it drops old partitions and creates those of the next days; 0: never, run walpost cleanup instead"`
	URL       string        `yaml:"url" secret:"yes" doc:"URL of PostgreSQL with a role that may delete the rows; if the table is partitioned, with its owner; empty: source.url, whose role gets the rights for a plain table from walpost init"`
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

// Window bounds the rows that become durable together. The relay holds the rows of two windows in memory at most.
type Window struct {
	Rows  int           `yaml:"rows" doc:"largest number of rows in a window"`
	Bytes ByteSize      `yaml:"bytes" doc:"largest number of bytes of the rows in a window"`
	Pace  time.Duration `yaml:"pace" doc:"a relay with little to do starts at most one window and one read in this time; after a silence it publishes the first row at once"`
}

// Page says at which addresses the relay serves its page, and what of the rows the page shows.
type Page struct {
	Serve Serve `yaml:"serve" doc:"loopback: the relay serves its page at / if http is an address of this machine only; always: at any address, where everybody who reaches it can read keys, ids, positions and the configuration without secrets; never"`
	Rows  bool  `yaml:"rows" doc:"true: the page shows the rows of dead letters on demand, with their payloads; false: it shows why each could not be published, and no payload"`
}

// Serve says when the relay serves its page.
type Serve string

// The choices.
const (
	ServeOnLoopback Serve = "loopback"
	ServeAlways     Serve = "always"
	ServeNever      Serve = "never"
)

// Delivery is how often a consumer may see a row.
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
		return fmt.Errorf("%q is not a size: write 1048576, 64KiB or 4MiB", text)
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

// Polling says how the relay queries the outbox table for pending rows. A batch is at most window.rows and window.bytes.
type Polling struct {
	Interval     time.Duration  `yaml:"interval" doc:"polling: how often the relay queries the table while few rows arrive"`
	Order        Order          `yaml:"order" doc:"polling: key: one relay at a time publishes, rows of a key in the order of their insertion (a row without a key waits for no other, and none waits for it); none: any number of relays share the rows, in no order"`
	AfterPublish AfterPublish   `yaml:"after_publish" doc:"polling: mark: the relay marks a row that it has published; delete: it deletes the row"`
	Attempts     int            `yaml:"attempts" doc:"polling: number of attempts to publish a row that is rejected; after the last one its status is failed; an outage of Kafka does not count"`
	Backoff      time.Duration  `yaml:"backoff" doc:"polling: time before the second attempt, doubled for each further one, up to 1m"`
	Words        Words          `yaml:"words"`
	Columns      PollingColumns `yaml:"columns"`
}

// Order is the order in which the relay publishes polled rows.
type Order string

// The two orders.
const (
	OrderKey  Order = "key"
	OrderNone Order = "none"
)

// AfterPublish is what the relay does with a polled row that it has published.
type AfterPublish string

// The two choices.
const (
	MarkRow   AfterPublish = "mark"
	DeleteRow AfterPublish = "delete"
)

// Words are the values of the status column.
type Words struct {
	Pending string `yaml:"pending" doc:"polling: status of a row that is not published yet; it is the column's default"`
	Sent    string `yaml:"sent" doc:"polling: status of a row that was published"`
	Failed  string `yaml:"failed" doc:"polling: status of a row that was rejected at every attempt; later rows of its key wait until walpost dlq redrive or walpost dlq drop"`
	Dropped string `yaml:"dropped" doc:"polling: status of a row that walpost dlq drop gave up"`
}

// All returns the words, each as a pair of key and word.
func (w *Words) All() [][2]string {
	return [][2]string{{"pending", w.Pending}, {"sent", w.Sent}, {"failed", w.Failed}, {"dropped", w.Dropped}}
}

// PollingColumns names the columns that polling needs in addition to those of the event.
type PollingColumns struct {
	Transaction string `yaml:"transaction" doc:"polling: column of type xid8, DEFAULT pg_current_xact_id(); it must come before position in the table, so that a transaction has an id that others can see before it draws a position"`
	Position    string `yaml:"position" doc:"polling: column of type bigint, an identity; the order of the rows"`
	Status      string `yaml:"status" doc:"polling: column of type text, DEFAULT source.polling.words.pending"`
	ProcessedAt string `yaml:"processed_at" doc:"polling: column of type timestamptz; when the row was published, failed or dropped"`
	RetryCount  string `yaml:"retry_count" doc:"polling: column of type integer; how often the row was rejected"`
	LastError   string `yaml:"last_error" doc:"polling: column of type text; why the row was rejected last"`
}

// all returns the columns, each as a pair of key and name.
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
			Topic: "outbox.event.{aggregate_type}", Headers: HeadersWalpost, CloudEvents: CloudEvents{ContentType: "application/json"}, Payload: PayloadAny, NullKey: RejectKey, NullPayload: RejectPayload, Partitions: 3, Retention: 7 * 24 * time.Hour, Compression: Uncompressed, MaxRequestBytes: 100 << 20,
			TransactionTimeout: 30 * time.Second,
		},
		Poison:          Poison{Policy: PolicyHalt},
		Cleanup:         Cleanup{Retention: 7 * 24 * time.Hour},
		Delivery:        AtLeastOnce,
		Window:          Window{Rows: 5000, Bytes: 4 << 20, Pace: 2 * time.Millisecond},
		QueueTimeout:    time.Minute,
		ShutdownTimeout: 10 * time.Second,
		HTTP:            "127.0.0.1:8080",
		Page:            Page{Serve: ServeOnLoopback},
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

// inTopic returns the name of an aggregate type in the topic.
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

// Reference returns the table of all keys, as Markdown for cdc/CONFIGURATION.md.
func Reference() string {
	var b strings.Builder
	b.WriteString("| key | default | what it is |\n|---|---|---|\n")
	cfg := Default()
	eachKey(reflect.ValueOf(&cfg).Elem(), nil, func(path []string, v reflect.Value, tag reflect.StructTag) {
		def := "`" + fmt.Sprint(v.Interface()) + "`"
		if _, duration := v.Interface().(time.Duration); v.IsZero() && v.Kind() != reflect.Int && !duration {
			def = ""
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.Join(path, "."), def, cmp.Or(tag.Get("doc"), tag.Get("help")))
	})
	fmt.Fprintf(&b, "| `pipelines` |  | several pipelines in one process: a list, each entry with the keys above except http, page, pprof and shutdown_timeout; keys next to it are the defaults of all entries |\n")
	return b.String()
}
