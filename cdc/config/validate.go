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
	zonePattern     = regexp.MustCompile(`^[A-Za-z][A-Za-z_-]*(?:/[A-Za-z0-9_+-]+)*$`) // an offset would mean its opposite to PostgreSQL
	topicPattern    = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)
	templatePattern = regexp.MustCompile(`^(?:[a-zA-Z0-9._-]|\{aggregate_type\}|\{event_type\})+$`)
	brokerPattern   = regexp.MustCompile(`^[^:]+:.+$`)
)

// LegalTopic reports whether Kafka accepts the name and it is neither one of Kafka's own nor one of walpost's.
func LegalTopic(name string) bool {
	return topicPattern.MatchString(name) && name != "." && name != ".." && !strings.HasPrefix(name, "__") && !strings.HasPrefix(name, "walpost.")
}

// Validate reports every value that breaks a rule, each with its key and what to write instead.
func (c *Config) Validate() error { return c.validate(environment) }

// validate names environment variables by the prefix env.
func (c *Config) validate(env string) error {
	return errors.Join(slices.Concat(
		rules{
			unless(namePattern.MatchString(c.Pipeline), "pipeline: %q: give the pipeline a name of a-z, 0-9, _ and - that no other has", c.Pipeline),
			oneOf("delivery", c.Delivery, AtLeastOnce, ExactlyOnce),
			between("queue_timeout", c.QueueTimeout, time.Second, forever, ""),
			between("shutdown_timeout", c.ShutdownTimeout, 0, forever, ""),
		},
		c.Source.rules(env),
		c.Kafka.rules(env),
		c.Poison.rules(c.Pipeline, c.topics()),
		c.Cleanup.rules(),
		c.Window.rules(),
		c.pollingRules(),
		c.togetherRules(),
	)...)
}

// rules are the results of a section's rules: nil for each that is kept.
type rules []error

func (s *Source) rules(env string) rules {
	schema, table := s.SchemaTable()
	return rules{
		oneOf("source.kind", s.Kind, KindWAL, KindPolling),
		cmp.Or(
			unless(s.URL != "", "source.url: missing: write postgres://walpost@host:5432/database?sslmode=verify-full, or set %s", envName(env, []string{"source", "url"})),
			postgresURL("source.url", s.URL),
			namesDatabase("source.url", s.URL),
		),
		unless(slotPattern.MatchString(s.Slot), "source.slot: %q: PostgreSQL takes 1 to 63 of a-z, 0-9 and _ only", s.Slot),
		name("source.publication", s.Publication),
		unless(schema != "" && table != "", "source.table: %q: write schema.name as PostgreSQL shows it, without quotes, public.outbox for example; a name with a dot in it cannot be used", s.Table),
		column("id", s.Columns.ID, needed),
		column("aggregate_type", s.Columns.AggregateType, needed|mayBeConstant),
		column("aggregate_id", s.Columns.AggregateID, needed|mayBeNone),
		column("event_type", s.Columns.EventType, needed|mayBeConstant|mayBeNone),
		column("payload", s.Columns.Payload, needed),
		column("headers", s.Columns.Headers, mayBeNone),
		column("created_at", s.Columns.CreatedAt, mayBeNone),
		unless(s.Columns.CreatedAtZone == "" || zonePattern.MatchString(s.Columns.CreatedAtZone),
			"source.columns.created_at_zone: %q: write a name of a time zone, Europe/Berlin for example, or UTC", s.Columns.CreatedAtZone),
		between("source.status_interval", s.StatusInterval, 100*time.Millisecond, 30*time.Second, "the half of the server's usual wal_sender_timeout"),
		between("source.check_interval", s.CheckInterval, 100*time.Millisecond, time.Hour, ""),
		between("source.max_row_bytes", s.MaxRowBytes, 1<<20, 1<<30, ""),
	}
}

