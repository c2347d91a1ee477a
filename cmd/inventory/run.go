package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/identity"
	_ "github.com/walpost/walpost/cdc/identity/aws" // aws-msk-iam
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/pglimit"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/cmd/internal/inboxcmd"
	"github.com/walpost/walpost/inventory"
	"github.com/walpost/walpost/sql"
)

const description = "Keeps the stock: applies the order events of a Kafka topic to PostgreSQL, exactly once each, and answers over HTTP."

type cli struct {
	DatabaseURL string `name:"database-url" env:"INVENTORY_DATABASE_URL" placeholder:"URL" help:"The inventory database, as the service's own role."`
	LogLevel    string `env:"LOG_LEVEL" default:"info" help:"trace, debug, info, warn or error. At debug there is a line per event."`
	LogFormat   string `env:"LOG_FORMAT" help:"json or console; console on a terminal when not given."`

	Version kong.VersionFlag `help:"Print the version and exit."`

	Serve   serveCmd   `cmd:"" default:"withargs" help:"Consume events and serve HTTP (the default)."`
	Parked  parkedCmd  `cmd:"" help:"Show events that could not be applied; redrive, drop or pass them."`
	Replay  replayCmd  `cmd:"" help:"Move the consumer group back to a time or an offset, so that it reads the events again; the inbox skips those that were applied."`
	Migrate migrateCmd `cmd:"" help:"Bring the database to the newest schema and give the service's role its rights."`

	Healthcheck app.Healthcheck `cmd:"" help:"Check a running server; exit code 0 or 1. For the health check of a container."`
}

// source is the topic that is consumed.
type source struct {
	Brokers []string `name:"kafka-brokers" env:"INVENTORY_KAFKA_BROKERS" placeholder:"HOST:PORT" help:"Kafka brokers, separated by commas."`
	Topic   string   `env:"INVENTORY_TOPIC" default:"outbox.event.order" help:"Topic of the order events."`
	Group   string   `env:"INVENTORY_GROUP" default:"inventory" help:"Kafka consumer group; its processes share the work."`

	Identity identity.Kafka `embed:"" prefix:"kafka-" envprefix:"INVENTORY_KAFKA_" group:"Kafka: TLS and login"`
}

// login returns how the service logs in to Kafka. Its configuration keys are named like the flags.
func (s *source) login(log zerolog.Logger) *identity.Login {
	return identity.NewLogin(s.Identity, s.Brokers, identity.Flags("INVENTORY_"), log)
}

type parkedCmd struct {
	Topic string `env:"INVENTORY_TOPIC" default:"outbox.event.order" help:"Topic of the order events."`
	Group string `env:"INVENTORY_GROUP" default:"inventory" help:"Kafka consumer group."`
	inboxcmd.Parked
}

// ProvideInboxes is called by kong for the subcommands of parked.
func (c *parkedCmd) ProvideInboxes(p *process) *inboxcmd.Inboxes {
	return p.inboxes(source{Topic: c.Topic, Group: c.Group})
}

type replayCmd struct {
	source
	inboxcmd.Replay
}

// ProvideInboxes is called by kong for Run, which replayCmd inherits from Replay.
func (c *replayCmd) ProvideInboxes(p *process) (*inboxcmd.Inboxes, error) {
	return p.inboxes(c.source), errors.Join(c.Check(), c.source.check())
}

type serveCmd struct {
	source
	Policy    inbox.Policy    `env:"INVENTORY_POLICY" enum:"block,park_key,skip" default:"park_key" help:"Policy for an event that can never be applied: ${enum}."`
	Gap       inbox.GapPolicy `env:"INVENTORY_GAP" enum:"halt,go_on" default:"halt" help:"Policy for a partition whose next records left the topic before they were applied: ${enum}."`
	Batch     int             `env:"INVENTORY_BATCH" default:"500" help:"The most events in one transaction."`
	Retention time.Duration   `env:"INVENTORY_INBOX_RETENTION" default:"720h" help:"How long the inbox remembers an event; must be longer than the topic keeps it. 0: no limit."`

	HTTP  string `name:"http" env:"INVENTORY_HTTP" default:"127.0.0.1:8082" placeholder:"HOST:PORT" help:"Address to listen on."`
	Pprof string `name:"pprof" env:"INVENTORY_PPROF" placeholder:"HOST:PORT" help:"Address for Go's profiles, on loopback only, as in 127.0.0.1:6062; empty: none."`
}

