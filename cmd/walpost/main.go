// Command walpost relays an outbox table from PostgreSQL's WAL to Kafka.
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/walpost"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/cmd/internal/pipeline"
)

func main() { app.Main(run) }

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

type relayCmd struct{}

type initCmd struct {
	AdminURL       string `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"PostgreSQL, as an administrator (superuser, or a role that may create roles, publications and slots), in the database of source.url. For one pipeline among several: WALPOST_<PIPELINE>_ADMIN_URL."`
	PartitionByDay bool   `help:"Where there is no outbox table, make one with a partition for each day, which walpost cleanup makes ahead and drops whole."`
	DryRun         bool   `help:"Show what would be done, with its SQL, and do nothing."`
	Remove         bool   `help:"Take slot and state record away again, and publication and role where nobody else uses them."`
	Yes            bool   `help:"Do not ask before --remove."`
}

type statusCmd struct {
	JSON bool `name:"json" help:"As JSON: one pipeline's, or a list of them."`
}

type versionCmd struct{}

// process is what a command gets.
type process struct {
	ctx            context.Context
	cli            *cli
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer

	one *config.Config // the pipeline that the command acts on, once that is known
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
	var c cli
	command, err := app.Parse("walpost", "The postman for a PostgreSQL outbox.", &c, args, getenv, stdout, stderr)
	if err != nil || command == nil {
		return err
	}
	command.BindTo(ctx, (*context.Context)(nil)) // for commands of app
	p := &process{ctx: ctx, cli: &c, getenv: getenv, stdin: os.Stdin, stdout: stdout, stderr: stderr}
	if err = command.Run(p); err != nil && p.one != nil && p.one.Commands(err.Error()) != err.Error() {
		return errors.New(p.one.Commands(err.Error()))
	}
	return err
}

// configs are those of all pipelines, or of the one that --pipeline names.
func (p *process) configs() ([]config.Config, error) {
	cfgs, err := config.Load(p.cli.Config, p.getenv)
	if err != nil || p.cli.Pipeline == "" {
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
		return "", fmt.Errorf("--admin-url (WALPOST_ADMIN_URL): missing: %s, postgres://postgres@host:5432/database", need)
	}
	return url, nil
}

// Run relays:
//
//	WAL ──▶ cdc/postgres ──▶ cdc (windows) ──▶ cdc/route ──▶ cdc/kafka ──▶ topics and state record
//	 ▲                                                                        │
//	 └──────────────── the slot's confirmed_flush_lsn ◀───────────────────────┘
func (*relayCmd) Run(p *process) error {
	cfgs, err := p.configs()
	log, logErr := app.NewLogger(p.stderr, p.cli.LogLevel, p.cli.LogFormat)
	if err := errors.Join(err, logErr); err != nil {
		return err
	}
	log = log.With().Str("service", "walpost").Logger()
	if p.getenv("GOMEMLIMIT") == "" {
		// What lives is a few windows' worth; without a limit the collector lets twice that pile up.
		debug.SetMemoryLimit(memoryLimit(cfgs))
	}
	address := cfgs[0].HTTP // the same in all
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("http: cannot listen on %s: %w: choose a free address", address, err)
	}
	reg := app.NewRegistry()
	relays, err := walpost.NewGroup(cfgs, log, reg)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	mux, con := http.NewServeMux(), relays.Console()
	app.OpsRoutes(mux, reg, con.Ready)
	con.Routes(mux)

	// The relays drain first; only then does the operator's page go away.
	serving, done := context.WithCancel(context.WithoutCancel(p.ctx))
	group, ctx := errgroup.WithContext(p.ctx)
	group.Go(func() error {
		defer done()
		return relays.Run(ctx)
	})
	group.Go(func() error { return app.Serve(serving, ln, mux, log) })
	return group.Wait()
}

func memoryLimit(cfgs []config.Config) int64 {
	limit := int64(16 << 20)
	for i := range cfgs {
		limit += 8<<20 + 6*int64(cfgs[i].Window.Bytes)
	}
	return limit
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
		of(cfg, pipeline.Init(p.ctx, cfg, urls[i], c.PartitionByDay, c.DryRun, sentences{p.stdout, &cfgs[i]}))
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
		fmt.Fprintf(p.stdout, "This drops %s of pipeline %s. Rows not delivered yet will not be published. Type the pipeline's name to go on: ", drops, cfg.Pipeline)
		answer, _ := bufio.NewReader(p.stdin).ReadString('\n')
		if strings.TrimSpace(answer) != cfg.Pipeline {
			return errors.New("nothing was removed")
		}
	}
	return pipeline.Remove(p.ctx, cfg, url, c.DryRun, p.stdout)
}

func (c *statusCmd) Run(p *process) error {
	cfgs, err := p.configs()
	if err != nil {
		return err
	}
	all := make([]pipeline.Status, len(cfgs))
	var read sync.WaitGroup
	for i, cfg := range cfgs {
		read.Go(func() { all[i] = pipeline.ReadStatus(p.ctx, cfg) })
	}
	read.Wait()
	if !c.JSON {
		for i, st := range all {
			if i > 0 {
				fmt.Fprintln(p.stdout)
			}
			st.Write(sentences{p.stdout, &cfgs[i]})
		}
		return nil
	}
	enc := json.NewEncoder(p.stdout)
	enc.SetIndent("", "  ")
	if len(all) == 1 {
		return enc.Encode(all[0])
	}
	return enc.Encode(all)
}

func (*versionCmd) Run(p *process) error {
	fmt.Fprintln(p.stdout, "walpost", app.Version())
	return nil
}
