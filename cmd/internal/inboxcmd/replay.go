package inboxcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/walpost/walpost/cdc/inbox"
)

// Replay is the command that delivers old events to a group once more.
type Replay struct {
	From      string `placeholder:"TIME" help:"Replay events that Kafka received at or after this time, 2026-11-01T00:00Z for example."`
	Offset    int64  `default:"-1" help:"Replay from this offset on, in --partition or in each partition."`
	Partition int32  `default:"-1" help:"Replay this partition only."`
	DryRun    bool   `help:"Print the number of events, and move no offsets."`
}

// Check returns an error if the flags are wrong.
func (r *Replay) Check() error {
	_, err := r.from()
	return err
}

// Run moves the offsets of the group, which must have no running consumers, and prints the numbers of events.
func (r *Replay) Run(ctx context.Context, in *Inboxes) error {
	from, err := r.from()
	if err != nil {
		return err
	}
	opts := inbox.ReplayOptions{From: from, Offset: max(0, r.Offset), DryRun: r.DryRun}
	if r.Partition >= 0 {
		opts.Partitions = []int32{r.Partition}
	}
	return in.one(ctx, func(operator *inbox.Operator) error {
		plan, err := operator.Replay(ctx, opts)
		return r.report(in.Stdout, operator.Group(), plan, err)
	})
}

// report prints the plan.
func (r *Replay) report(stdout io.Writer, group string, plan []inbox.Rewind, err error) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PARTITION\tFROM\tTO\tNEW\tINBOX SKIPS\tPARKED\tOTHERS")
	var fresh, skips int
	for _, p := range plan {
		fmt.Fprintf(table, "%d\t%d\t%d\t%d\t%d\t%d\t%d\n", p.Partition, p.From, p.Committed, p.New, p.Duplicates, p.Parked, p.Others)
		fresh, skips = fresh+p.New, skips+p.Duplicates
	}
	if len(plan) > 0 {
		if flushErr := table.Flush(); flushErr != nil {
			return flushErr
		}
		fmt.Fprintf(stdout, "%d events would be new, %d the inbox will skip\n", fresh, skips)
	}
	switch {
	case err != nil:
		return err
	case r.DryRun:
		fmt.Fprintln(stdout, "dry run: no offsets were moved")
	default:
		fmt.Fprintf(stdout, "group %s begins at these offsets when you start its consumers\n", group)
	}
	return nil
}

// from returns the time of --from; zero with --offset.
func (r *Replay) from() (time.Time, error) {
	if (r.From == "") == (r.Offset < 0) {
		return time.Time{}, errors.New("name the start: --from 2026-11-01T00:00Z, or --offset 1000 (with --partition)")
	}
	if r.From == "" {
		return time.Time{}, nil
	}
	from, err := ParseTime(r.From)
	if err != nil {
		return time.Time{}, fmt.Errorf("--from: %w", err)
	}
	return from, nil
}

// ParseTime reads a time to the second or finer, or to the minute, or a date, which means the day's first moment in
// UTC.
func ParseTime(text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04Z07:00", time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time: write 2026-11-01T00:00Z", text)
}
