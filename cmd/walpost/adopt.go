package main

import (
	"time"

	"github.com/walpost/walpost/cmd/internal/pipeline"
)

type adoptCmd struct {
	CreateSlot bool          `help:"Make the slot again, where it is missing or lost."`
	Wait       time.Duration `default:"1m" help:"How long to wait for transactions that are open: rows that they wrote may be hidden, and can be replayed only once they have ended."`
	DryRun     bool          `help:"Say what would be accepted and left behind, and do nothing."`
}

func (c *adoptCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	return pipeline.Adopt(p.ctx, cfg, c.CreateSlot, c.Wait, c.DryRun, p.stdout)
}
