package main

import (
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/pipeline"
)

type adoptCmd struct {
	NewServer  bool          `help:"Accept that another PostgreSQL server replaces the one in the state record, after a major upgrade or a move."`
	LeftBehind bool          `help:"With --new-server: accept the new server although rows of the table are neither in Kafka nor in the slot."`
	AdminURL   string        `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"With --new-server: connect to PostgreSQL with this URL, as a role that may read the outbox table, and look for its newest rows in Kafka."`
	CreateSlot bool          `help:"Create the slot again, if it is missing or lost."`
	Wait       time.Duration `default:"1m" help:"Wait this long for open transactions to end. Rows that they wrote may be hidden, and walpost replay can publish them only after the transaction has ended."`
	DryRun     bool          `help:"Print what would be accepted and which rows may be missing, and change nothing."`
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
	done, err := pl.Adopt(p.ctx, pipeline.AdoptOptions{
		NewServer: c.NewServer, LeftBehind: c.LeftBehind, AdminURL: p.ownURL(cfg, "ADMIN_URL", c.AdminURL),
		CreateSlot: c.CreateSlot, Wait: c.Wait, DryRun: c.DryRun, Decided: p.adopts, Progress: steps(p.stdout, p.stderr),
	})
	if err == nil {
		p.goOn(c.DryRun)
		p.fillGap(c.DryRun, done)
	}
	return err
}

// fillGap prints the replay as the next step after an adoption that left a gap.
func (p *process) fillGap(dryRun bool, a pipeline.Adoption) {
	switch {
	case dryRun || a.Gap.IsZero():
	case len(a.Open) > 0:
		p.say("next: when the open transactions have ended, run %s; the relay may stream meanwhile", a.ReplayOpen)
	default:
		p.say("next: run %s; the relay may stream meanwhile", a.Replay)
	}
}

// adopts prints what adopt accepts, and which rows may be missing in Kafka.
func (p *process) adopts(a pipeline.Adoption) {
	for _, accepted := range a.Accepts {
		p.say("adopt %s", accepted)
	}
	for _, looked := range a.Looked {
		p.say("compared with Kafka: %s", looked)
	}
	if !a.Gap.IsZero() {
		p.say("left behind: rows committed in %s may be missing in Kafka; %s publishes those that are still in the table", a.Gap, a.Replay)
		p.stillOpen(a.Open, a.ReplayOpen)
	}
}

// stillOpen prints the transactions that were open during a decision, and the command to run after they have ended.
func (p *process) stillOpen(open []cdc.Transaction, replay string) {
	if len(open) == 0 {
		return
	}
	for _, t := range open {
		p.say("still open: %s: rows that it wrote before now may also be missing (%s)", t, t.End())
	}
	p.say("after they have ended, run %s", replay)
}

// goOn prints the next step after a decision.
func (p *process) goOn(dryRun bool) {
	if dryRun {
		p.say("nothing was changed (--dry-run)")
		return
	}
	p.say("done: start the relay; a halted relay resumes by itself within 30 s")
}
