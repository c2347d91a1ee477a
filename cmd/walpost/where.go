package main

import (
	"cmp"
	"time"

	"github.com/walpost/walpost/cmd/internal/pipeline"
)

type whereCmd struct {
	ID      string        `arg:"" help:"Event id, or the key of events (order id)."`
	ReadURL string        `name:"read-url" env:"WALPOST_READ_URL" help:"PostgreSQL, as a role that may SELECT from the outbox: the relay's own may not. Otherwise WALPOST_ADMIN_URL, or source.url."`
	Since   time.Duration `help:"How far back to look on the topics, 24h for example. Otherwise since the event was written."`
	JSON    bool          `name:"json" help:"As JSON."`
}

func (c *whereCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	where, err := pipeline.Find(p.ctx, cfg, c.ID, cmp.Or(p.ownURL(cfg, "READ_URL", c.ReadURL), p.ownURL(cfg, "ADMIN_URL", p.getenv("WALPOST_ADMIN_URL")), cfg.Source.URL), c.Since)
	if err != nil {
		return err
	}
	if c.JSON {
		return where.WriteJSON(p.stdout)
	}
	where.Write(p.stdout)
	return nil
}
