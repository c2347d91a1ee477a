package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/header"
	"github.com/walpost/walpost/cdc/route"
)

const (
	replayRows  = 1000 // of a window
	refusedMost = 20   // refused rows that are named
)

// ReplayOptions is which rows to publish once more.
type ReplayOptions struct {
	AdminURL string    // PostgreSQL, as somebody who may read the outbox
	From, To time.Time // rows created at or after From and before To
	DryRun   bool
	// Progress hears, before the first row and then every two seconds, how far the replay is.
	Progress func(Replayed)
}

// Replayed is what Replay did.
type Replayed struct {
	Rows int64 // that the table still holds of the time
	// Delivered is the commit time of the last row that was delivered before, where that is known, and Before how many
	// of the rows were created before it: those that are not in a gap come twice.
	Delivered time.Time
	Before    int64
	Published int64
	Last      string // when the last one that was published was created
	Refused   int
	Refusals  []Refusal // the first of them
}

// Refusal is a row that can still not be published.
type Refusal struct{ EventID, Reason string }

// Replay publishes the rows that the outbox still holds of a time once more, by created_at and id, each marked by the
// header replay and without lsn and seq: it is not the stream. It runs beside a relay or without one. After an error it
// returns what it has done.
func (p *Pipeline) Replay(ctx context.Context, o ReplayOptions) (Replayed, error) {
	pg, err := p.source.Admin(ctx, o.AdminURL)
	if err != nil {
		return Replayed{}, err
	}
	defer pg.Close(ctx)
	rows, err := pg.Retained(ctx, o.From, o.To)
	if err != nil {
		return Replayed{}, err
	}
	r := &replay{Pipeline: p, progress: o.Progress, route: route.New(p.cfg.Pipeline, p.cfg.Kafka), mark: []byte(time.Now().UTC().Format(time.RFC3339))}
	if r.done.Delivered, err = p.kind.delivered(ctx); err != nil {
		return r.done, err
	}
	if r.done.Rows, r.done.Before, err = rows.Count(ctx, r.done.Delivered); err != nil || o.DryRun {
		return r.done, err
	}
	r.tell()
	if r.pub, err = p.sink.OpenReplay(ctx); err != nil {
		return r.done, err
	}
	defer r.pub.Close()
	if err = rows.Each(ctx, func(row *cdc.Row) error { return r.add(ctx, row) }); err == nil {
		err = r.flush(ctx)
	}
	what := fmt.Sprintf("%d rows were published again", r.done.Published)
	if err != nil {
		what += ", then it failed"
	}
	noted := p.note(ctx, "replay", what, o.From.Format(time.RFC3339Nano), o.To.Format(time.RFC3339Nano))
	switch {
	case err != nil:
		return r.done, fmt.Errorf("the replay is not complete: run it again from the time of the last row: %w", errors.Join(err, noted))
	case noted != nil:
		return r.done, fmt.Errorf("the rows are published, and `walpost status` will not show it: %w", noted)
	}
	if r.done.Refused > 0 {
		return r.done, fmt.Errorf("%d rows were refused and are not published", r.done.Refused)
	}
	return r.done, nil
}

type replay struct {
	*Pipeline
	pub      cdc.Publisher
	route    *route.Router
	mark     []byte
	progress func(Replayed)
	told     time.Time

	rows  []*cdc.Row
	bytes int
	done  Replayed
}

func (r *replay) tell() {
	r.told = time.Now()
	if r.progress != nil {
		r.progress(r.done)
	}
}

func (r *replay) add(ctx context.Context, row *cdc.Row) error {
	r.rows = append(r.rows, row)
	r.bytes += len(row.Payload) + len(row.Headers) + len(row.AggregateID)
	if len(r.rows) < min(replayRows, r.cfg.Window.Rows) && r.bytes < int(r.cfg.Window.Bytes) {
		return nil
	}
	return r.flush(ctx)
}

// flush publishes a window. A row that is refused is named and left out: there is no order behind it to keep.
func (r *replay) flush(ctx context.Context) error {
	r.route.NextWindow()
	records := make([]cdc.Record, 0, len(r.rows))
	for _, row := range r.rows {
		var rec cdc.Record
		err := r.route.Route(row, &rec)
		if err == nil {
			err = r.pub.Check(ctx, &rec)
		}
		if refused := (*cdc.RejectedError)(nil); errors.As(err, &refused) {
			if r.done.Refused++; r.done.Refused <= refusedMost {
				r.done.Refusals = append(r.done.Refusals, Refusal{string(row.ID), refused.Reason})
			}
			continue
		}
		if err != nil {
			return err
		}
		rec.Headers = append(slices.DeleteFunc(rec.Headers, func(h cdc.Header) bool { return h.Key == header.Replay }),
			cdc.Header{Key: header.Replay, Value: r.mark})
		records = append(records, rec)
	}
	if len(records) > 0 {
		if err := r.pub.Publish(ctx, records, nil); err != nil {
			return err
		}
		r.done.Published += int64(len(records))
		r.done.Last = strings.TrimSpace(string(records[len(records)-1].Row.CreatedAt))
	}
	r.rows, r.bytes = r.rows[:0], 0
	if time.Since(r.told) > sayEvery {
		r.tell()
	}
	return nil
}
