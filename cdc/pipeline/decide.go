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

// decideOptions are the options that decisions about positions have in common.
type decideOptions struct {
	wait     time.Duration // how long to wait for transactions that are open during the decision
	dryRun   bool
	progress Progress
}

// decision is an operator's change of the state record and the slot, while the relay is halted or stopped. It reads the
// record and the server in the order of a session's start, and writes down what it did.
type decision struct {
	survey
	*Pipeline
	decideOptions
	pg    *postgres.Admin
	kafka *kafka.Admin
	pub   cdc.Publisher // nil in a dry run
}

// decide opens PostgreSQL and Kafka with the relay's rights.
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

// read reads both sides. It fences the relay before it reads the state record. A dry run does not fence.
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

// write makes the state record durable, and writes the decision down.
func (d *decision) write(ctx context.Context, st *cdc.State, made cdc.Decision) error {
	if err := d.pub.Publish(ctx, nil, st); err != nil {
		return fmt.Errorf("write the state record: %w", err)
	}
	if err := d.kafka.AwaitState(ctx); err != nil {
		return err
	}
	d.progress.step("state record in %s: covered = %s", d.cfg.StateTopic(), st.Covered)
	return d.note(ctx, made)
}

// movable returns an error while PostgreSQL would not move the slot: PostgreSQL 17 and later first wait for the standby
// servers of synchronized_standby_slots.
func (d *decision) movable() error {
	if away := d.Facts.StandbysAway(); away != "" {
		return fmt.Errorf("nothing was changed: PostgreSQL cannot move the slot now: %s; then run this again", away)
	}
	return nil
}

// freeWithin is how long a cancelled query may keep the slot in use: PostgreSQL ends such a query only when it next checks
// for interrupts.
const freeWithin = 10 * time.Second

// advance moves the slot. If the slot is in use, it tries again for freeWithin.
func (d *decision) advance(ctx context.Context, to cdc.LSN) error {
	slot := d.cfg.Source.Slot
	d.progress.step("slot %s: move it to %s (PostgreSQL reads the WAL up to this LSN, and may wait for its standby servers)", slot, to)
	err := d.pg.Advance(ctx, to)
	for deadline := time.Now().Add(freeWithin); errors.Is(err, cdc.ErrSlotInUse) && time.Now().Before(deadline) && ctx.Err() == nil; {
		time.Sleep(askEach)
		err = d.pg.Advance(ctx, to)
	}
	if err != nil && ctx.Err() == nil && d.again(ctx, d.source) == nil {
		if behind := d.Facts.StandbysBehind(to); behind != "" {
			return fmt.Errorf("the state record is written, but the slot is not moved: %s; then run this again (%w)", behind, err)
		}
	}
	if errors.Is(err, cdc.ErrSlotInUse) {
		return fmt.Errorf("the state record is written, but the slot is not moved: a relay took it meanwhile: stop the relay, and run this again: %w", err)
	}
	if err != nil {
		return fmt.Errorf("the state record is written, but the slot is not moved: run this again: %w", err)
	}
	d.progress.step("slot %s: moved to %s", slot, to)
	return nil
}

const (
	askEach  = 200 * time.Millisecond // time between two queries while a verb waits
	sayEvery = 2 * time.Second        // time between two reports of progress
)

// writers waits until every open transaction that has written something has ended. The rows that such a transaction wrote
// while rows were hidden can be replayed only after its commit. Then writers reads the server's facts again. It returns the
// transactions that are still open after d.wait, the oldest first. A dry run does not wait.
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
			d.progress.step("waits for %s: rows that it wrote may be hidden until it has ended (%s)", open[0], open[0].End())
		}
		select {
		case <-time.After(askEach):
		case <-ctx.Done():
			return nil, fmt.Errorf("nothing was changed: %w", context.Cause(ctx))
		}
	}
}
