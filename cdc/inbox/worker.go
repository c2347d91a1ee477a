package inbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	eventTimeout = 5 * time.Second  // the transaction of one event
	batchTimeout = 20 * time.Second // of several
	minBackoff   = 50 * time.Millisecond
	maxBackoff   = 5 * time.Second
	blockRetry   = 5 * time.Second // an event that blocks is tried again: what it needs may be there now
)

// A transaction holds its partition's row, for which the next owner waits. The server ends one whose process is frozen.
var begin = fmt.Sprintf("BEGIN; SET LOCAL idle_in_transaction_session_timeout = %d", eventTimeout.Milliseconds())

// errIsolate is returned when the transaction of several events failed.
var errIsolate = errors.New("one of several events")

// blockedError is returned when the partition waits for a human.
type blockedError struct{ error }

func (b *blockedError) Unwrap() error { return b.error }

// backoff is a random time that doubles on average with each failure.
func backoff(failures int) time.Duration {
	most := min(maxBackoff, minBackoff<<min(failures, 16))
	return most/2 + rand.N(most/2)
}

// work applies the records in order. It returns when they are done, however long that takes, or p stops.
func (c *Consumer) work(p *partition, records []*kgo.Record) {
	limit, failures := c.cfg.Batch, 0
	var alone int64 // records below are applied one by one
	for (len(records) > 0 || p.gap != nil) && !p.isStopping() {
		done, err := c.step(p, records, limit)
		if err == nil {
			if done > 0 {
				p.finished(records[done-1])
				if records[done-1].Offset+1 >= alone {
					limit = c.cfg.Batch
				}
			}
			records, failures = records[done:], 0
			if p.become(state{}) {
				c.measureStates()
			}
			continue
		}
		if errors.Is(err, errIsolate) {
			alone, limit = records[done-1].Offset+1, 1
			continue
		}
		if p.ctx.Err() != nil {
			return
		}
		failures++
		c.failed(p, records, err)
		wait := backoff(failures)
		if p.state().blocked != nil {
			wait = blockRetry/2 + rand.N(blockRetry)
		}
		select {
		case <-p.stopping:
		case <-time.After(wait):
		}
	}
}

func (c *Consumer) failed(p *partition, records []*kgo.Record, err error) {
	goesOn := "when the event can be applied, or when an operator passes it over"
	if p.gap != nil {
		err = fmt.Errorf("partition %d: %w", p.claim.partition, err)
		goesOn = "when an operator gives the records up (`parked list`, `parked drop`), or when what they make is rebuilt"
	} else {
		err = fmt.Errorf("partition %d, offset %d: %w", p.claim.partition, records[0].Offset, err)
	}
	var blocked *blockedError
	if errors.As(err, &blocked) {
		if p.become(state{blocked: err}) {
			c.log.Error().Err(err).Msg("partition blocked: it goes on " + goesOn)
		}
		c.measureStates()
		return
	}
	if errors.Is(err, errFenced) {
		c.cfg.Metrics.fenced.Inc()
		p.claim.epoch = 0
	}
	c.cfg.Metrics.retries.Inc()
	c.mu.Lock()
	c.days = days{} // perhaps it was another day's
	c.mu.Unlock()
	p.become(state{trouble: err})
	c.database.failed(c.log, err, 0)
	c.measureStates()
}

