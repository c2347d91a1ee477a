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
	"github.com/walpost/walpost/cdc/route"
)

// clockMargin is how far the clocks of writer, PostgreSQL and relay may be apart.
const clockMargin = 5 * time.Minute

// Answer is what has become of an event, in a word.
type Answer string

// The answers. Gone is an event that was delivered or never will be: everything up to its commit is done, and it is
// nowhere. Unknown is one whose row cannot be read, and which is nowhere.
const (
	IsPublished    Answer = "published"
	IsDeadLettered Answer = "dead_lettered"
	NotYet         Answer = "not_yet"
	Gone           Answer = "gone"
	Unknown        Answer = "unknown"
)

// Trace is what has become of an event, or of the events of a key.
type Trace struct {
	Asked     string         `json:"asked"`
	Events    []Traced       `json:"events"`
	Notes     []string       `json:"notes,omitempty"`
	Confirmed string         `json:"confirmed_flush_lsn,omitempty"`
	WALEnd    string         `json:"wal_end_lsn,omitempty"`
	Behind    int64          `json:"behind_bytes"` // the slot, behind the row: at most
	From      time.Time      `json:"from"`
	Read      kafka.Searched `json:"read"`
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

// WhereOptions is what to look for.
type WhereOptions struct {
	ID      string        // an event's id, or the key of events
	ReadURL string        // PostgreSQL, as a role that may SELECT from the outbox; empty: source.url
	ReadKey string        // what holds it, for people
	Since   time.Duration // how far back to look on the topics; 0: since the event was written
}

// Where answers whether an event was published, or the events of a key. It reads the outbox row where o.ReadURL may,
// which gives key and time; then the dead letters, and the key's partition from that time on.
func (p *Pipeline) Where(ctx context.Context, o WhereOptions) (*Trace, error) {
	t := &Trace{Asked: o.ID, Events: []Traced{}}
	key, url := p.kind.reader(cmp.Or(o.ReadKey, "source.url"), cmp.Or(o.ReadURL, p.cfg.Source.URL))
	rows, end, err := p.source.Find(ctx, key, url, o.ID)
	if errors.Is(err, postgres.ErrUnreadable) || errors.Is(err, postgres.ErrZone) {
		t.Notes = append(t.Notes, err.Error())
	} else if err != nil {
		return nil, err
	}
	// The server is asked after the rows and before the topics: what it says was delivered can be found there.
	if err := p.kind.trace(ctx, t, rows, end); err != nil {
		return nil, err
	}
	if t.From, err = from(o.ID, rows, o.Since); err != nil {
		return nil, errors.Join(append([]error{err}, notes(t.Notes)...)...)
	}
	if err := p.search(ctx, t, rows); err != nil {
		return nil, err
	}
	t.answer()
	return t, nil
}

// delivered fills in how far rows are delivered from the WAL.
func (t *Trace) delivered(seen *survey, rows []postgres.TableRow, end cdc.LSN) {
	confirmed := seen.Facts.Slot.ConfirmedFlush
	if seen.State != nil && seen.State.SystemID == seen.Facts.SystemID {
		confirmed = max(confirmed, seen.State.Covered)
	} else if seen.State != nil {
		t.Notes = append(t.Notes, "the state record is of another PostgreSQL, so how far this one is delivered its slot alone says: `walpost status`")
	}
	if len(rows) == 0 {
		end = seen.Facts.WALEnd
	}
	t.Confirmed, t.WALEnd = confirmed.String(), seen.Facts.WALEnd.String()
	t.Behind = max(0, int64(end)-int64(confirmed))
}

func notes(texts []string) (errs []error) {
	for _, n := range texts {
		errs = append(errs, errors.New(n))
	}
	return errs
}

// from is the time of the oldest record to look at.
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
	for _, r := range rows {
		if t := cmp.Or(r.CreatedAt, timeOf(r.ID)); t.IsZero() {
			return at, fmt.Errorf("the outbox does not tell when event %s was written: say how far back to look, --since 24h", r.ID)
		} else if t.Before(time.Now()) {
			earlier(t)
		}
	}
	if at.IsZero() {
		return at, fmt.Errorf("%q is in no row of the outbox that can be read, and is no UUIDv7, which has the time in it: say how far back to look, --since 24h", what)
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

// search looks first where the producer puts the records: the key's partition, of the row's topic or, for all events of
// a key, of every topic of the outbox. Where the key is not known, or the event is not there (partitions were added
// since, or topics renamed), it looks everywhere.
func (p *Pipeline) search(ctx context.Context, t *Trace, rows []postgres.TableRow) error {
	all, err := p.sink.Topics(ctx, route.Pattern(p.cfg.Kafka))
	if err != nil {
		return err
	}
	q := kafka.Search{Topics: all, From: t.From, Match: func(id, key string) bool { return id == t.Asked || key == t.Asked }}
	everywhere := q
	for _, r := range rows {
		e := t.event(r.ID, r.AggregateID, r.EventType)
		e.created = r.CreatedAt
		q.Key = []byte(r.AggregateID)
		if r.ID == t.Asked {
			q.Topics = []string{route.Topic(p.cfg.Kafka, r.AggregateType, r.EventType)}
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

func (t *Trace) event(id, key, typ string) *Traced {
	i := slices.IndexFunc(t.Events, func(e Traced) bool { return e.EventID == id })
	if i < 0 {
		i = len(t.Events)
		t.Events = append(t.Events, Traced{EventID: id, Key: key, Type: typ})
	}
	return &t.Events[i]
}

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
	// In the order of commits, as far as it is known; what is only in the table comes last.
	slices.SortStableFunc(t.Events, func(a, b Traced) int {
		pa, pb := a.position(), b.position()
		if pa == (cdc.Position{}) || pb == (cdc.Position{}) {
			return cmp.Or(-pa.Compare(pb), a.created.Compare(b.created))
		}
		return pa.Compare(pb)
	})
}

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
