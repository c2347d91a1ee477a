package route

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/header"
)

const (
	maxTopics  = 10_000 // bounds the memory for topic names: event types come from the rows
	maxHeaders = 1000   // of the row's own: consumers keep each as an object, and some brokers' tools fail with more
)

// Router makes records. One goroutine uses it, and the records of a window share its memory.
type Router struct {
	cfg      config.Kafka
	allowed  []string
	any      bool // every aggregate type is allowed
	keyless  bool // a row without a key is published
	delete   bool // a row without a payload is a tombstone
	template string
	rename   map[string]string
	json     bool // payloads must be JSON
	cloud    bool // records are CloudEvents
	names    names
	source   []byte
	content  []byte // the payload's content type; nil if the configuration gives none
	topics   map[topicKey]string

	scratch []byte
	lsn     cdc.LSN // the LSN in lsnText
	lsnText []byte
}

// names has the keys of the headers that a record gets from its row.
type names struct{ id, typ, lsn, seq, source, createdAt string }

var (
	ours = names{id: header.ID, typ: header.Type, lsn: header.LSN, seq: header.Seq, source: header.Source, createdAt: header.CreatedAt}
	// Version 1.0 of CloudEvents, binary mode of its Kafka protocol binding. Position is an extension attribute of
	// walpost's.
	cloudEvents = names{
		id: header.CloudEvents + header.ID, typ: header.CloudEvents + header.Type, lsn: header.CloudEvents + header.LSN,
		seq: header.CloudEvents + header.Seq, source: header.CloudEvents + header.Source, createdAt: header.CloudEvents + header.Time,
	}
	specVersion = []byte("1.0")
)

type topicKey struct{ aggregate, event string }

var _ cdc.Route = (*Router)(nil)

// New returns a router for a valid configuration.
func New(pipeline string, cfg config.Kafka) *Router {
	r := &Router{
		cfg: cfg, allowed: cfg.AggregateTypes, any: cfg.AnyType(), keyless: cfg.NullKey == config.PublishKey, delete: cfg.NullPayload == config.Tombstone,
		template: cfg.Topic, rename: cfg.Rename, json: cfg.Payload == config.PayloadJSON,
		names: ours, source: []byte(cfg.EventSource(pipeline)), topics: map[topicKey]string{},
	}
	if cfg.Headers == config.HeadersCloudEvents {
		r.cloud, r.names = true, cloudEvents
		if cfg.CloudEvents.ContentType != "" {
			r.content = []byte(cfg.CloudEvents.ContentType)
		}
	}
	return r
}

// Topics returns the topics that are known before any row came, and the patterns of topics that only rows decide: if
// the template has {event_type}, or {aggregate_type} and every aggregate type is allowed. An event type is known if
// kafka.rename has it, unless it could belong to several aggregate types.
func (r *Router) Topics() (known, patterns []string) {
	cfg := &r.cfg
	ofEvents := strings.Contains(cfg.Topic, "{event_type}")
	if cfg.AnyType() && strings.Contains(cfg.Topic, "{aggregate_type}") {
		return nil, []string{cfg.Topic}
	}
	for _, t := range cfg.AggregateTypes {
		if topic := name(cfg.Topic, cfg.Rename, t, "{event_type}"); ofEvents {
			patterns = append(patterns, topic)
		} else {
			known = append(known, topic)
		}
	}
	slices.Sort(patterns)
	if patterns = slices.Compact(patterns); len(patterns) == 1 {
		for t, event := range cfg.Rename {
			if !slices.Contains(cfg.AggregateTypes, t) {
				known = append(known, strings.ReplaceAll(patterns[0], "{event_type}", event))
			}
		}
	}
	slices.Sort(known)
	return slices.Compact(known), patterns
}

// NextWindow frees the memory of the records made before.
func (r *Router) NextWindow() { r.scratch, r.lsnText = r.scratch[:0], nil }

