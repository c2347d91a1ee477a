package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
)

// polled is a pipeline whose relay queries the table for rows. It has neither slot nor state record: the table's columns tell
// which rows were published.
type polled struct {
	*Pipeline
	table *polling.Outbox
}

func (p polled) relay(observer cdc.Observer) *cdc.Supervisor {
	return p.table.Relay(p.cfg, polling.ToKafka(p.sink, p.router()), observer).Supervisor
}

func (p polled) watched() watched {
	return watched{table: p.table, kafka: p.sink}
}

func (p polled) survey(ctx context.Context, st *Status) {
	_, away := st.asks(ctx, p.sink)
	if st.blocked(p.table.Check(ctx)) {
		return
	}
	b, err := p.table.Backlog(ctx)
	if st.blocked(err) {
		return
	}
	st.backs(&b)
	if b.Pending > 0 {
		switch pid, err := p.source.Poller(ctx); {
		case st.blocked(err):
		case away:
			st.blockedBy(p.away())
		case pid == 0:
			st.blockedBy(fmt.Sprintf("%s rows wait and no relay polls %s: start `walpost relay`; if one runs, its log and /readyz say why it does not poll", polling.Count(b.Pending), p.cfg.Source.Table))
		}
	}
}

func (p polled) plan(ctx context.Context, s *setup, byDay bool) ([]postgres.Step, error) {
	if byDay {
		return nil, errors.New("--partition-by-day needs source.kind: wal: a polled table stays small with `walpost cleanup` or source.polling.after_publish: delete; or create a partitioned table yourself, and `walpost init` adds the columns for polling")
	}
	if s.newServer {
		return nil, errors.New("--new-server needs source.kind: wal: a polled table has the status of each row, on any server: run `walpost init` without it")
	}
	return p.table.Plan(ctx, s.pg)
}

func (polled) begin(context.Context, *setup) error { return nil }
func (polled) owned(context.Context, *setup) error { return nil }
func (polled) end(context.Context, *setup) error   { return nil }

func (polled) decide(context.Context, decideOptions) (*decision, error) {
	return nil, errors.New("source.kind: polling has neither slot nor state record, so there is nothing to adopt or to skip: `walpost status` shows which rows wait, and `walpost dlq redrive` or `walpost dlq drop` decides about failed rows")
}

func (polled) gap(context.Context) error { return nil }

func (p polled) marks() *postgres.Marks { return p.table.Marks() }

func (polled) delivered(context.Context) (time.Time, error) { return time.Time{}, nil }

// note does nothing: polling has no state topic for decisions.
func (polled) note(context.Context, *cdc.Decision) error { return nil }

func (p polled) reader(string, string) (key, url string) { return "source.url", p.cfg.Source.URL }

func (p polled) trace(ctx context.Context, t *Trace, rows []postgres.TableRow, _ cdc.LSN) error {
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	all, err := p.table.RowStatuses(ctx, ids)
	if err != nil {
		return err
	}
	words := p.cfg.Source.Polling.Words
	for _, r := range rows {
		s, there := all[r.ID]
		if !there { // it was published and deleted meanwhile
			continue
		}
		e := t.event(r.ID, r.AggregateID, r.EventType)
		switch e.Row = &s; s.Status {
		case words.Pending:
			e.Answer = NotYet
		case words.Sent:
			e.Answer = IsPublished
		case words.Failed:
			e.Answer = IsDeadLettered
			e.DeadLetter = &DeadLetter{
				Key: strconv.FormatInt(s.Position, 10), EventID: r.ID, Source: p.cfg.Pipeline, Reason: s.LastError, Time: s.ProcessedAt,
				AggregateType: r.AggregateType, AggregateID: r.AggregateID, EventType: r.EventType,
			}
		default:
			e.Answer = Gone
		}
	}
	return nil
}

// letters returns the failed rows, whose keys are their positions.
func (p polled) letters(ctx context.Context) ([]kafka.Entry, error) {
	rows, err := p.table.ListFailed(ctx)
	if err != nil {
		return nil, err
	}
	entries := make([]kafka.Entry, len(rows))
	for i := range rows {
		entries[i] = kafka.Entry{Key: strconv.FormatInt(rows[i].Position, 10), Offset: rows[i].Position, Letter: &rows[i].DeadLetter}
	}
	return entries, nil
}

func (p polled) whole(ctx context.Context, e *kafka.Entry) error {
	row, err := p.table.ReadFailed(ctx, e.Offset)
	if err != nil {
		return err
	}
	if row == nil {
		return fmt.Errorf("event %s is no longer failed: run `walpost where %[1]s` to see where it is", e.Letter.Row.ID)
	}
	e.Value, err = row.Value()
	return err
}

func (p polled) redrive(ctx context.Context, o RedriveOptions) (done []Moved, err error) {
	chosen, positions, err := p.chosen(ctx, o.IDs)
	if err == nil && !o.DryRun && len(positions) > 0 {
		err = p.table.Redrive(ctx, positions)
	}
	if err != nil {
		return nil, err
	}
	for _, e := range chosen {
		m := Moved{Key: e.Key, EventID: string(e.Letter.Row.ID), Of: len(chosen)}
		done = append(done, m)
		if o.Progress != nil {
			o.Progress(m)
		}
	}
	return done, nil
}

func (p polled) drop(ctx context.Context, o DropOptions) (done Dropped, err error) {
	chosen, positions, err := p.chosen(ctx, o.IDs)
	if err != nil {
		return done, err
	}
	for i := range chosen {
		done.Letters = append(done.Letters, deadLetter(&chosen[i]))
	}
	ok, err := o.confirm(done.Letters)
	if ok {
		err = p.table.Drop(ctx, positions)
	}
	if err != nil {
		return Dropped{}, err
	}
	return done, nil
}

// chosen returns the failed rows with these ids or keys, and their positions; without ids, all failed rows.
func (p polled) chosen(ctx context.Context, ids []string) (rows []kafka.Entry, positions []int64, err error) {
	entries, err := p.letters(ctx)
	if err != nil {
		return nil, nil, err
	}
	chosen, err := choose(entries, ids)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if chosen[e.Key] {
			rows, positions = append(rows, e), append(positions, e.Offset)
		}
	}
	return rows, positions, nil
}
