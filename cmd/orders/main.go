// Command orders serves the order service over HTTP, consumes what others answer, and migrates its database. What serves HTTP knows
// PostgreSQL and no Kafka, but for the relay that --relay puts beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	_ "github.com/walpost/walpost/cdc/identity/aws" // aws-msk-iam
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/notify"
	"github.com/walpost/walpost/sql"
)

const description = "Takes orders over HTTP and writes an event into the outbox in the same transaction as every change."

type cli struct {
	DatabaseURL string `name:"database-url" env:"ORDERS_DATABASE_URL" placeholder:"URL" help:"The orders database, with the service's own role."`
	LogLevel    string `default:"info" env:"LOG_LEVEL" help:"trace, debug, info, warn or error."`
	LogFormat   string `env:"LOG_FORMAT" placeholder:"FORMAT" help:"json or console; the default is console on a terminal and json elsewhere."`

	Version kong.VersionFlag `help:"Print the version and exit."`

	Serve      serveCmd      `cmd:"" default:"withargs" help:"Serve HTTP until a signal comes (the default)."`
	Consume    consumeCmd    `cmd:"" help:"Consume events from Kafka until a signal comes: the stock's answers to paid orders, what customers and partners are told, and the statistics."`
	Mail       mailCmd       `cmd:"" help:"See the mails about orders, and have those that failed sent again."`
	Webhook    webhookCmd    `cmd:"" help:"The same of webhooks."`
	Parked     parkedCmd     `cmd:"" help:"See events that could not be applied, and decide about them."`
	Replay     replayCmd     `cmd:"" help:"Give a consumer group the events from a time or an offset on once more; the inbox skips those that were applied."`
	Statistics statisticsCmd `cmd:"" help:"What was sold, per day and product."`
	Migrate    migrateCmd    `cmd:"" help:"Bring the database to the newest schema and give the service's role its rights. May run again at any time."`

	Healthcheck app.Healthcheck `cmd:"" help:"Ask a running server how it is; exit code 0 or 1. For the health check of a container."`
}

type serveCmd struct {
	HTTP         string `name:"http" default:"127.0.0.1:8081" env:"ORDERS_HTTP" help:"Address to listen on, for orders and for /livez, /readyz and /metrics."`
	Pprof        string `name:"pprof" env:"ORDERS_PPROF" placeholder:"HOST:PORT" help:"Where to show Go's profiles, on loopback only: 127.0.0.1:6061; empty: nowhere."`
	Relay        bool   `env:"ORDERS_RELAY" help:"Relay the outbox too, from within this process, configured as walpost relay is: by the file that WALPOST_CONFIG names, and by WALPOST_ variables. GET /status and /metrics are at --http."`
	DatabaseWait string `default:"15s" env:"ORDERS_DATABASE_WAIT" help:"How long to wait at the start for a database that does not answer yet."`
}

type migrateCmd struct {
	AdminDatabaseURL string `name:"admin-database-url" env:"ORDERS_ADMIN_DATABASE_URL" placeholder:"URL" help:"The orders database, with a role that may create tables and roles."`
}

// databaseURL is what holds the URL of the orders database.
const databaseURL = "--database-url (ORDERS_DATABASE_URL)"

// process is what a command gets.
type process struct {
	cli            *cli
	names          []string // of all variables in the environment
	getenv         func(string) string
	stdout, stderr io.Writer
}

func main() { app.Main(runAmong(os.Environ())) }

// runAmong is the program with the environment, name=value each.
func runAmong(environ []string) app.Run { return app.Among(environ, run) }

func run(ctx context.Context, args, names []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var c cli
	command, err := app.Parse("orders", description, &c, args, getenv, stdout, stderr)
	if err != nil || command == nil {
		return err
	}
	log, _ := app.NewLogger(stderr, c.LogLevel, c.LogFormat) // a command that logs says what is wrong with these
	if err := app.Strays(command, "ORDERS_", names, warn(log)); err != nil {
		return err
	}
	command.BindTo(ctx, (*context.Context)(nil))
	return command.Run(&process{cli: &c, names: names, getenv: getenv, stdout: stdout, stderr: stderr})
}

// Run brings the database to the newest schema.
func (c *migrateCmd) Run(ctx context.Context, p *process) error {
	err := errors.Join(
		checkURL("--admin-database-url (ORDERS_ADMIN_DATABASE_URL)", c.AdminDatabaseURL),
		checkURL(databaseURL, p.cli.DatabaseURL))
	if err != nil {
		return err
	}
	return sql.Migrate(ctx, sql.Orders, c.AdminDatabaseURL, p.cli.DatabaseURL, p.stdout)
}

// warn returns what logs a warning.
func warn(log zerolog.Logger) func(string) {
	return func(said string) { log.Warn().Str("service", "orders").Msg(said) }
}

