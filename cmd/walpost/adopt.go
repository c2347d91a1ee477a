package main

import (
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/pipeline"
)

type adoptCmd struct {
	NewServer  bool          `help:"Accept that another PostgreSQL takes the place of the one that the state record is of: after a major upgrade, or a move."`
	LeftBehind bool          `help:"With --new-server: go on although rows of the table are neither in Kafka nor in the slot."`
	AdminURL   string        `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"With --new-server: PostgreSQL, as somebody who may read the outbox table: its newest rows are looked for in Kafka."`
	CreateSlot bool          `help:"Make the slot again, where it is missing or lost."`
	Wait       time.Duration `default:"1m" help:"How long to wait for transactions that are open: rows that they wrote may be hidden, and can be replayed only once they have ended."`
	DryRun     bool          `help:"Say what would be accepted and left behind, and do nothing."`
}

func (c *adoptCmd) Run(p *process) error {
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	cfg, err := p.config()
	if err != nil {
		return err
	}
	_, err = pl.Adopt(p.ctx, pipeline.AdoptOptions{
		NewServer: c.NewServer, LeftBehind: c.LeftBehind, AdminURL: p.ownURL(cfg, "ADMIN_URL", c.AdminURL),
		CreateSlot: c.CreateSlot, Wait: c.Wait, DryRun: c.DryRun, Decided: p.adopts, Progress: steps(p.stdout),
	})
	if err == nil {
		p.goOn(c.DryRun)
	}
	return err
}

func (p *process) adopts(a pipeline.Adoption) {
	for _, accepted := range a.Accepts {
		p.say("adopt %s", accepted)
	}
	for _, looked := range a.Looked {
		p.say("looked: %s", looked)
	}
	if !a.Gap.IsZero() {
		p.say("left behind: rows committed in %s may be missing in Kafka; %s publishes what the table still holds of them", a.Gap, a.Replay)
		p.stillOpen(a.Open, a.ReplayOpen)
	}
}

// stillOpen names transactions that were open across a decision, and what to run once they have ended.
func (p *process) stillOpen(open []cdc.Transaction, replay string) {
	if len(open) == 0 {
		return
	}
	for _, t := range open {
		p.say("still open: %s: rows that it wrote before now may be missing, too (%s)", t, t.End())
	}
	p.say("once they have ended, run %s", replay)
}

// goOn says how to go on after a decision.
func (p *process) goOn(dryRun bool) {
	if dryRun {
		p.say("nothing was changed (--dry-run)")
		return
	}
	p.say("done: start the relay; one that is halted goes on by itself within 30 s")
}
