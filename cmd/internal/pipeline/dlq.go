package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/route"
)

// deadLetter is how a dead letter is shown.
type deadLetter struct {
	Key           string          `json:"key"`
	EventID       string          `json:"event_id"`
	LSN           string          `json:"lsn,omitempty"`
	Seq           uint32          `json:"seq,omitempty"`
	CommitTime    time.Time       `json:"commit_time,omitzero"`
	Source        string          `json:"source"`
	AggregateType string          `json:"aggregate_type"`
	AggregateID   string          `json:"aggregate_id"`
	EventType     string          `json:"event_type"`
	Topic         string          `json:"topic,omitempty"` // where it would have gone
	Class         cdc.Class       `json:"class,omitempty"`
	Reason        string          `json:"reason"`
	HeldFor       string          `json:"held_for,omitempty"`
	Time          time.Time       `json:"dead_lettered_at"`
	Bytes         int             `json:"bytes,omitempty"`
	Error         string          `json:"error,omitempty"` // why it cannot be read
	Row           json.RawMessage `json:"row,omitempty"`
}

func shown(e *kafka.Entry) deadLetter {
	if e.Letter == nil {
		return deadLetter{Key: e.Key, Bytes: len(e.Value), Error: e.Err.Error()}
	}
	d, r := e.Letter, &e.Letter.Row
	lsn := ""
	if r.Ordinal > 0 {
		lsn = r.Commit.String()
	}
	return deadLetter{
		Key: e.Key, EventID: string(r.ID), LSN: lsn, Seq: r.Ordinal, CommitTime: r.CommitTime, Source: d.Source,
		AggregateType: string(r.AggregateType), AggregateID: string(r.AggregateID), EventType: string(r.EventType),
		Topic: d.Topic, Class: d.Class, Reason: d.Reason, HeldFor: d.HeldFor, Time: d.Time, Bytes: len(e.Value),
	}
}

func deadLetterSink(cfg config.Config, opts []kgo.Opt) *kafka.Sink {
	return kafka.NewSink(cfg, route.Topics(cfg.Kafka), opts...)
}

// unresolved are the dead letters of the topic, or the failed rows of a polled table, whose keys are their positions.
func unresolved(ctx context.Context, cfg config.Config, sink *kafka.Sink) ([]kafka.Entry, error) {
	if cfg.Source.Kind != config.KindPolling {
		return sink.Entries(ctx)
	}
	rows, err := polling.ListFailed(ctx, cfg.Pipeline, cfg.Source)
	if err != nil {
		return nil, err
	}
	entries := make([]kafka.Entry, len(rows))
	for i := range rows {
		entries[i] = kafka.Entry{Key: strconv.FormatInt(rows[i].Position, 10), Offset: rows[i].Position, Letter: &rows[i].DeadLetter}
	}
	return entries, nil
}

// resolveFailed redrives or drops failed rows of a polled table; no ids are all.
func resolveFailed(ctx context.Context, cfg config.Config, ids []string, dryRun bool, done string, ask func(n int) error,
	do func(context.Context, string, config.Source, []int64) error, out io.Writer,
) error {
	entries, err := unresolved(ctx, cfg, nil)
	if err != nil {
		return err
	}
	chosen, err := choose(entries, ids)
	if err != nil || len(chosen) == 0 {
		return err
	}
	var positions []int64
	for i := range entries {
		if !chosen[entries[i].Key] {
			continue
		}
		positions = append(positions, entries[i].Offset)
		if dryRun {
			fmt.Fprintf(out, "would be %s %s\n", done, entries[i].Letter.Row.ID)
		}
	}
	if dryRun {
		return nil
	}
	if err := ask(len(positions)); err != nil {
		return err
	}
	if err := do(ctx, cfg.Pipeline, cfg.Source, positions); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %d rows; what waits behind them follows\n", done, len(positions))
	return nil
}

