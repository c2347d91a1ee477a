package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

// clockMargin is how far the clocks of writer, PostgreSQL and relay may be apart.
const clockMargin = 5 * time.Minute

// Answer is what has become of an event.
type Answer string

// The answers. Gone is an event that was delivered or never will be: everything up to its commit is done, and it is nowhere.
// Unknown is one whose row cannot be read, and which is nowhere.
const (
	IsPublished    Answer = "published"
	IsDeadLettered Answer = "dead_lettered"
	NotYet         Answer = "not_yet"
	Gone           Answer = "gone"
	Unknown        Answer = "unknown"
)

// Where is what Whereabouts found out.
type Where struct {
	Asked      string         `json:"asked"`
	Events     []Whereabouts  `json:"events"`
	Notes      []string       `json:"notes,omitempty"`
	Confirmed  string         `json:"confirmed_flush_lsn,omitempty"`
	WALEnd     string         `json:"wal_end_lsn,omitempty"`
	Behind     int64          `json:"behind_bytes"` // the slot, behind the row: at most
	From       time.Time      `json:"from"`
	Read       kafka.Searched `json:"read"`
	confirmed  cdc.LSN
	atOrBehind cdc.LSN // the rows' commits are at or before it
}

// Whereabouts are those of one event.
type Whereabouts struct {
	EventID    string        `json:"event_id"`
	Key        string        `json:"key"`
	Type       string        `json:"type"`
	Answer     Answer        `json:"answer"`
	Times      int           `json:"times"` // how often it was published
	Places     []kafka.Place `json:"places,omitempty"`
	DeadLetter *deadLetter   `json:"dead_letter,omitempty"`

	Row *polling.Standing `json:"row,omitempty"` // of a polled table

	inTable bool
	created time.Time
}

// Find answers whether an event was published, or the events of a key. It reads the outbox row where readURL may, which
// gives key and time; then the key's partition from that time on, and the dead letter topic. since, if not zero, is how far
// back to look instead.
func Find(ctx context.Context, cfg config.Config, what, readURL string, since time.Duration, opts ...kgo.Opt) (*Where, error) {
	polled := cfg.Source.Kind == config.KindPolling
	if polled {
		readURL = cfg.Source.URL
	}
	source := postgres.NewSource(cfg.Pipeline, cfg.Source)
	sink := kafka.NewSink(cfg, route.Topics(cfg.Kafka), opts...)
	w := &Where{Asked: what, Events: []Whereabouts{}}

	rows, end, err := source.Find(ctx, readURL, what)
	if errors.Is(err, postgres.ErrUnreadable) || errors.Is(err, postgres.ErrZone) {
		w.Notes = append(w.Notes, err.Error())
	} else if err != nil {
		return nil, err
	}
	// Behind the rows and before the topics: what it says was delivered is to be found there.
	if polled {
		err = w.table(ctx, cfg, rows)
	} else {
		err = w.slot(ctx, source, sink, rows, end)
	}
	if err != nil {
		return nil, err
	}
	if w.From, err = from(what, rows, since); err != nil {
		return nil, errors.Join(append([]error{err}, notes(w.Notes)...)...)
	}
	if !polled {
		if err := w.deadLetters(ctx, sink); err != nil {
			return nil, err
		}
	}
	if err := w.search(ctx, cfg, sink, rows); err != nil {
		return nil, err
	}
	w.answer()
	return w, nil
}

// slot says how far rows are delivered from the WAL.
func (w *Where) slot(ctx context.Context, source *postgres.Source, sink *kafka.Sink, rows []postgres.TableRow, end cdc.LSN) error {
	st, facts, err := standing(ctx, source.Facts, sink.Peek)
	if err != nil {
		return err
	}
	w.confirmed = facts.Slot.ConfirmedFlush
	if st != nil {
		w.confirmed = max(w.confirmed, st.Covered)
	}
	if w.atOrBehind = end; len(rows) == 0 {
		w.atOrBehind = facts.WALEnd
	}
	w.Confirmed, w.WALEnd = w.confirmed.String(), facts.WALEnd.String()
	w.Behind = max(0, int64(w.atOrBehind)-int64(w.confirmed))
	return nil
}

