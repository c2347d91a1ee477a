package pipeline

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// next stands for the LSN behind the one transaction that PostgreSQL cannot decode.
const next = "next"

// Skip gives up what was committed before to and is not delivered: it writes the state record, then moves the slot. It runs
// with the relay's own rights.
func Skip(ctx context.Context, cfg config.Config, to string, wait time.Duration, dryRun bool, out io.Writer, opts ...kgo.Opt) error {
	var lsn cdc.LSN
	if to != next {
		var err error
		if lsn, err = cdc.ParseLSN(to); err != nil {
			return fmt.Errorf("--to: %w; the halt names it, and pg_replication_slots shows where the slot stands", err)
		}
	}
	d, err := decide(ctx, cfg, wait, dryRun, out, opts)
	if err != nil {
		return err
	}
	defer d.close(ctx)
	if err := d.read(ctx); err != nil {
		return err
	}
	if err := d.movable(); err != nil {
		return err
	}
	if to == next {
		if lsn, err = d.undecodable(ctx); err != nil {
			return err
		}
	}
	state, err := cdc.SkipTo(cfg.Pipeline, d.state, d.facts, lsn)
	if err != nil {
		return err
	}
	from := d.state.Covered
	what := "rows that are not delivered and were committed in this range are given up"
	if to == next {
		what = "the one transaction that PostgreSQL cannot decode is given up"
		d.say("skip %s: %s, and no row before it waits", cdc.Range{From: from, To: lsn}, what)
	} else if transactions, rows, err := d.pg.Waiting(ctx, from, lsn); err != nil {
		d.say("skip %s: how many rows that are cannot be told (%v)", cdc.Range{From: from, To: lsn}, err)
	} else {
		what = fmt.Sprintf("%d outbox rows of %d transactions are given up, but for those that were delivered already", rows, transactions)
		d.say("skip %s: %s", cdc.Range{From: from, To: lsn}, what)
	}
	ends := d.state.Halt != nil && d.state.Halt.Latched && state.Halt == nil
	var open []cdc.Transaction
	if ends {
		if open, err = d.writers(ctx); err != nil {
			return err
		}
		if state, err = cdc.SkipTo(cfg.Pipeline, d.state, d.facts, lsn); err != nil {
			return err
		}
	}
	switch {
	case d.state.Halt != nil && state.Halt != nil:
		d.say("the latched halt stays, `walpost adopt` ends it: %v", state.Halt.Halt())
	case ends:
		d.say("the latched halt ends: %s", d.state.Halt.Found)
		d.stillOpen(open)
	}
	if dryRun {
		d.say("nothing was changed (--dry-run)")
		return nil
	}
	if err := d.write(ctx, state, "skip", what, from, lsn); err != nil {
		return err
	}
	if err := d.advance(ctx, lsn); err != nil {
		return err
	}
	d.say("done: %s", goOn)
	return nil
}

// undecodable finds the LSN that steps over the one transaction that PostgreSQL cannot decode, and refuses while rows before it wait.
func (d *decision) undecodable(ctx context.Context) (cdc.LSN, error) {
	from := d.facts.Slot.ConfirmedFlush
	if d.state != nil {
		from = max(from, d.state.Covered)
	}
	before, past, err := d.pg.Undecodable(ctx, from, d.facts.WALEnd)
	if err != nil {
		return 0, err
	}
	_, rows, err := d.pg.Waiting(ctx, from, before)
	if err == nil && rows > 0 {
		err = fmt.Errorf("nothing was changed: %d rows that can be decoded wait before the transaction that cannot: start the relay, which delivers them, and run this again when it is halted", rows)
	}
	return past, err
}
