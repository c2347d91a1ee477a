package debezium

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

const (
	maxTopics    = 10_000 // bounds the memory for topic names: the routed values come from the rows
	maxEnvelopes = 10_000 // bounds the memory for schemas, as Debezium's cache does
)

// run is the id in the header runId: one for a process, as Debezium has one for a task.
var run = uuid.NewString()

// Router makes the records that Debezium's Outbox Event Router would make. One goroutine uses it, and the records of a
// window share its memory.
type Router struct {
	o         *Options
	context   []cdc.Header
	expand    *expander
	plans     map[*cdc.Shape]*plan
	last      *plan
	topics    map[string]string
	envelopes map[string]*schema // by the payload's schema; of a versioned envelope, by the version
	scratch   []byte
}

var _ cdc.Route = (*Router)(nil)

// New returns a router that follows the options.
func New(o *Options) *Router {
	r := &Router{o: o, plans: map[*cdc.Shape]*plan{}, topics: map[string]string{}, envelopes: map[string]*schema{}, scratch: []byte{}}
	if o.Expand {
		r.expand = newExpander(o)
	}
	if o.Context {
		plain := &schema{kind: text}
		for _, h := range [][2]string{{"connectorLogicalName", o.Prefix}, {"taskId", "0"}, {"connectorName", "postgresql"}, {"runId", run}} {
			b, _, _ := o.headers.append(nil, value{class: chars, b: []byte(h[1])}, plain, false) // Fits has the error
			r.context = append(r.context, cdc.Header{Key: "__debezium.context." + h[0], Value: b})
		}
	}
	return r
}

// plan is what the options do with rows of one shape.
type plan struct {
	shape                         *cdc.Shape
	err                           error // why no row of the shape can be routed
	id, key, payload, at, version *column
	placed                        []placedColumn
	schema                        string // name of an envelope's schema, with %s for the routed value
}

// placedColumn is an additional column: where it goes, and its place in Row.Further.
type placedColumn struct {
	placement
	*column
	from int
}

// Fits returns an error if rows of this shape cannot be routed: a column is missing, its type is not supported, or a
// converter cannot write it. It names each column with its option.
func (r *Router) Fits(shape *cdc.Shape) error { return r.plan(shape).err }

// plan returns the plan for a shape.
func (r *Router) plan(shape *cdc.Shape) *plan {
	if r.last != nil && r.last.shape == shape {
		return r.last
	}
	p := r.plans[shape]
	if p == nil {
		if len(r.plans) > 100 { // shapes of dead letters come one by one
			clear(r.plans)
		}
		p = r.newPlan(shape)
		r.plans[shape] = p
	}
	r.last = p
	return p
}