func (k *Kafka) rules(env string) rules {
	r := rules{
		k.Kafka.Check(identity.Keys),
		unless(len(k.Brokers) > 0, "kafka.brokers: missing: write [host:9092], or set %s", envName(env, []string{"kafka", "brokers"})),
		unless(templatePattern.MatchString(k.Topic) && LegalTopic(strings.NewReplacer("{aggregate_type}", "a", "{event_type}", "e").Replace(k.Topic)),
			"kafka.topic: %q: letters, digits, '.', '_', '-', {aggregate_type} and {event_type} only, and not beginning with __ or walpost.", k.Topic),
		unless(len(k.AggregateTypes) > 0, "kafka.aggregate_types: missing: list the aggregate types that may be published, [order] for example"),
		oneOf("kafka.headers", k.Headers, HeadersWalpost, HeadersCloudEvents),
		unless(isURI(k.CloudEvents.Source), "kafka.cloudevents.source: %q: write a URI, https://shop.example/orders for example", k.CloudEvents.Source),
		unless(k.CloudEvents.ContentType == "" || isMediaType(k.CloudEvents.ContentType),
			"kafka.cloudevents.content_type: %q: write a media type, application/json for example", k.CloudEvents.ContentType),
		oneOf("kafka.payload", k.Payload, PayloadAny, PayloadJSON),
		oneOf("kafka.null_key", k.NullKey, RefuseKey, PublishKey),
		oneOf("kafka.null_payload", k.NullPayload, RefusePayload, Tombstone),
		unless(!k.AnyType() || len(k.AggregateTypes) == 1, "kafka.aggregate_types: %q is every type: list it alone", AnyType),
		between("kafka.partitions", k.Partitions, 1, 1<<31-1, ""),
		between("kafka.replication", k.Replication, 0, 1<<15-1, "a number of brokers, or 0 for the brokers' default"),
		between("kafka.retention", k.Retention, 0, forever, "0 is for ever"),
		between("kafka.max_request_bytes", k.MaxRequestBytes, 64<<10, 1<<30, ""),
		oneOf("kafka.compression", k.Compression, Uncompressed, Gzip, Snappy, LZ4, Zstd),
		between("kafka.transaction_timeout", k.TransactionTimeout, time.Second, 15*time.Minute, "the most that brokers allow by default"),
	}
	for _, b := range k.Brokers {
		r = append(r, unless(brokerPattern.MatchString(b), "kafka.brokers: %q: write host:port", b))
	}
	for _, t := range k.AggregateTypes {
		if t == AnyType {
			continue
		}
		r = append(r, unless(t != "" && topicPattern.MatchString(k.inTopic(t)), "kafka.aggregate_types: %q cannot stand in a topic's name: give it another under kafka.rename", t))
	}
	return r
}

// rules of dead letters keep their topic apart from everything else. With {event_type} in the template not every outbox
// topic is known before its rows come: the router refuses those rows then.
func (p *Poison) rules(pipeline string, outbox []string) rules {
	return rules{
		oneOf("poison.policy", p.Policy, PolicyHalt, PolicyDeadLetter),
		unless(!p.HoldKey || p.Policy == PolicyDeadLetter, "poison.hold_key: only with poison.policy: dead_letter"),
		unless(p.Topic == "" || LegalTopic(p.Topic), "poison.topic: %q: letters, digits, '.', '_' and '-' only, and not beginning with __ or walpost.; empty is walpost.dlq.%s", p.Topic, pipeline),
		unless(!slices.Contains(outbox, p.Topic), "poison.topic: %q is a topic of the outbox: give dead letters another", p.Topic),
	}
}

func (c *Cleanup) rules() rules {
	r := rules{
		between("cleanup.retention", c.Retention, 0, forever, ""),
		unless(c.Every == 0 || c.Every >= time.Second, "cleanup.every: %s: at least 1s, or 0 for never", c.Every),
	}
	if c.URL != "" {
		r = append(r, postgresURL("cleanup.url", c.URL))
	}
	return r
}

func (w *Window) rules() rules {
	return rules{
		between("window.rows", w.Rows, 1, 1_000_000, ""),
		between("window.bytes", w.Bytes, 64<<10, 256<<20, ""),
		between("window.pace", w.Pace, 0, time.Second, ""),
	}
}

func (c *Config) pollingRules() rules {
	if c.Source.Kind != KindPolling {
		return nil
	}
	p := &c.Source.Polling
	return slices.Concat(rules{
		unless(c.Delivery != ExactlyOnce, "delivery: exactly_once needs source.kind: wal: a row is marked in PostgreSQL, not in Kafka's transaction, so that a crash between the two repeats it"),
		unless(c.Poison.Policy != PolicyDeadLetter, "poison.policy: dead_letter is for source.kind: wal: with polling a row that is refused stays in the table"),
		unless(c.Cleanup.Every == 0 || p.AfterPublish != DeleteRow, "cleanup.every: there is nothing to clean up with source.polling.after_publish: delete: leave it out"),
		between("source.polling.interval", p.Interval, 10*time.Millisecond, time.Hour, ""),
		oneOf("source.polling.order", p.Order, OrderKey, OrderNone),
		oneOf("source.polling.after_publish", p.AfterPublish, MarkRow, DeleteRow),
		between("source.polling.attempts", p.Attempts, 1, 1000, ""),
		between("source.polling.backoff", p.Backoff, time.Millisecond, time.Minute, ""),
	}, distinct("source.polling.words", p.Words.All()), distinct("source.polling.columns", p.Columns.all()))
}