// Route fills rec from the row, or returns a RejectedError.
func (r *Router) Route(row *cdc.Row, rec *cdc.Record) error {
	topic, ok := r.topics[topicKey{string(row.AggregateType), string(row.EventType)}]
	if !ok {
		var err error
		if topic, err = r.topic(row); err != nil {
			return err
		}
	}
	if len(row.ID) == 0 {
		return cdc.Reject(row, cdc.BadID, topic, "its id is NULL or empty")
	}
	key := row.AggregateID
	if len(key) == 0 {
		if key = nil; !r.keyless {
			return cdc.Reject(row, cdc.BadKey, topic, "aggregate_id is empty, and it is the record's key: kafka.null_key: publish publishes such rows without one")
		}
	}
	if row.Payload == nil && !r.delete {
		return cdc.Reject(row, cdc.BadPayload, topic, "payload is NULL, which Kafka reads as a deletion: kafka.null_payload: tombstone publishes it as one")
	}
	if r.json && row.Payload != nil && !json.Valid(row.Payload) {
		return cdc.Reject(row, cdc.BadPayload, topic, "payload is not valid JSON, and kafka.payload is json")
	}
	if r.cloud && len(row.EventType) == 0 {
		return cdc.Reject(row, cdc.BadType, topic, "its event type is NULL or empty, and a CloudEvent needs one")
	}
	*rec = cdc.Record{Row: row, Topic: topic, Key: key, Value: row.Payload, Headers: append(rec.Headers[:0], cdc.Header{Key: r.names.id, Value: row.ID})}
	if row.EventType != nil {
		rec.Headers = append(rec.Headers, cdc.Header{Key: r.names.typ, Value: row.EventType})
	}
	if row.Ordinal > 0 { // the row comes from the WAL
		if row.Commit != r.lsn || r.lsnText == nil {
			r.lsn, r.lsnText = row.Commit, r.keep([]byte(row.Commit.String()))
		}
		at := len(r.scratch)
		r.scratch = strconv.AppendUint(r.scratch, uint64(row.Ordinal), 10)
		seq := r.scratch[at:len(r.scratch):len(r.scratch)]
		rec.Headers = append(rec.Headers, cdc.Header{Key: r.names.lsn, Value: r.lsnText}, cdc.Header{Key: r.names.seq, Value: seq})
	}
	rec.Headers = append(rec.Headers, cdc.Header{Key: r.names.source, Value: r.source})
	// ce_time is RFC 3339 or missing: infinity and a time without a zone are not RFC 3339.
	if at := r.rfc3339(row.CreatedAt); at != nil && (!r.cloud || bytes.HasSuffix(at, []byte("Z"))) {
		rec.Headers = append(rec.Headers, cdc.Header{Key: r.names.createdAt, Value: at})
	}
	if r.cloud {
		rec.Headers = append(rec.Headers, cdc.Header{Key: header.CloudEvents + "specversion", Value: specVersion})
		if key != nil {
			rec.Headers = append(rec.Headers, cdc.Header{Key: header.CloudEvents + "subject", Value: key})
		}
		if r.content != nil {
			rec.Headers = append(rec.Headers, cdc.Header{Key: "content-type", Value: r.content})
		}
	}
	if len(row.Headers) > 0 && !bytes.Equal(row.Headers, []byte("{}")) {
		return r.own(row, rec)
	}
	return nil
}

// topic returns the topic's name for a row's types, and builds each name once.
func (r *Router) topic(row *cdc.Row) (string, error) {
	aggregate, event := string(row.AggregateType), string(row.EventType)
	if aggregate == "" && r.any {
		return "", cdc.Reject(row, cdc.BadType, "", "its aggregate type is NULL or empty, and it chooses the topic")
	}
	if !r.any && !slices.Contains(r.allowed, aggregate) {
		return "", cdc.Reject(row, cdc.BadType, "", "its aggregate type %.100q is not in kafka.aggregate_types", aggregate)
	}
	topic := name(r.template, r.rename, aggregate, event)
	if !config.LegalTopic(topic) {
		return "", cdc.Reject(row, cdc.BadTopic, "", "its topic would be %.300q, which Kafka does not allow: give the type another name under kafka.rename", topic)
	}
	if len(r.topics) >= maxTopics {
		clear(r.topics)
	}
	r.topics[topicKey{aggregate, event}] = topic
	return topic, nil
}

func name(template string, rename map[string]string, aggregate, event string) string {
	as := func(t string) string {
		if n, ok := rename[t]; ok {
			return n
		}
		return t
	}
	return strings.NewReplacer("{aggregate_type}", as(aggregate), "{event_type}", as(event)).Replace(template)
}