// table answers by what a polled table says of its rows.
func (w *Where) table(ctx context.Context, cfg config.Config, rows []postgres.TableRow) error {
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	all, err := polling.Standings(ctx, cfg.Pipeline, cfg.Source, ids)
	if err != nil {
		return err
	}
	words := cfg.Source.Polling.Words
	for _, r := range rows {
		s, there := all[r.ID]
		if !there { // published and deleted meanwhile
			continue
		}
		e := w.event(r.ID, r.AggregateID, r.EventType)
		switch e.Row = &s; s.Status {
		case words.Pending:
			e.Answer = NotYet
		case words.Sent:
			e.Answer = IsPublished
		case words.Failed:
			e.Answer = IsDeadLettered
			e.DeadLetter = &deadLetter{
				Key: strconv.FormatInt(s.Position, 10), EventID: r.ID, Source: cfg.Pipeline, Reason: s.LastError, Time: s.ProcessedAt,
				AggregateType: r.AggregateType, AggregateID: r.AggregateID, EventType: r.EventType,
			}
		default:
			e.Answer = Gone
		}
	}
	return nil
}

// deadLetters looks into their topic, before it is looked for what is published: what is redriven meanwhile is seen twice, not never.
func (w *Where) deadLetters(ctx context.Context, sink *kafka.Sink) error {
	entries, err := sink.Entries(ctx)
	if err != nil {
		return err
	}
	for i := range entries {
		if d := entries[i].Letter; d != nil && (string(d.Row.ID) == w.Asked || string(d.Row.AggregateID) == w.Asked) {
			e := w.event(string(d.Row.ID), string(d.Row.AggregateID), string(d.Row.EventType))
			letter := shown(&entries[i])
			e.DeadLetter = &letter
		}
	}
	return nil
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

// timeOf is the time in a UUIDv7; zero for anything else.
func timeOf(id string) time.Time {
	u, err := uuid.Parse(id)
	if err != nil || u.Version() != 7 {
		return time.Time{}
	}
	var ms int64
	for _, b := range u[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}

// search looks first where the producer puts the records: the key's partition, of the row's topic or, for all events of a key,
// of every topic of the outbox. Where the key is not known, or the event is not there (partitions were added since, or topics
// renamed), it looks everywhere.
func (w *Where) search(ctx context.Context, cfg config.Config, sink *kafka.Sink, rows []postgres.TableRow) error {
	all, err := sink.Topics(ctx, route.Pattern(cfg.Kafka))
	if err != nil {
		return err
	}
	q := kafka.Search{Topics: all, From: w.From, Match: func(id, key string) bool { return id == w.Asked || key == w.Asked }}
	everywhere := q
	for _, r := range rows {
		e := w.event(r.ID, r.AggregateID, r.EventType)
		e.inTable, e.created = true, r.CreatedAt
		q.Key = []byte(r.AggregateID)
		if r.ID == w.Asked {
			q.Topics = []string{route.Topic(cfg.Kafka, r.AggregateType, r.EventType)}
		}
	}
	for {
		places, read, err := sink.Search(ctx, q)
		if err != nil {
			return err
		}
		w.Read.Records += read.Records
		w.Read.Partitions += read.Partitions
		for _, p := range places {
			e := w.event(p.ID, p.Key, p.Type)
			e.Places = append(e.Places, p)
		}
		aside := slices.ContainsFunc(w.Events, func(e Whereabouts) bool { return e.DeadLetter != nil || e.Answer == NotYet })
		if len(places) > 0 || aside || q.Key == nil {
			return nil
		}
		q = everywhere
	}
}

func (w *Where) event(id, key, typ string) *Whereabouts {
	i := slices.IndexFunc(w.Events, func(e Whereabouts) bool { return e.EventID == id })
	if i < 0 {
		i = len(w.Events)
		w.Events = append(w.Events, Whereabouts{EventID: id, Key: key, Type: typ})
	}
	return &w.Events[i]
}

func (w *Where) answer() {
	if len(w.Events) == 0 {
		w.Events = append(w.Events, Whereabouts{EventID: w.Asked, Answer: Unknown})
		return
	}
	for i := range w.Events {
		switch e := &w.Events[i]; {
		case len(e.Places) > 0:
			e.Answer, e.Times = IsPublished, len(e.Places)
		case e.Answer != "":
		case e.DeadLetter != nil:
			e.Answer = IsDeadLettered
		case w.Behind > 0:
			e.Answer = NotYet
		default:
			e.Answer = Gone
		}
	}
	// In the order of commits, as far as it is known; what is only in the table comes last.
	slices.SortStableFunc(w.Events, func(a, b Whereabouts) int {
		pa, pb := a.position(), b.position()
		if pa == (cdc.Position{}) || pb == (cdc.Position{}) {
			return cmp.Or(-pa.Compare(pb), a.created.Compare(b.created))
		}
		return pa.Compare(pb)
	})
}

func (e *Whereabouts) position() (p cdc.Position) {
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

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + t.UTC().Format(time.RFC3339Nano)
}

func tried(r *polling.Standing) string {
	if r.RetryCount == 0 {
		return ""
	}
	return fmt.Sprintf(", refused %d times, last: %s", r.RetryCount, line(r.LastError))
}

// WriteJSON prints it for programs.
func (w *Where) WriteJSON(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(w)
}

// Write prints it for people.
func (w *Where) Write(out io.Writer) {
	say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	for _, e := range w.Events {
		if e.Answer == Unknown && w.WALEnd == "" {
			say("%s: not found\n  neither in the table nor an event or a key on its topics since then", line(e.EventID))
			continue
		}
		if e.Answer == Unknown {
			say("%s: not found", line(e.EventID))
			say("  neither an event nor a key on the outbox's topics since then, nor a dead letter; the slot is %s behind the end of the WAL (%s)", bytes(w.Behind), w.WALEnd)
			continue
		}
		say("event %s, %s of key %s", line(e.EventID), line(e.Type), line(e.Key))
		for i, p := range e.Places {
			how := "published"
			if i > 0 {
				how = "again"
			}
			if p.Redriven {
				how += ", redriven"
			}
			position := fmt.Sprintf("lsn %s, seq %s; ", p.LSN, p.Seq)
			if p.Replayed {
				how += ", by `walpost replay`"
			}
			if p.LSN == "" {
				position = ""
			}
			say("  %s: topic %s, partition %d, offset %d; %s%s", how, p.Topic, p.Partition, p.Offset, position, p.Time.Format(time.RFC3339Nano))
		}
		if e.Times > 1 {
			say("  %d times: consumers tell repeats by the header id", e.Times)
		}
		if d := e.DeadLetter; d != nil {
			say("  dead-lettered: %s; since %s (`walpost dlq show %s`)", line(d.Reason), d.Time.Format(time.RFC3339), line(d.Key))
		}
		if r := e.Row; r != nil {
			say("  in the table: %s%s%s", r.Status, since(r.ProcessedAt), tried(r))
			if r.Behind != "" {
				say("  it waits behind event %s of its key (`walpost where %s`)", line(r.Behind), line(r.Behind))
			}
			continue
		}
		switch e.Answer {
		case NotYet:
			say("  not yet: everything up to %s is delivered, and the row was committed at most %s behind it (`walpost status` says what blocks)", w.Confirmed, bytes(w.Behind))
		case Gone:
			say("  not there: everything up to %s is delivered, its commit too; the topic's retention took it, or it was written before the slot was made or stepped over with `walpost skip`", w.Confirmed)
		}
	}
	for _, n := range w.Notes {
		say("%s", n)
	}
	say("read %d records of %d partitions, from %s on", w.Read.Records, w.Read.Partitions, w.From.Format(time.RFC3339))
}
