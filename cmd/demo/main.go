// Command demo shows the way of a row from COMMIT to stock, and the way of the answer: PostgreSQL, Kafka, the order
// service, the relay and the inventory service run from one process. It places, pays and cancels orders, and prints
// where each event is as it moves.
//
// PostgreSQL is a real server, fetched if none is installed. Kafka runs inside the process. The demo removes both when
// it ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/inventory"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/saga"
	"github.com/walpost/walpost/sql"
)

func main() { app.Main(run) }

type cli struct {
	Once     bool          `help:"End after the orders: with exit code 0 if the stock decreased by the items of the orders, otherwise with 1 and the reason."`
	Timeout  time.Duration `default:"60s" help:"The time limit for starting everything and for the orders."`
	LogLevel string        `default:"warn" env:"LOG_LEVEL" help:"Level of the log of all three services, on stderr: trace, debug, info, warn or error. At debug each service logs a line per event."`
}

// parts are the parts that the tests break, one at a time.
type parts struct {
	relay    func(config.Config, pipeline.Options) (*pipeline.Pipeline, error)
	consume  func(*inbox.Consumer, context.Context) error
	patience time.Duration // the longest time from an event's commit to its effect; after that it counts as lost
}

var allParts = parts{pipeline.New, (*inbox.Consumer).Run, 20 * time.Second}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	return runWith(ctx, allParts, args, getenv, stdout, stderr)
}

func runWith(ctx context.Context, with parts, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var c cli
	command, err := app.Parse("demo", "Shows the way of a row from COMMIT to stock, in one process.", &c, args, getenv, stdout, stderr)
	if err != nil || command == nil {
		return err
	}
	log, err := app.NewLogger(stderr, c.LogLevel, "console")
	if err != nil {
		return err
	}
	err = c.run(ctx, with, log, stdout)
	if stopped := errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx)); err == nil || ctx.Err() == nil || !stopped {
		return err
	}
	if c.Once {
		return errors.New("stopped before the stock could be compared")
	}
	return nil
}

// run connects all parts:
//
//	 curl                                                                           curl
//	  │                                                                              │
//	  ▼     one transaction      WAL             records                             ▼
//	orders ───────────────▶ outbox ───▶ relay ───────────▶ outbox.event.order ───▶ inventory ───▶ stock, inbox
//	  ▲      PostgreSQL,      ▲           │                    Kafka                            PostgreSQL,
//	  │      database orders  └───────────┘                                                     database inventory
//	  │                  confirmed_flush_lsn                                                         │
//	  └──── outbox.event.stock ◀──────── relay ◀──────── outbox ◀───── in the transaction that moves stock
func (c *cli) run(ctx context.Context, with parts, log zerolog.Logger, out io.Writer) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	limited, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("--timeout: %s have passed", c.Timeout))
	defer cancel()

	fmt.Fprintln(out, "Starting PostgreSQL and Kafka.")
	pg, err := devenv.StartPostgres(limited, devenv.PostgresConfig{Fetching: func(version string) {
		fmt.Fprintf(out, "No PostgreSQL is installed: fetching version %s, about 15 MB, once\n", version)
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Close()) }()
	broker, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		return err
	}
	defer broker.Close()

	d := demo{parts: with, pg: pg, brokers: broker.Brokers(), log: log}
	if err := d.databases(limited); err != nil {
		return err
	}
	var urls [3]string
	for i, start := range []func(context.Context) (component, error){d.relays, d.orders, d.inventory} {
		s, err := start(limited)
		if err != nil {
			return err
		}
		defer s.close()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer ln.Close()
		urls[i] = "http://" + ln.Addr().String()
		group.Go(func() error { return app.Serve(ctx, ln, s.handler, s.log) })
		group.Go(func() error { return s.run(ctx) })
	}

	// The witness buys, and follows every event.
	group.Go(func() error {
		defer stop()
		w, err := newWitness(limited, pg, broker, urls, with.patience, out)
		if err != nil {
			return err
		}
		defer w.close()
		if err := w.playOrders(limited); err != nil || c.Once {
			return err
		}
		return w.followAll(ctx)
	})
	return group.Wait()
}

// demo has the servers that the services need.
type demo struct {
	parts
	pg      *devenv.Postgres
	brokers []string
	log     zerolog.Logger
}

// component is one of the three services.
type component struct {
	log     zerolog.Logger
	handler http.Handler
	run     func(context.Context) error // runs in addition to its HTTP server
	close   func()
}

