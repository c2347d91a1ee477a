package main

import (
	"errors"
	"fmt"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
)

type initCmd struct {
	AdminURL       string `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"Connect to PostgreSQL with this URL, to the database of source.url, as an administrator: a superuser, or a role that may create roles, publications and slots. WALPOST_<PIPELINE>_ADMIN_URL sets it for one pipeline among several."`
	PartitionByDay bool   `help:"If there is no outbox table, create one with a partition for each day. walpost cleanup then creates the next days' partitions and drops old ones whole."`
	NewServer      bool   `help:"Prepare a PostgreSQL server that replaces the one in the state record. Run walpost adopt --new-server after it."`
	DryRun         bool   `help:"Print each step with its SQL, and change nothing."`
	Remove         bool   `help:"Remove the slot and the state record, and the publication and the role if no other pipeline uses them."`
	Yes            bool   `help:"Do not ask for confirmation before --remove."`
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
			_, err = pl.Init(p.ctx, pipeline.InitOptions{AdminURL: urls[i], PartitionByDay: c.PartitionByDay, NewServer: c.NewServer, DryRun: c.DryRun, Progress: steps(sentences{p.stdout, &cfgs[i]}, p.stderr)})
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
		drops := fmt.Sprintf("the slot %s and the state record, and the publication and the role if no other pipeline uses them,", cfg.Source.Slot)
		if cfg.Source.Kind == config.KindPolling {
			drops = "the role, if no other pipeline uses it,"
		}
		if err := p.confirm(cfg.Pipeline, "nothing was removed", "This removes %s of pipeline %s. Rows that are not delivered yet will never be published.", drops, cfg.Pipeline); err != nil {
			return err
		}
	}
	pl, err := p.pipeline()
	if err == nil {
		_, err = pl.Remove(p.ctx, pipeline.RemoveOptions{AdminURL: url, DryRun: c.DryRun, Progress: steps(p.stdout, p.stderr)})
	}
	return err
}
