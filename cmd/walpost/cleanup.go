package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

type cleanupCmd struct {
	AdminURL  string         `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"Connect to PostgreSQL with this URL, as a role that may delete from the outbox table, or that owns it, if it is partitioned. The default is cleanup.url, or source.url where that is empty."`
	Retention *time.Duration `placeholder:"DURATION" help:"Use this retention instead of cleanup.retention: 24h, for example."`
	DryRun    bool           `help:"Print what would be deleted, and delete nothing."`
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
	progress := app.NewProgress(p.stderr)
	done, err := pl.Cleanup(p.ctx, pipeline.CleanupOptions{AdminURL: p.ownURL(cfg, "ADMIN_URL", c.AdminURL), DryRun: c.DryRun, Progress: func(s pipeline.Step) {
		progress.At(s.Done, s.Total, s.Unit)
	}})
	progress.Close()
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
	}{{"created", done.Made}, {"dropped", done.Dropped}, {"kept, because they are in use or hold undelivered rows", done.Kept}} {
		if len(part.names) > 0 {
			said += fmt.Sprintf("; partitions%s %s: %s", would, part.what, strings.Join(part.names, ", "))
		}
	}
	p.say("%s", said)
	return err
}
