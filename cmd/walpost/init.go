package main

import (
	"errors"
	"fmt"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
)

type initCmd struct {
	AdminURL       string `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"PostgreSQL, as an administrator (superuser, or a role that may create roles, publications and slots), in the database of source.url. For one pipeline among several: WALPOST_<PIPELINE>_ADMIN_URL."`
	PartitionByDay bool   `help:"Where there is no outbox table, make one with a partition for each day, which walpost cleanup makes ahead and drops whole."`
	NewServer      bool   `help:"Prepare a PostgreSQL that takes the place of the one that the state record is of; walpost adopt --new-server then goes on from it."`
	DryRun         bool   `help:"Show what would be done, with its SQL, and do nothing."`
	Remove         bool   `help:"Take slot and state record away again, and publication and role where nobody else uses them."`
	Yes            bool   `help:"Do not ask before --remove."`
}

func (c *initCmd) Run(p *process) error {
	cfgs, err := p.configs()
	errs := []error{err}
	of := func(cfg config.Config, err error) {
		if err != nil && len(cfgs) > 1 {
			err = fmt.Errorf("pipeline %s: %s", cfg.Pipeline, cfg.Commands(err.Error()))
		}
		errs = append(errs, err)
	}
	urls := make([]string, len(cfgs))
	for i, cfg := range cfgs {
		urls[i], err = p.adminURL(cfg, c.AdminURL, "init needs an administrator's rights")
		of(cfg, err)
	}
	switch err := errors.Join(errs...); {
	case err != nil:
		return err
	case c.Remove:
		return c.remove(p, urls[0])
	}
	for i, cfg := range cfgs {
		if len(cfgs) > 1 {
			fmt.Fprintf(p.stdout, "pipeline %s\n", cfg.Pipeline)
		}
		pl, err := pipeline.New(cfg, pipeline.Options{})
		if err == nil {
			_, err = pl.Init(p.ctx, pipeline.InitOptions{AdminURL: urls[i], PartitionByDay: c.PartitionByDay, NewServer: c.NewServer, DryRun: c.DryRun, Progress: steps(sentences{p.stdout, &cfgs[i]})})
		}
		of(cfg, err)
	}
	return errors.Join(errs...)
}

func (c *initCmd) remove(p *process, url string) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if !c.Yes && !c.DryRun {
		drops := fmt.Sprintf("slot %s, the state record, and publication and role where nobody else uses them", cfg.Source.Slot)
		if cfg.Source.Kind == config.KindPolling {
			drops = "the role, where nobody else uses it"
		}
		if err := p.confirm(cfg.Pipeline, "nothing was removed", "This drops %s of pipeline %s. Rows not delivered yet will not be published.", drops, cfg.Pipeline); err != nil {
			return err
		}
	}
	pl, err := p.pipeline()
	if err == nil {
		_, err = pl.Remove(p.ctx, pipeline.RemoveOptions{AdminURL: url, DryRun: c.DryRun, Progress: steps(p.stdout)})
	}
	return err
}
