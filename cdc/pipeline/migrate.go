package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/polling"
)

// MigrateOptions is how to move from polling to the WAL.
type MigrateOptions struct {
	AdminURL string // PostgreSQL, as an administrator
	Progress Progress
}

// MigrateSource prepares a polled table's pipeline for the WAL, while it is polled: it makes the slot, and waits until
// every row that was committed before has been published by the poller. What was committed since is in the slot, so
// from then on either of them loses nothing. What the poller publishes between the slot and its own end comes twice. It
// returns its steps.
func (p *Pipeline) MigrateSource(ctx context.Context, o MigrateOptions) ([]Step, error) {
	if p.cfg.Source.Kind != config.KindWAL {
		return nil, errors.New("source.kind: name the configuration that is to be, with source.kind: wal; source.polling stays as it is until this has ended")
	}
	table := polling.NewOutbox(p.cfg.Pipeline, p.cfg.Source, p.log)
	remaining := func(upTo int64) (polling.Remaining, error) {
		r, err := table.Remaining(ctx, upTo)
		if err == nil && r.Failed > 0 {
			err = fmt.Errorf("%d rows have failed, and no slot would have them: `walpost dlq redrive` or `walpost dlq drop` them under source.kind: polling, and run this again", r.Failed)
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
	// The slot waited for the transactions that were open before it: what they committed can be seen.
	left, err := remaining(0)
	upTo := left.Newest
	for told := (time.Time{}); err == nil && left.Pending > 0; {
		if time.Since(told) > sayEvery {
			o.Progress.step("%d rows that may be older than the slot are pending: the poller has to publish them", left.Pending)
			told = time.Now()
		}
		select {
		case <-ctx.Done():
		case <-time.After(askEach):
		}
		left, err = remaining(upTo)
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("rows that may be older than the slot are pending: let the poller run on, and run this again (%w)", ctx.Err())
	}
	return steps, err
}
