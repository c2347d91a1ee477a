package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cdc/polling"
)

// MigrateOptions are the options of MigrateSource.
type MigrateOptions struct {
	AdminURL string // URL of an administrator
	Progress Progress
}

// MigrateSource prepares a polled pipeline for the WAL while the poller runs. It creates the slot, and waits until the poller
// has published every row that was committed before the slot. Later rows are in the slot, so from then on neither the poller
// nor the slot loses a row. Rows that the poller publishes between the slot's creation and its own end arrive twice.
// MigrateSource returns its steps.
func (p *Pipeline) MigrateSource(ctx context.Context, o MigrateOptions) ([]Step, error) {
	if p.cfg.Source.Kind != config.KindWAL {
		return nil, errors.New("source.kind: run this with the new configuration, source.kind: wal; do not change source.polling until this has ended")
	}
	table := polling.NewOutbox(p.cfg.Pipeline, p.cfg.Source, p.log)
	remaining := func(upTo int64) (polling.Remaining, error) {
		r, err := table.Remaining(ctx, upTo)
		if err == nil && r.Failed > 0 {
			err = fmt.Errorf("%s failed, and the slot would not contain them: run `walpost dlq redrive` or `walpost dlq drop` with source.kind: polling, and then this again", plain.Count(r.Failed, "row has", "rows have"))
		}
		return r, err
	}
	if _, err := remaining(0); err != nil {
		return nil, err
	}
	steps, err := p.Init(ctx, InitOptions{AdminURL: o.AdminURL, Progress: o.Progress})
	if err != nil {
		return steps, err
	}
	// PostgreSQL created the slot after the transactions that were open before it had ended, so their rows are visible.
	left, err := remaining(0)
	upTo := left.Newest
	if err == nil && left.Pending > 0 {
		o.Progress.step("%d rows that may be older than the slot are pending: waits until the poller has published them", left.Pending)
	}
	for all := left.Pending; err == nil && left.Pending > 0; {
		o.Progress.at(int64(all-left.Pending), int64(all), "rows")
		select {
		case <-ctx.Done():
		case <-time.After(askEach):
		}
		left, err = remaining(upTo)
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("rows that may be older than the slot are pending: keep the poller running, and run this again (%w)", ctx.Err())
	}
	return steps, err
}
