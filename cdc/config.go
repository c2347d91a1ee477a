package cdc

import (
	"cmp"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// Config is the configuration of one pipeline. Every key can also be set in the environment, as WALPOST_ and the key's
// path in capitals (WALPOST_SOURCE_URL); the environment wins. HTTP and ShutdownTimeout are those of the process.
type Config struct {
	Pipeline        string        `yaml:"pipeline" doc:"name of this pipeline, required; the state topic is called walpost.state. and this name"`
	Source          SourceConfig  `yaml:"source"`
	Kafka           KafkaConfig   `yaml:"kafka"`
	Poison          PoisonConfig  `yaml:"poison"`
	Cleanup         CleanupConfig `yaml:"cleanup"`
	Delivery        Delivery      `yaml:"delivery" doc:"at_least_once: a crash repeats what lies behind the state record, and consumers deduplicate by the header id; exactly_once: rows and state record in one Kafka transaction, and a read_committed consumer sees each row once"`
	Window          WindowConfig  `yaml:"window"`
	QueueTimeout    time.Duration `yaml:"queue_timeout" doc:"when Kafka has taken nothing for this long, the replication connection is given back until Kafka answers, so that PostgreSQL can be stopped"`
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout" doc:"how long SIGTERM waits for Kafka to take what was received"`
	HTTP            string        `yaml:"http" doc:"address of /livez, /readyz, /metrics and /status"`

	several bool // it is one of several pipelines in a file
}

// SourceConfig is where the outbox is.
type SourceConfig struct {
	Kind           SourceKind    `yaml:"kind" doc:"wal: logical replication; polling: the table is asked, where logical replication is not to be had"`
	URL            string        `yaml:"url" secret:"yes" doc:"PostgreSQL, as the relay's role (LOGIN, REPLICATION), required: postgres://walpost@host:5432/orders"`
	Slot           string        `yaml:"slot" doc:"replication slot; made by walpost init, never by the relay"`
	Publication    string        `yaml:"publication" doc:"publication that carries the outbox's inserts"`
	Table          string        `yaml:"table" doc:"outbox table, schema.name"`
	Messages       string        `yaml:"messages" doc:"instead of a table: prefix of the transactional messages (pg_logical_emit_message) that are the outbox"`
	Columns        ColumnsConfig `yaml:"columns"`
	StatusInterval time.Duration `yaml:"status_interval" doc:"longest time between two status updates to the server, whatever Kafka does; under half of the server's wal_sender_timeout"`
	CheckInterval  time.Duration `yaml:"check_interval" doc:"longest time between two looks at publication and table while streaming (it looks every 5s, for stalls too): a change that hides rows halts the relay"`
	MaxRowBytes    ByteSize      `yaml:"max_row_bytes" doc:"a row larger than this is never read into memory: it halts the relay, or, polled, is refused; what is not the outbox's may have any size"`
	Polling        PollingConfig `yaml:"polling"`
}

// SourceKind is how rows are read from the table.
type SourceKind string

// The two kinds.
const (
	WAL     SourceKind = "wal"
	Polling SourceKind = "polling"
)

// ColumnsConfig names the columns of the outbox table; other columns are ignored.
type ColumnsConfig struct {
	ID            string `yaml:"id" doc:"uuid, bigint or text"`
	AggregateType string `yaml:"aggregate_type" doc:"text; chooses the topic"`
	AggregateID   string `yaml:"aggregate_id" doc:"text, uuid or a number; the record's key"`
	EventType     string `yaml:"event_type" doc:"text; the header type"`
	Payload       string `yaml:"payload" doc:"jsonb, json, text or bytea; the record's value (jsonb as PostgreSQL renders it, the others byte for byte)"`
	Headers       string `yaml:"headers" doc:"jsonb, json or text holding a JSON object; the row's own record headers. Empty: headers, if the table has it"`
	CreatedAt     string `yaml:"created_at" doc:"timestamptz or timestamp; the header created_at. Empty: created_at, if the table has it"`
	CreatedAtZone string `yaml:"created_at_zone" doc:"the time zone that a created_at of type timestamp is of, Europe/Berlin for example, which walpost replay, cleanup and where need. Empty: UTC, if every default of the database says so; else they refuse"`
}

// KafkaConfig is where records go.
type KafkaConfig struct {
	Brokers        []string          `yaml:"brokers" doc:"seed brokers, host:port, required"`
	TLS            bool              `yaml:"tls" doc:"connect with TLS, with the system's certificates"`
	SASL           SASLConfig        `yaml:"sasl"`
	Topic          string            `yaml:"topic" doc:"template over {aggregate_type} and {event_type}; with {event_type} the order per key holds per topic only"`
	AggregateTypes []string          `yaml:"aggregate_types" doc:"the aggregate types that may be published, required; a row of another one is poison"`
	Rename         map[string]string `yaml:"rename" doc:"what stands in the topic for an aggregate or event type: {order: orders, OrderCreated: created}"`
	Headers        string            `yaml:"headers" doc:"walpost: id, type, lsn, seq, source, created_at; or cloudevents: ce_id, ce_type and the others of a CloudEvent 1.0 in binary mode"`
	CloudEvents    CloudEventsConfig `yaml:"cloudevents"`
	Payload        string            `yaml:"payload" doc:"any, or json: a payload that is not valid JSON is poison"`
	Partitions     int               `yaml:"partitions" doc:"partitions of the topics that walpost init creates"`
	Replication    int               `yaml:"replication" doc:"replicas of the topics that walpost init creates; 0: as many as the brokers' default"`
	Retention      time.Duration     `yaml:"retention" doc:"retention of the topics that walpost init creates; 0: for ever"`
	Compression    string            `yaml:"compression" doc:"none, snappy, lz4 or zstd"`
	// TransactionTimeout is what read_committed consumers of a relay that died, and that nothing replaces, wait for.
	TransactionTimeout time.Duration `yaml:"transaction_timeout" doc:"exactly_once: a transaction that is not ended after this long is aborted by the broker; a window that takes longer is sent again in smaller ones"`
}

// CloudEventsConfig is what a CloudEvent says beyond its row.
type CloudEventsConfig struct {
	Source      string `yaml:"source" doc:"ce_source, a URI; empty: walpost: and the pipeline's name"`
	ContentType string `yaml:"content_type" doc:"the header content-type, of the payload; empty: none"`
}

// CloudEventsHeaders is what makes each record a CloudEvent.
const CloudEventsHeaders = "cloudevents"

// EventSource is what the records of a pipeline have for their source.
func (k *KafkaConfig) EventSource(pipeline string) string {
	if k.Headers != CloudEventsHeaders {
		return pipeline
	}
	return cmp.Or(k.CloudEvents.Source, "walpost:"+pipeline)
}

// SASLConfig is how to log in to Kafka.
type SASLConfig struct {
	Mechanism string `yaml:"mechanism" doc:"plain, scram-sha-256 or scram-sha-512; empty: no login"`
	Username  string `yaml:"username" doc:"user of the login"`
	Password  string `yaml:"password" secret:"yes" doc:"password of the login; better in the environment"`
}

// PoisonConfig is what becomes of rows that can never be published.
type PoisonConfig struct {
	Policy  string `yaml:"policy" doc:"a row that can never be published: halt, or dead_letter: it goes, whole and with the reason, to the dead letter topic, and the rest goes on"`
	Topic   string `yaml:"topic" doc:"the dead letter topic; empty: walpost.dlq. and the pipeline's name"`
	HoldKey bool   `yaml:"hold_key" doc:"hold later rows of a key back too, in the dead letter topic, while an earlier one is unresolved; otherwise they are published before it"`
}

// CleanupConfig is what becomes of rows that were delivered.
type CleanupConfig struct {
	Retention time.Duration `yaml:"retention" doc:"rows younger than this (created_at; polling: processed_at) stay in the table, for walpost replay and walpost where; what is not confirmed, or polled and pending or failed, stays in any case"`
	Every     time.Duration `yaml:"every" doc:"how often the relay deletes older rows, or drops their partitions and makes those of the days to come; 0: never, that is left to walpost cleanup"`
	URL       string        `yaml:"url" secret:"yes" doc:"PostgreSQL, as who may do so: the owner, if the table is partitioned; empty: source.url, whose role walpost init gives what a plain table needs"`
}

// CleanupURL is what cleans up, and the key that holds it.
func (c *Config) CleanupURL() (key, url string) {
	if c.Cleanup.URL == "" {
		return "source.url", c.Source.URL
	}
	return "cleanup.url", c.Cleanup.URL
}

// DeadLetterPolicy is the policy that puts poison rows aside.
const DeadLetterPolicy = "dead_letter"

// WindowConfig bounds what is published as one. Two windows are all the row memory the relay uses.
type WindowConfig struct {
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

// DefaultConfig is what holds for keys that are not set.
func DefaultConfig() Config {
	return Config{
		Source: SourceConfig{
			Kind: WAL, Slot: "walpost", Publication: "walpost", Table: "public.outbox", StatusInterval: time.Second, CheckInterval: 30 * time.Second, MaxRowBytes: 16 << 20,
			Columns: ColumnsConfig{ID: "id", AggregateType: "aggregate_type", AggregateID: "aggregate_id", EventType: "event_type", Payload: "payload"},
			Polling: defaultPolling(),
		},
		Kafka: KafkaConfig{
			Topic: "outbox.event.{aggregate_type}", Headers: "walpost", CloudEvents: CloudEventsConfig{ContentType: "application/json"}, Payload: "any", Partitions: 3, Retention: 7 * 24 * time.Hour, Compression: "none",
			TransactionTimeout: 30 * time.Second,
		},
		Poison:          PoisonConfig{Policy: "halt"},
		Cleanup:         CleanupConfig{Retention: 7 * 24 * time.Hour},
		Delivery:        AtLeastOnce,
		Window:          WindowConfig{Rows: 5000, Bytes: 4 << 20, Pace: 2 * time.Millisecond},
		QueueTimeout:    time.Minute,
		ShutdownTimeout: 10 * time.Second,
		HTTP:            "127.0.0.1:8080",
	}
}

// yamlError reduces the parser's error to one line: position, message.
func yamlError(err error) error {
	var ye yaml.Error
	if !errors.As(err, &ye) {
		return err
	}
	if t := ye.GetToken(); t != nil && errors.As(err, new(*yaml.SyntaxError)) {
		return fmt.Errorf("configuration line %d, near %q: %s", t.Position.Line, t.Value, ye.GetMessage())
	}
	return errors.New(ye.GetMessage())
}

const environment = "WALPOST_"

func envName(prefix string, path []string) string {
	return prefix + strings.ToUpper(strings.Join(path, "_"))
}

// eachKey visits the leaves of the configuration.
func eachKey(v reflect.Value, path []string, f func(path []string, v reflect.Value, tag reflect.StructTag)) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if !field.IsExported() {
			continue
		}
		p := append(slices.Clone(path), field.Tag.Get("yaml"))
		if v.Field(i).Kind() == reflect.Struct {
			eachKey(v.Field(i), p, f)
			continue
		}
		f(p, v.Field(i), field.Tag)
	}
}

