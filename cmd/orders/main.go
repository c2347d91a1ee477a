// Command orders serves the order service over HTTP, consumes events from Kafka, and migrates its database. The part
// that serves HTTP uses PostgreSQL and no Kafka, unless --relay runs a relay in the same process.
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

	Serve      serveCmd      `cmd:"" default:"withargs" help:"Serve HTTP until a signal arrives (the default)."`
	Consume    consumeCmd    `cmd:"" help:"Consume events from Kafka until a signal arrives: the stock's answers to paid orders, the notifications of customers and partners, and the statistics."`
	Mail       mailCmd       `cmd:"" help:"Show the mails about orders, and send failed ones again."`
	Webhook    webhookCmd    `cmd:"" help:"Show the webhooks about orders, and send failed ones again."`
	Parked     parkedCmd     `cmd:"" help:"Show events that could not be applied; redrive, drop or pass them."`
	Replay     replayCmd     `cmd:"" help:"Move a consumer group back to a time or an offset, so that it reads the events again; the inbox skips those that were applied."`
	Statistics statisticsCmd `cmd:"" help:"Show or rebuild the sales statistics, per day and product."`
	Migrate    migrateCmd    `cmd:"" help:"Bring the database to the newest schema and give the service's role its rights. May run again at any time."`

	Healthcheck app.Healthcheck `cmd:"" help:"Check a running server; exit code 0 or 1. For the health check of a container."`
}

type serveCmd struct {
	HTTP         string `name:"http" default:"127.0.0.1:8081" env:"ORDERS_HTTP" help:"Address to listen on, for orders and for /livez, /readyz and /metrics."`
	Pprof        string `name:"pprof" env:"ORDERS_PPROF" placeholder:"HOST:PORT" help:"Address for Go's profiles, on loopback only, as in 127.0.0.1:6061; empty: none."`
	Relay        bool   `env:"ORDERS_RELAY" help:"Also relay the outbox, in this process. The relay is configured like walpost relay: by the file that WALPOST_CONFIG names, and by WALPOST_ variables. GET /status and /metrics are at --http."`
	DatabaseWait string `default:"15s" env:"ORDERS_DATABASE_WAIT" help:"How long to wait at the start for a database that does not answer yet."`
}

type migrateCmd struct {
	AdminDatabaseURL string `name:"admin-database-url" env:"ORDERS_ADMIN_DATABASE_URL" placeholder:"URL" help:"The orders database, with a role that may create tables and roles."`
}

// databaseURL names the flag and the variable for the URL of the orders database.
const databaseURL = "--database-url (ORDERS_DATABASE_URL)"

// process has what a command needs of the process.
type process struct {
	cli            *cli
	names          []string // the names of all variables in the environment
	getenv         func(string) string
	stdout, stderr io.Writer
}

func main() { app.Main(runAmong(os.Environ())) }

// runAmong returns the program for the environment, name=value each.
func runAmong(environ []string) app.Run { return app.Among(environ, run) }

func run(ctx context.Context, args, names []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var c cli
	command, err := app.Parse("orders", description, &c, args, getenv, stdout, stderr)
	if err != nil || command == nil {
		return err
	}
	log, _ := app.NewLogger(stderr, c.LogLevel, c.LogFormat) // a command that logs reports mistakes in these flags itself
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

// warn returns a function that logs a warning.
func warn(log zerolog.Logger) func(string) {
	return func(said string) { log.Warn().Str("service", "orders").Msg(said) }
}

// relays returns the configuration of the relay's pipelines, as walpost relay reads it. Variables of walpost's other
// commands may be set too.
func (p *process) relays(warn func(string)) ([]config.Config, error) {
	pipelines, err := config.Load(p.getenv("WALPOST_CONFIG"), p.getenv)
	names := slices.DeleteFunc(slices.Clone(p.names), func(name string) bool { return !strings.HasPrefix(strings.ToUpper(name), "WALPOST_") })
	unknown, strays := config.Strays(names, []string{"WALPOST_CONFIG", "WALPOST_ADMIN_URL", "WALPOST_READ_URL"}, pipelines)
	app.Unread(unknown, "cdc/CONFIGURATION.md names the variable of each key", warn)
	return pipelines, errors.Join(err, strays)
}

// Run serves HTTP, and relays the outbox if --relay is given.
func (c *serveCmd) Run(ctx context.Context, p *process) error {
	log, logErr := app.NewLogger(p.stderr, p.cli.LogLevel, p.cli.LogFormat)
	wait, waitErr := time.ParseDuration(c.DatabaseWait)
	if waitErr != nil || wait < 0 {
		waitErr = fmt.Errorf("--database-wait (ORDERS_DATABASE_WAIT): %q is not a duration; write it as in 15s or 2m", c.DatabaseWait)
	}
	_, httpErr := net.ResolveTCPAddr("tcp", c.HTTP)
	if httpErr != nil {
		httpErr = fmt.Errorf("--http (ORDERS_HTTP): %q is not an address to listen on: %w; write it as in 127.0.0.1:8081", c.HTTP, httpErr)
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

	// /readyz does not depend on the relay: orders are taken while Kafka is away. The relay ends after the last
	// request.
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

// waitFor waits for a database that is starting or being migrated. If the database is still unusable after wait, the
// configuration is probably wrong: the process exits, because an exit is easier to notice than a service that takes no
// order. Once it serves, the service runs on while the database is away: /readyz reports that, and each request tries
// again.
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
