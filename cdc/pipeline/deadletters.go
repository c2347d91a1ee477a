package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/header"
	"github.com/walpost/walpost/cdc/kafka"
)

// DeadLetter is a row that could not be published. It is in the dead letter topic, or is a failed row of a polled table.
type DeadLetter struct {
	Key           string          `json:"key"`
	EventID       string          `json:"event_id"`
	LSN           string          `json:"lsn,omitempty"`
	Seq           uint32          `json:"seq,omitempty"`
	CommitTime    time.Time       `json:"commit_time,omitzero"`
	Source        string          `json:"source"`
	AggregateType string          `json:"aggregate_type"`
	AggregateID   string          `json:"aggregate_id"`
	EventType     string          `json:"event_type"`
	Topic         string          `json:"topic,omitempty"` // the topic to which it would have gone
	Class         cdc.Class       `json:"class,omitempty"`
	Reason        string          `json:"reason"`
	HeldFor       string          `json:"held_for,omitempty"`
	Time          time.Time       `json:"dead_lettered_at"`
	Bytes         int             `json:"bytes,omitempty"`
	Error         string          `json:"error,omitempty"` // why it cannot be read
	Row           json.RawMessage `json:"row,omitempty"`
}

// deadLetter returns an entry of the dead letter topic without its row.
func deadLetter(e *kafka.Entry) DeadLetter {
	if e.Letter == nil {
		return DeadLetter{Key: e.Key, Bytes: len(e.Value), Error: e.Err.Error()}
	}
	d, r := e.Letter, &e.Letter.Row
	lsn := ""
	if r.Ordinal > 0 {
		lsn = r.Commit.String()
	}
	return DeadLetter{
		Key: e.Key, EventID: string(r.ID), LSN: lsn, Seq: r.Ordinal, CommitTime: r.CommitTime, Source: d.Source,
		AggregateType: string(r.AggregateType), AggregateID: string(r.AggregateID), EventType: string(r.EventType),
		Topic: d.Topic, Class: d.Class, Reason: d.Reason, HeldFor: d.HeldFor, Time: d.Time, Bytes: len(e.Value),
	}
}

// DeadLetters returns the unresolved dead letters in the order of their rows.
func (p *Pipeline) DeadLetters(ctx context.Context) ([]DeadLetter, error) {
	entries, err := p.kind.letters(ctx)
	letters := make([]DeadLetter, len(entries))
	for i := range entries {
		letters[i] = deadLetter(&entries[i])
	}
	return letters, err
}

// DeadLetter returns the unresolved dead letter with this event id or key, with its row.
func (p *Pipeline) DeadLetter(ctx context.Context, id string) (DeadLetter, error) {
	entries, err := p.kind.letters(ctx)
	if err != nil {
		return DeadLetter{}, err
	}
	chosen, err := choose(entries, []string{id})
	if err != nil {
		return DeadLetter{}, err
	}
	e := &entries[slices.IndexFunc(entries, func(e kafka.Entry) bool { return chosen[e.Key] })]
	if err := p.kind.whole(ctx, e); err != nil {
		return DeadLetter{}, err
	}
	d := deadLetter(e)
	if d.Row = e.Value; !json.Valid(d.Row) {
		d.Row, _ = json.Marshal(string(d.Row))
	}
	return d, nil
}

// choose finds dead letters by event id or, if no event has that id, by key. Without ids it returns all of them. The error
// contains every id that no dead letter has, or more than one.
func choose(entries []kafka.Entry, ids []string) (map[string]bool, error) {
	byID := map[string][]string{}
	for i := range entries {
		if d := entries[i].Letter; d != nil && len(d.Row.ID) > 0 {
			byID[string(d.Row.ID)] = append(byID[string(d.Row.ID)], entries[i].Key)
		}
	}
	for i := range entries {
		if key := entries[i].Key; byID[key] == nil {
			byID[key] = []string{key}
		}
	}
	chosen := map[string]bool{}
	if len(ids) == 0 {
		for i := range entries {
			chosen[entries[i].Key] = true
		}
		return chosen, nil
	}
	var errs []error
	for _, id := range ids {
		switch keys := byID[id]; len(keys) {
		case 0:
			errs = append(errs, fmt.Errorf("%q: no dead letter with this event id or key is unresolved: see `walpost dlq list`", id))
		case 1:
			chosen[keys[0]] = true
		default:
			errs = append(errs, fmt.Errorf("%q: %d dead letters have this event id: name one by its key: %s", id, len(keys), strings.Join(keys, ", ")))
		}
	}
	return chosen, errors.Join(errs...)
}

