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
	eventTimeout = 5 * time.Second  // for the transaction of one event
	batchTimeout = 20 * time.Second // for the transaction of several events
	minBackoff   = 50 * time.Millisecond
	maxBackoff   = 5 * time.Second
	blockRetry   = 5 * time.Second // how often a blocked event is tried again: the row it needs may exist now
)

// A transaction locks its partition's row, and the next owner waits for it. The server ends the transaction of a frozen
// process.
var begin = fmt.Sprintf("BEGIN; SET LOCAL idle_in_transaction_session_timeout = %d", eventTimeout.Milliseconds())

// errIsolate is returned when the transaction of several events failed, so that they must be tried one by one.
var errIsolate = errors.New("one of several events")

// blockedError is returned when the partition waits for an operator.
type blockedError struct{ error }

func (b *blockedError) Unwrap() error { return b.error }

// backoff returns a random time that doubles on average with each failure.
func backoff(failures int) time.Duration {
	most := min(maxBackoff, minBackoff<<min(failures, 16))
	return most/2 + rand.N(most/2)
}

// work applies the records in order. It returns when all are done, regardless of how long that takes, or when p stops.
func (c *Consumer) work(p *partition, records []*kgo.Record) {
	limit, failures := c.cfg.Batch, 0
	var alone int64 // records below this offset are applied one by one
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
			if p.setState(state{}) {
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
	continues := "when the event can be applied, or when an operator passes it"
	if p.gap != nil {
		err = fmt.Errorf("partition %d: %w", p.claim.partition, err)
		continues = "when an operator drops the gap (`parked list`, `parked drop`), or when the tables are rebuilt from the topic"
	} else {
		err = fmt.Errorf("partition %d, offset %d: %w", p.claim.partition, records[0].Offset, err)
	}
	var blocked *blockedError
	if errors.As(err, &blocked) {
		if p.setState(state{blocked: err}) {
			c.log.Error().Err(err).Msg("partition blocked: it continues " + continues)
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
	c.days = days{} // the failure may come from a change of day
	c.mu.Unlock()
	p.setState(state{transient: err})
	c.database.failed(c.log, err, 0)
	c.measureStates()
}

// step processes at least one and up to limit records in one transaction, and returns their number.
func (c *Consumer) step(p *partition, records []*kgo.Record, limit int) (int, error) {
	c.slots <- struct{}{}
	defer func() { <-c.slots }()
	ctx, cancel := context.WithTimeout(p.ctx, batchTimeout)
	defer cancel()
	if p.claim.epoch == 0 {
		// A process that slept through a rebalance must not take the partition from its owner.
		if err := c.isMember(ctx); err != nil {
			return 0, err
		}
		if err := c.claim(ctx, p); err != nil {
			return 0, err
		}
	}
	if p.gap != nil {
		return 0, c.passGap(ctx, p)
	}
	days, err := c.knownDays(ctx)
	if err != nil {
		return 0, err
	}

	var events []Event
	var rejected error
	done, skipped := 0, 0
	for ; done < len(records) && len(events) < limit; done++ {
		if records[done].Attrs.IsControl() {
			continue
		}
		ev := newEvent(records[done])
		known := len(c.cfg.Types) == 0 || slices.Contains(c.cfg.Types, ev.Type)
		if !known && slices.Contains(c.cfg.Ignore, ev.Type) {
			skipped++
			c.log.Debug().Int32("partition", ev.Partition).Int64("offset", ev.Offset).Str("event_id", ev.ID).Str("type", ev.Type).Msg("event skipped: its type is ignored")
			continue
		}
		policy := c.cfg.Policy
		rejected = ev.check(c.cfg.Types, days.first, days.last)
		if rejected == nil && !known {
			rejected, policy = errors.New("unknown type "+ev.Type), Skip
		}
		if rejected != nil && len(events) > 0 {
			break // first the events before it
		}
		if rejected != nil {
			c.cfg.Metrics.skipped.Add(float64(skipped))
			return done + 1, c.reject(ctx, p, ev, rejected, policy)
		}
		events = append(events, ev)
	}
	if len(events) == 0 { // advance past them, so that they are no gap when they leave the topic
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
		err = c.reject(ctx, p, events[0], err, c.cfg.Policy)
	}
	return done, err
}

// transact commits do's work and the partition's next offset in one transaction, if this process still owns the
// partition.
func (c *Consumer) transact(ctx context.Context, p *partition, next int64, do func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, c.cfg.Pool, pgx.TxOptions{BeginQuery: begin}, func(tx pgx.Tx) error {
		if err := p.claim.advance(ctx, tx, next); err != nil {
			return err
		}
		return do(tx)
	})
}

// reject handles an event that can never be applied, by policy: it blocks the partition or parks the event.
func (c *Consumer) reject(ctx context.Context, p *partition, ev Event, why error, policy Policy) error {
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
		return c.effects.parkEvent(ctx, tx, ev, reason, policy)
	}); err != nil {
		return err
	}
	c.cfg.Metrics.refused.WithLabelValues(string(policy)).Inc()
	c.log.Warn().Int32("partition", ev.Partition).Int64("offset", ev.Offset).Str("event_id", ev.ID).Str("type", ev.Type).Str("reason", reason).
		Str("policy", string(policy)).Msg("event parked: it cannot be applied")
	return nil
}

// reasonOf returns the handler's text, without the texts that wrap it.
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
			Int("duplicates", out.duplicates).Int("held", out.held).Msg("events not applied: they are in the inbox already, or an earlier event of their key is parked")
	}
}

func (c *Consumer) claim(ctx context.Context, p *partition) error {
	return p.claim.take(ctx, c.cfg.Pool, owner())
}

// isMember asks the group whether it knows this process, and returns an error if not. It ignores other error codes in the
// answer: the claim decides then.
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
		return fmt.Errorf("the group continues without this process: %w", err)
	default:
		return nil
	}
}
