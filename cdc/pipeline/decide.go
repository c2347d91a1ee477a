package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/postgres"
)

// decideOptions are what decisions over positions have in common.
type decideOptions struct {
	wait     time.Duration // for transactions that are open across the decision
	dryRun   bool
	progress Progress
}

// decision is a change of state record and slot by an operator, while the relay is halted or stopped. It reads state
// and server the way a session's start does, in the same order, and writes down what it did.
type decision struct {
	survey
	*Pipeline
	decideOptions
	pg    *postgres.Admin
	kafka *kafka.Admin
	pub   cdc.Publisher // nil in a dry run
}

// decide opens both sides with the relay's own rights.
func (w wal) decide(ctx context.Context, o decideOptions) (*decision, error) {
	if _, err := w.source.Preflight(ctx); err != nil {
		return nil, err
	}
	d := &decision{Pipeline: w.Pipeline, decideOptions: o}
	var err error
	if d.pg, err = w.source.Operator(ctx); err != nil {
		return nil, err
	}
	if d.kafka, err = w.sink.Admin(ctx); err != nil {
		d.close(ctx)
		return nil, err
	}
	return d, nil
}

// read reads both sides, the state record after fencing the relay. A dry run fences nobody.
func (d *decision) read(ctx context.Context) (err error) {
	d.survey, err = readAll(ctx, d.source, func(ctx context.Context, before *cdc.Facts) (_ *cdc.State, err error) {
		if before.Slot.Active {
			return nil, errors.New("the slot is in use: stop the relay, and run this again")
		}
		if d.dryRun {
			return d.kafka.State(ctx)
		}
		if d.pub, err = d.kafka.OpenFenced(ctx); err != nil {
			return nil, err
		}
		return d.pub.State(ctx)
	})
	return err
}

func (d *decision) close(ctx context.Context) {
	d.pg.Close(ctx)
	if d.pub != nil {
		d.pub.Close()
	}
	if d.kafka != nil {
		d.kafka.Close()
	}
}

// write makes the state record durable, and the decision that led to it.
func (d *decision) write(ctx context.Context, st *cdc.State, command, what string, from, to cdc.LSN) error {
	if err := d.pub.Publish(ctx, nil, st); err != nil {
		return fmt.Errorf("write the state record: %w", err)
	}
	if err := d.kafka.AwaitState(ctx); err != nil {
		return err
	}
	d.progress.step("state record in %s: covered = %s", d.cfg.StateTopic(), st.Covered)
	return d.note(ctx, command, what, from.String(), to.String())
}

// movable returns an error while PostgreSQL would not move the slot: from 17 on it first waits for the standbys of
// synchronized_standby_slots.
func (d *decision) movable() error {
	if away := d.Facts.StandbysAway(); away != "" {
		return fmt.Errorf("nothing was changed: the slot cannot be moved now: %s; then run this again", away)
	}
	return nil
}

// freeWithin is how long a look at the slot that was broken off may hold it: PostgreSQL ends it when it next asks for
// interrupts.
const freeWithin = 10 * time.Second

// advance moves the slot, which is free or was a moment ago.
func (d *decision) advance(ctx context.Context, to cdc.LSN) error {
	slot := d.cfg.Source.Slot
	d.progress.step("slot %s: move it to %s (PostgreSQL reads the WAL up to there, and may wait for its standbys)", slot, to)
	err := d.pg.Advance(ctx, to)
	for deadline := time.Now().Add(freeWithin); errors.Is(err, cdc.ErrSlotInUse) && time.Now().Before(deadline) && ctx.Err() == nil; {
		time.Sleep(askEach)
		err = d.pg.Advance(ctx, to)
	}
	if err != nil && ctx.Err() == nil && d.again(ctx, d.source) == nil {
		if behind := d.Facts.StandbysBehind(to); behind != "" {
			return fmt.Errorf("the state record is written, the slot is not moved: %s; then run this again (%w)", behind, err)
		}
	}
	if errors.Is(err, cdc.ErrSlotInUse) {
		return fmt.Errorf("the state record is written, the slot is not moved: a relay took it meanwhile: stop the relay, and run this again: %w", err)
	}
	if err != nil {
		return fmt.Errorf("the state record is written, the slot is not moved: run this again: %w", err)
	}
	d.progress.step("slot %s: moved to %s", slot, to)
	return nil
}

const (
	askEach  = 200 * time.Millisecond // between two looks at what a verb waits for
	sayEvery = 2 * time.Second        // between two steps of progress
)

// writers waits until every transaction has ended that has written something and is open now: rows that it wrote while
// rows were hidden come with its commit or never, and can be replayed only after it. Then it looks at the server again.
// It returns those that are still open after d.wait, the oldest first. A dry run does not wait.
func (d *decision) writers(ctx context.Context) (open []cdc.Transaction, err error) {
	var first map[string]cdc.Transaction
	for deadline, told := time.Now().Add(d.wait), (time.Time{}); ; {
		now, err := d.pg.Writers(ctx)
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = now
		}
		open = open[:0]
		for xid := range first {
			if t, still := now[xid]; still {
				open = append(open, t)
			}
		}
		slices.SortFunc(open, func(a, b cdc.Transaction) int {
			return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.PID, b.PID))
		})
		switch {
		case d.dryRun:
			return open, nil
		case len(open) == 0, time.Now().After(deadline):
			return open, d.again(ctx, d.source)
		}
		if time.Since(told) > sayEvery {
			told = time.Now()
			d.progress.step("waits for %s: rows that it wrote may be hidden, and are seen once it has ended (%s)", open[0], open[0].End())
		}
		select {
		case <-time.After(askEach):
		case <-ctx.Done():
			return nil, fmt.Errorf("nothing was changed: %w", context.Cause(ctx))
		}
	}
}
