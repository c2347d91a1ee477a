package main

import "github.com/walpost/walpost/cdc/pipeline"

type migrateSourceCmd struct {
	AdminURL string `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"Connect to PostgreSQL with this URL, as an administrator, as init does."`
}

func (c *migrateSourceCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	url, err := p.adminURL(cfg, c.AdminURL, "the slot needs an administrator's rights")
	if err != nil {
		return err
	}
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	if _, err := pl.MigrateSource(p.ctx, pipeline.MigrateOptions{AdminURL: url, Progress: steps(p.stdout, p.stderr)}); err != nil {
		return err
	}
	p.say("the poller has published everything that is older than the slot: stop it, and start `walpost relay` with source.kind: wal; rows that the poller publishes after the slot was created arrive twice")
	return nil
}
