package pipeline

import (
	"context"
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc"
)

// SkipOptions are the options of Skip.
type SkipOptions struct {
	To       cdc.LSN       // give up the undelivered commits before this LSN
	Next     bool          // instead of To: give up the one transaction that PostgreSQL cannot decode
	Wait     time.Duration // how long to wait for open transactions to end: rows that they wrote may be hidden
	DryRun   bool
	Decided  func(Skipped) // is called with the result before Skip changes anything; may be nil
	Progress Progress
}

// Skipped says what Skip gave up, or would give up in a dry run.
type Skipped struct {
	cdc.Range                // the undelivered commits
	What      string         // the rows that are given up, as a sentence
	Uncounted error          // why the rows were not counted; nil if they were
	Stays     *cdc.HaltError // a latched halt that only Adopt ends
	Ends      *cdc.HaltError // a latched halt that this skip ends
	// Open are transactions whose rows may also be missing. ReplayOpen is the command to run after they have ended.
	Open       []cdc.Transaction
	ReplayOpen string
}

// Skip gives up the undelivered commits before o.To, or the one transaction that PostgreSQL cannot decode: it writes the
// state record, then moves the slot. It runs with the relay's rights. It returns what it gave up, also with an error.
func (p *Pipeline) Skip(ctx context.Context, o SkipOptions) (s Skipped, err error) {
	d, err := p.kind.decide(ctx, decideOptions{o.Wait, o.DryRun, o.Progress})
	if err != nil {
		return s, err
	}
	defer d.close(ctx)
	if err := d.read(ctx); err != nil {
		return s, err
	}
	if err := d.movable(); err != nil {
		return s, err
	}
	to := o.To
	if o.Next {
		if to, err = d.undecodable(ctx); err != nil {
			return s, err
		}
	}
	state, err := cdc.SkipTo(p.cfg.Pipeline, d.State, d.Facts, to)
	if err != nil {
		return s, err
	}
	s.Range = cdc.Range{From: d.State.Covered, To: to}
	s.What = "rows that are not delivered and were committed in this range are given up"
	if o.Next {
		s.What = "the one transaction that PostgreSQL cannot decode is given up"
	} else if transactions, rows, err := d.pg.Waiting(ctx, s.From, to); err != nil {
		s.Uncounted = err
	} else {
		s.What = fmt.Sprintf("%d outbox rows of %d transactions are given up, except those that were delivered already", rows, transactions)
	}
	switch before := d.State.Halt; {
	case before != nil && state.Halt != nil:
		s.Stays = state.Halt.Halt()
	case before != nil && before.Latched:
		s.Ends = before.Halt()
		if s.Open, err = d.writers(ctx); err != nil {
			return s, err
		}
		if state, err = cdc.SkipTo(p.cfg.Pipeline, d.State, d.Facts, to); err != nil {
			return s, err
		}
		s.ReplayOpen = cdc.ReplayUntilNow(d.State, &d.Facts)
	}
	if o.Decided != nil {
		o.Decided(s)
	}
	if o.DryRun {
		return s, nil
	}
	made := cdc.Decision{Command: "skip", What: s.What, From: s.From.String(), To: to.String()}
	if err := d.write(ctx, state, made); err != nil {
		return s, err
	}
	return s, d.advance(ctx, to)
}

// undecodable returns the LSN after the one transaction that PostgreSQL cannot decode. It returns an error while earlier rows
// wait.
func (d *decision) undecodable(ctx context.Context) (cdc.LSN, error) {
	from := d.Facts.Slot.ConfirmedFlush
	if d.State != nil {
		from = max(from, d.State.Covered)
	}
	before, past, err := d.pg.Undecodable(ctx, from, d.Facts.WALEnd)
	if err != nil {
		return 0, err
	}
	_, rows, err := d.pg.Waiting(ctx, from, before)
	if err == nil && rows > 0 {
		err = fmt.Errorf("nothing was changed: %d rows wait that were committed before the transaction that cannot be decoded: start the relay, which delivers them, and run this again after it has halted", rows)
	}
	return past, err
}
