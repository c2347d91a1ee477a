package main

import (
	"errors"

	"github.com/walpost/walpost/cmd/internal/pipeline"
)

type replayCmd struct {
	AdminURL string `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"PostgreSQL, as somebody who may read the outbox table: the relay's role may not."`
	From     string `required:"" placeholder:"TIME" help:"Rows created at or after this time (created_at): 2026-11-22T08:00:00Z."`
	To       string `required:"" placeholder:"TIME" help:"Rows created before this time; or now."`
	DryRun   bool   `help:"Say how many rows there are, and publish nothing."`
}

func (c *replayCmd) Run(p *process) error {
	cfg, err := p.config()
	url, missing := p.adminURL(cfg, c.AdminURL, "replay reads the outbox table")
	if err := errors.Join(err, missing); err != nil {
		return err
	}
	return pipeline.Replay(p.ctx, cfg, url, c.From, c.To, c.DryRun, p.stdout, p.stderr)
}