func (r *Router) newPlan(shape *cdc.Shape) *plan {
	p := &plan{shape: shape}
	if shape == nil {
		p.err = errors.New("the row comes without a description of its columns: this is a defect of walpost; report it")
		return p
	}
	var errs []error
	o := r.o
	refuse := func(option string, err error) {
		errs = append(errs, fmt.Errorf("%s: %w", option, err))
	}
	read := func(option, name string, c *cdc.Column) *column {
		if c == nil {
			refuse(option, fmt.Errorf("the table has no column %q: name the right one", name))
			return nil
		}
		col, err := newColumn(c, o)
		switch {
		case err != nil:
			refuse(option, err)
			return nil
		case col == nil:
			refuse(option, fmt.Errorf("column %s is of type %s, which Debezium leaves out of its events: name another column", name, c.TypeName))
		}
		return col
	}
	written := func(option string, c *column, name string, by *converter) {
		if c == nil {
			return
		}
		if err := by.fits(c.schema); err != nil {
			refuse(option, fmt.Errorf("column %s %w", name, err))
		}
	}
	if err := o.headers.fits(&schema{kind: text}); o.Context && err != nil {
		refuse("header.converter", fmt.Errorf("a header with the connector's name %w", err))
	}
	p.id = read(optionID, o.id, shape.ID)
	written(optionID, p.id, o.id, o.headers)
	p.key = read(optionKey, o.key, shape.AggregateID)
	written(optionKey, p.key, o.key, o.keys)
	if route := read(optionRoute, o.route, shape.AggregateType); route != nil && route.kind != text {
		refuse(optionRoute, fmt.Errorf("column %s is a %s for Debezium, which routes by text only: name a column of text", o.route, kindNames[route.kind]))
	} else if route != nil && !route.raw {
		refuse(optionRoute, fmt.Errorf("column %s of type %s is not supported here: name a column of text", o.route, shape.AggregateType.TypeName))
	}
	p.payload = read(optionPayload, o.payload, shape.Payload)
	if !o.envelope() {
		written(optionPayload, p.payload, o.payload, o.values)
	} else if p.payload != nil {
		if err := o.values.fits(&schema{kind: structure}); err != nil {
			refuse("value.converter", fmt.Errorf("the envelope %w", err))
		} else if err := inText(o.values, p.payload.schema); err != nil {
			refuse(optionPayload, fmt.Errorf("column %s %w", o.payload, err))
		}
	}
	if o.at != "" {
		if p.at = read(optionTimestamp, o.at, shape.CreatedAt); p.at != nil && p.at.name != milliTimestamp && p.at.name != microTimestamp && p.at.name != nanoTimestamp {
			refuse(optionTimestamp, fmt.Errorf("column %s is of type %s, and Debezium takes timestamp without time zone only: name another column", o.at, shape.CreatedAt.TypeName))
		}
	}
	further := o.further()
	at := func(name string) (int, *cdc.Column) {
		i := slices.Index(further, name)
		if i >= len(shape.Further) {
			return i, nil
		}
		return i, shape.Further[i]
	}
	if o.version != "" {
		_, c := at(o.version)
		if p.version = read(optionVersion, o.version, c); p.version != nil && p.version.kind != int32s {
			refuse(optionVersion, fmt.Errorf("column %s is of type %s, and Debezium takes integer only: name another column", o.version, c.TypeName))
		}
	}
	for _, place := range o.placed {
		from, c := at(place.column)
		if o.missing {
			if c == nil {
				continue
			}
			if col, err := newColumn(c, o); err == nil && col == nil {
				continue
			}
		}
		col := read(optionPlacement, place.column, c)
		if col == nil {
			continue
		}
		p.placed = append(p.placed, placedColumn{place, col, from})
		switch {
		case place.place == inHeader:
			written(optionPlacement, col, place.column, o.headers)
		case place.place == asPartition && (col.kind != int32s || col.name != ""):
			refuse(optionPlacement, fmt.Errorf("column %s is of type %s, and Debezium takes a partition from integer only: name another column", place.column, c.TypeName))
		case place.place == inEnvelope:
			if err := inText(o.values, col.schema); err != nil {
				refuse(optionPlacement, fmt.Errorf("column %s %w", place.column, err))
			}
		}
	}
	p.err = errors.Join(errs...)
	p.schema = o.schemaName(shape.Table)
	return p
}

// inText returns an error if the converter writes a struct's field of this schema as the address of an object.
func inText(c *converter, s *schema) error {
	if c.form == asBinary && c.delegate != nil {
		c = c.delegate
	}
	if c.form != asText {
		return nil
	}
	return c.fits(s)
}

// NextWindow frees the memory of the records made before.
func (r *Router) NextWindow() { r.scratch = r.scratch[:0] }

// keep returns what was appended to scratch since the length at.
func (r *Router) keep(at int) []byte { return r.scratch[at:len(r.scratch):len(r.scratch)] }

// write writes a value by a converter. A text that the converter does not change stays in the row's memory.
func (r *Router) write(c *converter, v value, s *schema, misfit bool) ([]byte, error) {
	if v.class == chars && (c.form == asText || c.form == asSimple) && !misfit {
		if v.b == nil {
			return []byte{}, nil
		}
		return v.b, nil
	}
	at := len(r.scratch)
	b, isNull, err := c.append(r.scratch, v, s, misfit)
	if err != nil || isNull {
		return nil, err
	}
	r.scratch = b
	return r.keep(at), nil
}

