package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
)

// clockMargin is the largest difference between the clocks of writer, PostgreSQL and relay that a search allows for.
const clockMargin = 5 * time.Minute

// Answer says in one word where an event is.
type Answer string

// The answers. Gone: everything up to the event's commit is delivered, but the event is neither on a topic nor a dead letter,
// so it was delivered and deleted there, or will never be delivered. Unknown: the event's row cannot be read, and the event
// is neither on a topic nor a dead letter.
const (
	IsPublished    Answer = "published"
	IsDeadLettered Answer = "dead_lettered"
	NotYet         Answer = "not_yet"
	Gone           Answer = "gone"
	Unknown        Answer = "unknown"
)

// Trace says where an event is, or where the events of a key are.
type Trace struct {
	Asked     string         `json:"asked"`
	Events    []Traced       `json:"events"`
	Notes     []string       `json:"notes,omitempty"`
	Confirmed string         `json:"confirmed_flush_lsn,omitempty"`
	WALEnd    string         `json:"wal_end_lsn,omitempty"`
	Behind    int64          `json:"behind_bytes"` // most bytes of WAL between the slot's position and the row
	From      time.Time      `json:"from"`
	Read      kafka.Searched `json:"read"`

	names []string // the spellings of the wanted id or key
}

// Traced is one event of a Trace.
type Traced struct {
	EventID    string        `json:"event_id"`
	Key        string        `json:"key"`
	Type       string        `json:"type"`
	Answer     Answer        `json:"answer"`
	Times      int           `json:"times"` // how often it was published
	Places     []kafka.Place `json:"places,omitempty"`
	DeadLetter *DeadLetter   `json:"dead_letter,omitempty"`

	Row *polling.RowStatus `json:"row,omitempty"` // of a polled table

	created time.Time
}

// WhereOptions are the options of Where.
type WhereOptions struct {
	ID      string        // an event's id, or the key of events
	ReadURL string        // URL of a role that may SELECT from the outbox; empty: source.url
	ReadKey string        // name of the flag or key that holds ReadURL, for errors
	Since   time.Duration // how far back to read the topics; 0: since the event was written
}

// Where finds an event, or the events of a key. It reads the outbox row, if the role of o.ReadURL may, for its key and time.
// Then it reads the dead letters, and the key's partition from that time on.
func (p *Pipeline) Where(ctx context.Context, o WhereOptions) (*Trace, error) {
	t := &Trace{Asked: o.ID, Events: []Traced{}}
	key, url := p.kind.reader(cmp.Or(o.ReadKey, "source.url"), cmp.Or(o.ReadURL, p.cfg.Source.URL))
	rows, end, unread := p.source.Find(ctx, key, url, o.ID)
	if errors.Is(unread, postgres.ErrUnreadable) || errors.Is(unread, postgres.ErrZone) {
		t.Notes = append(t.Notes, unread.Error())
	} else if unread != nil {
		return nil, unread
	}
	t.names = names(o.ID, rows)
	// Read the server's facts after the rows and before the topics: a row that the server reports as delivered is then on the topics.
	err := p.kind.trace(ctx, t, rows, end)
	if err != nil {
		return nil, err
	}
	if t.From, err = from(o.ID, rows, o.Since); errors.Is(err, errNoRow) && errors.Is(unread, postgres.ErrUnreadable) {
		return nil, fmt.Errorf("%w. To search Kafka without the row, say how far back: --since 24h", unread)
	} else if err != nil {
		return nil, errors.Join(append([]error{err}, notes(t.Notes)...)...)
	}
	if err := p.search(ctx, t, rows); err != nil {
		return nil, err
	}
	t.answer()
	return t, nil
}

// delivered fills in the LSN up to which rows from the WAL are delivered.
func (t *Trace) delivered(seen *survey, rows []postgres.TableRow, end cdc.LSN) {
	confirmed := seen.Facts.Slot.ConfirmedFlush
	if seen.State != nil && seen.State.SystemID == seen.Facts.SystemID {
		confirmed = max(confirmed, seen.State.Covered)
	} else if seen.State != nil {
		t.Notes = append(t.Notes, "the state record belongs to another PostgreSQL server, so only the slot tells which rows of this one are delivered: `walpost status`")
	}
	if len(rows) == 0 {
		end = seen.Facts.WALEnd
	}
	t.Confirmed, t.WALEnd = confirmed.String(), seen.Facts.WALEnd.String()
	t.Behind = max(0, int64(end)-int64(confirmed))
}

// names returns the spellings of what that records may have: the given one, that of a UUID in the usual form, and those in the rows.
func names(what string, rows []postgres.TableRow) []string {
	all := []string{what}
	if u, err := uuid.Parse(what); err == nil {
		all = append(all, u.String())
	}
	for _, r := range rows {
		if !slices.Contains(all, r.Called) {
			all = append(all, r.Called)
		}
	}
	return all
}

// about reports whether an event with this id and key is wanted.
func (t *Trace) about(id, key string) bool {
	return slices.Contains(t.names, id) || slices.Contains(t.names, key)
}

