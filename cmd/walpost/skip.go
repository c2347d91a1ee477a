package main

import (
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/pipeline"
)

type skipCmd struct {
	To     string        `required:"" placeholder:"LSN" help:"What was committed before this LSN and is not delivered is given up: 0/16B3748. The halt names it. next is behind the one transaction that PostgreSQL cannot decode."`
	Wait   time.Duration `default:"1m" help:"How long to wait for transactions that are open: rows that they wrote may be hidden, and can be replayed only once they have ended."`
	DryRun bool          `help:"Say what would be skipped, and do nothing."`
}

func (c *skipCmd) Run(p *process) error {
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	o := pipeline.SkipOptions{Next: c.To == next, Wait: c.Wait, DryRun: c.DryRun, Decided: c.skips(p), Progress: steps(p.stdout)}
	if !o.Next {
		if o.To, err = cdc.ParseLSN(c.To); err != nil {
			return fmt.Errorf("--to: %w; the halt names it, and pg_replication_slots shows where the slot stands", err)
		}
	}
	if _, err = pl.Skip(p.ctx, o); err == nil {
		p.goOn(c.DryRun)
	}
	return err
}

// next is --to for the one transaction that PostgreSQL cannot decode.
const next = "next"

// skips returns what prints what is given up.
func (c *skipCmd) skips(p *process) func(pipeline.Skipped) {
	return func(s pipeline.Skipped) {
		switch {
		case s.Uncounted != nil:
			p.say("skip %s: how many rows that are cannot be told (%v)", s.Range, s.Uncounted)
		case c.To == next:
			p.say("skip %s: %s, and no row before it waits", s.Range, s.What)
		default:
			p.say("skip %s: %s", s.Range, s.What)
		}
		if s.Stays != nil {
			p.say("the latched halt stays, `walpost adopt` ends it: %v", s.Stays)
		}
		if s.Ends != nil {
			p.say("the latched halt ends: %s", s.Ends.Found)
			p.stillOpen(s.Open, s.ReplayOpen)
		}
	}
}
