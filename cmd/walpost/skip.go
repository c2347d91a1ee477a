package main

import (
	"time"

	"github.com/walpost/walpost/cmd/internal/pipeline"
)

type skipCmd struct {
	To     string        `required:"" placeholder:"LSN" help:"What was committed before this LSN and is not delivered is given up: 0/16B3748. The halt names it. next is behind the one transaction that PostgreSQL cannot decode."`
	Wait   time.Duration `default:"1m" help:"How long to wait for transactions that are open: rows that they wrote may be hidden, and can be replayed only once they have ended."`
	DryRun bool          `help:"Say what would be skipped, and do nothing."`
}

func (c *skipCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	return pipeline.Skip(p.ctx, cfg, c.To, c.Wait, c.DryRun, p.stdout)
}
