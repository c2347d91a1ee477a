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

	"github.com/alecthomas/kong"
	"github.com/walpost/walpost/cdc/config"
	_ "github.com/walpost/walpost/cdc/identity/aws" // aws-msk-iam
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

func main() { app.Main(runAmong(os.Environ())) }

type cli struct {
	Config    string `short:"c" env:"WALPOST_CONFIG" help:"Read the configuration from this YAML file. A variable of the environment can set every key: WALPOST_SOURCE_URL sets source.url, and WALPOST_ORDERS_SOURCE_URL sets it for the pipeline orders, one of several."`
	Pipeline  string `short:"p" placeholder:"NAME" help:"Act on this pipeline only, where the file has several."`
	LogLevel  string `default:"info" env:"LOG_LEVEL" help:"Write log lines of this level and above: trace, debug, info, warn or error."`
	LogFormat string `env:"LOG_FORMAT" help:"Write the log as json or console. The default is console on a terminal, and json elsewhere."`

	Version kong.VersionFlag `help:"Print the version and exit."`

	Relay   relayCmd   `cmd:"" help:"Relay the outbox of every pipeline until SIGTERM or SIGINT."`
	Init    initCmd    `cmd:"" help:"Prepare PostgreSQL and Kafka once, with an administrator's rights: create the role, table, publication, slot, topics and the first state record."`
	Status  statusCmd  `cmd:"" help:"Show the slot, the state record and the lag, and what blocks the pipeline. Exit code 0: rows flow; 1: you have to act; 2: PostgreSQL or Kafka could not be read."`
	Doctor  doctorCmd  `cmd:"" help:"Check PostgreSQL, Kafka and everything between: for each finding, what it means and the SQL or command that ends it. It changes nothing, also works before init, and beside a running relay. Exit code 0: nothing to do; 1: a problem: rows do not flow, or could be lost; 2: warnings only, or PostgreSQL or Kafka could not be read."`
	Dlq     dlqCmd     `cmd:"" help:"List, show, redrive or drop dead letters: rows that could not be published (poison.policy: dead_letter; with polling, failed rows)."`
	Skip    skipCmd    `cmd:"" help:"Give up the undelivered commits before an LSN. The relay must be halted or stopped."`
	Adopt   adoptCmd   `cmd:"" help:"Accept the slot, publication, table and timeline as they are now, after a latched halt or when another slot has replaced the pipeline's. The relay must be halted or stopped."`
	Replay  replayCmd  `cmd:"" help:"Publish the rows of a time range again, with the header replay, to fill a gap. Only rows that are still in the outbox table can be published."`
	Cleanup cleanupCmd `cmd:"" help:"Delete the outbox rows that are confirmed and older than the retention. In a partitioned table, drop old partitions and create those of the next days."`
	Where   whereCmd   `cmd:"" help:"Find an event by its id, or all events of a key (order id): show where each was published, or why not."`

	Tail     tailCmd   `cmd:"" help:"Print the newest events of the pipeline's topics, a line for each, and then each event that arrives, until SIGINT. It needs the rights of a consumer."`
	Settings configCmd `cmd:"" name:"config" help:"Check the configuration, show where each value is from, or print an example."`

	TakeOver      takeOverCmd      `cmd:"" help:"Take over from Debezium's Outbox Event Router without a gap: on the connector's slot after it is stopped, or on a second slot beside the running connector, as source.slot says. With --back, give slot and publication back to a connector."`
	MigrateSource migrateSourceCmd `cmd:"" help:"Move a polled pipeline to the WAL without a gap: create the slot, then wait until the running poller has published everything older. Run it with the new configuration (source.kind: wal)."`

	Import importCmd `cmd:"" help:"Print walpost's configuration for an outbox that Debezium's Outbox Event Router publishes today, with a line for each of its options. Exit code 0: no consumer would see a difference; 1: something is not supported."`

	Completion  app.Completion  `cmd:"" help:"Print a script that completes commands, flags and their values in a shell: source <(walpost completion bash)."`
	Healthcheck app.Healthcheck `cmd:"" help:"Ask a running process whether it is ready, for the health check of a container. Exit code 0: it is; 1: it is not."`
}