// ListDeadLetters prints what is unresolved, in the order of the rows.
func ListDeadLetters(ctx context.Context, cfg config.Config, asJSON bool, out io.Writer, opts ...kgo.Opt) error {
	entries, err := unresolved(ctx, cfg, deadLetterSink(cfg, opts))
	if err != nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(out)
		for i := range entries {
			if err := enc.Encode(shown(&entries[i])); err != nil {
				return err
			}
		}
		return nil
	}
	if len(entries) == 0 {
		fmt.Fprintln(out, "no dead letters are unresolved")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tTYPE\tAGGREGATE\tSINCE\tWHY")
	for i := range entries {
		d := shown(&entries[i])
		if d.Error != "" {
			fmt.Fprintf(w, "%.80q\t\t\t\tcannot be read: %s\n", d.Key, d.Error)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", line(d.Key), line(d.EventType), line(d.AggregateType+"/"+d.AggregateID), d.Time.Format(time.RFC3339), line(d.Reason))
	}
	return w.Flush()
}

// line keeps what the row gave us on one line and short.
func line(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
	if len(s) > 160 {
		s = s[:157] + "..."
	}
	return s
}

// ShowDeadLetter prints one dead letter with its row.
func ShowDeadLetter(ctx context.Context, cfg config.Config, id string, out io.Writer, opts ...kgo.Opt) error {
	entries, err := unresolved(ctx, cfg, deadLetterSink(cfg, opts))
	if err != nil {
		return err
	}
	chosen, err := choose(entries, []string{id})
	if err != nil {
		return err
	}
	for i := range entries {
		if !chosen[entries[i].Key] {
			continue
		}
		if cfg.Source.Kind == config.KindPolling {
			row, err := polling.ReadFailed(ctx, cfg.Pipeline, cfg.Source, entries[i].Offset)
			if err != nil || row == nil {
				return cmp.Or(err, fmt.Errorf("%s is not failed any more", line(id)))
			}
			if entries[i].Value, err = row.Value(); err != nil {
				return err
			}
		}
		d := shown(&entries[i])
		if d.Row = entries[i].Value; !json.Valid(d.Row) {
			d.Row, _ = json.Marshal(string(d.Row))
		}
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(d)
	}
	return nil
}

// choose finds dead letters by event id or key; no ids are all. What is not there, or twice, is an error, all of them together.
func choose(entries []kafka.Entry, ids []string) (map[string]bool, error) {
	byID := map[string][]string{}
	for i := range entries {
		e := &entries[i]
		byID[e.Key] = append(byID[e.Key], e.Key)
		if e.Letter != nil && len(e.Letter.Row.ID) > 0 {
			byID[string(e.Letter.Row.ID)] = append(byID[string(e.Letter.Row.ID)], e.Key)
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

// queues follows the order of keys through dead letters, first to last.
type queues struct {
	left  map[string]string // by identity: a dead letter that stays
	taken map[string]bool   // by identity: the last dead letter goes
}

// behind is the dead letter that stays and that this one must not overtake.
func (q *queues) behind(d *cdc.DeadLetter) string {
	for _, of := range d.Holds() {
		if key := q.left[of]; key != "" {
			return key
		}
	}
	return ""
}

// follows says that the dead letter was only held, for one that goes.
func (q *queues) follows(d *cdc.DeadLetter) bool {
	for _, of := range d.Holds() {
		if q.taken[of] {
			return d.HeldFor != ""
		}
	}
	return false
}

func (q *queues) mark(d *cdc.DeadLetter, goes bool) {
	for _, of := range d.Holds() {
		if goes {
			q.taken[of] = true
		} else {
			q.left[of] = d.Key()
		}
	}
}

// selectInOrder gives what is to be redriven, in order: what was chosen, and what was held behind it. One that stands behind another
// of its key that stays is refused.
func selectInOrder(entries []kafka.Entry, chosen map[string]bool, all bool) (selected []*kafka.Entry, err error) {
	q := queues{map[string]string{}, map[string]bool{}}
	var errs []error
	for i := range entries {
		e := &entries[i]
		switch d := e.Letter; {
		case d == nil && chosen[e.Key] && !all:
			errs = append(errs, fmt.Errorf("%.80q cannot be read (%w): `walpost dlq drop` gives it up", e.Key, e.Err))
		case d == nil:
		case q.behind(d) != "":
			if chosen[e.Key] {
				errs = append(errs, fmt.Errorf("%s stands behind %s of the same key, which stays: redrive or drop that one too", e.Key, q.behind(d)))
			}
			q.mark(d, false)
		case chosen[e.Key] || q.follows(d):
			q.mark(d, true)
			selected = append(selected, e)
		default:
			q.mark(d, false)
		}
	}
	return selected, errors.Join(errs...)
}

// RedriveDeadLetters publishes dead letters after all; no ids are all. Each passes route and check again. Record and tombstone
// are in one Kafka transaction, so that a read_committed reader sees an event either as a dead letter or as published. One
// that is still refused stays, and what stands behind it.
func RedriveDeadLetters(ctx context.Context, cfg config.Config, ids []string, dryRun bool, out io.Writer, opts ...kgo.Opt) error {
	if cfg.Source.Kind == config.KindPolling {
		return resolveFailed(ctx, cfg, ids, dryRun, "redriven", func(int) error { return nil }, polling.Redrive, out)
	}
	sink := deadLetterSink(cfg, opts)
	redrive, err := sink.Redrive(ctx, dryRun) // before anything is read: another redrive is fenced from here on
	if err != nil {
		return err
	}
	defer redrive.Close()
	entries, err := sink.Entries(ctx)
	if err != nil {
		return err
	}
	chosen, err := choose(entries, ids)
	if err != nil {
		return err
	}
	selected, err := selectInOrder(entries, chosen, len(ids) == 0)
	if err != nil {
		return err
	}
	const maxBytes = 8 << 20 // of one transaction, where more than one row goes
	router := route.New(cfg.Pipeline, cfg.Kafka)
	q := queues{map[string]string{}, map[string]bool{}}
	refused := 0
	for len(selected) > 0 {
		var records []cdc.Record
		var keys []string
		router.NextWindow()
		size := 0
		for len(selected) > 0 && len(keys) < redrive.MostResolved() && (size == 0 || size+len(selected[0].Value) <= maxBytes) {
			e := selected[0]
			selected = selected[1:]
			if behind := q.behind(e.Letter); behind != "" {
				fmt.Fprintf(out, "stays    %s: it stands behind %s of the same key\n", line(e.Key), line(behind))
				q.mark(e.Letter, false)
				refused++
				continue
			}
			var rec cdc.Record
			err := router.Route(&e.Letter.Row, &rec)
			if err == nil {
				rec.Headers = append(rec.Headers, cdc.Header{Key: "redriven", Value: []byte(time.Now().UTC().Format(time.RFC3339Nano))})
				err = redrive.Check(ctx, &rec)
			}
			if why := (*cdc.Refused)(nil); errors.As(err, &why) {
				fmt.Fprintf(out, "stays    %s: still refused: %s\n", line(e.Key), why.Reason)
				q.mark(e.Letter, false)
				refused++
				continue
			}
			if err != nil {
				return err
			}
			size += len(e.Value)
			records, keys = append(records, rec), append(keys, e.Key)
		}
		if len(keys) == 0 {
			continue
		}
		if !dryRun {
			if err := redrive.Resolve(ctx, records, keys); err != nil {
				return err
			}
		}
		for i, r := range records {
			if dryRun {
				fmt.Fprintf(out, "would go %s to %s\n", line(keys[i]), r.Topic)
			} else {
				fmt.Fprintf(out, "redriven %s to %s, partition %d, offset %d\n", line(keys[i]), r.Topic, r.Partition, r.Offset)
			}
		}
	}
	if refused > 0 {
		return fmt.Errorf("%d dead letters stay: fix what refuses them (the topic's limit, kafka.aggregate_types, kafka.rename) and redrive again, or give them up with `walpost dlq drop`", refused)
	}
	return nil
}

// DropDeadLetters gives dead letters up; no ids are all. It asks before.
func DropDeadLetters(ctx context.Context, cfg config.Config, ids []string, dryRun bool, ask func(n int) error, out io.Writer, opts ...kgo.Opt) error {
	if cfg.Source.Kind == config.KindPolling {
		return resolveFailed(ctx, cfg, ids, dryRun, "dropped", ask, polling.Drop, out)
	}
	sink := deadLetterSink(cfg, opts)
	redrive, err := sink.Redrive(ctx, dryRun)
	if err != nil {
		return err
	}
	defer redrive.Close()
	entries, err := sink.Entries(ctx)
	if err != nil {
		return err
	}
	chosen, err := choose(entries, ids)
	if err != nil || len(chosen) == 0 {
		return err
	}
	var keys []string
	waiting := 0
	for i := range entries {
		switch e := &entries[i]; {
		case chosen[e.Key]:
			keys = append(keys, e.Key)
			if dryRun {
				fmt.Fprintf(out, "would drop %s\n", line(e.Key))
			}
		case e.Letter != nil && chosen[e.Letter.HeldFor]:
			waiting++
		}
	}
	if dryRun {
		return nil
	}
	if err := ask(len(keys)); err != nil {
		return err
	}
	for len(keys) > 0 {
		n := min(len(keys), redrive.MostResolved())
		if err := redrive.Resolve(ctx, nil, keys[:n]); err != nil {
			return err
		}
		for _, key := range keys[:n] {
			fmt.Fprintf(out, "dropped %s\n", line(key))
		}
		keys = keys[n:]
	}
	if waiting > 0 {
		fmt.Fprintf(out, "%d dead letters were held behind what was dropped: `walpost dlq redrive` publishes them and frees their keys\n", waiting)
	}
	return nil
}