// Route fills rec from the row, or returns a RejectedError.
func (r *Router) Route(row *cdc.Row, rec *cdc.Record) error {
	p := r.plan(row.Shape)
	if p.err != nil {
		return cdc.Reject(row, cdc.BadType, "", "%s", sentence(p.err))
	}
	topic, err := r.topic(row)
	if err != nil {
		return err
	}
	refuse := func(class cdc.Class, column string, err error) error {
		return cdc.Reject(row, class, topic, "its %s cannot be sent: %s", column, sentence(err))
	}
	*rec = cdc.Record{Row: row, Topic: topic, Headers: rec.Headers[:0]}
	if row.Former != nil {
		if err := r.formerKey(row, rec, p); err != nil {
			return refuse(cdc.BadHeaders, "former key", err)
		}
	}
	rec.Headers = append(rec.Headers, r.context...)
	v, err := p.id.value(row.ID)
	if err == nil {
		var b []byte
		if b, err = r.write(r.o.headers, v, p.id.schema, false); err == nil {
			rec.Headers = append(rec.Headers, cdc.Header{Key: "id", Value: b})
		}
	}
	if err != nil {
		return refuse(cdc.BadID, r.o.id, err)
	}
	if v, err = p.key.value(row.AggregateID); err == nil {
		rec.Key, err = r.write(r.o.keys, v, p.key.schema, false)
	}
	if err != nil {
		return refuse(cdc.BadKey, r.o.key, err)
	}
	payload, err := p.payload.value(row.Payload)
	if err != nil {
		return refuse(cdc.BadPayload, r.o.payload, err)
	}
	s, misfit := p.payload.schema, false
	if r.expand != nil && payload.class == chars {
		if expanded, v, ok, err := r.expand.expand(payload.b); err == nil {
			if s, misfit = expanded, !ok && expanded != nil; ok {
				payload = v
			}
		}
	}
	if r.o.envelope() {
		err = r.envelope(row, rec, p, payload, s, misfit)
	} else if !r.tombstone(payload) {
		rec.Value, err = r.write(r.o.values, payload, s, misfit)
	}
	if err != nil {
		return refuse(cdc.BadPayload, r.o.payload, err)
	}
	for _, c := range p.placed {
		if c.place == inEnvelope {
			continue
		}
		v, err := c.value(row.Further[c.from])
		if err != nil {
			return refuse(cdc.BadHeaders, c.placement.column, err)
		}
		if c.place == asPartition {
			rec.Placed, rec.Partition = row.Further[c.from] != nil, int32(v.n) // a default is no partition
			if rec.Placed && v.n < 0 {
				return cdc.Reject(row, cdc.BadPartition, topic, "its partition would be %d, and partitions begin at 0", v.n)
			}
			continue
		}
		b, err := r.write(r.o.headers, v, c.schema, false)
		if err != nil {
			return refuse(cdc.BadHeaders, c.placement.column, err)
		}
		rec.Headers = append(rec.Headers, cdc.Header{Key: c.alias, Value: b})
	}
	if p.at != nil && row.CreatedAt != nil {
		return r.timestamp(row, rec, p.at)
	}
	return nil
}

// formerKey adds the header that Debezium gives a row whose primary key was changed: to Debezium that is a new row.
func (r *Router) formerKey(row *cdc.Row, rec *cdc.Record, p *plan) error {
	s := &schema{kind: structure, name: p.schema + ".Key"}
	v := value{class: object, of: s}
	for i, c := range row.Shape.Key {
		col, err := newColumn(c, r.o)
		if err != nil {
			return err
		}
		if col == nil {
			return &unsupportedError{c.Name, "is part of the primary key and of type " + c.TypeName + ", which Debezium leaves out of its events"}
		}
		one, err := col.value(row.Former[i])
		if err != nil {
			return err
		}
		s.fields, v.list = append(s.fields, field{c.Name, col.schema}), append(v.list, one)
	}
	if err := r.o.headers.fits(s); err != nil {
		return err
	}
	b, err := r.write(r.o.headers, v, s, false)
	rec.Headers = append(rec.Headers, cdc.Header{Key: "__debezium.oldkey", Value: b})
	return err
}

