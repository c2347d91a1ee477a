package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/header"
)

const (
	replayRows   = 1000 // most rows in a window of a replay
	rejectedMost = 20   // most rejected rows that Replayed names
)

// ReplayOptions are the options of Replay.
type ReplayOptions struct {
	AdminURL string    // URL of a role that may read the outbox
	From, To time.Time // rows created at or after From and before To
	DryRun   bool      // route and check the rows, and publish none
	// Progress is called before the first row and then after each window. It may be nil.
	Progress func(Replayed)
}

// Replayed is the result of Replay, or its progress.
type Replayed struct {
	Rows int64 // number of rows of this time that are still in the table
	// Delivered is the commit time of the last row that was delivered before the replay, if it is known. Before is the number
	// of rows that were created before it: Kafka has them already, except those in a gap.
	Delivered  time.Time
	Before     int64
	Published  int64       // in a dry run, the number of rows that would be published
	Last       string      // created_at of the last of them
	Rejected   int         // number of rows that were rejected
	Rejections []Rejection // the first of them
}

// Rejection is a row that was rejected.
type Rejection struct{ EventID, Reason string }

// Replay publishes the rows of a time range that are still in the outbox once more, in the order of created_at and id. Each
// record has the header replay, and no lsn and seq, because the rows do not come from the stream. Replay may run while the
// relay runs. With an error it returns what it had done before the error.
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
	r := &replay{Pipeline: p, progress: o.Progress, dryRun: o.DryRun, route: p.router(), mark: []byte(time.Now().UTC().Format(time.RFC3339))}
	if r.done.Delivered, err = p.kind.delivered(ctx); err != nil {
		return r.done, err
	}
	if r.done.Rows, r.done.Before, err = rows.Count(ctx, r.done.Delivered); err != nil {
		return r.done, err
	}
	r.tell()
	if r.pub, err = p.sink.OpenReplay(ctx, o.DryRun); err != nil {
		return r.done, err
	}
	defer r.pub.Close()
	if err = rows.Each(ctx, func(row *cdc.Row) error { return r.add(ctx, row) }); err == nil {
		err = r.flush(ctx)
	}
	if o.DryRun {
		return r.done, err
	}
	what := fmt.Sprintf("%d rows were published again", r.done.Published)
	switch {
	case err != nil:
		what += ", then it failed"
	case r.done.Rejected > 0:
		what += fmt.Sprintf(", %d were rejected", r.done.Rejected)
	}
	noted := p.note(ctx, replayed(what, o.From, o.To, err == nil && r.done.Rejected == 0))
	switch {
	case err != nil:
		return r.done, fmt.Errorf("the replay did not finish: run it again from the time of the last row: %w", errors.Join(err, noted))
	case noted != nil:
		return r.done, fmt.Errorf("the rows are published, but the replay could not be written down, so `walpost status` will not show it: %w", noted)
	}
	if r.done.Rejected > 0 {
		return r.done, fmt.Errorf("%d rows were rejected and are not published: fix the cause, and run this again", r.done.Rejected)
	}
	return r.done, nil
}

// NoneMissing writes down the operator's decision that no row of a time range is missing in Kafka, and publishes nothing.
// Status then no longer shows a gap of this time.
func (p *Pipeline) NoneMissing(ctx context.Context, from, to time.Time) error {
	if p.cfg.Source.Kind == config.KindPolling {
		return errors.New("source.kind: polling leaves no gap and keeps no decisions: the column of the status says which rows were published")
	}
	return p.note(ctx, replayed("no row is missing in Kafka, by the operator's decision; nothing was published", from, to, true))
}

// replayed returns the decision that a replay writes down. complete is true if no row of its time range is missing after it.
func replayed(what string, from, to time.Time, complete bool) cdc.Decision {
	d := cdc.Decision{Command: "replay", From: from.UTC().Format(time.RFC3339Nano), To: to.UTC().Format(time.RFC3339Nano), Complete: complete}
	d.What = fmt.Sprintf("%s (--from %s --to %s)", what, d.From, d.To)
	return d
}

// replay is one call of Replay.
type replay struct {
	*Pipeline
	pub      cdc.Publisher
	route    cdc.Route
	mark     []byte
	progress func(Replayed)
	dryRun   bool

	rows  []*cdc.Row
	bytes int
	done  Replayed
}

// tell reports the progress.
func (r *replay) tell() {
	if r.progress != nil {
		r.progress(r.done)
	}
}

// add adds a row to the window, and publishes the window if it is full.
func (r *replay) add(ctx context.Context, row *cdc.Row) error {
	r.rows = append(r.rows, row)
	r.bytes += row.Size()
	if len(r.rows) < min(replayRows, r.cfg.Window.Rows) && r.bytes < int(r.cfg.Window.Bytes) {
		return nil
	}
	return r.flush(ctx)
}

// flush publishes the window. It names a rejected row and leaves it out, because a replay keeps no order that a later row
// could break.
func (r *replay) flush(ctx context.Context) error {
	r.route.NextWindow()
	records := make([]cdc.Record, 0, len(r.rows))
	for _, row := range r.rows {
		var rec cdc.Record
		err := r.route.Route(row, &rec)
		if err == nil {
			err = r.pub.Check(ctx, &rec)
		}
		if rejected := (*cdc.RejectedError)(nil); errors.As(err, &rejected) {
			if r.done.Rejected++; r.done.Rejected <= rejectedMost {
				r.done.Rejections = append(r.done.Rejections, Rejection{string(row.ID), rejected.Reason})
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
		if !r.dryRun {
			if err := r.pub.Publish(ctx, records, nil); err != nil {
				return err
			}
		}
		r.done.Published += int64(len(records))
		r.done.Last = strings.TrimSpace(string(records[len(records)-1].Row.CreatedAt))
	}
	r.rows, r.bytes = r.rows[:0], 0
	r.tell()
	return nil
}
