package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

const (
	replayRows  = 1000            // of a window
	replayEvery = 2 * time.Second // progress
	refusedMost = 20              // refused rows that are named
)

// Replay publishes the rows that the outbox still holds of a time once more, by created_at and id, each marked by the header
// replay and without lsn and seq: it is not the stream. It runs beside a relay or without one.
func Replay(ctx context.Context, cfg config.Config, adminURL, from, to string, dryRun bool, out, progress io.Writer, opts ...kgo.Opt) error {
	if to == "now" {
		to = time.Now().Add(time.Minute).UTC().Format(time.RFC3339) // the writers' clocks may be ahead
	}
	since, err := time.Parse(time.RFC3339, from)
	until, uerr := time.Parse(time.RFC3339, to)
	switch {
	case err != nil || uerr != nil:
		return errors.New("--from, --to: write times as RFC 3339, 2026-11-22T08:00:00Z for example")
	case !since.Before(until):
		return fmt.Errorf("--from %s is not before --to %s", from, to)
	}
	pg, err := postgres.NewSource(cfg.Pipeline, cfg.Source).Admin(ctx, adminURL)
	if err != nil {
		return err
	}
	defer pg.Close(ctx)
	rows, err := pg.Retained(ctx, since, until)
	if err != nil {
		return err
	}
	sink := kafka.NewSink(cfg, route.Topics(cfg.Kafka), opts...)
	r := &replay{cfg: cfg, out: out, progress: progress, route: route.New(cfg.Pipeline, cfg.Kafka), mark: []byte(time.Now().UTC().Format(time.RFC3339)), told: time.Now()}
	if err := r.overlap(ctx, sink, rows); err != nil {
		return err
	}
	if dryRun {
		r.say("nothing was published (--dry-run)")
		return nil
	}
	if r.pub, err = sink.OpenReplay(ctx); err != nil {
		return err
	}
	defer r.pub.Close()
	err = rows.Each(ctx, func(row *cdc.Row) error { return r.add(ctx, row) })
	if err == nil {
		err = r.flush(ctx)
	}
	r.say("%d rows were published again, the last one created at %s", r.published, r.last)
	what := fmt.Sprintf("%d rows were published again", r.published)
	if err != nil {
		what += ", then it failed"
	}
	if cfg.Source.Kind == config.KindWAL { // polling has no topic to write it down in
		if admin, aerr := sink.Admin(ctx); aerr == nil {
			defer admin.Close()
			err = errors.Join(err, admin.WriteDecision(ctx, &cdc.Decision{Time: time.Now().UTC(), Command: "replay", By: operator(), What: what, From: from, To: to}))
		}
	}
	if err != nil {
		return fmt.Errorf("the replay is not complete: run it again from the time of the last row: %w", err)
	}
	if r.refused > 0 {
		return fmt.Errorf("%d rows were refused and are not published", r.refused)
	}
	return nil
}

type replay struct {
	cfg           config.Config
	pub           cdc.Publisher
	route         *route.Router
	out, progress io.Writer
	mark          []byte

	rows      []*cdc.Row
	bytes     int
	total     int64
	published int64
	refused   int
	last      string
	told      time.Time
}

func (r *replay) say(format string, args ...any) { fmt.Fprintf(r.out, format+"\n", args...) }

// overlap says how much there is, and how much of it was delivered before, as far as the state record can tell.
func (r *replay) overlap(ctx context.Context, sink *kafka.Sink, rows *postgres.Retained) error {
	st, err := sink.Peek(ctx)
	var halt *cdc.Halt
	if err != nil && !errors.As(err, &halt) {
		return err
	}
	var delivered time.Time
	if st != nil {
		delivered = st.LastCommitTime
	}
	total, before, err := rows.Count(ctx, delivered)
	if err != nil {
		return err
	}
	r.total = total
	r.say("%d rows were created from %s to %s and are still in %s", total, rows.From.UTC().Format(time.RFC3339), rows.To.UTC().Format(time.RFC3339), r.cfg.Source.Table)
	if r.cfg.Source.Kind == config.KindPolling {
		r.say("what was published before comes twice, and so does what is pending, which the relay publishes in its turn: consumers tell by the header id")
		return nil
	}
	if st == nil || delivered.IsZero() {
		r.say("nothing tells how many of them were published before; those come twice, consumers tell by the header id")
		return nil
	}
	r.say("%d of them were created before the last row that was delivered (committed %s): whatever of these is not in a gap comes twice, consumers tell by the header id",
		before, delivered.UTC().Format(time.RFC3339))
	return nil
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
		if refused := (*cdc.Refused)(nil); errors.As(err, &refused) {
			if r.refused++; r.refused <= refusedMost {
				r.say("refused: row %q: %s", row.ID, refused.Reason)
			}
			continue
		}
		if err != nil {
			return err
		}
		rec.Headers = append(slices.DeleteFunc(rec.Headers, func(h cdc.Header) bool { return h.Key == "replay" }),
			cdc.Header{Key: "replay", Value: r.mark})
		records = append(records, rec)
	}
	if len(records) > 0 {
		if err := r.pub.Publish(ctx, records, nil); err != nil {
			return err
		}
		r.published += int64(len(records))
		r.last = strings.TrimSpace(string(records[len(records)-1].Row.CreatedAt))
	}
	r.rows, r.bytes = r.rows[:0], 0
	if time.Since(r.told) > replayEvery {
		r.told = time.Now()
		fmt.Fprintf(r.progress, "%d of %d rows, at %s\n", r.published, r.total, r.last)
	}
	return nil
}