// relays returns the configuration of the relay's pipelines, as walpost relay has it. Variables of walpost's other commands may be there.
func (p *process) relays(warn func(string)) ([]config.Config, error) {
	pipelines, err := config.Load(p.getenv("WALPOST_CONFIG"), p.getenv)
	names := slices.DeleteFunc(slices.Clone(p.names), func(name string) bool { return !strings.HasPrefix(strings.ToUpper(name), "WALPOST_") })
	unknown, strays := config.Strays(names, []string{"WALPOST_CONFIG", "WALPOST_ADMIN_URL", "WALPOST_READ_URL"}, pipelines)
	app.Unread(unknown, "cdc/CONFIGURATION.md names the variable of each key", warn)
	return pipelines, errors.Join(err, strays)
}

// Run serves HTTP, and relays the outbox where that was asked for.
func (c *serveCmd) Run(ctx context.Context, p *process) error {
	log, logErr := app.NewLogger(p.stderr, p.cli.LogLevel, p.cli.LogFormat)
	wait, waitErr := time.ParseDuration(c.DatabaseWait)
	if waitErr != nil || wait < 0 {
		waitErr = fmt.Errorf("--database-wait (ORDERS_DATABASE_WAIT): %q is no duration; write it as in 15s or 2m", c.DatabaseWait)
	}
	_, httpErr := net.ResolveTCPAddr("tcp", c.HTTP)
	if httpErr != nil {
		httpErr = fmt.Errorf("--http (ORDERS_HTTP): %q is no address to listen on: %w; write it as in 127.0.0.1:8081", c.HTTP, httpErr)
	}
	var pipelines []config.Config
	var relayErr error
	if c.Relay {
		pipelines, relayErr = p.relays(warn(log))
	}
	err := errors.Join(checkURL(databaseURL, p.cli.DatabaseURL), httpErr, waitErr, logErr, relayErr)
	if err != nil {
		return err
	}
	log = log.With().Str("service", "orders").Logger()

	ln, err := net.Listen("tcp", c.HTTP)
	if err != nil {
		return fmt.Errorf("--http (ORDERS_HTTP): %w; stop what listens there or choose another address", err)
	}
	defer ln.Close()
	profiles, err := app.ListenPprof("--pprof (ORDERS_PPROF)", c.Pprof)
	if err != nil {
		return err
	}
	defer profiles.Close()
	database := identity.NewPostgres(databaseURL, p.cli.DatabaseURL, log)
	pool, err := database.Pool(ctx)
	if err != nil {
		return err
	}
	store, err := orders.Open(ctx, pool)
	if err != nil {
		return fmt.Errorf("%s: %w", databaseURL, err)
	}
	defer store.Close()
	ready := func(ctx context.Context) error { return database.Explain(store.Ready(ctx)) }
	if err := waitFor(ctx, ready, wait, log); err != nil {
		return err
	}
	reg, mux := app.NewRegistry(), http.NewServeMux()
	app.OpsRoutes(mux, reg, ready)
	orders.Routes(mux, store, reg, log)
	notify.Routes(mux, notify.NewStore(store.Pool()), log)
	relays, err := pipeline.NewGroup(pipelines, pipeline.Options{Log: log, Registerer: reg})
	if err != nil {
		return err
	}
	if c.Relay {
		relays.Routes(mux)
	}

	// /readyz does not ask the relay: orders are taken while Kafka is away. It ends after the last request.
	relaying, drain := context.WithCancel(context.WithoutCancel(ctx))
	var group errgroup.Group
	group.Go(func() error { return relays.Run(relaying) })
	group.Go(func() error { return profiles.Serve(ctx, log) })
	group.Go(func() error {
		defer drain()
		return app.Serve(ctx, ln, app.Instrument(reg, mux), log)
	})
	return group.Wait()
}

// waitFor gives a database that is just starting, or is being migrated, its time. One that is still not usable then is a mistake in
// the configuration more often than not, and better told by an exit than by an order service that takes no order. Once serving, the
// service stays up whatever the database does: /readyz says how it is, and each request tries anew.
func waitFor(ctx context.Context, ready func(context.Context) error, wait time.Duration, log zerolog.Logger) error {
	deadline := time.Now().Add(wait)
	for attempt := 1; ; attempt++ {
		tryCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := ready(tryCtx)
		cancel()
		switch {
		case err == nil:
			if attempt > 1 {
				log.Info().Int("attempts", attempt).Msg("the database answers")
			}
			return nil
		case time.Now().After(deadline) || wait == 0:
			return err
		case attempt == 1:
			log.Warn().Err(err).Stringer("wait", wait).Msg("waiting for the database")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func checkURL(name, url string) error {
	if url == "" {
		return fmt.Errorf("%s is missing: set it as in postgres://user:password@host:5432/orders?sslmode=verify-full", name)
	}
	return identity.NewPostgres(name, url, zerolog.Nop()).Check()
}
