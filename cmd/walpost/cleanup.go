package main

import (
	"time"

	"github.com/walpost/walpost/cmd/internal/pipeline"
)

type cleanupCmd struct {
	AdminURL  string         `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"PostgreSQL, as somebody who may delete from the outbox, or owns it where it is partitioned; without it cleanup.url, or source.url."`
	Retention *time.Duration `placeholder:"DURATION" help:"Instead of cleanup.retention: 24h."`
	DryRun    bool           `help:"Say what would be deleted, and delete nothing."`
}

func (c *cleanupCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if c.Retention != nil {
		cfg.Cleanup.Retention = *c.Retention
		if err := cfg.Validate(); err != nil {
			return err
		}
	}
	return pipeline.Cleanup(p.ctx, cfg, p.ownURL(cfg, "ADMIN_URL", c.AdminURL), c.DryRun, p.stdout)
}
