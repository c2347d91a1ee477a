package config

import (
	"cmp"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/identity"
)

var (
	namePattern     = regexp.MustCompile(`^[a-z0-9_-]{1,100}$`)
	slotPattern     = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)
	zonePattern     = regexp.MustCompile(`^[A-Za-z][A-Za-z_-]*(?:/[A-Za-z0-9_+-]+)*$`) // no offset: PostgreSQL reads +02 with the opposite sign
	topicPattern    = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)
	templatePattern = regexp.MustCompile(`^(?:[a-zA-Z0-9._-]|\{aggregate_type\}|\{event_type\})+$`)
	brokerPattern   = regexp.MustCompile(`^[^:]+:.+$`)
)

// LegalTopic reports whether Kafka accepts the name, and neither Kafka nor walpost reserves it.
func LegalTopic(name string) bool {
	return topicPattern.MatchString(name) && name != "." && name != ".." && !strings.HasPrefix(name, "__") && !strings.HasPrefix(name, "walpost.")
}

// Validate returns an error that contains every value that breaks a rule, each with its key and what to write instead.
func (c *Config) Validate() error { return c.validate(environment) }

// validate does what Validate does. env is the prefix of the variables that its errors name.
func (c *Config) validate(env string) error {
	return errors.Join(slices.Concat(
		rules{
			unless(namePattern.MatchString(c.Pipeline), "pipeline: %q: give the pipeline a name of a-z, 0-9, _ and - that no other pipeline has", c.Pipeline),
			oneOf("delivery", c.Delivery, AtLeastOnce, ExactlyOnce),
			oneOf("page.serve", c.Page.Serve, ServeOnLoopback, ServeAlways, ServeNever),
			between("queue_timeout", c.QueueTimeout, time.Second, forever, ""),
			between("shutdown_timeout", c.ShutdownTimeout, 0, forever, ""),
		},
		c.Source.rules(env),
		c.Kafka.rules(env, len(c.Debezium) > 0),
		c.Poison.rules(c.Pipeline, c.topics()),
		c.Cleanup.rules(),
		c.Window.rules(),
		c.debeziumRules(),
		c.pollingRules(),
		c.togetherRules(),
	)...)
}

// rules are the results of a section's rules, nil for each rule that the section keeps.
type rules []error

// rules returns the results of the rules for the source.
func (s *Source) rules(env string) rules {
	schema, table := s.SchemaTable()
	return rules{
		oneOf("source.kind", s.Kind, KindWAL, KindPolling),
		cmp.Or(
			unless(s.URL != "", "source.url: missing: write postgres://walpost@host:5432/database?sslmode=verify-full, or set %s", envName(env, []string{"source", "url"})),
			postgresURL("source.url", s.URL),
			namesDatabase("source.url", s.URL),
		),
		unless(slotPattern.MatchString(s.Slot), "source.slot: %q: write 1 to 63 of a-z, 0-9 and _: PostgreSQL allows no other name", s.Slot),
		name("source.publication", s.Publication),
		unless(schema != "" && table != "", "source.table: %q: write schema.name without quotes, public.outbox for example; walpost cannot read a table with a dot in its name", s.Table),
		column("id", s.Columns.ID, needed),
		column("aggregate_type", s.Columns.AggregateType, needed|mayBeConstant),
		column("aggregate_id", s.Columns.AggregateID, needed|mayBeNone),
		column("event_type", s.Columns.EventType, needed|mayBeConstant|mayBeNone),
		column("payload", s.Columns.Payload, needed),
		column("headers", s.Columns.Headers, mayBeNone),
		column("created_at", s.Columns.CreatedAt, mayBeNone),
		unless(s.Columns.CreatedAtZone == "" || zonePattern.MatchString(s.Columns.CreatedAtZone),
			"source.columns.created_at_zone: %q: write the name of a time zone, Europe/Berlin for example, or UTC", s.Columns.CreatedAtZone),
		between("source.status_interval", s.StatusInterval, 100*time.Millisecond, 30*time.Second, "which is half of the default of the server's wal_sender_timeout"),
		between("source.check_interval", s.CheckInterval, 100*time.Millisecond, time.Hour, ""),
		between("source.max_row_bytes", s.MaxRowBytes, 1<<20, 1<<30, ""),
	}
}