// notes returns the texts as errors.
func notes(texts []string) (errs []error) {
	for _, n := range texts {
		errs = append(errs, errors.New(n))
	}
	return errs
}

// errNoRow is returned if no row has the id or key, and the id has no time in it.
var errNoRow = errors.New("no row of the outbox has this id or key: its transaction was rolled back, the row was deleted, or it was never written. To search Kafka too, say how far back: --since 24h")

// from returns the time of the oldest record to read.
func from(what string, rows []postgres.TableRow, since time.Duration) (time.Time, error) {
	if since > 0 {
		return time.Now().Add(-since).UTC(), nil
	}
	var at time.Time
	earlier := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	earlier(timeOf(what))
	var ahead error
	for _, r := range rows {
		switch t := cmp.Or(r.CreatedAt, timeOf(r.ID)); {
		case t.IsZero():
			return at, fmt.Errorf("the outbox does not tell when event %s was written: say how far back to read, --since 24h for example", r.ID)
		case t.Before(time.Now()):
			earlier(t)
		default:
			ahead = fmt.Errorf("event %s has the time %s, which is in the future: its writer's clock is wrong, or the column is not the time of writing: say how far back to read, --since 24h for example", r.ID, t.Format(time.RFC3339))
		}
	}
	if at.IsZero() && ahead != nil {
		return at, ahead
	}
	if at.IsZero() {
		return at, errNoRow
	}
	return at.Add(-clockMargin).UTC(), nil
}

// timeOf returns the time in a UUIDv7; zero for anything else.
func timeOf(id string) time.Time {
	u, err := uuid.Parse(id)
	if err != nil || u.Version() != 7 {
		return time.Time{}
	}
	return time.Unix(u.Time().UnixTime())
}

// search first reads the partition to which the producer writes: the key's partition, of the row's topic or, for all events
// of a key, of every topic of the outbox. If the key is unknown, or the event is not there (partitions were added since, or
// topics renamed), it reads all partitions.
func (p *Pipeline) search(ctx context.Context, t *Trace, rows []postgres.TableRow) error {
	all, err := p.sink.Topics(ctx, p.router().Pattern())
	if err != nil {
		return err
	}
	q := kafka.Search{Topics: all, From: t.From, Match: t.about}
	everywhere := q
	for _, r := range rows {
		e := t.event(r.ID, r.AggregateID, r.EventType)
		e.created = r.CreatedAt
		q.Key = []byte(r.AggregateID)
		if r.ID == r.Called {
			q.Topics = []string{p.router().Topic(r.AggregateType, r.EventType)}
		}
	}
	for {
		places, read, err := p.sink.Search(ctx, q)
		if err != nil {
			return err
		}
		t.Read.Records += read.Records
		t.Read.Partitions += read.Partitions
		for _, found := range places {
			e := t.event(found.ID, found.Key, found.Type)
			e.Places = append(e.Places, found)
		}
		aside := slices.ContainsFunc(t.Events, func(e Traced) bool { return e.DeadLetter != nil || e.Answer == NotYet })
		if len(places) > 0 || aside || q.Key == nil {
			return nil
		}
		q = everywhere
	}
}

// event returns the event with this id, and adds it if the trace does not have it yet.
func (t *Trace) event(id, key, typ string) *Traced {
	i := slices.IndexFunc(t.Events, func(e Traced) bool { return e.EventID == id })
	if i < 0 {
		i = len(t.Events)
		t.Events = append(t.Events, Traced{EventID: id, Key: key, Type: typ})
	}
	return &t.Events[i]
}

// answer fills in the answers, and sorts the events.
func (t *Trace) answer() {
	if len(t.Events) == 0 {
		t.Events = append(t.Events, Traced{EventID: t.Asked, Answer: Unknown})
		return
	}
	for i := range t.Events {
		switch e := &t.Events[i]; {
		case len(e.Places) > 0:
			e.Answer, e.Times = IsPublished, len(e.Places)
		case e.Answer != "":
		case e.DeadLetter != nil:
			e.Answer = IsDeadLettered
		case t.Behind > 0:
			e.Answer = NotYet
		default:
			e.Answer = Gone
		}
	}
	// Sort by commits, as far as their order is known; events that are only in the table come last.
	slices.SortStableFunc(t.Events, func(a, b Traced) int {
		pa, pb := a.position(), b.position()
		if pa == (cdc.Position{}) || pb == (cdc.Position{}) {
			return cmp.Or(-pa.Compare(pb), a.created.Compare(b.created))
		}
		return pa.Compare(pb)
	})
}

// position returns the position of the event's row; zero if it is unknown.
func (e *Traced) position() (p cdc.Position) {
	lsn, seq := "", ""
	switch {
	case len(e.Places) > 0:
		lsn, seq = e.Places[0].LSN, e.Places[0].Seq
	case e.DeadLetter != nil:
		lsn, seq = e.DeadLetter.LSN, strconv.FormatUint(uint64(e.DeadLetter.Seq), 10)
	}
	n, err := strconv.ParseUint(seq, 10, 32)
	if err != nil || p.Commit.Scan(lsn) != nil {
		return cdc.Position{}
	}
	p.Ordinal = uint32(n)
	return p
}