var (
	namePattern     = regexp.MustCompile(`^[a-z0-9_-]{1,100}$`)
	slotPattern     = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)
	zonePattern     = regexp.MustCompile(`^[A-Za-z][A-Za-z_-]*(?:/[A-Za-z0-9_+-]+)*$`) // an offset would mean its opposite to PostgreSQL
	topicPattern    = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)
	templateAllowed = regexp.MustCompile(`^(?:[a-zA-Z0-9._-]|\{aggregate_type\}|\{event_type\})+$`)
)

// LegalTopic says whether Kafka accepts the name and it is not one of Kafka's or our own.
func LegalTopic(name string) bool {
	return topicPattern.MatchString(name) && name != "." && name != ".." && !strings.HasPrefix(name, "__") && !strings.HasPrefix(name, "walpost.")
}

// Validate reports everything that is wrong, each with the key's name and what to do.
func (c *Config) Validate() error { return c.validate(environment) }

// validate names variables that begin with env.
func (c *Config) validate(env string) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !namePattern.MatchString(c.Pipeline) {
		bad("pipeline: %q: give the pipeline a name of its own of a-z, 0-9, _ and -", c.Pipeline)
	}
	if c.Source.URL == "" {
		bad("source.url: missing: write postgres://walpost@host:5432/database, or set %s", envName(env, []string{"source", "url"}))
	} else if _, err := ParsePostgresURL("source.url", c.Source.URL); err != nil {
		errs = append(errs, err)
	}
	if !slotPattern.MatchString(c.Source.Slot) {
		bad("source.slot: %q: PostgreSQL takes 1 to 63 of a-z, 0-9 and _ only", c.Source.Slot)
	}
	if n := c.Source.Publication; n == "" || len(n) > 63 || strings.ContainsRune(n, 0) {
		bad("source.publication: %q: a name of 1 to 63 bytes is needed", n)
	}
	if schema, table := c.Source.SchemaTable(); c.Source.Messages != "" {
		if t := c.Source.Table; t != "" && t != DefaultConfig().Source.Table {
			bad("source.messages: %q, and source.table is %q: events come from one of them, leave the other out", c.Source.Messages, t)
		}
		if c.Source.Kind == Polling {
			bad("source.messages: they are in the WAL only: leave source.kind: polling out")
		}
		if strings.ContainsRune(c.Source.Messages, 0) {
			bad("source.messages: %q: a prefix without NUL", c.Source.Messages)
		}
		if c.Cleanup.Every > 0 {
			bad("cleanup.every: there is nothing to clean up with source.messages: leave it out")
		}
	} else if schema == "" || table == "" {
		bad("source.table: %q: write schema.name, public.outbox for example", c.Source.Table)
	}
	for _, col := range []struct{ key, value string }{
		{"id", c.Source.Columns.ID},
		{"aggregate_type", c.Source.Columns.AggregateType},
		{"aggregate_id", c.Source.Columns.AggregateID},
		{"event_type", c.Source.Columns.EventType},
		{"payload", c.Source.Columns.Payload},
	} {
		if col.value == "" {
			bad("source.columns.%s: empty: name the column", col.key)
		}
	}
	if zone := c.Source.Columns.CreatedAtZone; zone != "" && !zonePattern.MatchString(zone) {
		bad("source.columns.created_at_zone: %q: write a name of a time zone, Europe/Berlin for example, or UTC", zone)
	}
	if d := c.Source.StatusInterval; d < 100*time.Millisecond || d > 30*time.Second {
		bad("source.status_interval: %s: must be between 100ms and 30s, the half of the server's usual wal_sender_timeout", d)
	}
	if d := c.Source.CheckInterval; d < 100*time.Millisecond || d > time.Hour {
		bad("source.check_interval: %s: must be between 100ms and 1h", d)
	}
	if n := c.Source.MaxRowBytes; n < 1<<20 || n > 1<<30 {
		bad("source.max_row_bytes: %s: must be between 1MiB and 1GiB", n)
	}
	if len(c.Kafka.Brokers) == 0 {
		bad("kafka.brokers: missing: write [host:9092], or set %s", envName(env, []string{"kafka", "brokers"}))
	}
	for _, b := range c.Kafka.Brokers {
		if host, port, ok := strings.Cut(b, ":"); !ok || host == "" || port == "" {
			bad("kafka.brokers: %q: write host:port", b)
		}
	}
	switch m := c.Kafka.SASL.Mechanism; m {
	case "":
	case "plain", "scram-sha-256", "scram-sha-512":
		if c.Kafka.SASL.Username == "" || c.Kafka.SASL.Password == "" {
			bad("kafka.sasl: username and password are needed with mechanism %s; the password may stand in %s", m, envName(env, []string{"kafka", "sasl", "password"}))
		}
	default:
		bad("kafka.sasl.mechanism: %q: write plain, scram-sha-256 or scram-sha-512", m)
	}
	if !templateAllowed.MatchString(c.Kafka.Topic) || !LegalTopic(strings.NewReplacer("{aggregate_type}", "a", "{event_type}", "e").Replace(c.Kafka.Topic)) {
		bad("kafka.topic: %q: letters, digits, '.', '_', '-', {aggregate_type} and {event_type} only, and not beginning with __ or walpost.", c.Kafka.Topic)
	}
	if len(c.Kafka.AggregateTypes) == 0 {
		bad("kafka.aggregate_types: missing: list the aggregate types that may be published, [order] for example")
	}
	for _, t := range c.Kafka.AggregateTypes {
		if renamed, ok := c.Kafka.Rename[t]; t == "" || (!ok && !topicPattern.MatchString(t)) || (ok && !topicPattern.MatchString(renamed)) {
			bad("kafka.aggregate_types: %q cannot stand in a topic's name: give it another under kafka.rename", t)
		}
	}
	if !slices.Contains([]string{"walpost", CloudEventsHeaders}, c.Kafka.Headers) {
		bad("kafka.headers: %q: write walpost or cloudevents", c.Kafka.Headers)
	}
	if s := c.Kafka.CloudEvents.Source; !printable(s) {
		bad("kafka.cloudevents.source: %q: write a URI, https://shop.example/orders for example", s)
	} else if _, err := url.Parse(s); err != nil {
		bad("kafka.cloudevents.source: %q: write a URI, https://shop.example/orders for example", s)
	}
	if s := c.Kafka.CloudEvents.ContentType; s != "" {
		if _, _, err := mime.ParseMediaType(s); err != nil {
			bad("kafka.cloudevents.content_type: %q: write a media type, application/json for example", s)
		}
	}
	if !slices.Contains([]string{"any", "json"}, c.Kafka.Payload) {
		bad("kafka.payload: %q: write any or json", c.Kafka.Payload)
	}
	c.validatePoison(bad)
	if c.Kafka.Partitions < 1 {
		bad("kafka.partitions: %d: at least 1", c.Kafka.Partitions)
	}
	if c.Kafka.Replication < 0 || c.Kafka.Replication > 1<<15-1 {
		bad("kafka.replication: %d: a number of brokers, or 0 for the brokers' default", c.Kafka.Replication)
	}
	if c.Kafka.Retention < 0 {
		bad("kafka.retention: %s: a duration, or 0 for ever", c.Kafka.Retention)
	}
	if !slices.Contains([]string{"none", "snappy", "lz4", "zstd"}, c.Kafka.Compression) {
		bad("kafka.compression: %q: write none, snappy, lz4 or zstd", c.Kafka.Compression)
	}
	if d := c.Kafka.TransactionTimeout; d < time.Second || d > 15*time.Minute {
		bad("kafka.transaction_timeout: %s: between 1s and 15m, the most that brokers allow by default", d)
	}
	if d := c.Cleanup.Retention; d < 0 {
		bad("cleanup.retention: %s: a duration, not negative", d)
	}
	if d := c.Cleanup.Every; d != 0 && d < time.Second {
		bad("cleanup.every: %s: at least 1s, or 0 for never", d)
	}
	if _, err := ParsePostgresURL("cleanup.url", c.Cleanup.URL); c.Cleanup.URL != "" && err != nil {
		errs = append(errs, err)
	}
	c.validatePolling(bad)
	if c.Delivery != AtLeastOnce && c.Delivery != ExactlyOnce {
		bad("delivery: %q: write at_least_once or exactly_once", c.Delivery)
	}
	if n := c.Window.Rows; n < 1 || n > 1_000_000 {
		bad("window.rows: %d: between 1 and 1000000", n)
	}
	if n := c.Window.Bytes; n < 64<<10 || n > 256<<20 {
		bad("window.bytes: %s: between 64KiB and 256MiB", n)
	}
	if d := c.Window.Pace; d < 0 || d > time.Second {
		bad("window.pace: %s: between 0 and 1s", d)
	}
	if d := c.QueueTimeout; d < time.Second {
		bad("queue_timeout: %s: at least 1s", d)
	}
	if d := c.ShutdownTimeout; d < 0 {
		bad("shutdown_timeout: %s: not negative", d)
	}
	return errors.Join(errs...)
}

