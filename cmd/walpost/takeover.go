package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/debezium"
	"github.com/walpost/walpost/cdc/pipeline"
)

type takeOverCmd struct {
	Connector   string        `placeholder:"FILE" help:"Read the connector's configuration from this file, - for standard input: the JSON of a connector, or Debezium Server's application.properties."`
	ConnectURL  string        `name:"connect-url" placeholder:"URL" help:"Ask the REST interface of a Kafka Connect worker for the connector's configuration, state and offset."`
	Name        string        `placeholder:"NAME" help:"Take over from the connector of this name. The default is the name in the configuration, or the only connector with its topic.prefix."`
	OffsetTopic string        `placeholder:"TOPIC" help:"Read the connector's offset from this topic (offset.storage.topic of the worker)."`
	OffsetFile  string        `placeholder:"FILE" help:"Read the connector's offset from this file of a standalone worker or of Debezium Server (offset.storage.file.filename)."`
	AdminURL    string        `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"Connect to PostgreSQL with this URL, as an administrator, as init does. A second slot needs an owner of both publications and of the table."`
	Wait        time.Duration `default:"10m" help:"Wait this long for the connector to store the offset of its last row, and for transactions that hold the table."`
	Back        bool          `help:"Give slot and publication back to a connector: end this pipeline where it stands."`
	DryRun      bool          `help:"Print the two ways and each step with its SQL, and change nothing."`
}

func (c *takeOverCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	url, err := p.adminURL(cfg, c.AdminURL, "the publications and the slot need an administrator's rights")
	if err != nil {
		return err
	}
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	name, option, err := c.connector(p)
	if err != nil {
		return err
	}
	say := steps(p.stdout)
	o := debezium.MoveOptions{
		Config: cfg, AdminURL: url, Name: name, Option: option, ConnectURL: c.ConnectURL, OffsetTopic: c.OffsetTopic, OffsetFile: c.OffsetFile,
		Wait: c.Wait, DryRun: c.DryRun,
		Pipeline: beginner{p, pl, url, c.DryRun},
		Progress: func(what string, sql ...string) { say(pipeline.Step{What: what, SQL: sql}) },
	}
	move := debezium.TakeOver
	if c.Back {
		move = debezium.GiveBack
	}
	next, err := move(p.ctx, o)
	if err != nil {
		return err
	}
	if c.DryRun {
		p.say("nothing was changed (--dry-run); afterwards:")
	}
	for _, what := range next {
		p.say("next: %s", what)
	}
	return nil
}

// connector returns the connector's name and a function that returns the values of its properties.
func (c *takeOverCmd) connector(p *process) (name string, option func(string) string, err error) {
	if c.Connector == "" {
		return "", nil, errors.New("--connector: missing: name the file with the connector's configuration")
	}
	in := p.stdin
	if c.Connector != "-" {
		file, err := os.Open(c.Connector)
		if err != nil {
			return "", nil, fmt.Errorf("--connector: %w", err)
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return "", nil, fmt.Errorf("--connector: %w", err)
	}
	var wrapped struct {
		Name   string
		Config map[string]string
	}
	if err := json.Unmarshal(text, &wrapped); err != nil {
		return "", nil, fmt.Errorf("--connector: %w", err)
	}
	if c.Name != "" {
		wrapped.Name = c.Name
	}
	return wrapped.Name, func(name string) string { return wrapped.Config[name] }, nil
}

// beginner lets a pipeline begin and end for a move.
type beginner struct {
	p      *process
	pl     *pipeline.Pipeline
	url    string
	dryRun bool
}

func (b beginner) begin(ctx context.Context, at *cdc.Start, why string) error {
	return b.pl.Begin(ctx, pipeline.BeginOptions{AdminURL: b.url, At: at, Why: why, DryRun: b.dryRun, Progress: steps(b.p.stdout)})
}

// Prepare implements debezium.Beginner.
func (b beginner) Prepare(ctx context.Context) error { return b.begin(ctx, nil, "") }

// Begin implements debezium.Beginner.
func (b beginner) Begin(ctx context.Context, at cdc.Start, why string) error {
	return b.begin(ctx, &at, why)
}

// Leave implements debezium.Beginner.
func (b beginner) Leave(ctx context.Context) (again int64, err error) {
	left, err := b.pl.Leave(ctx, pipeline.LeaveOptions{DryRun: b.dryRun, Progress: steps(b.p.stdout), Decided: func(left pipeline.Left) {
		b.p.say("everything at or below %s is in Kafka: the slot is left there", left.At)
	}})
	return left.Again, err
}
