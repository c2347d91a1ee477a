package main

import (
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/pipeline"
)

type skipCmd struct {
	To     string        `required:"" placeholder:"LSN" help:"Give up every undelivered commit before this LSN, for example 0/16B3748. The halt names the LSN. Write next to give up only the one transaction that PostgreSQL cannot decode."`
	Wait   time.Duration `default:"1m" help:"Wait this long for open transactions to end. Rows that they wrote may be hidden, and walpost replay can publish them only after the transaction has ended."`
	DryRun bool          `help:"Print what would be skipped, and change nothing."`
}

func (c *skipCmd) Run(p *process) error {
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	o := pipeline.SkipOptions{Next: c.To == next, Wait: c.Wait, DryRun: c.DryRun, Decided: c.skips(p), Progress: steps(p.stdout, p.stderr)}
	if !o.Next {
		if o.To, err = cdc.ParseLSN(c.To); err != nil {
			return fmt.Errorf("--to: %w; the halt names the LSN, and pg_replication_slots shows the slot's confirmed_flush_lsn", err)
		}
	}
	if _, err = pl.Skip(p.ctx, o); err == nil {
		p.goOn(c.DryRun)
	}
	return err
}

// next is --to for the one transaction that PostgreSQL cannot decode.
const next = "next"

// skips returns the function that prints which commits are given up.
func (c *skipCmd) skips(p *process) func(pipeline.Skipped) {
	return func(s pipeline.Skipped) {
		switch {
		case s.Uncounted != nil:
			p.say("skip %s: the number of rows is unknown (%v)", s.Range, s.Uncounted)
		case c.To == next:
			p.say("skip %s: %s; no earlier row waits", s.Range, s.What)
		default:
			p.say("skip %s: %s", s.Range, s.What)
		}
		if s.Stays != nil {
			p.say("the latched halt remains until `walpost adopt` ends it: %v", s.Stays)
		}
		if s.Ends != nil {
			p.say("the latched halt ends: %s", s.Ends.Found)
			p.stillOpen(s.Open, s.ReplayOpen)
		}
	}
}