// databases creates both databases, with their schemas and roles.
func (d *demo) databases(ctx context.Context) error {
	for _, database := range []sql.Database{sql.Orders, sql.Inventory} {
		name := string(database)
		if err := d.pg.CreateDatabase(ctx, name); err != nil {
			return err
		}
		if err := sql.Migrate(ctx, database, d.pg.URL(name), d.pg.URLFor(name+"_service", "", name), io.Discard); err != nil {
			return err
		}
	}
	return nil
}

// relays returns the relay: two pipelines from two WALs to Kafka, each independent of the other. It also creates their
// roles, slots, topics and first state records.
func (d *demo) relays(ctx context.Context) (component, error) {
	log, reg, mux := d.log.With().Str("service", "walpost").Logger(), app.NewRegistry(), http.NewServeMux()
	var relays pipeline.Group
	for _, database := range []sql.Database{sql.Orders, sql.Inventory} {
		cfg := config.Default()
		cfg.Pipeline = string(database)
		cfg.Source.URL = d.pg.URLFor("walpost", "", string(database))
		cfg.Source.StatusInterval = 100 * time.Millisecond // the default of a second would make the demo slow to watch
		cfg.Kafka.Brokers = d.brokers
		cfg.Kafka.AggregateTypes = []string{"order"}
		cfg.Kafka.Replication = 1
		if database == sql.Inventory {
			cfg.Source.Slot = inventorySlot
			cfg.Kafka.AggregateTypes = []string{"stock"}
		}
		p, err := d.relay(cfg, pipeline.Options{Log: log, Registerer: reg})
		if err != nil {
			return component{}, err
		}
		if _, err := p.Init(ctx, pipeline.InitOptions{AdminURL: d.pg.URL(string(database))}); err != nil {
			return component{}, err
		}
		relays = append(relays, p)
	}
	app.OpsRoutes(mux, reg, relays.Ready)
	relays.Routes(mux)
	return component{log, mux, relays.Run, func() {}}, nil
}

// orders returns the order service: HTTP with PostgreSQL, and next to it the consumer of the stock's answers.
func (d *demo) orders(ctx context.Context) (component, error) {
	log, reg, mux := d.log.With().Str("service", "orders").Logger(), app.NewRegistry(), http.NewServeMux()
	pool, err := pgxpool.ParseConfig(d.pg.URLFor("orders_service", "", "orders"))
	if err != nil {
		return component{}, err
	}
	store, err := orders.Open(ctx, pool)
	if err != nil {
		return component{}, err
	}
	answers := saga.Inbox(log)
	answers.Brokers, answers.Topic, answers.Group, answers.Pool, answers.Policy, answers.Log = d.brokers, stockTopic, saga.Group, store.Pool(), inbox.ParkKey, log
	wayBack, err := inbox.New(answers)
	if err != nil {
		store.Close()
		return component{}, err
	}
	app.OpsRoutes(mux, reg, func(ctx context.Context) error { return errors.Join(store.Ready(ctx), wayBack.Ready(ctx)) })
	orders.Routes(mux, store, reg, log)
	return component{log, app.Instrument(reg, mux), wayBack.Run, store.Close}, nil
}

// inventory returns the inventory service: it consumes from Kafka into PostgreSQL, and serves HTTP.
func (d *demo) inventory(ctx context.Context) (component, error) {
	log, reg, mux := d.log.With().Str("service", "inventory").Logger(), app.NewRegistry(), http.NewServeMux()
	pool, err := pgxpool.New(ctx, d.pg.URLFor("inventory_service", "", "inventory"))
	if err != nil {
		return component{}, err
	}
	stock, metrics := inventory.NewStore(pool), inventory.NewMetrics(reg)
	consumption := inventory.ConsumerConfig{
		Brokers: d.brokers, Topic: orderTopic, Group: "inventory", Store: stock, Metrics: metrics, Log: log, Policy: inbox.ParkKey,
	}.Inbox()
	consumer, err := inbox.New(consumption)
	if err != nil {
		pool.Close()
		return component{}, err
	}
	app.OpsRoutes(mux, reg, consumer.Ready)
	inventory.Routes(mux, stock, inbox.NewOperator(consumption, "demo"), metrics, log)
	return component{log, app.Instrument(reg, mux), func(ctx context.Context) error { return d.consume(consumer, ctx) }, pool.Close}, nil
}
