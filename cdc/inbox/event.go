package inbox

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/header"
)

// maxHeaderBytes is what a header may have to be a column of text.
const maxHeaderBytes = 255

// An Event is one delivery of an outbox row.
type Event struct {
	// ID is what makes two deliveries the same event: the outbox row's id, in the record header "id", or "ce_id" of a
	// CloudEvent. A UUID is in its canonical form, however it was written.
	ID   string
	Type string // record header "type" or "ce_type"; may be empty where Config.Types is

	Key, Value []byte
	Headers    []Header // all of them, id and type included

	// Topic, Partition and Offset say where this delivery came from, Time when Kafka got it.
	Topic     string
	Partition int32
	Offset    int64
	Time      time.Time

	committed *[]func()
}

// A Header is one of a record's.
type Header struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Header is the value of the first header of that key, or "". What anybody may have written there is cut to what a log
// and a column of text can take.
func (e Event) Header(key string) string {
	for _, h := range e.Headers {
		if h.Key == key {
			value := strings.ToValidUTF8(string(h.Value[:min(len(h.Value), maxHeaderBytes)]), "?")
			return strings.ReplaceAll(value, "\x00", "?")
		}
	}
	return ""
}

// OnCommit has f called once the effect of the event is committed, and never when it is rolled back: for counters and
// logs. f must not block.
func (e Event) OnCommit(f func()) { *e.committed = append(*e.committed, f) }

// A Handler makes the effect of an event, in tx and nowhere else, for it may be called again: when the transaction of
// several events fails, each is tried alone. Within a partition it is called in order, one event at a time. An error
// is of what may be over soon, and the event is tried again, for hours if it must; Permanent marks one that will not.
// It must end when ctx does.
type Handler func(ctx context.Context, tx pgx.Tx, ev Event) error

// Permanent marks err as one that trying again will not help: Config.Policy says what becomes of the event. err's text
// is recorded and shown to people, so it should name what is wrong and quote nothing of the event.
func Permanent(err error) error { return &permanent{err} }

type permanent struct{ error }

func (p *permanent) Unwrap() error { return p.error }

func isPermanent(err error) bool {
	var p *permanent
	return errors.As(err, &p)
}

// A Policy says what becomes of an event that can never be applied.
type Policy string

const (
	// Block halts its partition until a fixed program, a fixed database or an operator ends it.
	Block Policy = "block"
	// ParkKey sets the event aside, and then every later one of its key behind it, so that their order holds when they
	// are redriven. A record without a key holds nothing.
	ParkKey Policy = "park_key"
	// Skip sets the event aside and goes on, with later events of its key too.
	Skip Policy = "skip"
)

// A GapPolicy says what becomes of a partition whose next records left the topic before they were applied, by its
// retention for example. The gap is recorded among what is parked either way.
type GapPolicy string

const (
	// Halt keeps the partition there until an operator gives the gap up or passes it, or a rebuild makes up for it.
	Halt GapPolicy = "halt"
	// GoOn goes on behind the gap.
	GoOn GapPolicy = "go_on"
)

func newEvent(r *kgo.Record) Event {
	ev := Event{
		Key: r.Key, Value: r.Value, Headers: make([]Header, len(r.Headers)),
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp, committed: new([]func()),
	}
	for i, h := range r.Headers {
		ev.Headers[i] = Header(h)
	}
	ev.ID, ev.Type = ev.Header(ev.name(header.ID)), ev.Header(ev.name(header.Type))
	if id, err := uuid.Parse(ev.ID); err == nil {
		ev.ID = id.String()
	}
	return ev
}

// name is the key of the header that comes first: what a relay says stands before what a row adds, be it a CloudEvent or not.
func (ev Event) name(key string) string {
	for _, h := range ev.Headers {
		if h.Key == key || h.Key == header.CloudEvents+key {
			return h.Key
		}
	}
	return key
}

// check refuses what cannot be told from other events, and types that nobody here knows.
func (ev Event) check(types []string, first, last int) error {
	switch day := ev.day(); {
	case ev.ID == "":
		return errors.New("header id is missing")
	case slices.ContainsFunc(ev.Headers, func(h Header) bool { return h.Key == ev.name(header.ID) && len(h.Value) > maxHeaderBytes }):
		return fmt.Errorf("header id is longer than %d bytes", maxHeaderBytes)
	case len(types) > 0 && ev.Type == "":
		return errors.New("header type is missing")
	case day > 0 && day < first:
		return fmt.Errorf("its id is of %s, before what the inbox remembers: whether it was applied cannot be told", date(day))
	case day > last:
		return fmt.Errorf("its id is of %s, which is to come", date(day))
	}
	return nil
}

// firstDay is 2020-01-01: no UUIDv7 is older.
const firstDay = 18262

// day is the one of a UUIDv7's own time, counted from 1970 on, and 0 for every other id. An id that only looks like one,
// a hash for example, has a time that cannot be: before 2020, or later than tomorrow. The table's constraint allows 0,
// and the day that inbox_day in the schema finds in the id.
func (ev Event) day() int {
	id, err := uuid.Parse(ev.ID)
	if err != nil || id.Version() != 7 || id.Variant() != uuid.RFC4122 || id.String() != ev.ID {
		return 0
	}
	seconds, _ := id.Time().UnixTime()
	day := int(seconds / (24 * 60 * 60))
	if day < firstDay || day > int(time.Now().Unix()/(24*60*60))+1 {
		return 0
	}
	return day
}

func date(day int) string { return time.Unix(int64(day)*24*60*60, 0).UTC().Format(time.DateOnly) }

func keyHash(key []byte) int32 {
	h := fnv.New32a()
	_, _ = h.Write(key)
	return int32(h.Sum32())
}
