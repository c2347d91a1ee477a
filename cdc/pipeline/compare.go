package pipeline

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/header"
	"github.com/walpost/walpost/cdc/kafka"
)

// compareBytes is the largest number of bytes of records that Compare holds while it reads their rows.
const compareBytes = 16 << 20

// runID is the header with the id of Debezium's process: it differs from run to run.
const runID = "__debezium.context.runId"

// CompareOptions are the options of Compare.
type CompareOptions struct {
	Records int    // about how many records to compare
	ReadURL string // URL of a role that may SELECT from the outbox; empty: source.url
	ReadKey string // name of the flag or key that holds ReadURL, for errors
	Values  bool   // show the values of records that differ, shortened; otherwise only where they begin to differ
	// Differs is called with each difference.
	Differs  func(Difference)
	Progress Progress // is called with the records that are read
}

// Difference is one part of a record that walpost would write in another way.
type Difference struct {
	Topic     string
	Partition int32
	Offset    int64
	ID        string
	Part      string // topic, partition, key, value, timestamp, the name of a header, order of headers, or row
	Kafka     string // what Kafka has
	Walpost   string // what walpost would write
}

// Compared counts what Compare has read.
type Compared struct {
	Topics              []string // with a record that has a header id
	Others              int      // topics whose newest records have none
	Partitions, Records int

	Equal, Different int
	Gone             int // records whose row is no longer in the table
	Foreign          int // records without a header id
}

