package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/walpost/walpost/cmd/internal/pipeline"
)

type dlqCmd struct {
	List    dlqListCmd    `cmd:"" help:"List the unresolved dead letters, in the order of their rows."`
	Show    dlqShowCmd    `cmd:"" help:"Show one dead letter whole, as JSON, with its row."`
	Redrive dlqRedriveCmd `cmd:"" help:"Publish dead letters after all, with their id and key, under today's configuration. What waits behind one for its key's order goes with it."`
	Drop    dlqDropCmd    `cmd:"" help:"Give dead letters up: their rows will never be published."`
}

type dlqListCmd struct {
	JSON bool `name:"json" help:"As JSON, one dead letter a line."`
}

type dlqShowCmd struct {
	ID string `arg:"" help:"Event id, or the dead letter's key (<lsn>/<seq>/<event id>)."`
}

// chosen is what redrive and drop have in common.
type chosen struct {
	IDs    []string `arg:"" optional:"" name:"id" help:"Event ids, or keys of dead letters (<lsn>/<seq>/<event id>)."`
	All    bool     `help:"All that are unresolved."`
	DryRun bool     `help:"Say what would be done, and do nothing."`
}

func (c *chosen) check() error {
	if (len(c.IDs) == 0) != c.All {
		return errors.New("name dead letters by event id or key, or say --all: `walpost dlq list` shows them")
	}
	return nil
}

type dlqRedriveCmd struct{ chosen }

type dlqDropCmd struct {
	chosen
	Yes bool `help:"Do not ask."`
}

func (c *dlqListCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	return pipeline.ListDeadLetters(p.ctx, cfg, c.JSON, p.stdout)
}

func (c *dlqShowCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	return pipeline.ShowDeadLetter(p.ctx, cfg, c.ID, p.stdout)
}

func (c *dlqRedriveCmd) Run(p *process) error {
	cfg, err := p.config()
	if err := errors.Join(err, c.check()); err != nil {
		return err
	}
	return pipeline.RedriveDeadLetters(p.ctx, cfg, c.IDs, c.DryRun, p.stdout)
}

func (c *dlqDropCmd) Run(p *process) error {
	cfg, err := p.config()
	if err := errors.Join(err, c.check()); err != nil {
		return err
	}
	return pipeline.DropDeadLetters(p.ctx, cfg, c.IDs, c.DryRun, func(n int) error {
		if c.Yes {
			return nil
		}
		fmt.Fprintf(p.stdout, "This gives up %d dead letters: their rows will never be published. Type the pipeline's name to go on: ", n)
		answer, _ := bufio.NewReader(p.stdin).ReadString('\n')
		if strings.TrimSpace(answer) != cfg.Pipeline {
			return errors.New("nothing was dropped")
		}
		return nil
	}, p.stdout)
}
