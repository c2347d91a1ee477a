package main

import "github.com/walpost/walpost/cmd/internal/pipeline"

type skipCmd struct {
	To     string `required:"" placeholder:"LSN" help:"What was committed before this LSN and is not delivered is given up: 0/16B3748. The halt names it."`
	DryRun bool   `help:"Say what would be skipped, and do nothing."`
}

func (c *skipCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	return pipeline.Skip(p.ctx, cfg, c.To, c.DryRun, p.stdout)
}
