// Command walpost relays an outbox table from PostgreSQL's WAL to Kafka.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/cmd/internal/pipeline"
)

func main() { app.Main(run) }

type cli struct {
	Config    string `short:"c" env:"WALPOST_CONFIG" help:"Configuration of the pipeline, a YAML file. Every key can be set in the environment too: WALPOST_SOURCE_URL."`
	LogLevel  string `default:"info" env:"LOG_LEVEL" help:"trace, debug, info, warn or error."`
	LogFormat string `env:"LOG_FORMAT" help:"json or console; by default console on a terminal."`

	Relay   relayCmd   `cmd:"" help:"Relay the outbox until asked to stop."`
	Init    initCmd    `cmd:"" help:"Prepare PostgreSQL and Kafka, once, with an administrator's rights: role, table, publication, slot, topics, first state record."`
	Status  statusCmd  `cmd:"" help:"Say how slot and state record stand, and what blocks."`
	Dlq     dlqCmd     `cmd:"" help:"Rows that could not be published (poison.policy: dead_letter): look at them, publish them after all, or give them up."`
	Skip    skipCmd    `cmd:"" help:"Give up what was committed before an LSN and cannot be delivered. The relay must be halted or stopped."`
	Adopt   adoptCmd   `cmd:"" help:"Accept slot, publication, table and timeline as they are now, after a halt that was latched or with a slot that is not ours. The relay must be halted or stopped."`
	Replay  replayCmd  `cmd:"" help:"Publish the rows of a time again that the outbox table still holds, marked by the header replay: after a gap."`
	Where   whereCmd   `cmd:"" help:"Was this event published? Where, or why not. Takes an event id or a key (order id)."`
	Version versionCmd `cmd:"" help:"Print the version."`

	Healthcheck app.Healthcheck `cmd:"" help:"Ask a running server how it is; exit code 0 or 1. For the health check of a container."`
}

type relayCmd struct{}

type initCmd struct {
	AdminURL string `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"PostgreSQL, as an administrator (superuser, or a role that may create roles, publications and slots)."`
	DryRun   bool   `help:"Show what would be done, with its SQL, and do nothing."`
	Remove   bool   `help:"Take slot, publication, role and state record away again."`
	Yes      bool   `help:"Do not ask before --remove."`
}

type statusCmd struct {
	JSON bool `name:"json" help:"As JSON."`
}

type versionCmd struct{}

// process is what a command gets.
type process struct {
	ctx            context.Context
	cli            *cli
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var c cli
	command, err := app.Parse("walpost", "The postman for a PostgreSQL outbox.", &c, args, getenv, stdout, stderr)
	if err != nil || command == nil {
		return err
	}
	command.BindTo(ctx, (*context.Context)(nil)) // for commands of app
	return command.Run(&process{ctx: ctx, cli: &c, getenv: getenv, stdin: os.Stdin, stdout: stdout, stderr: stderr})
}

func (p *process) config() (cdc.Config, error) { return cdc.LoadConfig(p.cli.Config, p.getenv) }

// Run relays:
//
//	WAL ──▶ cdc/postgres ──▶ cdc (windows) ──▶ cdc/route ──▶ cdc/kafka ──▶ topics and state record
//	 ▲                                                                        │
//	 └──────────────── the slot's confirmed_flush_lsn ◀───────────────────────┘
func (*relayCmd) Run(p *process) error {
	cfg, err := p.config()
	log, logErr := app.NewLogger(p.stderr, p.cli.LogLevel, p.cli.LogFormat)
	if err := errors.Join(err, logErr); err != nil {
		return err
	}
	log = log.With().Str("service", "walpost").Logger()
	if p.getenv("GOMEMLIMIT") == "" {
		// What lives is a few windows' worth; without a limit the collector lets twice that pile up.
		debug.SetMemoryLimit(24<<20 + 6*int64(cfg.Window.Bytes))
	}
	ln, err := net.Listen("tcp", cfg.HTTP)
	if err != nil {
		return fmt.Errorf("http: cannot listen on %s: %w: choose a free address", cfg.HTTP, err)
	}
	reg := app.NewRegistry()
	relay, con := pipeline.Relay(cfg, log, reg)
	mux := http.NewServeMux()
	app.OpsRoutes(mux, reg, con.Ready)
	con.Routes(mux)

	// The relay drains first; only then does the operator's page go away.
	serving, done := context.WithCancel(context.WithoutCancel(p.ctx))
	group, ctx := errgroup.WithContext(p.ctx)
	group.Go(func() error {
		defer done()
		return relay.Run(ctx)
	})
	group.Go(func() error { return app.Serve(serving, ln, mux, log) })
	return group.Wait()
}

func (c *initCmd) Run(p *process) error {
	cfg, err := p.config()
	if c.AdminURL == "" {
		err = errors.Join(err, errors.New("--admin-url (WALPOST_ADMIN_URL): missing: init needs an administrator's rights, postgres://postgres@host:5432/database"))
	}
	if err != nil {
		return err
	}
	if !c.Remove {
		return pipeline.Init(p.ctx, cfg, c.AdminURL, c.DryRun, p.stdout)
	}
	if !c.Yes && !c.DryRun {
		fmt.Fprintf(p.stdout, "This drops slot %s, its publication and role, and the state record of pipeline %s. Rows not delivered yet will not be published. Type the pipeline's name to go on: ", cfg.Source.Slot, cfg.Pipeline)
		answer, _ := bufio.NewReader(p.stdin).ReadString('\n')
		if strings.TrimSpace(answer) != cfg.Pipeline {
			return errors.New("nothing was removed")
		}
	}
	return pipeline.Remove(p.ctx, cfg, c.AdminURL, c.DryRun, p.stdout)
}

func (c *statusCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	st := pipeline.ReadStatus(p.ctx, cfg)
	if !c.JSON {
		st.Write(p.stdout)
		return nil
	}
	enc := json.NewEncoder(p.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(st)
}

func (*versionCmd) Run(p *process) error {
	fmt.Fprintln(p.stdout, "walpost", app.Version())
	return nil
}