// RedriveOptions are the options of Redrive.
type RedriveOptions struct {
	IDs    []string // event ids or keys; empty: all dead letters
	DryRun bool
	// Progress is called for each dead letter after it was published or rejected again. It may be nil.
	Progress func(Moved)
}

// Moved is the result of a redrive for one dead letter; in a dry run, the expected result.
type Moved struct {
	Key       string
	EventID   string
	Topic     string // where it was published; empty for a row of a polled table, which its relay publishes
	Partition int32
	Offset    int64
	Stays     string // why it was not published; empty if it was
	Of        int    // number of dead letters that this call of Redrive acts on
}

// Redrive publishes dead letters in the order of their rows, with those that were held for one of them. It returns the
// result for each. A dead letter that is rejected again stays, and so do the later ones of its key; then Redrive returns an
// error after the others are published. With polling, it makes failed rows pending again.
func (p *Pipeline) Redrive(ctx context.Context, o RedriveOptions) ([]Moved, error) {
	return p.kind.redrive(ctx, o)
}

// DropOptions are the options of Drop.
type DropOptions struct {
	IDs    []string // event ids or keys; empty: all dead letters
	DryRun bool
	// Confirm is called with the dead letters before Drop gives them up. After an error Drop changes nothing. It may be nil.
	Confirm func([]DeadLetter) error
}

// confirm calls o.Confirm, and reports whether to drop the dead letters.
func (o *DropOptions) confirm(letters []DeadLetter) (bool, error) {
	if o.DryRun || len(letters) == 0 {
		return false, nil
	}
	if o.Confirm == nil {
		return true, nil
	}
	err := o.Confirm(letters)
	return err == nil, err
}

// Dropped are the dead letters that Drop gave up, or would give up in a dry run.
type Dropped struct {
	Letters []DeadLetter
	Waiting int // number of dead letters that were held for these: a redrive publishes them
}

// Drop gives dead letters up: their rows will never be published. With an error it returns those that it gave up before the error.
func (p *Pipeline) Drop(ctx context.Context, o DropOptions) (Dropped, error) {
	return p.kind.drop(ctx, o)
}

func (w wal) letters(ctx context.Context) ([]kafka.Entry, error) { return w.sink.Entries(ctx) }

func (w wal) whole(context.Context, *kafka.Entry) error { return nil }

// selectInOrder returns the dead letters to redrive, in order: the chosen ones, and those that were held for them. It returns
// an error for a chosen one that comes after another one of its key that is not redriven.
func selectInOrder(entries []kafka.Entry, chosen map[string]bool, all bool) (selected []*kafka.Entry, err error) {
	order := cdc.NewKeyOrder()
	var errs []error
	for i := range entries {
		e := &entries[i]
		switch d := e.Letter; {
		case d == nil && chosen[e.Key] && !all:
			errs = append(errs, fmt.Errorf("%.80q cannot be read (%w): `walpost dlq drop` gives it up", e.Key, e.Err))
		case d == nil:
		case order.Behind(d) != "":
			if chosen[e.Key] {
				errs = append(errs, fmt.Errorf("%s comes after %s of the same key, which would stay a dead letter: redrive or drop that one too", e.Key, order.Behind(d)))
			}
			order.Mark(d, false)
		case chosen[e.Key] || order.Follows(d):
			order.Mark(d, true)
			selected = append(selected, e)
		default:
			order.Mark(d, false)
		}
	}
	return selected, errors.Join(errs...)
}

const redriveBytes = 8 << 20 // largest transaction with more than one row

// redrive routes and checks each dead letter again. The record and the dead letter's tombstone are in one Kafka transaction,
// so a read_committed consumer sees an event either as a dead letter or as published.
func (w wal) redrive(ctx context.Context, o RedriveOptions) ([]Moved, error) {
	client, err := w.sink.Redrive(ctx, o.DryRun) // before the first read, because it fences another redrive
	if err != nil {
		return nil, err
	}
	defer client.Close()
	entries, err := w.sink.Entries(ctx)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(entries, o.IDs)
	if err != nil {
		return nil, err
	}
	selected, err := selectInOrder(entries, chosen, len(o.IDs) == 0)
	if err != nil {
		return nil, err
	}
	r := redrive{RedriveOptions: o, client: client, router: w.Pipeline.router(), of: len(selected), order: cdc.NewKeyOrder()}
	for len(selected) > 0 {
		n, err := r.window(ctx, selected)
		if err != nil {
			return r.done, err
		}
		selected = selected[n:]
	}
	stay := 0
	for _, m := range r.done {
		if m.Stays != "" {
			stay++
		}
	}
	if stay > 0 {
		return r.done, fmt.Errorf("%d dead letters stay: fix the cause (the topic's limit, kafka.aggregate_types, kafka.rename, the options under debezium) and redrive them again, or give them up with `walpost dlq drop`", stay)
	}
	return r.done, nil
}

