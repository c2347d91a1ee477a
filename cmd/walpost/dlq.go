package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cmd/internal/app"
)

type dlqCmd struct {
	List    dlqListCmd    `cmd:"" help:"List the unresolved dead letters, in the order of their rows."`
	Show    dlqShowCmd    `cmd:"" help:"Show one dead letter as JSON, with its whole row."`
	Redrive dlqRedriveCmd `cmd:"" help:"Publish dead letters with their id and key, under today's configuration, after you have fixed the cause. Rows that a key hold keeps waiting for a dead letter are published with it."`
	Drop    dlqDropCmd    `cmd:"" help:"Drop dead letters: their rows will never be published."`
}

type dlqListCmd struct {
	JSON bool `name:"json" help:"Print JSON, one dead letter a line."`
}

type dlqShowCmd struct {
	ID string `arg:"" help:"Show the dead letter with this event id or key (<lsn>/<seq>/<event id>)."`
}

// chosen are the arguments that redrive and drop have in common: which dead letters they act on.
type chosen struct {
	IDs    []string `arg:"" optional:"" name:"id" help:"Act on the dead letters with these event ids or keys (<lsn>/<seq>/<event id>)."`
	All    bool     `help:"Act on all unresolved dead letters."`
	DryRun bool     `help:"Print what would be done, and change nothing."`
}

func (c *chosen) check() error {
	if (len(c.IDs) == 0) != c.All {
		return errors.New("name dead letters by event id or key, or write --all: `walpost dlq list` shows them")
	}
	return nil
}

type dlqRedriveCmd struct{ chosen }

type dlqDropCmd struct {
	chosen
	Yes bool `help:"Do not ask for confirmation."`
}

func (c *dlqListCmd) Run(p *process) error {
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	letters, err := pl.DeadLetters(p.ctx)
	switch {
	case err != nil:
		return err
	case c.JSON:
		enc := json.NewEncoder(p.stdout)
		for i := range letters {
			if err := enc.Encode(letters[i]); err != nil {
				return err
			}
		}
		return nil
	case len(letters) == 0:
		p.say("no dead letters are unresolved")
		return nil
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tTYPE\tAGGREGATE\tSINCE\tWHY")
	for _, d := range letters {
		if d.Error != "" {
			fmt.Fprintf(w, "%.80q\t\t\t\tcannot be read: %s\n", d.Key, d.Error)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", plain.Line(d.Key), plain.Line(d.EventType), plain.Line(d.AggregateType+"/"+d.AggregateID), d.Time.Format(time.RFC3339), plain.Line(d.Reason))
	}
	return w.Flush()
}

func (c *dlqShowCmd) Run(p *process) error {
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	d, err := pl.DeadLetter(p.ctx, c.ID)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(p.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(d)
}

func (c *dlqRedriveCmd) Run(p *process) error {
	cfg, err := p.config()
	if err := errors.Join(err, c.check()); err != nil {
		return err
	}
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	polled, progress, moved := cfg.Source.Kind == config.KindPolling, app.NewProgress(p.stderr), 0
	p.stdout = progress.Beside(p.stdout)
	done, err := pl.Redrive(p.ctx, pipeline.RedriveOptions{IDs: c.IDs, DryRun: c.DryRun, Progress: func(m pipeline.Moved) {
		moved++
		defer func() { progress.At(int64(moved), int64(m.Of), "dead letters") }()
		switch {
		case m.Stays != "":
			p.say("stays    %s: %s", plain.Line(m.Key), m.Stays)
		case polled && c.DryRun:
			p.say("would be redriven %s", plain.Line(m.EventID))
		case polled:
		case c.DryRun:
			p.say("would be redriven %s to %s", plain.Line(m.Key), m.Topic)
		default:
			p.say("redriven %s to %s, partition %d, offset %d", plain.Line(m.Key), m.Topic, m.Partition, m.Offset)
		}
	}})
	progress.Close()
	if polled && len(done) > 0 && !c.DryRun {
		p.say("redriven: %d rows; the relay publishes them, and then the later rows of their keys", len(done))
	}
	return err
}

func (c *dlqDropCmd) Run(p *process) error {
	cfg, err := p.config()
	if err := errors.Join(err, c.check()); err != nil {
		return err
	}
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	polled := cfg.Source.Kind == config.KindPolling
	done, err := pl.Drop(p.ctx, pipeline.DropOptions{IDs: c.IDs, DryRun: c.DryRun, Confirm: func(letters []pipeline.DeadLetter) error {
		if c.Yes {
			return nil
		}
		return p.confirm(cfg.Pipeline, "nothing was dropped", "This drops %d dead letters: their rows will never be published.", len(letters))
	}})
	for _, d := range done.Letters {
		switch {
		case polled && c.DryRun:
			p.say("would be dropped %s", plain.Line(d.EventID))
		case polled:
		case c.DryRun:
			p.say("would be dropped %s", plain.Line(d.Key))
		default:
			p.say("dropped %s", plain.Line(d.Key))
		}
	}
	if c.DryRun || err != nil {
		return err
	}
	if polled && len(done.Letters) > 0 {
		p.say("dropped: %d rows; the relay now publishes the later rows of their keys", len(done.Letters))
	}
	if done.Waiting > 0 {
		p.say("%d dead letters were held because an earlier one of their key was unresolved, and that one is dropped now: `walpost dlq redrive` publishes them and ends the key holds", done.Waiting)
	}
	return nil
}