// own adds the row's own headers: a JSON object, or an array of pairs, in which a name may come twice. Strings are
// used unchanged, other values as their JSON text. A row cannot set the names of walpost's headers.
func (r *Router) own(row *cdc.Row, rec *cdc.Record) error {
	refuse := func(reason string) error { return cdc.Reject(row, cdc.BadHeaders, rec.Topic, "%s", reason) }
	ours := len(rec.Headers)
	add := func(name string, value json.RawMessage) error {
		if name == r.names.lsn || name == r.names.seq || slices.ContainsFunc(rec.Headers[:ours], func(h cdc.Header) bool { return h.Key == name }) {
			return nil
		}
		if len(rec.Headers) == ours+maxHeaders {
			return refuse(fmt.Sprintf("headers has more than %d entries", maxHeaders))
		}
		rec.Headers = append(rec.Headers, cdc.Header{Key: name, Value: headerText(value)})
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(row.Headers))
	begin, err := d.Token()
	pairs := begin == json.Delim('[')
	switch {
	case err == nil && begin == nil: // a JSON null means the same as NULL
		return nil
	case err != nil || begin != json.Delim('{') && !pairs:
		return refuse("headers is neither a JSON object nor an array of pairs")
	}
	for d.More() {
		var name string
		var value json.RawMessage
		if pairs {
			var one json.RawMessage
			if err := d.Decode(&one); err != nil {
				return refuse("headers is not valid JSON")
			}
			var ok bool
			if name, value, ok = pair(one); !ok {
				return refuse(`headers is an array, and one of its elements is neither {"key": "a", "value": "b"} nor ["a", "b"]`)
			}
		} else {
			key, err := d.Token()
			if err == nil {
				err = d.Decode(&value)
			}
			if err != nil {
				return refuse("headers is not valid JSON")
			}
			name, _ = key.(string)
		}
		if err := add(name, value); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return refuse("headers is not valid JSON")
	}
	return nil
}

// pair parses an element of an array of headers.
func pair(element json.RawMessage) (name string, value json.RawMessage, ok bool) {
	switch element[0] {
	case '{':
		var p struct {
			Key   *string
			Value json.RawMessage
		}
		if json.Unmarshal(element, &p) != nil || p.Key == nil || p.Value == nil {
			return "", nil, false
		}
		return *p.Key, p.Value, true
	case '[':
		var p []json.RawMessage
		if json.Unmarshal(element, &p) != nil || len(p) != 2 || p[0][0] != '"' {
			return "", nil, false
		}
		return string(headerText(p[0])), p[1], true
	}
	return "", nil, false
}

// headerText returns the content of a JSON string, and any other value as its JSON text.
func headerText(value json.RawMessage) []byte {
	var text string
	if value[0] != '"' || json.Unmarshal(value, &text) != nil {
		return value
	}
	return []byte(text)
}

// rfc3339 converts PostgreSQL's ISO output (2026-11-22 08:00:00.5+00, the connection's time zone is UTC) to RFC 3339.
// It returns any other value, infinity for example, unchanged.
func (r *Router) rfc3339(b []byte) []byte {
	if len(b) < 19 || b[10] != ' ' || !utf8.Valid(b) {
		return b
	}
	at := len(r.scratch)
	r.scratch = append(r.scratch, b[:10]...)
	r.scratch = append(r.scratch, 'T')
	if rest, utc := bytes.CutSuffix(b[11:], []byte("+00")); utc {
		r.scratch = append(append(r.scratch, rest...), 'Z')
	} else {
		r.scratch = append(r.scratch, b[11:]...)
	}
	return r.scratch[at:len(r.scratch):len(r.scratch)]
}

func (r *Router) keep(b []byte) []byte {
	at := len(r.scratch)
	r.scratch = append(r.scratch, b...)
	return r.scratch[at:len(r.scratch):len(r.scratch)]
}

// Topic returns the topic of rows of these types; it need not be legal.
func (r *Router) Topic(aggregateType, eventType string) string {
	return name(r.template, r.rename, aggregateType, eventType)
}

// Pattern returns an expression for the topics that rows may go to.
func (r *Router) Pattern() *regexp.Regexp {
	cfg, allowed := &r.cfg, r.allowed
	var types []string
	if r.any {
		types, allowed = []string{"[a-zA-Z0-9._-]+"}, nil
	}
	for _, t := range allowed {
		types = append(types, regexp.QuoteMeta(name("{aggregate_type}", cfg.Rename, t, "")))
	}
	template := regexp.QuoteMeta(cfg.Topic)
	template = strings.ReplaceAll(template, regexp.QuoteMeta("{aggregate_type}"), "(?:"+strings.Join(types, "|")+")")
	template = strings.ReplaceAll(template, regexp.QuoteMeta("{event_type}"), "[a-zA-Z0-9._-]+")
	return regexp.MustCompile("^" + template + "$")
}
