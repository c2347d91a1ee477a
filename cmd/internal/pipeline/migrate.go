package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/polling"
)

const drainEvery = 200 * time.Millisecond

// MigrateSource prepares a polled table's pipeline for the WAL, while it is polled: it makes the slot, and waits until every row
// that was committed before has been published by the poller. What was committed since is in the slot, so from then on either of
// them loses nothing. What the poller publishes between the slot and its own end comes twice.
func MigrateSource(ctx context.Context, cfg config.Config, adminURL string, out io.Writer, opts ...kgo.Opt) error {
	if cfg.Source.Kind != config.KindWAL {
		return errors.New("source.kind: name the configuration that is to be, with source.kind: wal; source.polling stays as it is until this has ended")
	}
	left := func(upTo int64) (pending, newest int64, err error) {
		pending, failed, newest, err := polling.Left(ctx, cfg.Pipeline, cfg.Source, upTo)
		if err == nil && failed > 0 {
			err = fmt.Errorf("%d rows have failed, and no slot would have them: `walpost dlq redrive` or `walpost dlq drop` them under source.kind: polling, and run this again", failed)
		}
		return pending, newest, err
	}
	if _, _, err := left(0); err != nil {
		return err
	}
	if err := Init(ctx, cfg, adminURL, false, false, out, opts...); err != nil {
		return err
	}
	// The slot waited for the transactions that were open before it: what they committed can be seen.
	pending, upTo, err := left(0)
	for told := (time.Time{}); err == nil && pending > 0; {
		if time.Since(told) > replayEvery {
			fmt.Fprintf(out, "%d rows that may be older than the slot are pending: the poller has to publish them\n", pending)
			told = time.Now()
		}
		select {
		case <-ctx.Done():
		case <-time.After(drainEvery):
		}
		pending, _, err = left(upTo)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("rows that may be older than the slot are pending: let the poller run on, and run this again (%w)", ctx.Err())
	case err != nil:
		return err
	}
	fmt.Fprintf(out, "the poller has published everything that is older than the slot: stop it, and start `walpost relay` with source.kind: wal; what the poller has published since then comes twice\n")
	return nil
}
