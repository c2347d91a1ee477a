// Command walpost relays an outbox table from PostgreSQL's WAL to Kafka.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/walpost/walpost/cdc/config"
	_ "github.com/walpost/walpost/cdc/identity/aws" // aws-msk-iam
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

func main() { app.Main(runAmong(os.Environ())) }

type cli struct {
	Config    string `short:"c" env:"WALPOST_CONFIG" help:"Configuration, a YAML file. Every key can be set in the environment too: WALPOST_SOURCE_URL; of one pipeline among several, WALPOST_ORDERS_SOURCE_URL."`
	Pipeline  string `short:"p" placeholder:"NAME" help:"Of several pipelines, this one only."`
	LogLevel  string `default:"info" env:"LOG_LEVEL" help:"trace, debug, info, warn or error."`
	LogFormat string `env:"LOG_FORMAT" help:"json or console; by default console on a terminal."`

	Relay   relayCmd   `cmd:"" help:"Relay the outbox, of every pipeline, until asked to stop."`
	Init    initCmd    `cmd:"" help:"Prepare PostgreSQL and Kafka, once, with an administrator's rights: role, table, publication, slot, topics, first state record."`
	Status  statusCmd  `cmd:"" help:"Say how slot and state record stand, and what blocks."`
	Dlq     dlqCmd     `cmd:"" help:"Rows that could not be published (poison.policy: dead_letter): look at them, publish them after all, or give them up."`
	Skip    skipCmd    `cmd:"" help:"Give up what was committed before an LSN and cannot be delivered. The relay must be halted or stopped."`
	Adopt   adoptCmd   `cmd:"" help:"Accept slot, publication, table and timeline as they are now, after a halt that was latched or with a slot that is not ours. The relay must be halted or stopped."`
	Replay  replayCmd  `cmd:"" help:"Publish the rows of a time again that the outbox table still holds, marked by the header replay: after a gap."`
	Cleanup cleanupCmd `cmd:"" help:"Delete from the outbox table what is confirmed and older than the retention; of a partitioned one, drop and make partitions."`
	Where   whereCmd   `cmd:"" help:"Was this event published? Where, or why not. Takes an event id or a key (order id)."`
	Version versionCmd `cmd:"" help:"Print the version."`

	MigrateSource migrateSourceCmd `cmd:"" help:"From polling to the WAL, without loss or gap: make the slot, and wait until the poller, which runs on, has published what is older. With the configuration that is to be: source.kind: wal."`

	Healthcheck app.Healthcheck `cmd:"" help:"Ask a running server how it is; exit code 0 or 1. For the health check of a container."`
}

type versionCmd struct{}

// process is what a command gets.
type process struct {
	ctx            context.Context
	cli            *cli
	names, flags   []string // of all variables in the environment, and of those that flags read
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer

	warn func(string)   // hears what is worth a word and no error
	one  *config.Config // the pipeline that the command acts on, once that is known
}

// sentences lets the commands that a command prints name the pipeline that it acts on.
type sentences struct {
	io.Writer
	cfg *config.Config
}

func (s sentences) Write(b []byte) (int, error) {
	_, err := io.WriteString(s.Writer, s.cfg.Commands(string(b)))
	return len(b), err
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	return runAmong(nil)(ctx, args, getenv, stdout, stderr)
}

// runAmong is run with the environment, name=value each.
func runAmong(environ []string) app.Run { return app.Among(environ, runCommand) }

func runCommand(ctx context.Context, args, names []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var c cli
	command, err := app.Parse("walpost", "The postman for a PostgreSQL outbox.", &c, args, getenv, stdout, stderr)
	if err != nil || command == nil {
		return err
	}
	command.BindTo(ctx, (*context.Context)(nil)) // for commands of app
	p := &process{ctx: ctx, cli: &c, names: names, flags: app.Variables(command), getenv: getenv, stdin: os.Stdin, stdout: stdout, stderr: stderr}
	p.warn = func(said string) { fmt.Fprintln(stderr, "walpost: warning:", said) }
	if err = command.Run(p); err != nil && p.one != nil && p.one.Commands(err.Error()) != err.Error() {
		return errors.New(p.one.Commands(err.Error()))
	}
	return err
}

// configs are those of all pipelines, or of the one that --pipeline names.
func (p *process) configs() ([]config.Config, error) {
	cfgs, err := config.Load(p.cli.Config, p.getenv)
	unknown, strays := config.Strays(p.names, p.flags, cfgs)
	app.Unread(unknown, "the variables of keys are in the configuration reference, cdc/CONFIGURATION.md", p.warn)
	p.names = nil // it is said once
	if err = errors.Join(err, strays); err != nil || p.cli.Pipeline == "" {
		return cfgs, err
	}
	i := slices.IndexFunc(cfgs, func(c config.Config) bool { return c.Pipeline == p.cli.Pipeline })
	if i < 0 {
		return nil, fmt.Errorf("--pipeline %s: there is no such pipeline: %s", p.cli.Pipeline, names(cfgs))
	}
	return cfgs[i : i+1], nil
}

// config is for commands that act on one pipeline.
func (p *process) config() (config.Config, error) {
	if p.one != nil {
		return *p.one, nil
	}
	cfgs, err := p.configs()
	if err != nil {
		return config.Config{}, err
	}
	if len(cfgs) > 1 {
		return config.Config{}, fmt.Errorf("--pipeline: say which: %s", names(cfgs))
	}
	p.one, p.stdout = &cfgs[0], sentences{p.stdout, &cfgs[0]}
	return cfgs[0], nil
}

// pipeline is for commands that act on one pipeline.
func (p *process) pipeline() (*pipeline.Pipeline, error) {
	cfg, err := p.config()
	if err != nil {
		return nil, err
	}
	return pipeline.New(cfg, pipeline.Options{Operator: app.Operator()})
}

func names(cfgs []config.Config) string {
	var all []string
	for _, c := range cfgs {
		all = append(all, c.Pipeline)
	}
	return strings.Join(all, ", ")
}

// ownURL is what the pipeline's own variable has for the key, or else the flag.
func (p *process) ownURL(cfg config.Config, key, flag string) string {
	return cmp.Or(p.getenv(cfg.Variable(key)), flag)
}

// adminURL is the administrator's for a pipeline.
func (p *process) adminURL(cfg config.Config, flag, need string) (string, error) {
	url := p.ownURL(cfg, "ADMIN_URL", flag)
	if url == "" {
		return "", fmt.Errorf("--admin-url (WALPOST_ADMIN_URL): missing: %s, postgres://postgres@host:5432/database?sslmode=verify-full", need)
	}
	return url, nil
}

func (*versionCmd) Run(p *process) error {
	fmt.Fprintln(p.stdout, "walpost", app.Version())
	return nil
}