// rules returns the results of the rules for Kafka. anyType is true if the configuration needs no aggregate types.
func (k *Kafka) rules(env string, anyType bool) rules {
	r := rules{
		k.Kafka.Check(identity.Keys),
		unless(len(k.Brokers) > 0, "kafka.brokers: missing: write [host:9092], or set %s", envName(env, []string{"kafka", "brokers"})),
		unless(templatePattern.MatchString(k.Topic) && LegalTopic(strings.NewReplacer("{aggregate_type}", "a", "{event_type}", "e").Replace(k.Topic)),
			"kafka.topic: %q: write only letters, digits, '.', '_', '-', {aggregate_type} and {event_type}, and do not begin with __ or walpost.", k.Topic),
		unless(len(k.AggregateTypes) > 0 || anyType, "kafka.aggregate_types: missing: list the aggregate types that may be published, [order] for example"),
		oneOf("kafka.headers", k.Headers, HeadersWalpost, HeadersCloudEvents),
		unless(isURI(k.CloudEvents.Source), "kafka.cloudevents.source: %q: write a URI, https://shop.example/orders for example", k.CloudEvents.Source),
		unless(k.CloudEvents.ContentType == "" || isMediaType(k.CloudEvents.ContentType),
			"kafka.cloudevents.content_type: %q: write a media type, application/json for example", k.CloudEvents.ContentType),
		oneOf("kafka.payload", k.Payload, PayloadAny, PayloadJSON),
		oneOf("kafka.null_key", k.NullKey, RejectKey, PublishKey),
		oneOf("kafka.null_payload", k.NullPayload, RejectPayload, Tombstone),
		unless(!k.AnyType() || len(k.AggregateTypes) == 1, "kafka.aggregate_types: %q means every type: list it alone", AnyType),
		between("kafka.partitions", k.Partitions, 1, 1<<31-1, ""),
		between("kafka.replication", k.Replication, 0, 1<<15-1, "0 for the brokers' default"),
		between("kafka.retention", k.Retention, 0, forever, "0 for unlimited"),
		between("kafka.max_request_bytes", k.MaxRequestBytes, 64<<10, 1<<30, ""),
		oneOf("kafka.compression", k.Compression, Uncompressed, Gzip, Snappy, LZ4, Zstd),
		between("kafka.transaction_timeout", k.TransactionTimeout, time.Second, 15*time.Minute, "which is the most that brokers allow by default"),
	}
	for _, b := range k.Brokers {
		if strings.Contains(b, "@") { // it may hold a password, which no error shows
			r = append(r, errors.New("kafka.brokers: an address has an @: write host:port, and the login under kafka.sasl"))
			continue
		}
		r = append(r, unless(brokerPattern.MatchString(b), "kafka.brokers: %q: write host:port", b))
	}
	for _, t := range k.AggregateTypes {
		if t == AnyType {
			continue
		}
		r = append(r, unless(t != "" && topicPattern.MatchString(k.inTopic(t)), "kafka.aggregate_types: %q cannot be part of a topic's name: give it another name under kafka.rename", t))
	}
	return r
}

// rules returns the results of the rules for dead letters. No other records may go to their topic. With {event_type} in the
// template an outbox topic can be unknown until its rows come: then the router rejects the rows whose topic is the dead
// letter topic.
func (p *Poison) rules(pipeline string, outbox []string) rules {
	return rules{
		oneOf("poison.policy", p.Policy, PolicyHalt, PolicyDeadLetter),
		unless(!p.HoldKey || p.Policy == PolicyDeadLetter, "poison.hold_key: it needs poison.policy: dead_letter: write that too, or leave hold_key out"),
		unless(p.Topic == "" || LegalTopic(p.Topic), "poison.topic: %q: write only letters, digits, '.', '_' and '-', and do not begin with __ or walpost.; or leave it empty for walpost.dlq.%s", p.Topic, pipeline),
		unless(!slices.Contains(outbox, p.Topic), "poison.topic: %q is a topic of the outbox: choose another topic for dead letters", p.Topic),
	}
}