type migrateCmd struct {
	AdminURL string `name:"admin-database-url" env:"INVENTORY_ADMIN_DATABASE_URL" placeholder:"URL" help:"The inventory database, as a role that may create tables and roles."`

	ReaderURL string `name:"reader-database-url" env:"INVENTORY_READER_DATABASE_URL" placeholder:"URL" help:"The inventory database, as a role that may only read names and pictures of products; the order service's mails need it. If given, the role is created."`
}

func run(ctx context.Context, args, names []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var flags cli
	command, err := app.Parse("inventory", description, &flags, args, getenv, stdout, stderr)
	if command == nil || err != nil {
		return err
	}
	log, _ := app.NewLogger(stderr, flags.LogLevel, flags.LogFormat) // a command that logs reports mistakes in these flags itself
	warn := func(said string) { log.Warn().Str("service", "inventory").Msg(said) }
	if err := app.Strays(command, "INVENTORY_", names, warn); err != nil {
		return err
	}
	command.BindTo(ctx, (*context.Context)(nil))
	return command.Run(&process{cli: &flags, stdout: stdout, stderr: stderr})
}

// databaseURL names the flag and the variable for the URL of the inventory database.
const databaseURL = "--database-url (INVENTORY_DATABASE_URL)"

// process has what a command needs of the process.
type process struct {
	cli            *cli
	stdout, stderr io.Writer
}

// Run brings the database to the newest schema.
func (c *migrateCmd) Run(ctx context.Context, p *process) error {
	var errs []error
	if p.cli.DatabaseURL == "" {
		errs = append(errs, errors.New("--database-url (INVENTORY_DATABASE_URL) is missing: give the service's URL, as in postgres://inventory_service:password@host/inventory?sslmode=verify-full; migrate creates that role and sets its password"))
	}
	if c.AdminURL == "" {
		errs = append(errs, errors.New("--admin-database-url (INVENTORY_ADMIN_DATABASE_URL) is missing: give the URL of a role that may create tables and roles, as in postgres://postgres@host/inventory?sslmode=verify-full"))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if err := sql.Migrate(ctx, sql.Inventory, c.AdminURL, p.cli.DatabaseURL, p.stdout); err != nil || c.ReaderURL == "" {
		return err
	}
	return sql.GrantReader(ctx, c.AdminURL, p.cli.DatabaseURL, c.ReaderURL, p.stdout)
}

// Run consumes events and serves HTTP. It reports all mistakes in the configuration at once. If PostgreSQL or Kafka
// does not answer, it waits: /readyz and the log report that.
func (c *serveCmd) Run(ctx context.Context, p *process) error {
	log, logErr := app.NewLogger(p.stderr, p.cli.LogLevel, p.cli.LogFormat)
	pool, poolErr := p.pool(ctx, log)
	if poolErr == nil {
		defer pool.Close()
	}
	if err := errors.Join(logErr, poolErr, c.check()); err != nil {
		return err
	}
	log = log.With().Str("service", "inventory").Logger()
	ln, err := net.Listen("tcp", c.HTTP)
	if err != nil {
		return fmt.Errorf("--http (INVENTORY_HTTP): %w: choose a free address of this machine", err)
	}
	defer ln.Close()
	profiles, err := app.ListenPprof("--pprof (INVENTORY_PPROF)", c.Pprof)
	if err != nil {
		return err
	}
	defer profiles.Close()

	reg := app.NewRegistry()
	store, metrics := inventory.NewStore(pool), inventory.NewMetrics(reg)
	cfg := inventory.ConsumerConfig{
		Brokers: c.Brokers, Login: c.login(log), Topic: c.Topic, Group: c.Group, Store: store, Metrics: metrics, Log: log,
		Policy: c.Policy, Gap: c.Gap, Batch: c.Batch, Retention: c.Retention,
	}.Inbox()
	consumer, err := inbox.New(cfg)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	app.OpsRoutes(mux, reg, func(ctx context.Context) error { return p.database(log).Explain(consumer.Ready(ctx)) })
	inventory.Routes(mux, store, inbox.NewOperator(cfg, ""), metrics, log)

	if err := store.Ping(ctx); err != nil {
		log.Warn().Err(p.database(log).Explain(err)).Msg("INVENTORY_DATABASE_URL: the database cannot be used yet; the service is not ready until it can (inventory migrate creates the tables)")
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return app.Serve(ctx, ln, app.Instrument(reg, mux), log) })
	group.Go(func() error { return consumer.Run(ctx) })
	group.Go(func() error { return profiles.Serve(ctx, log) })
	return group.Wait()
}