// printable is ASCII without spaces.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// TransactionalID is what fences a relay that was frozen and replaced, in exactly-once.
func (c *Config) TransactionalID() string { return "walpost." + c.Pipeline }

// validatePoison keeps dead letters apart from everything else. With {event_type} in the template not every outbox topic is
// known before its rows come: those are refused then.
func (c *Config) validatePoison(bad func(format string, args ...any)) {
	if !slices.Contains([]string{"halt", DeadLetterPolicy}, c.Poison.Policy) {
		bad("poison.policy: %q: write halt or dead_letter", c.Poison.Policy)
	}
	if c.Poison.HoldKey && c.Poison.Policy != DeadLetterPolicy {
		bad("poison.hold_key: only with poison.policy: dead_letter")
	}
	topic := c.Poison.Topic
	if topic == "" {
		return
	}
	if !LegalTopic(topic) {
		bad("poison.topic: %q: letters, digits, '.', '_' and '-' only, and not beginning with __ or walpost.; empty is walpost.dlq.%s", topic, c.Pipeline)
	}
	if slices.Contains(c.topics(), topic) {
		bad("poison.topic: %q is a topic of the outbox: dead letters need one of their own", topic)
	}
}

// topics are those of the outbox, {event_type} left as it is.
func (c *Config) topics() []string {
	var names []string
	for _, t := range c.Kafka.AggregateTypes {
		if renamed, ok := c.Kafka.Rename[t]; ok {
			t = renamed
		}
		names = append(names, strings.ReplaceAll(c.Kafka.Topic, "{aggregate_type}", t))
	}
	return names
}