// rules returns the results of the rules for the cleanup.
func (c *Cleanup) rules() rules {
	r := rules{
		between("cleanup.retention", c.Retention, 0, forever, ""),
		unless(c.Every == 0 || c.Every >= time.Second, "cleanup.every: %s: write at least 1s, or 0 for never", c.Every),
	}
	if c.URL != "" {
		r = append(r, postgresURL("cleanup.url", c.URL))
	}
	return r
}

// rules returns the results of the rules for the window.
func (w *Window) rules() rules {
	return rules{
		between("window.rows", w.Rows, 1, 1_000_000, ""),
		between("window.bytes", w.Bytes, 64<<10, 256<<20, ""),
		between("window.pace", w.Pace, 0, time.Second, ""),
	}
}

// debeziumRules returns an error for each key that is set although the options of Debezium decide it.
func (c *Config) debeziumRules() (r rules) {
	if len(c.Debezium) == 0 {
		return nil
	}
	def := Default()
	set, plain := decidedByDebezium(c), decidedByDebezium(&def)
	for i := range set {
		r = append(r, unless(set[i].value == plain[i].value, "%s: the options under debezium decide it: leave it out", set[i].key))
	}
	return r
}

// keyValue is the value of a key, as text.
type keyValue struct{ key, value string }

// decidedByDebezium returns the keys that the options of Debezium decide, and their values.
func decidedByDebezium(c *Config) []keyValue {
	columns, k := &c.Source.Columns, &c.Kafka
	return []keyValue{
		{"source.columns.id", columns.ID},
		{"source.columns.aggregate_type", columns.AggregateType},
		{"source.columns.aggregate_id", columns.AggregateID},
		{"source.columns.event_type", columns.EventType},
		{"source.columns.payload", columns.Payload},
		{"source.columns.headers", columns.Headers},
		{"kafka.topic", k.Topic},
		{"kafka.aggregate_types", fmt.Sprint(k.AggregateTypes)},
		{"kafka.rename", fmt.Sprint(k.Rename)},
		{"kafka.headers", string(k.Headers)},
		{"kafka.payload", string(k.Payload)},
		{"kafka.null_key", string(k.NullKey)},
		{"kafka.null_payload", string(k.NullPayload)},
	}
}

// pollingRules returns the results of the rules for polling; nil for a pipeline that reads the WAL.
func (c *Config) pollingRules() rules {
	if c.Source.Kind != KindPolling {
		return nil
	}
	p := &c.Source.Polling
	return slices.Concat(rules{
		unless(c.Delivery != ExactlyOnce, "delivery: exactly_once needs source.kind: wal, because polling marks a row in PostgreSQL and not in Kafka's transaction, and a crash between the two repeats the row: write at_least_once"),
		unless(c.Poison.Policy != PolicyDeadLetter, "poison.policy: dead_letter needs source.kind: wal: with polling a rejected row stays in the table: leave the key out"),
		unless(c.Cleanup.Every == 0 || p.AfterPublish != DeleteRow, "cleanup.every: with source.polling.after_publish: delete no rows are left to clean up: leave it out"),
		between("source.polling.interval", p.Interval, 10*time.Millisecond, time.Hour, ""),
		oneOf("source.polling.order", p.Order, OrderKey, OrderNone),
		oneOf("source.polling.after_publish", p.AfterPublish, MarkRow, DeleteRow),
		between("source.polling.attempts", p.Attempts, 1, 1000, ""),
		between("source.polling.backoff", p.Backoff, time.Millisecond, time.Minute, ""),
	}, distinct("source.polling.words", p.Words.All()), distinct("source.polling.columns", p.Columns.all()))
}

// forever stands for no upper limit of a duration.
const forever = time.Duration(1<<63 - 1)