// inboxes returns the service's one inbox, with the configuration of its consumer.
func (p *process) inboxes(src source) *inboxcmd.Inboxes {
	return &inboxcmd.Inboxes{
		Program: "inventory", Groups: []string{src.Group}, Stdout: p.stdout,
		Open: func(ctx context.Context, _ string, do func(inbox.Config) error) error {
			pool, err := p.pool(ctx, zerolog.Nop())
			if err != nil {
				return err
			}
			defer pool.Close()
			err = do(inventory.ConsumerConfig{
				Brokers: src.Brokers, Login: src.login(zerolog.Nop()), Topic: src.Topic, Group: src.Group, Store: inventory.NewStore(pool),
				Metrics: inventory.NewMetrics(prometheus.NewRegistry()), Log: zerolog.Nop(),
			}.Inbox())
			return p.database(zerolog.Nop()).Explain(err)
		},
	}
}

// database returns how the service logs in to the inventory database.
func (p *process) database(log zerolog.Logger) *identity.Postgres {
	return identity.NewPostgres(databaseURL, p.cli.DatabaseURL, log)
}

func (p *process) pool(ctx context.Context, log zerolog.Logger) (*pgxpool.Pool, error) {
	if p.cli.DatabaseURL == "" {
		return nil, errors.New("--database-url (INVENTORY_DATABASE_URL) is missing: give the service's URL, as in postgres://inventory_service:password@host/inventory?sslmode=verify-full")
	}
	config, err := p.database(log).Pool(ctx)
	if err != nil {
		return nil, err
	}
	pglimit.Set(&config.ConnConfig.Config)
	config.ConnConfig.Tracer = pglimit.Queries{Within: 10 * time.Minute} // a rebuild reads everything
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", databaseURL, err)
	}
	return pool, nil
}

func (s *serveCmd) check() error {
	err := s.source.check()
	if httpErr := checkAddress(s.HTTP); httpErr != nil {
		err = errors.Join(err, fmt.Errorf("--http (INVENTORY_HTTP): %w", httpErr))
	}
	return err
}

func (s *source) check() error {
	errs := []error{s.Identity.Check(identity.Flags("INVENTORY_"))}
	if len(s.Brokers) == 0 {
		errs = append(errs, errors.New("--kafka-brokers (INVENTORY_KAFKA_BROKERS) is missing: give at least one broker, as in 127.0.0.1:9092"))
	}
	for _, broker := range s.Brokers {
		if err := checkAddress(broker); err != nil {
			errs = append(errs, fmt.Errorf("--kafka-brokers (INVENTORY_KAFKA_BROKERS): %w", err))
		}
	}
	if !legalTopic(s.Topic) {
		errs = append(errs, fmt.Errorf("--topic (INVENTORY_TOPIC): %q is not a name of a topic: use 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'", s.Topic))
	}
	if s.Group == "" || len(s.Group) > 255 {
		errs = append(errs, errors.New("--group (INVENTORY_GROUP): a consumer group's name has 1 to 255 bytes"))
	}
	return errors.Join(errs...)
}

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is not host:port with a number from 0 to 65535 as port", address)
	}
	return nil
}

// legalTopic reports whether Kafka allows name as the name of a topic.
func legalTopic(name string) bool {
	const alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	return name != "" && name != "." && name != ".." && len(name) <= 249 && strings.Trim(name, alphabet) == ""
}
