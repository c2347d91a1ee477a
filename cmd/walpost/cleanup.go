package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/pipeline"
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
	}
	pl, err := pipeline.New(cfg, pipeline.Options{})
	if err != nil {
		return err
	}
	done, err := pl.Cleanup(p.ctx, pipeline.CleanupOptions{AdminURL: p.ownURL(cfg, "ADMIN_URL", c.AdminURL), DryRun: c.DryRun})
	if err != nil && done.Rows == 0 && len(done.Made)+len(done.Dropped) == 0 {
		return err
	}
	would := ""
	if c.DryRun {
		would = " would be"
	}
	said := fmt.Sprintf("%s: %d rows older than %s%s deleted", cfg.Source.Table, done.Rows, cfg.Cleanup.Retention, would)
	for _, part := range []struct {
		what  string
		names []string
	}{{"made", done.Made}, {"dropped", done.Dropped}, {"kept, in use or not all of it delivered", done.Kept}} {
		if len(part.names) > 0 {
			said += fmt.Sprintf("; partitions%s %s: %s", would, part.what, strings.Join(part.names, ", "))
		}
	}
	p.say("%s", said)
	return err
}
