package inbox

import (
	"context"
	"crypto/sha256"
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

// maxKeyBytes is what a key may have to be in an index whole.
const maxKeyBytes = 1024

// An Event is one delivery of an outbox row.
type Event struct {
	// ID is what makes two deliveries the same event: the outbox row's id, in the record header "id", or "ce_id" of a
	// CloudEvent. A UUID is in its canonical form, however it was written.
	ID   string
	Type string // record header "type" or "ce_type"; may be empty where Config.Types is

	Key, Value []byte   // nil where the record has none; a value that is nil is a tombstone, and the handler's to understand
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
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Time: plausible(r.Timestamp), committed: new([]func()),
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

// plausible keeps what a producer may have written into what a table and JSON can hold.
func plausible(t time.Time) time.Time {
	switch year := t.UTC().Year(); {
	case year < 1:
		return time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	case year > 9998:
		return time.Date(9998, 1, 1, 0, 0, 0, 0, time.UTC)
	default:
		return t
	}
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

// raw is the value of the first header of a name.
func (ev Event) raw(name string) []byte {
	if i := slices.IndexFunc(ev.Headers, func(h Header) bool { return h.Key == ev.name(name) }); i >= 0 {
		return ev.Headers[i].Value
	}
	return nil
}

// check refuses what cannot be told from other events, and types that nobody here knows.
func (ev Event) check(types []string, first, last int) error {
	switch day := ev.day(); {
	case ev.ID == "" && ev.Value == nil:
		return errors.New("header id is missing, and the value too: a tombstone that is no event")
	case ev.ID == "":
		return errors.New("header id is missing")
	case len(ev.raw(header.ID)) > maxHeaderBytes:
		return fmt.Errorf("header id is longer than %d bytes", maxHeaderBytes)
	case ev.Header(ev.name(header.ID)) != string(ev.raw(header.ID)):
		return errors.New("header id is not UTF-8 text, so it cannot be told from others: an id is text, and a UUID is its 36 characters")
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

// heldKey is key as inbox_parked_keys has it: an index takes no key of kilobytes.
func heldKey(key []byte) []byte {
	if len(key) <= maxKeyBytes {
		return key
	}
	sum := sha256.Sum256(key)
	return sum[:]
}

func keyHash(key []byte) int32 {
	h := fnv.New32a()
	_, _ = h.Write(key)
	return int32(h.Sum32())
}
