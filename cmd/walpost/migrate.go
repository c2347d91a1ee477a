package main

import "github.com/walpost/walpost/cmd/internal/pipeline"

type migrateSourceCmd struct {
	AdminURL string `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"PostgreSQL, as an administrator, as for init."`
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
	return pipeline.MigrateSource(p.ctx, cfg, url, p.stdout)
}