// step does up to limit records in one transaction, at least one, and returns how many.
func (c *Consumer) step(p *partition, records []*kgo.Record, limit int) (int, error) {
	c.slots <- struct{}{}
	defer func() { <-c.slots }()
	ctx, cancel := context.WithTimeout(p.ctx, batchTimeout)
	defer cancel()
	if p.claim.epoch == 0 {
		// Who slept through a rebalance must not take the partition from its owner.
		if err := c.isMember(ctx); err != nil {
			return 0, err
		}
		if err := c.claim(ctx, p); err != nil {
			return 0, err
		}
	}
	if p.gap != nil {
		return 0, c.pass(ctx, p)
	}
	days, err := c.knownDays(ctx)
	if err != nil {
		return 0, err
	}

	var events []Event
	var refused error
	done, skipped := 0, 0
	for ; done < len(records) && len(events) < limit; done++ {
		if records[done].Attrs.IsControl() {
			continue
		}
		ev := newEvent(records[done])
		known := len(c.cfg.Types) == 0 || slices.Contains(c.cfg.Types, ev.Type)
		if !known && slices.Contains(c.cfg.Ignore, ev.Type) {
			skipped++
			c.log.Debug().Int32("partition", ev.Partition).Int64("offset", ev.Offset).Str("event_id", ev.ID).Str("type", ev.Type).Msg("event skipped: none of ours")
			continue
		}
		policy := c.cfg.Policy
		refused = ev.check(c.cfg.Types, days.first, days.last)
		if refused == nil && !known {
			refused, policy = errors.New("unknown type "+ev.Type), Skip
		}
		if refused != nil && len(events) > 0 {
			break // first what is before it
		}
		if refused != nil {
			c.cfg.Metrics.skipped.Add(float64(skipped))
			return done + 1, c.refuse(ctx, p, ev, refused, policy)
		}
		events = append(events, ev)
	}
	if len(events) == 0 { // the inbox knows that these are none of ours, so that they are not missed when they are gone
		err := c.transact(ctx, p, records[done-1].Offset+1, func(pgx.Tx) error { return nil })
		if err == nil {
			c.cfg.Metrics.skipped.Add(float64(skipped))
		}
		return done, err
	}
	if len(events) == 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, eventTimeout)
		defer cancel()
	}
	var out outcome
	err = c.transact(ctx, p, records[done-1].Offset+1, func(tx pgx.Tx) (err error) {
		out, err = c.effects.apply(ctx, tx, events)
		return err
	})
	switch {
	case err == nil:
		c.cfg.Metrics.skipped.Add(float64(skipped))
		c.observe(events, out)
	case errors.Is(err, errFenced) || p.ctx.Err() != nil:
	case len(events) > 1:
		c.log.Debug().Err(err).Int32("partition", p.claim.partition).Int("events", len(events)).Msg("a batch failed: its events are tried one by one")
		err = errIsolate
	case isPermanent(err):
		err = c.refuse(ctx, p, events[0], err, c.cfg.Policy)
	}
	return done, err
}

// transact commits do's work together with the position behind it, if the partition is ours.
func (c *Consumer) transact(ctx context.Context, p *partition, next int64, do func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, c.cfg.Pool, pgx.TxOptions{BeginQuery: begin}, func(tx pgx.Tx) error {
		if err := p.claim.advance(ctx, tx, next); err != nil {
			return err
		}
		return do(tx)
	})
}

// refuse does with an event that can never be applied what the policy says.
func (c *Consumer) refuse(ctx context.Context, p *partition, ev Event, why error, policy Policy) error {
	reason := reasonOf(why)
	if policy == Block {
		decision, err := p.claim.block(ctx, c.cfg.Pool, ev, reason)
		if err != nil {
			return err
		}
		if decision == "" {
			return &blockedError{errors.New(reason)}
		}
		policy = decision
	}
	if err := c.transact(ctx, p, ev.Offset+1, func(tx pgx.Tx) error {
		return c.effects.refuse(ctx, tx, ev, reason, policy)
	}); err != nil {
		return err
	}
	c.cfg.Metrics.refused.WithLabelValues(string(policy)).Inc()
	c.log.Warn().Int32("partition", ev.Partition).Int64("offset", ev.Offset).Str("event_id", ev.ID).Str("type", ev.Type).Str("reason", reason).
		Str("policy", string(policy)).Msg("event parked: it cannot be applied")
	return nil
}

// reasonOf is what the handler said, without the places it was passed through.
func reasonOf(err error) string {
	var p *permanent
	if errors.As(err, &p) {
		err = p.error
	}
	return err.Error()
}

func (c *Consumer) observe(events []Event, out outcome) {
	for _, ev := range out.applied {
		c.cfg.Metrics.applied.WithLabelValues(c.cfg.Metrics.label(ev.Type)).Inc()
		for _, f := range *ev.committed {
			f()
		}
	}
	c.cfg.Metrics.duplicates.Add(float64(out.duplicates))
	c.cfg.Metrics.held.Add(float64(out.held))
	if n := out.duplicates + out.held; n > 0 {
		c.log.Debug().Int32("partition", events[0].Partition).Int64("offset", events[0].Offset).Int("events", len(events)).
			Int("duplicates", out.duplicates).Int("held", out.held).Msg("events not applied: in the inbox already, or behind a parked one")
	}
}

func (c *Consumer) claim(ctx context.Context, p *partition) error {
	return p.claim.take(ctx, c.cfg.Pool, owner())
}

// isMember asks the group whether it knows this process. Every other error than its no is left to the claim.
func (c *Consumer) isMember(ctx context.Context) error {
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group = c.cfg.Group
	req.MemberID, req.Generation = c.client.GroupMetadata()
	resp, err := within(ctx, func() (*kmsg.HeartbeatResponse, error) { return req.RequestWith(ctx, c.client) })
	if err != nil {
		return c.cfg.why(ctx, fmt.Errorf("ask whether the partition is still ours: %w", err))
	}
	switch err := kerr.ErrorForCode(resp.ErrorCode); {
	case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.IllegalGeneration):
		return fmt.Errorf("the group has gone on without this process: %w", err)
	default:
		return nil
	}
}