// SchemaTable splits the table's name; both are empty when it is not schema.name, or there is no table.
func (s *SourceConfig) SchemaTable() (schema, table string) {
	if s.Messages != "" {
		return "", ""
	}
	schema, table, ok := strings.Cut(s.Table, ".")
	if !ok || strings.Contains(table, ".") || schema == "" || table == "" {
		return "", ""
	}
	return schema, table
}

// Configured returns the names of publication and table, or of the messages, as the state record keeps them.
func (s *SourceConfig) Configured() Configured {
	if s.Messages != "" {
		return Configured{Publication: s.Publication, Messages: s.Messages}
	}
	return Configured{Publication: s.Publication, Table: s.Table}
}

// StateTopic is where the pipeline's state record lives.
func (c *Config) StateTopic() string { return "walpost.state." + c.Pipeline }

// DeadLetterTopic is where rows stand that can never be published.
func (c *Config) DeadLetterTopic() string {
	if c.Poison.Topic != "" {
		return c.Poison.Topic
	}
	return "walpost.dlq." + c.Pipeline
}

// ConfigReference is the table of all keys, as Markdown for the README.
func ConfigReference() string {
	var b strings.Builder
	b.WriteString("| key | default | what it is |\n|---|---|---|\n")
	cfg := DefaultConfig()
	eachKey(reflect.ValueOf(&cfg).Elem(), nil, func(path []string, v reflect.Value, tag reflect.StructTag) {
		def := fmt.Sprint(v.Interface())
		switch {
		case v.IsZero() && v.Kind() != reflect.Int:
			def = ""
		default:
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.Join(path, "."), def, tag.Get("doc"))
	})
	fmt.Fprintf(&b, "| `pipelines` |  | several pipelines in one process: a list of what stands above, but for http and shutdown_timeout; keys beside it are the defaults of all of them |\n")
	return b.String()
}