// unless returns nil if the rule is kept, and otherwise the error.
func unless(kept bool, format string, args ...any) error {
	if kept {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// between returns an error if v is not from least to most. why names the reason for the limit.
func between[T cmp.Ordered](key string, v, least, most T, why string) error {
	if v >= least && v <= most {
		return nil
	}
	limits := fmt.Sprintf("must be between %v and %v", least, most)
	if any(most) == any(forever) {
		limits = fmt.Sprintf("must be at least %v", least)
	}
	if why != "" {
		limits += ", " + why
	}
	return fmt.Errorf("%s: %v: %s", key, v, limits)
}

// oneOf returns an error if v is none of the choices. The error lists the choices that are not empty.
func oneOf[T ~string](key string, v T, choices ...T) error {
	if slices.Contains(choices, v) {
		return nil
	}
	var named []string
	for _, c := range choices {
		if c != "" {
			named = append(named, string(c))
		}
	}
	last := len(named) - 1
	return fmt.Errorf("%s: %q: write %s or %s", key, v, strings.Join(named[:last], ", "), named[last])
}

// name returns an error if PostgreSQL would not take v as a name, or would shorten it.
func name(key, v string) error {
	return unless(v != "" && len(v) <= 63 && !strings.ContainsRune(v, 0), "%s: %q: write a name of 1 to 63 bytes", key, v)
}

// The values that a key for a column may have.
const (
	needed = 1 << iota
	mayBeConstant
	mayBeNone
)

// column returns an error if v is not a column's name, or a constant or [None] where may allows that.
func column(key, v string, may int) error {
	word, constant := Constant(v)
	switch {
	case v == "" && may&needed != 0:
		return fmt.Errorf("source.columns.%s: empty: name the column", key)
	case v == None && may&mayBeNone == 0:
		return fmt.Errorf("source.columns.%s: %q: every row needs a value: name the column", key, v)
	case constant && may&mayBeConstant == 0:
		return fmt.Errorf("source.columns.%s: %q: only aggregate_type and event_type can be constants: name the column", key, v)
	case constant && word == "":
		return fmt.Errorf("source.columns.%s: %q: write the word after the =, =order for example", key, v)
	}
	return nil
}

// togetherRules returns the results of the rules about columns that a table lacks and its records need.
func (c *Config) togetherRules() rules {
	columns, k := &c.Source.Columns, &c.Kafka
	word, constant := Constant(columns.AggregateType)
	return rules{
		unless(columns.AggregateID != None || k.NullKey == PublishKey, "source.columns.aggregate_id: %q: no record would have a key: write kafka.null_key: publish, or name the column", None),
		unless(columns.EventType != None || k.Headers != HeadersCloudEvents, "source.columns.event_type: %q: a CloudEvent needs a type: name the column, or write a constant, =OrderPlaced for example", None),
		unless(columns.EventType != None || !strings.Contains(k.Topic, "{event_type}"), "source.columns.event_type: %q: kafka.topic contains {event_type}: name the column, or take {event_type} out of the topic", None),
		unless(c.Cleanup.Every == 0 || columns.CreatedAt != None || c.Source.Kind == KindPolling, "cleanup.every: rows are deleted by their age, and source.columns.created_at, which tells it, is %q: name the column, or leave cleanup.every out", None),
		unless(!constant || k.AnyType() || len(k.AggregateTypes) == 0 || slices.Contains(k.AggregateTypes, word),
			"source.columns.aggregate_type: every row has the type %q, which is not in kafka.aggregate_types: add it there", word),
	}
}

// namesDatabase returns an error if the URL names no database: PostgreSQL would use the one that has the user's name.
func namesDatabase(key, text string) error {
	if cfg, err := identity.NewPostgres(key, text, zerolog.Nop()).Target(); err != nil || cfg.Database != "" {
		return nil
	}
	return fmt.Errorf("%s: the URL names no database: write postgres://user@host:5432/database?sslmode=verify-full", key)
}

// postgresURL returns an error if the URL is wrong, or would connect without the encryption that it needs.
func postgresURL(key, text string) error {
	return identity.NewPostgres(key, text, zerolog.Nop()).Check()
}

// isURI reports whether s is ASCII without spaces and can be read as a URI.
func isURI(s string) bool {
	_, err := url.Parse(s)
	return err == nil && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// isMediaType reports whether s is a media type, application/json for example.
func isMediaType(s string) bool {
	_, _, err := mime.ParseMediaType(s)
	return err == nil
}

// distinct returns an error for each value that is not a name or that another key has too.
func distinct(of string, values [][2]string) (r rules) {
	var seen []string
	for _, v := range values {
		key, value := of+"."+v[0], v[1]
		r = append(r, cmp.Or(name(key, value), unless(!slices.Contains(seen, value), "%s: another of these keys has the value %q too: give each its own", key, value)))
		seen = append(seen, value)
	}
	return r
}