// sentence returns an error as one line.
func sentence(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// topic returns the topic of a row, and computes each topic once.
func (r *Router) topic(row *cdc.Row) (string, error) {
	if topic, ok := r.topics[string(row.AggregateType)]; ok && row.AggregateType != nil {
		return topic, nil
	}
	if row.AggregateType == nil {
		return "", cdc.Reject(row, cdc.BadType, "", "its %s is NULL, and it chooses the topic (route.by.field)", r.o.route)
	}
	topic, err := r.o.topics.topic(string(row.AggregateType))
	if err != nil {
		return "", cdc.Reject(row, cdc.BadTopic, "", "its topic is not certain: %s", err)
	}
	if !config.LegalTopic(topic) {
		return "", cdc.Reject(row, cdc.BadTopic, "", "its topic would be %.300q, which Kafka or walpost does not allow: change route.topic.regex and route.topic.replacement", topic)
	}
	if len(r.topics) >= maxTopics {
		clear(r.topics)
	}
	r.topics[string(row.AggregateType)] = topic
	return topic, nil
}

// tombstone reports whether the record has no value because its payload is empty.
func (r *Router) tombstone(payload value) bool {
	if !r.o.Tombstones {
		return false
	}
	switch payload.class {
	case null:
		return true
	case chars:
		return len(bytes.TrimFunc(payload.b, func(c rune) bool { return c <= ' ' })) == 0
	case list, object:
		return false
	default:
		return false
	}
}

// envelope writes the struct of payload and additional columns.
func (r *Router) envelope(row *cdc.Row, rec *cdc.Record, p *plan, payload value, s *schema, misfit bool) error {
	if s == nil || misfit {
		return errShape
	}
	key := string(s.describe())
	version, numbered := 0, false
	if p.version != nil {
		raw := row.Further[slices.Index(r.o.further(), r.o.version)]
		if numbered = raw != nil; numbered {
			v, err := p.version.value(raw)
			if err != nil {
				return err
			}
			version = int(v.n)
		}
		key = string(raw)
	}
	of := r.envelopes[key]
	if of == nil {
		if len(r.envelopes) >= maxEnvelopes {
			clear(r.envelopes)
		}
		of = r.envelopeSchema(row, p, s, version, numbered)
		r.envelopes[key] = of
	}
	if !of.fields[0].of.equal(s) {
		return fmt.Errorf("it has another schema than the first payload of version %d (%s), and Debezium's task fails", version, optionVersion)
	}
	v := value{class: object, of: of, list: make([]value, len(of.fields))}
	v.list[0] = payload
	for _, c := range p.placed {
		if c.place != inEnvelope {
			continue
		}
		i := slices.IndexFunc(of.fields, func(f field) bool { return f.name == c.alias })
		if i < 0 || of.fields[i].of.kind != c.kind {
			return fmt.Errorf("the column %s is not what it was when the envelope's schema was made, and Debezium's task fails: restart the relay", c.placement.column)
		}
		one, err := c.value(row.Further[c.from])
		if err != nil {
			return fmt.Errorf("column %s: %w", c.placement.column, err)
		}
		if v.list[i] = one; one.class == null && !of.fields[i].of.optional {
			return errRequired
		}
	}
	if payload.class == null && !s.optional {
		return errRequired
	}
	if r.tombstone(payload) {
		return nil
	}
	var err error
	rec.Value, err = r.write(r.o.values, v, of, false)
	return err
}

// envelopeSchema returns the schema of an envelope. Debezium keeps it for all payloads with one schema, so that it has
// the name of the first routed value.
func (r *Router) envelopeSchema(row *cdc.Row, p *plan, payload *schema, version int, numbered bool) *schema {
	s := &schema{
		kind: structure, name: p.schema + "." + string(row.AggregateType) + ".Value", version: version, numbered: numbered,
		fields: []field{{"payload", payload}},
	}
	for _, c := range p.placed {
		if c.place == inEnvelope {
			s.fields = append(s.fields, field{c.alias, c.schema})
		}
	}
	return s
}

// timestamp sets the record's timestamp from the row.
func (r *Router) timestamp(row *cdc.Row, rec *cdc.Record, c *column) error {
	v, err := c.value(row.CreatedAt)
	if err != nil {
		return cdc.Reject(row, cdc.BadHeaders, rec.Topic, "its %s cannot be the record's timestamp: %s", r.o.at, sentence(err))
	}
	ms := v.n
	switch c.name {
	case microTimestamp:
		ms /= 1000
	case nanoTimestamp:
		ms /= 1_000_000
	}
	if ms == -1 {
		return nil // to Connect, no timestamp
	}
	if ms < 0 || bytes.HasSuffix(row.CreatedAt, []byte("infinity")) {
		return cdc.Reject(row, cdc.BadHeaders, rec.Topic, "its %s is before 1970 or infinite, and Kafka takes no such timestamp: correct the row, or leave %s out", r.o.at, optionTimestamp)
	}
	rec.Timestamp = time.UnixMilli(ms)
	return nil
}

// Topics returns no known topic, because the rows decide, and the template of those that match route.topic.regex.
func (r *Router) Topics() (known, patterns []string) {
	var b strings.Builder
	for _, p := range r.o.topics.replacement {
		if p.group >= 0 {
			b.WriteString("{aggregate_type}")
			continue
		}
		b.WriteString(p.text)
	}
	return nil, []string{b.String()}
}

// Topic returns the topic of rows with the routed value; it need not be legal.
func (r *Router) Topic(routed, _ string) string {
	topic, err := r.o.topics.topic(routed)
	if err != nil {
		return routed
	}
	return topic
}

// anyTopic matches all topics that the rows may name.
var anyTopic = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

// Pattern returns an expression for the topics that rows may go to. With the default regex these are the topics of the
// replacement; with another one, a value that does not match is the topic.
func (r *Router) Pattern() *regexp.Regexp {
	if !r.o.topics.total {
		return anyTopic
	}
	var b strings.Builder
	b.WriteByte('^')
	for _, p := range r.o.topics.replacement {
		if p.group >= 0 {
			b.WriteString("[a-zA-Z0-9._-]*")
			continue
		}
		b.WriteString(regexp.QuoteMeta(p.text))
	}
	return regexp.MustCompile(b.String() + "$")
}
