package main

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/debezium"
	"github.com/walpost/walpost/cdc/pipeline"
)

type takeOverCmd struct {
	File        string        `arg:"" optional:"" help:"Read the connector's configuration from this file, as import does. - reads from standard input."`
	ConnectURL  string        `name:"connect-url" env:"WALPOST_CONNECT_URL" placeholder:"URL" help:"Ask a running Kafka Connect for the connector's state and offset, and without FILE for its configuration: http://host:8083, with user and password if it asks for them. Give only one of this, --offset-topic and --offset-file."`
	ConnectCA   string        `name:"connect-ca-file" placeholder:"FILE" help:"With --connect-url: the certificates of the authorities that sign Connect's certificate (PEM). The default is the system's authorities."`
	Connector   string        `placeholder:"NAME" help:"Take over from the connector with this name. The default is the name in the configuration, or the only connector with its topic.prefix."`
	OffsetTopic string        `placeholder:"TOPIC" help:"Read the connector's offset from this topic (offset.storage.topic of the worker), if Connect cannot be asked."`
	OffsetFile  string        `placeholder:"FILE" help:"Read the connector's offset from this file of a standalone worker or of Debezium Server (offset.storage.file.filename)."`
	AdminURL    string        `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"Connect to PostgreSQL with this URL, as an administrator, as init does. A second slot needs an owner of both publications and of the table."`
	Wait        time.Duration `default:"10m" help:"Wait this long for the connector to store the offset of its last row, and for transactions that hold the table."`
	Back        bool          `help:"Give slot and publication back to a connector: end this pipeline where it stands."`
	Repeat      bool          `help:"With --back: give back although rows that are in Kafka come again, because the relay was killed or has stopped inside a transaction."`
	DryRun      bool          `help:"Print the two ways and each step with its SQL, and change nothing."`
}

func (c *takeOverCmd) Run(p *process) error {
	var places []string
	for _, place := range [][2]string{{"--connect-url", c.ConnectURL}, {"--offset-topic", c.OffsetTopic}, {"--offset-file", c.OffsetFile}} {
		if place[1] != "" {
			places = append(places, place[0])
		}
	}
	if len(places) > 1 {
		return fmt.Errorf("%s: the connector's offset is in one place: give one of them (WALPOST_CONNECT_URL sets --connect-url)", strings.Join(places, " and "))
	}
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
	from := importCmd{File: c.File, ConnectURL: c.ConnectURL, ConnectCA: c.ConnectCA, Connector: c.Connector}
	client, err := from.client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	if c.File != "" { // it comes before what Connect says
		from = importCmd{File: c.File}
	}
	connector, err := from.read(p)
	if err != nil && p.ctx.Err() != nil {
		return fmt.Errorf("nothing was changed: run this again (%w)", context.Canceled)
	}
	if err != nil {
		return fmt.Errorf("the connector's configuration: %w", err)
	}
	say := steps(p.stdout, p.stderr)
	o := debezium.MoveOptions{
		Config: cfg, AdminURL: url, Connector: connector, Name: cmp.Or(c.Connector, connector.Name), ConnectURL: c.ConnectURL, OffsetTopic: c.OffsetTopic, OffsetFile: c.OffsetFile,
		Wait: c.Wait, DryRun: c.DryRun, HTTP: client,
		Pipeline: beginner{p, pl, url, c.DryRun, c.Repeat},
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

// beginner lets a pipeline begin and end for a move.
type beginner struct {
	p      *process
	pl     *pipeline.Pipeline
	url    string
	dryRun bool
	repeat bool // rows may come again after Leave
}

func (b beginner) begin(ctx context.Context, at *cdc.Start, why string) error {
	return b.pl.Begin(ctx, pipeline.BeginOptions{AdminURL: b.url, At: at, Why: why, DryRun: b.dryRun, Progress: steps(b.p.stdout, b.p.stderr)})
}

// Prepare implements debezium.Beginner.
func (b beginner) Prepare(ctx context.Context) error { return b.begin(ctx, nil, "") }

// Begin implements debezium.Beginner.
func (b beginner) Begin(ctx context.Context, at cdc.Start, why string) error {
	return b.begin(ctx, &at, why)
}

// Leave implements debezium.Beginner.
func (b beginner) Leave(ctx context.Context, look func(context.Context, cdc.Start, *regexp.Regexp) (debezium.Kept, error)) (debezium.Kept, error) {
	left, err := b.pl.Leave(ctx, pipeline.LeaveOptions{
		DryRun: b.dryRun, Repeat: b.repeat, Progress: steps(b.p.stdout, b.p.stderr),
		Look: func(ctx context.Context, after cdc.Start, topics *regexp.Regexp) (pipeline.Left, error) {
			kept, err := look(ctx, after, topics)
			return pipeline.Left(kept), err
		},
		Decided: func(left pipeline.Left) {
			b.p.say("everything at or below %s is in Kafka: the slot is left there", left.At)
		},
	})
	return debezium.Kept(left), err
}