// Compare reads the newest records of the outbox's topics and the rows that they were made of, and compares each record with
// the one that this pipeline would write for the row now. It changes nothing.
func (p *Pipeline) Compare(ctx context.Context, o CompareOptions) (Compared, error) {
	if p.options == nil {
		return Compared{}, errors.New("the pipeline writes walpost's records, whose headers lsn and seq no row has: compare a pipeline with the section debezium")
	}
	topics, err := p.sink.Topics(ctx, p.router().Pattern())
	if err != nil {
		return Compared{}, err
	}
	rows, err := p.source.ByID(ctx, cmp.Or(o.ReadKey, "source.url"), cmp.Or(o.ReadURL, p.cfg.Source.URL))
	if err != nil {
		return Compared{}, err
	}
	defer rows.Close(ctx)
	c := &comparison{CompareOptions: o, router: p.router()}
	topics = slices.DeleteFunc(topics, func(name string) bool {
		return strings.HasPrefix(name, "__") || strings.HasPrefix(name, "walpost.")
	})
	if topics, c.done.Others, err = p.outboxTopics(ctx, topics, o.Records); err != nil {
		return Compared{}, err
	}
	c.done.Topics = topics
	flush := func() error {
		found := map[string]*cdc.Row{}
		if len(c.ids) > 0 {
			if err := rows.Each(ctx, c.ids, func(row *cdc.Row) { found[string(row.ID)] = row }); err != nil {
				return err
			}
		}
		c.compare(found)
		return nil
	}
	var records int64
	read, err := p.sink.Newest(ctx, topics, o.Records, func(r *kgo.Record, partitions int) error {
		records++
		o.Progress.at(records, max(records, int64(o.Records)), "records")
		if c.add(r, partitions); c.size < compareBytes {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	c.done.Records, c.done.Partitions = read.Records, read.Partitions
	return c.done, err
}

// outboxTopics returns the topics that have a record with a header id among their newest, and the number of those that have
// other records only: a regex of the router may match topics of other programs, those of Connect for example.
func (p *Pipeline) outboxTopics(ctx context.Context, topics []string, records int) (ours []string, others int, err error) {
	has := map[string]bool{}
	if _, err := p.sink.Newest(ctx, topics, records, func(r *kgo.Record, _ int) error {
		_, ok := rowID(r)
		has[r.Topic] = has[r.Topic] || ok
		return nil
	}); err != nil {
		return nil, 0, err
	}
	for _, name := range topics {
		switch yes, read := has[name]; {
		case yes:
			ours = append(ours, name)
		case read:
			others++
		}
	}
	return ours, others, nil
}

// comparison is one call of Compare.
type comparison struct {
	CompareOptions
	router router
	done   Compared

	records []compared
	ids     []string
	size    int
}

// compared is a record, the number of partitions of its topic, and the id of its row.
type compared struct {
	*kgo.Record
	partitions int
	id         string
}

// add keeps a record for compare.
func (c *comparison) add(r *kgo.Record, partitions int) {
	id, ok := rowID(r)
	if !ok {
		c.done.Foreign++
		return
	}
	c.records = append(c.records, compared{r, partitions, id})
	c.ids = append(c.ids, id)
	c.size += len(r.Key) + len(r.Value) + 1000
}

// rowID returns the id of the row that a record was made of: the header id, in the notation of any converter.
func rowID(r *kgo.Record) (string, bool) {
	i := slices.IndexFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == header.ID || h.Key == header.CloudEvents+header.ID })
	if i < 0 || len(r.Headers[i].Value) == 0 {
		return "", false
	}
	text := r.Headers[i].Value
	var wrapped struct {
		Schema  json.RawMessage `json:"schema"`
		Payload json.RawMessage `json:"payload"`
	}
	if text[0] == '{' && json.Unmarshal(text, &wrapped) == nil && wrapped.Schema != nil && wrapped.Payload != nil {
		text = wrapped.Payload
	}
	var quoted string
	if text[0] == '"' && json.Unmarshal(text, &quoted) == nil {
		return quoted, true
	}
	return string(text), true
}

// compare compares the records that were added with what the router makes of their rows, and forgets them.
func (c *comparison) compare(rows map[string]*cdc.Row) {
	for _, r := range c.records {
		row := rows[r.id]
		if row == nil {
			c.done.Gone++
			continue
		}
		c.router.NextWindow()
		rec := cdc.Record{Row: row}
		different := false
		differs := func(part, has, would string) {
			different = true
			if c.Differs != nil {
				c.Differs(Difference{r.Topic, r.Partition, r.Offset, r.id, part, has, would})
			}
		}
		if err := c.router.Route(row, &rec); err != nil {
			differs("row", "a record", "none: "+err.Error())
		} else {
			c.parts(r, &rec, differs)
		}
		if different {
			c.done.Different++
		} else {
			c.done.Equal++
		}
	}
	c.records, c.ids, c.size = nil, nil, 0
}

// parts calls differs with each part of the two records that differs.
func (c *comparison) parts(r compared, rec *cdc.Record, differs func(part, has, would string)) {
	if rec.Topic != r.Topic {
		differs("topic", r.Topic, rec.Topic)
	}
	partition := r.Partition
	if rec.Placed {
		partition = rec.Partition
	} else if rec.Key != nil {
		partition = int32(kafka.PartitionOf(r.Topic, rec.Key, r.partitions))
	}
	if partition != r.Partition {
		differs("partition", fmt.Sprint(r.Partition), fmt.Sprint(partition))
	}
	if !same(r.Key, rec.Key) {
		differs("key", short(r.Key), short(rec.Key))
	}
	if !same(r.Value, rec.Value) && c.Values {
		from := max(0, firstDifference(r.Value, rec.Value)-20)
		differs("value", shortFrom(r.Value, from), shortFrom(rec.Value, from))
	} else if !same(r.Value, rec.Value) {
		at := firstDifference(r.Value, rec.Value)
		differs("value", sized(r.Value, at), sized(rec.Value, at))
	}
	if !rec.Timestamp.IsZero() && !rec.Timestamp.Equal(r.Timestamp) {
		differs("timestamp", fmt.Sprint(r.Timestamp.UnixMilli()), fmt.Sprint(rec.Timestamp.UnixMilli()))
	}
	ours := map[string][][]byte{}
	var has, would []string
	for _, h := range rec.Headers {
		ours[h.Key] = append(ours[h.Key], h.Value)
		would = append(would, h.Key)
	}
	for _, h := range r.Headers {
		has = append(has, h.Key)
		if len(ours[h.Key]) == 0 {
			differs("header "+h.Key, short(h.Value), "no such header")
			continue
		}
		value := ours[h.Key][0]
		if ours[h.Key] = ours[h.Key][1:]; h.Key != runID && !same(h.Value, value) {
			differs("header "+h.Key, short(h.Value), short(value))
		}
	}
	for _, h := range slices.Compact(slices.Sorted(slices.Values(would))) {
		for _, value := range ours[h] {
			differs("header "+h, "no such header", short(value))
		}
	}
	if len(has) == len(would) && !slices.Equal(has, would) && slices.Equal(slices.Sorted(slices.Values(has)), slices.Sorted(slices.Values(would))) {
		differs("order of headers", strings.Join(has, ", "), strings.Join(would, ", "))
	}
}

// same reports whether two values have the same bytes, or are both missing.
func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// firstDifference returns the place of the first byte in which the two differ.
func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// shortest is the number of bytes of a value that a Difference shows.
const shortest = 60

// short returns a value for people, cut to its first bytes.
func short(b []byte) string { return shortFrom(b, 0) }

// shortFrom returns a value for people, cut to a few bytes from a place on.
func shortFrom(b []byte, from int) string {
	if b == nil {
		return "null"
	}
	from = min(from, len(b))
	cut := b[from:min(len(b), from+shortest)]
	before, after := "", ""
	if from > 0 {
		before = "…"
	}
	if from+shortest < len(b) {
		after = "…"
	}
	if !utf8.Valid(b) {
		return fmt.Sprintf("%s0x%x%s", before, cut, after)
	}
	return before + fmt.Sprintf("%q", cut) + after
}

// sized returns the length of a value, and the place from which on it differs.
func sized(b []byte, at int) string {
	if b == nil {
		return "null"
	}
	return fmt.Sprintf("%d bytes, different from byte %d on", len(b), at+1)
}
