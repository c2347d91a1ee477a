// Command demo shows the way of a row from COMMIT to stock, and the answer's way back: PostgreSQL, Kafka, the order service, the relay
// and the inventory service in one process. It places, pays and cancels orders, and tells where each event is, as it happens.
//
// PostgreSQL is a real one, fetched where none is installed; Kafka is an in-process one. Both are gone when the demo ends.
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
	Once     bool          `help:"End after the orders: with exit code 0 when the stock has decreased as they say, with 1 and the reason when it has not."`
	Timeout  time.Duration `default:"60s" help:"Most time for starting everything and for the orders."`
	LogLevel string        `default:"warn" env:"LOG_LEVEL" help:"Log of all three, on stderr: trace, debug, info, warn or error. At debug there is a line per event in each."`
}

// parts are what the tests break, one at a time.
type parts struct {
	relay    func(config.Config, pipeline.Options) (*pipeline.Pipeline, error)
	consume  func(*inbox.Consumer, context.Context) error
	patience time.Duration // an event that takes longer from its commit to its effect is not coming
}

var whole = parts{pipeline.New, (*inbox.Consumer).Run, 20 * time.Second}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	return runWith(ctx, whole, args, getenv, stdout, stderr)
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
		return errors.New("stopped before the stock could be looked at")
	}
	return nil
}

// run wires everything together:
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
	limited, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("--timeout: %s are over", c.Timeout))
	defer cancel()

	// A PostgreSQL and a Kafka.
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

	// Once: both databases with their schemas and roles; role, slot, topics and first state record of the relay.
	for _, database := range []sql.Database{sql.Orders, sql.Inventory} {
		name := string(database)
		if err := pg.CreateDatabase(limited, name); err != nil {
			return err
		}
		if err := sql.Migrate(limited, database, pg.URL(name), pg.URLFor(name+"_service", "", name), io.Discard); err != nil {
			return err
		}
	}
	relayLog, relayReg, relayMux := log.With().Str("service", "walpost").Logger(), app.NewRegistry(), http.NewServeMux()
	var relays pipeline.Group
	for _, database := range []sql.Database{sql.Orders, sql.Inventory} {
		cfg := config.Default()
		cfg.Pipeline = string(database)
		cfg.Source.URL = pg.URLFor("walpost", "", string(database))
		cfg.Source.StatusInterval = 100 * time.Millisecond // nobody wants to watch the slot for the usual second
		cfg.Kafka.Brokers = broker.Brokers()
		cfg.Kafka.AggregateTypes = []string{"order"}
		cfg.Kafka.Replication = 1
		if database == sql.Inventory {
			cfg.Source.Slot = inventorySlot
			cfg.Kafka.AggregateTypes = []string{"stock"}
		}
		p, err := with.relay(cfg, pipeline.Options{Log: relayLog, Registerer: relayReg})
		if err != nil {
			return err
		}
		if _, err := p.Init(limited, pipeline.InitOptions{AdminURL: pg.URL(string(database))}); err != nil {
			return err
		}
		relays = append(relays, p)
	}

	// The order service: HTTP and PostgreSQL, which know no Kafka, and beside them what consumes the stock's answers.
	ordersLog, ordersReg, ordersMux := log.With().Str("service", "orders").Logger(), app.NewRegistry(), http.NewServeMux()
	store, err := orders.Open(ctx, pg.URLFor("orders_service", "", "orders"))
	if err != nil {
		return err
	}
	defer store.Close()
	ordersPool, err := pgxpool.New(ctx, pg.URLFor("orders_service", "", "orders"))
	if err != nil {
		return err
	}
	defer ordersPool.Close()
	answers := saga.Inbox(ordersLog)
	answers.Brokers, answers.Topic, answers.Group, answers.Pool, answers.Policy, answers.Log = broker.Brokers(), stockTopic, saga.Group, ordersPool, inbox.ParkKey, ordersLog
	wayBack, err := inbox.New(answers)
	if err != nil {
		return err
	}
	app.OpsRoutes(ordersMux, ordersReg, func(ctx context.Context) error { return errors.Join(store.Ready(ctx), wayBack.Ready(ctx)) })
	orders.Routes(ordersMux, store, ordersReg, ordersLog)

	// The relay: two WALs to Kafka, each as if it were alone.
	app.OpsRoutes(relayMux, relayReg, relays.Ready)
	relays.Routes(relayMux)

	// The inventory service: Kafka to PostgreSQL, and HTTP.
	inventoryLog, inventoryReg, inventoryMux := log.With().Str("service", "inventory").Logger(), app.NewRegistry(), http.NewServeMux()
	pool, err := pgxpool.New(ctx, pg.URLFor("inventory_service", "", "inventory"))
	if err != nil {
		return err
	}
	defer pool.Close()
	stock, metrics := inventory.NewStore(pool), inventory.NewMetrics(inventoryReg)
	consumption := inventory.ConsumerConfig{
		Brokers: broker.Brokers(), Topic: orderTopic, Group: "inventory", Store: stock, Metrics: metrics, Log: inventoryLog, Policy: inbox.ParkKey,
	}.Inbox()
	consumer, err := inbox.New(consumption)
	if err != nil {
		return err
	}
	app.OpsRoutes(inventoryMux, inventoryReg, consumer.Ready)
	inventory.Routes(inventoryMux, stock, inbox.NewOperator(consumption, "demo"), metrics, inventoryLog)

	var listeners [3]net.Listener
	var urls [3]string
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		defer listeners[i].Close()
		urls[i] = "http://" + listeners[i].Addr().String()
	}
	group.Go(func() error { return app.Serve(ctx, listeners[0], app.Instrument(ordersReg, ordersMux), ordersLog) })
	group.Go(func() error {
		return app.Serve(ctx, listeners[1], app.Instrument(inventoryReg, inventoryMux), inventoryLog)
	})
	group.Go(func() error { return app.Serve(ctx, listeners[2], relayMux, relayLog) })
	group.Go(func() error { return relays.Run(ctx) })
	group.Go(func() error { return wayBack.Run(ctx) })
	group.Go(func() error { return with.consume(consumer, ctx) })

	// And somebody who buys, and looks at everything.
	group.Go(func() error {
		defer stop()
		w, err := newWitness(limited, pg, broker, urls, with.patience, out)
		if err != nil {
			return err
		}
		defer w.close()
		if err := w.tellAll(limited); err != nil || c.Once {
			return err
		}
		return w.goOn(ctx)
	})
	return group.Wait()
}