// redrive is one call of Redrive for a pipeline from the WAL.
type redrive struct {
	RedriveOptions
	client *kafka.Redriver
	router cdc.Route
	of     int
	order  *cdc.KeyOrder
	done   []Moved
}

// window publishes the first dead letters of selected in one transaction, and returns how many it has published or rejected.
func (r *redrive) window(ctx context.Context, selected []*kafka.Entry) (n int, err error) {
	var records []cdc.Record
	var going []*kafka.Entry
	r.router.NextWindow()
	for size := 0; n < len(selected) && len(going) < r.client.MostResolved() && (size == 0 || size+len(selected[n].Value) <= redriveBytes); n++ {
		e := selected[n]
		rec, stays, err := r.record(ctx, e)
		if err != nil {
			return n, err
		}
		if r.order.Mark(e.Letter, stays == ""); stays != "" {
			r.moved(e, Moved{Stays: stays})
			continue
		}
		size += len(e.Value)
		records, going = append(records, rec), append(going, e)
	}
	if len(going) > 0 && !r.DryRun {
		keys := make([]string, len(going))
		for i, e := range going {
			keys[i] = e.Key
		}
		if err := r.client.Resolve(ctx, records, keys); err != nil {
			return n, err
		}
	}
	for i, rec := range records {
		r.moved(going[i], Moved{Topic: rec.Topic, Partition: rec.Partition, Offset: rec.Offset})
	}
	return n, nil
}

// record returns the dead letter's record, or the reason why it stays a dead letter.
func (r *redrive) record(ctx context.Context, e *kafka.Entry) (rec cdc.Record, stays string, err error) {
	if behind := r.order.Behind(e.Letter); behind != "" {
		return rec, "it comes after " + behind + " of the same key, which stays too", nil
	}
	if err = r.router.Route(&e.Letter.Row, &rec); err == nil {
		rec.Headers = append(rec.Headers, cdc.Header{Key: header.Redriven, Value: []byte(time.Now().UTC().Format(time.RFC3339Nano))})
		err = r.client.Check(ctx, &rec)
	}
	if rejected := (*cdc.RejectedError)(nil); errors.As(err, &rejected) {
		return rec, "still rejected: " + rejected.Reason, nil
	}
	return rec, "", err
}

// moved adds the result for a dead letter.
func (r *redrive) moved(e *kafka.Entry, m Moved) {
	m.Key, m.EventID, m.Of = e.Key, string(e.Letter.Row.ID), r.of
	r.done = append(r.done, m)
	if r.Progress != nil {
		r.Progress(m)
	}
}

func (w wal) drop(ctx context.Context, o DropOptions) (done Dropped, err error) {
	client, err := w.sink.Redrive(ctx, o.DryRun)
	if err != nil {
		return done, err
	}
	defer client.Close()
	entries, err := w.sink.Entries(ctx)
	if err != nil {
		return done, err
	}
	chosen, err := choose(entries, o.IDs)
	if err != nil {
		return done, err
	}
	var keys []string
	for i := range entries {
		switch e := &entries[i]; {
		case chosen[e.Key]:
			done.Letters = append(done.Letters, deadLetter(e))
			keys = append(keys, e.Key)
		case e.Letter != nil && chosen[e.Letter.HeldFor]:
			done.Waiting++
		}
	}
	switch ok, err := o.confirm(done.Letters); {
	case err != nil:
		return Dropped{}, err
	case !ok:
		return done, nil
	}
	for n := 0; n < len(keys); {
		next := min(n+client.MostResolved(), len(keys))
		if err := client.Resolve(ctx, nil, keys[n:next]); err != nil {
			done.Letters = done.Letters[:n]
			return done, err
		}
		n = next
	}
	return done, nil
}