// forever stands for no upper limit of a duration.
const forever = time.Duration(1<<63 - 1)

func unless(kept bool, format string, args ...any) error {
	if kept {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// between returns an error where v is not one of least to most; why says where the limit comes from.
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

// oneOf returns an error where v is none of the choices; it names those that are not empty.
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

// name returns an error where PostgreSQL would not take v for a name as it stands.
func name(key, v string) error {
	return unless(v != "" && len(v) <= 63 && !strings.ContainsRune(v, 0), "%s: %q: a name of 1 to 63 bytes is needed", key, v)
}

// What may stand where a column is named.
const (
	needed = 1 << iota
	mayBeConstant
	mayBeNone
)

func column(key, v string, may int) error {
	word, constant := Constant(v)
	switch {
	case v == "" && may&needed != 0:
		return fmt.Errorf("source.columns.%s: empty: name the column", key)
	case v == None && may&mayBeNone == 0:
		return fmt.Errorf("source.columns.%s: %q: every row needs one: name the column", key, v)
	case constant && may&mayBeConstant == 0:
		return fmt.Errorf("source.columns.%s: %q: a constant is for aggregate_type and event_type only: name the column", key, v)
	case constant && word == "":
		return fmt.Errorf("source.columns.%s: %q: write the word behind the =, =order for example", key, v)
	}
	return nil
}

// togetherRules are the rules between what a table lacks and what its records need.
func (c *Config) togetherRules() rules {
	columns, k := &c.Source.Columns, &c.Kafka
	word, constant := Constant(columns.AggregateType)
	return rules{
		unless(columns.AggregateID != None || k.NullKey == PublishKey, "source.columns.aggregate_id: %q: then no record has a key: write kafka.null_key: publish, or name the column", None),
		unless(columns.EventType != None || k.Headers != HeadersCloudEvents, "source.columns.event_type: %q: a CloudEvent has a type: name the column, or write a constant, =OrderPlaced for example", None),
		unless(columns.EventType != None || !strings.Contains(k.Topic, "{event_type}"), "source.columns.event_type: %q: kafka.topic asks for {event_type}: name the column, or take it out of the topic", None),
		unless(c.Cleanup.Every == 0 || columns.CreatedAt != None || c.Source.Kind == KindPolling, "cleanup.every: rows are deleted by the age that source.columns.created_at says, and that is %q: name the column, or leave cleanup.every out", None),
		unless(!constant || k.AnyType() || len(k.AggregateTypes) == 0 || slices.Contains(k.AggregateTypes, word),
			"source.columns.aggregate_type: every row is of the type %q, which is not in kafka.aggregate_types: add it there", word),
	}
}

// namesDatabase wants the URL to name its database: PostgreSQL would take the one that is called like the user.
func namesDatabase(key, text string) error {
	if cfg, err := identity.NewPostgres(key, text, zerolog.Nop()).Target(); err != nil || cfg.Database != "" {
		return nil
	}
	return fmt.Errorf("%s: it names no database: write postgres://user@host:5432/database?sslmode=verify-full", key)
}

func postgresURL(key, text string) error {
	return identity.NewPostgres(key, text, zerolog.Nop()).Check()
}

// isURI reports whether s is ASCII without spaces and can be read as a URI.
func isURI(s string) bool {
	_, err := url.Parse(s)
	return err == nil && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

func isMediaType(s string) bool {
	_, _, err := mime.ParseMediaType(s)
	return err == nil
}

// distinct wants each value to be a name and no two to be the same.
func distinct(of string, values [][2]string) (r rules) {
	var seen []string
	for _, v := range values {
		key, value := of+"."+v[0], v[1]
		r = append(r, cmp.Or(name(key, value), unless(!slices.Contains(seen, value), "%s: %q stands for another of them already: give each its own", key, value)))
		seen = append(seen, value)
	}
	return r
}
