package main

import "github.com/walpost/walpost/cmd/internal/pipeline"

type adoptCmd struct {
	CreateSlot bool `help:"Make the slot anew, where it is missing or lost."`
	DryRun     bool `help:"Say what would be accepted and left behind, and do nothing."`
}

func (c *adoptCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	return pipeline.Adopt(p.ctx, cfg, c.CreateSlot, c.DryRun, p.stdout)
}
