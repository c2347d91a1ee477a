package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

type replay struct {
	source
	From      string `placeholder:"TIME" help:"Replay what Kafka got from this time on, as in 2026-11-01T00:00Z."`
	Offset    int64  `default:"-1" help:"Replay from this offset on, of --partition or of each."`
	Partition int32  `default:"-1" help:"Of this partition only."`
	DryRun    bool   `help:"Say what it would bring, and move nothing."`
}

func (c *cli) replay(ctx context.Context, stdout io.Writer) error {
	r := &c.Replay
	from, err := r.from()
	if err := errors.Join(err, r.check()); err != nil {
		return err
	}
	operator, done, err := c.operator(ctx, r.source)
	if err != nil {
		return err
	}
	defer done()
	plan, err := operator.Replay(ctx, from, r.Partition, max(0, r.Offset), r.DryRun)
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PARTITION\tFROM\tTO\tNEW\tINBOX SKIPS\tPARKED\tNOT OURS")
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
		fmt.Fprintln(stdout, "dry run: nothing was moved")
	default:
		fmt.Fprintf(stdout, "group %s begins there when its consumers are started\n", r.Group)
	}
	return nil
}

func (r *replay) from() (time.Time, error) {
	if (r.From == "") == (r.Offset < 0) {
		return time.Time{}, errors.New("say from where: --from 2026-11-01T00:00Z, or --offset 1000 (with --partition)")
	}
	if r.From == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04Z07:00", time.DateOnly} {
		if from, err := time.Parse(layout, r.From); err == nil {
			return from, nil
		}
	}
	return time.Time{}, fmt.Errorf("--from: %q is no time as 2026-11-01T00:00Z", r.From)
}
