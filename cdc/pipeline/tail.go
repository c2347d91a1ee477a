package pipeline

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/kafka"
)

// TailOptions are the options of Tail.
type TailOptions struct {
	Last    int    // number of the newest events to begin with; with Key or Type, of those among the newest SearchedEvents of each partition
	Key     string // only events of this key
	Type    string // only events of this type
	Payload bool   // fill in the payloads: they are data of the application
	Follow  bool   // go on until ctx ends
}

// SearchedEvents is the number of the newest records of a partition among which Tail looks for events of one key or type.
const SearchedEvents = 1000

// Event is a record that was made of a row of the outbox.
type Event struct {
	Time      time.Time `json:"time"` // of the record
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Key       []byte    `json:"-"` // nil: the record has none
	Type      string    `json:"type,omitempty"`
	ID        string    `json:"id"`
	// Lag is the time from created_at of the row to Time. It is nil where the record does not tell it, and for a row that was
	// published again.
	Lag      *time.Duration `json:"-"`
	LSN      string         `json:"lsn,omitempty"` // of the row's commit
	Seq      string         `json:"seq,omitempty"`
	Source   string         `json:"source,omitempty"`
	Replay   bool           `json:"replay,omitempty"`   // `walpost replay` published it
	Redriven bool           `json:"redriven,omitempty"` // it was a dead letter
	Bytes    int            `json:"bytes"`              // size of the payload
	Payload  []byte         `json:"-"`                  // nil: the record has none, or nobody has asked for it
}

// Tail calls each with the newest events of the pipeline's topics, in the order of their times, and then, if asked to
// follow, with each event that arrives, until ctx ends. It leaves out records without the header id, which other programs
// wrote. It stops at the first error of each. It needs the rights of a consumer, and leaves nothing in Kafka.
func (p *Pipeline) Tail(ctx context.Context, o TailOptions, each func(Event) error) error {
	t := &tailing{o: o, each: each, newest: map[partitionOf]time.Time{}}
	router := p.router()
	known, _ := router.Topics()
	back := int64(SearchedEvents)
	if o.Key == "" && o.Type == "" {
		back = 2*int64(max(0, o.Last)) + 10 // a transaction's end takes an offset, too
	}
	if o.Last <= 0 {
		back = 0
	}
	return p.sink.Tail(ctx, kafka.Tail{Topics: router.Pattern(), Known: known, Back: back, Each: t.add, CaughtUp: t.flush, Follow: o.Follow})
}

// tailing is a Tail that runs. It collects the last events before it passes them on.
type tailing struct {
	o       TailOptions
	each    func(Event) error
	last    []placedEvent
	newest  map[partitionOf]time.Time
	flushed bool
}

// partitionOf is a partition of a topic.
type partitionOf struct {
	topic string
	n     int32
}

// placedEvent is an event with the time that orders it among those of other partitions: clocks of producers differ, and
// events of one partition stay in order.
type placedEvent struct {
	Event
	at time.Time
}

func (t *tailing) add(r *kgo.Record) error {
	e, ok := t.o.event(r)
	if !ok {
		return nil
	}
	if t.flushed {
		return t.each(e)
	}
	place := partitionOf{e.Topic, e.Partition}
	at := t.newest[place]
	if e.Time.After(at) {
		at = e.Time
	}
	t.newest[place] = at
	if t.last = append(t.last, placedEvent{e, at}); len(t.last) > 4*t.o.Last {
		t.trim()
	}
	return nil
}

// trim keeps the last events.
func (t *tailing) trim() {
	slices.SortStableFunc(t.last, func(a, b placedEvent) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	t.last = slices.Delete(t.last, 0, max(0, len(t.last)-t.o.Last))
}

// flush passes on the last events.
func (t *tailing) flush() error {
	t.trim()
	for _, e := range t.last {
		if err := t.each(e.Event); err != nil {
			return err
		}
	}
	t.last, t.newest, t.flushed = nil, nil, true
	return nil
}

// event returns the event of a record, whose memory it does not keep. ok is false for a record that is none or is not wanted.
func (o *TailOptions) event(r *kgo.Record) (e Event, ok bool) {
	id, ok := rowID(r)
	if !ok || o.Key != "" && o.Key != string(r.Key) {
		return Event{}, false
	}
	at := kafka.PlaceOf(r)
	if o.Type != "" && o.Type != at.Type {
		return Event{}, false
	}
	e = Event{
		Time: at.Time, Topic: at.Topic, Partition: at.Partition, Offset: at.Offset, Key: bytes.Clone(r.Key), Type: at.Type, ID: id,
		LSN: at.LSN, Seq: at.Seq, Source: at.Source, Replay: at.Replayed, Redriven: at.Redriven, Bytes: len(r.Value),
	}
	if created, err := time.Parse(time.RFC3339Nano, at.CreatedAt); err == nil && !e.Replay {
		lag := at.Time.Sub(created)
		e.Lag = &lag
	}
	if o.Payload {
		e.Payload = bytes.Clone(r.Value)
	}
	return e, true
}

// MarshalJSON returns the event with its key and payload as text and JSON, or in base64 (key_base64, payload_base64) where
// they are neither.
func (e Event) MarshalJSON() ([]byte, error) {
	type event Event
	j := struct {
		event
		Key           *string         `json:"key"` // null: the record has none
		KeyBase64     []byte          `json:"key_base64,omitempty"`
		LagSeconds    *float64        `json:"lag_seconds,omitempty"`
		Payload       json.RawMessage `json:"payload,omitempty"`
		PayloadBase64 []byte          `json:"payload_base64,omitempty"`
	}{event: event(e)}
	switch {
	case e.Key != nil && utf8.Valid(e.Key):
		key := string(e.Key)
		j.Key = &key
	default:
		j.KeyBase64 = e.Key
	}
	if e.Lag != nil {
		seconds := e.Lag.Seconds()
		j.LagSeconds = &seconds
	}
	if json.Valid(e.Payload) {
		j.Payload = e.Payload
	} else {
		j.PayloadBase64 = e.Payload
	}
	return json.Marshal(j)
}
