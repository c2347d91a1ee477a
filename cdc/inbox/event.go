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

// maxHeaderBytes is the longest header that is kept whole: more does not belong in a text column.
const maxHeaderBytes = 255

// maxKeyBytes is the longest key that is indexed whole.
const maxKeyBytes = 1024

// An Event is one delivery of an outbox row.
type Event struct {
	// ID identifies the event: deliveries with the same ID are the same event. It is the outbox row's id, from the
	// record header "id", or "ce_id" of a CloudEvent. A UUID is converted to its canonical form.
	ID   string
	Type string // record header "type" or "ce_type"; may be empty if Config.Types is empty

	Key, Value []byte   // nil if the record has none; a nil value is a tombstone, which the handler must interpret
	Headers    []Header // all headers of the record, including id and type

	// Topic, Partition and Offset are the place of this delivery. Time is the record's timestamp.
	Topic     string
	Partition int32
	Offset    int64
	Time      time.Time

	committed *[]func()
}

// A Header is one header of a record.
type Header struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Header returns the value of the first header with that key, or "". Any producer may have written it, so it is cut to
// a length and to characters that a log line and a text column can hold.
func (e Event) Header(key string) string {
	for _, h := range e.Headers {
		if h.Key == key {
			value := strings.ToValidUTF8(string(h.Value[:min(len(h.Value), maxHeaderBytes)]), "?")
			return strings.ReplaceAll(value, "\x00", "?")
		}
	}
	return ""
}

// OnCommit registers f to be called after the effect of the event is committed; after a rollback f is not called. It is
// for counters and logs. f must not block.
func (e Event) OnCommit(f func()) { *e.committed = append(*e.committed, f) }

// A Handler applies one event, through tx only: it may be called again for the same event, because a batch that fails
// is applied again event by event. Calls for a partition are sequential and in order. An error is retried, for hours if
// necessary, unless it is marked with Permanent. A Handler must return when ctx is done.
type Handler func(ctx context.Context, tx pgx.Tx, ev Event) error

// Permanent marks err as an error that no retry fixes; Config.Policy then decides how the consumer continues. err's
// text is recorded and shown to operators, so it must name the cause and quote nothing of the event.
func Permanent(err error) error { return &permanent{err} }

type permanent struct{ error }

func (p *permanent) Unwrap() error { return p.error }

func isPermanent(err error) bool {
	var p *permanent
	return errors.As(err, &p)
}

// A Policy decides how the consumer continues after an event that can never be applied.
type Policy string

const (
	// Block halts the partition until a new program, a repaired database or an operator makes it possible to continue.
	Block Policy = "block"
	// ParkKey parks the event and every later event of its key after it, so that their order holds when an operator
	// redrives them. A record without a key holds no other event.
	ParkKey Policy = "park_key"
	// Skip parks the event and continues, also with later events of its key.
	Skip Policy = "skip"
)

// A GapPolicy decides how the consumer continues when the next records of a partition left the topic before they were
// applied, for example by retention. In both cases the gap is recorded among the parked events.
type GapPolicy string

const (
	// Halt stops the partition at the gap until an operator drops or passes the gap, or a rebuild closes it.
	Halt GapPolicy = "halt"
	// GoOn continues after the gap.
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

// plausible returns t, limited to the years that a timestamptz and JSON can hold. A producer may have written any time.
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

// name returns key as the record spells it first: plain, or with the prefix of a CloudEvent. The relay writes its
// headers before the headers that a row adds, so the first one is the relay's.
func (ev Event) name(key string) string {
	for _, h := range ev.Headers {
		if h.Key == key || h.Key == header.CloudEvents+key {
			return h.Key
		}
	}
	return key
}

// raw returns the value of the first header of a name.
func (ev Event) raw(name string) []byte {
	if i := slices.IndexFunc(ev.Headers, func(h Header) bool { return h.Key == ev.name(name) }); i >= 0 {
		return ev.Headers[i].Value
	}
	return nil
}

// check rejects an event whose id cannot be compared with other ids, and a type that this program does not know.
func (ev Event) check(types []string, first, last int) error {
	switch day := ev.day(); {
	case ev.ID == "" && ev.Value == nil:
		return errors.New("header id is missing, and the value too: a tombstone that is no event")
	case ev.ID == "":
		return errors.New("header id is missing")
	case len(ev.raw(header.ID)) > maxHeaderBytes:
		return fmt.Errorf("header id is longer than %d bytes", maxHeaderBytes)
	case ev.Header(ev.name(header.ID)) != string(ev.raw(header.ID)):
		return errors.New("header id is not UTF-8 text, so the inbox cannot compare it: write an id as text, a UUID as its 36 characters")
	case len(types) > 0 && ev.Type == "":
		return errors.New("header type is missing")
	case day > 0 && day < first:
		return fmt.Errorf("its id is of %s, a day that the inbox has forgotten: it may have been applied already", date(day))
	case day > last:
		return fmt.Errorf("its id is of %s, a day in the future", date(day))
	}
	return nil
}

// firstDay is 2020-01-01: no UUIDv7 is older.
const firstDay = 18262

// day returns the day in a UUIDv7, counted from 1970-01-01, and 0 for every other id. An id that only looks like a
// UUIDv7, a hash for example, has an impossible time: before 2020, or later than tomorrow; its day is 0. The table's
// constraint allows 0 and the day that inbox_day in the schema computes from the id.
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

// heldKey returns key as the table inbox_parked_keys stores it: a key that is too long for the index becomes its
// SHA-256.
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