// process holds the inputs and outputs of the one command that this process runs.
type process struct {
	ctx            context.Context
	cli            *cli
	names, flags   []string // the names of all variables in the environment, and of those that flags read
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer

	warn func(string)   // prints a warning
	one  *config.Config // the pipeline that the command acts on, once that is known
}

// sentences writes text in which each walpost command in backquotes names the pipeline, where the file has several.
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

// runAmong returns run for a process whose environment is environ, each entry name=value.
func runAmong(environ []string) app.Run { return app.Among(environ, runCommand) }

func runCommand(ctx context.Context, args, names []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var c cli
	command, err := app.Parse("walpost", "The postman for a PostgreSQL outbox.", &c, args, getenv, stdout, stderr)
	if err != nil || command == nil {
		return err
	}
	command.BindTo(ctx, (*context.Context)(nil)) // for the commands of package app
	p := &process{ctx: ctx, cli: &c, names: names, flags: app.Variables(command), getenv: getenv, stdin: os.Stdin, stdout: stdout, stderr: stderr}
	p.warn = func(said string) { fmt.Fprintln(stderr, "walpost: warning:", said) }
	err = command.Run(p)
	interrupted := ctx.Err() != nil && errors.Is(err, context.Canceled) && command.Command() != "relay"
	if err != nil && p.one != nil && p.one.Commands(err.Error()) != err.Error() {
		err = errors.New(p.one.Commands(err.Error()))
	}
	if interrupted {
		return &app.InterruptedError{Err: err}
	}
	return err
}

// configs returns the configurations of all pipelines, or of the one that --pipeline names.
func (p *process) configs() ([]config.Config, error) {
	cfgs, err := config.Load(p.cli.Config, p.getenv)
	unknown, strays := config.Strays(p.names, p.flags, cfgs)
	app.Unread(unknown, "cdc/CONFIGURATION.md names the variable of each key", p.warn)
	p.names = nil // warn once
	if err = errors.Join(err, strays); err != nil || p.cli.Pipeline == "" {
		return cfgs, err
	}
	i := slices.IndexFunc(cfgs, func(c config.Config) bool { return c.Pipeline == p.cli.Pipeline })
	if i < 0 {
		return nil, fmt.Errorf("--pipeline %s: there is no such pipeline: name one of %s", p.cli.Pipeline, names(cfgs))
	}
	return cfgs[i : i+1], nil
}

// config returns the configuration of the one pipeline that the command acts on.
func (p *process) config() (config.Config, error) {
	if p.one != nil {
		return *p.one, nil
	}
	cfgs, err := p.configs()
	if err != nil {
		return config.Config{}, err
	}
	if len(cfgs) > 1 {
		return config.Config{}, fmt.Errorf("--pipeline: missing: name one of %s", names(cfgs))
	}
	p.one, p.stdout = &cfgs[0], sentences{p.stdout, &cfgs[0]}
	return cfgs[0], nil
}

// pipeline returns the one pipeline that the command acts on.
func (p *process) pipeline() (*pipeline.Pipeline, error) {
	cfg, err := p.config()
	if err != nil {
		return nil, err
	}
	return pipeline.New(cfg, pipeline.Options{Operator: app.Operator()})
}

// group returns all pipelines with their configurations, or the one that --pipeline names.
func (p *process) group() ([]config.Config, pipeline.Group, error) {
	cfgs, err := p.configs()
	if err != nil {
		return nil, nil, err
	}
	group, err := pipeline.NewGroup(cfgs, pipeline.Options{})
	return cfgs, group, err
}

func names(cfgs []config.Config) string {
	var all []string
	for _, c := range cfgs {
		all = append(all, c.Pipeline)
	}
	return strings.Join(all, ", ")
}

// ownURL returns the value of the pipeline's own variable for the key, or the flag where that variable is empty.
func (p *process) ownURL(cfg config.Config, key, flag string) string {
	return cmp.Or(p.getenv(cfg.Variable(key)), flag)
}

// adminURL returns the URL with an administrator's rights for a pipeline, and an error that contains need where there is none.
func (p *process) adminURL(cfg config.Config, flag, need string) (string, error) {
	url := p.ownURL(cfg, "ADMIN_URL", flag)
	if url == "" {
		return "", fmt.Errorf("--admin-url (WALPOST_ADMIN_URL): missing: %s: write postgres://postgres@host:5432/database?sslmode=verify-full", need)
	}
	return url, nil
}
