// Command demo shows the way of a row from COMMIT to stock, and the way of the answer: PostgreSQL, Kafka, the order
// service, the relay and the inventory service run from one program. It places, pays and cancels orders, and prints
// where each event is as it moves.
//
// PostgreSQL is a real server, fetched if none is installed. Kafka runs inside the process, and the relay in a second
// process. It then places and pays orders until a person stops it, and keys kill the relay, stop Kafka or send a
// poison row. The demo removes everything when it ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
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
	HTTP     string        `name:"http" placeholder:"HOST:PORT" help:"The address of the relay's page. Without it: 127.0.0.1:7171, or a free port if that is taken."`
	Timeout  time.Duration `default:"60s" help:"The time limit for starting everything and for the orders, and for the last events at the end."`
	LogLevel string        `default:"warn" env:"LOG_LEVEL" help:"Level of the log of all three services, on stderr: trace, debug, info, warn or error. At debug each service logs a line per event."`
	Relay    string        `hidden:"" help:"Run the relay with this configuration until stdin ends. The demo starts itself so."`
}

// parts are the parts that the tests break, one at a time.
type parts struct {
	relay    func([]config.Config, pipeline.Options) (pipeline.Group, error)
	relayEnv []string // variables of the relay's process
	consume  func(*inbox.Consumer, context.Context) error
	patience time.Duration // the longest time from an event's commit to its effect; after that it counts as lost
	keys     io.Reader
}

var allParts = parts{pipeline.NewGroup, nil, (*inbox.Consumer).Run, 20 * time.Second, os.Stdin}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	return runWith(ctx, allParts, args, getenv, stdout, stderr)
}

func runWith(ctx context.Context, with parts, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var c cli
	command, err := app.Parse("demo", "Shows the way of a row from COMMIT to stock, in one program.", &c, args, getenv, stdout, stderr)
	if err != nil || command == nil {
		return err
	}
	screen := &screen{}
	stdout, stderr = screen.writer(stdout), screen.writer(stderr)
	log, err := app.NewLogger(stderr, c.LogLevel, "console")
	if err != nil {
		return err
	}
	if c.Relay != "" {
		return runRelay(ctx, with, c.Relay, log)
	}
	err = c.run(ctx, with, log, screen, stdout, stderr)
	if stopped := errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx)); err == nil || ctx.Err() == nil || !stopped {
		return err
	}
	if c.Once {
		return errors.New("stopped before the stock could be compared")
	}
	return nil
}

// run serves the page's address, and plays until asked ends, which Ctrl-C does, or a person quits.
func (c *cli) run(asked context.Context, with parts, log zerolog.Logger, screen *screen, out, stderr io.Writer) (err error) {
	ln, err := listen(c.HTTP)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "The relay's page: http://%s/\n", ln.Addr())
	// The services outlive the request to stop: first the demo checks that every event has arrived.
	ctx, stop := context.WithCancel(context.WithoutCancel(asked))
	defer stop()
	s := &stage{
		cli: c, parts: with, log: log, screen: screen, out: out, stderr: stderr,
		asked: asked, keep: context.AfterFunc(asked, stop), front: newFront(ctx), url: "http://" + ln.Addr().String(),
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return app.Serve(ctx, ln, s.front, log) })
	group.Go(func() error {
		defer stop()
		return s.play(ctx)
	})
	return group.Wait()
}

// stage has what every part of the demo needs.
type stage struct {
	*cli
	parts
	log         zerolog.Logger
	screen      *screen
	out, stderr io.Writer

	asked context.Context // ends at Ctrl-C
	keep  func() bool     // keeps the services running after that
	front *front
	url   string // of the page
}

// play connects all parts:
//
//	 curl                                                                           curl
//	  │                                                                              │
//	  ▼     one transaction      WAL             records                             ▼
//	orders ───────────────▶ outbox ───▶ relay ───────────▶ outbox.event.order ───▶ inventory ───▶ stock, inbox
//	  ▲      PostgreSQL,      ▲           │                    Kafka                            PostgreSQL,
//	  │      database orders  └───────────┘                                                     database inventory
//	  │                  confirmed_flush_lsn                                                         │
//	  └──── outbox.event.stock ◀──────── relay ◀──────── outbox ◀───── in the transaction that moves stock
func (s *stage) play(ctx context.Context) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	limited, cancel := context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("--timeout: %s have passed", s.Timeout))
	defer cancel()

	folder, err := os.MkdirTemp("", "walpost-demo-*")
	if err != nil {
		return fmt.Errorf("make a folder for the demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	fmt.Fprintln(s.out, "Starting PostgreSQL and Kafka.")
	pg, err := devenv.StartPostgres(limited, devenv.PostgresConfig{Fetching: func(version string) {
		fmt.Fprintf(s.out, "No PostgreSQL is installed: fetching version %s, about 15 MB, once\n", version)
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Close()) }()
	port, err := devenv.FreePort() // a Kafka that comes back has the same port
	if err != nil {
		return err
	}
	kafka := &broker{cfg: devenv.KafkaConfig{Ports: []int{port}, DataDir: filepath.Join(folder, "kafka")}}
	if err := kafka.start(); err != nil {
		return err
	}
	defer kafka.close()

	d := demo{stage: s, pg: pg, kafka: kafka, file: filepath.Join(folder, "walpost.yaml")}
	if err := d.databases(limited); err != nil {
		return err
	}
	defer func() {
		for _, c := range d.services {
			c.close()
		}
	}()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer stop()
		return d.visit(ctx, limited, group)
	})
	return group.Wait()
}

// demo has the servers, and the services that use them.
type demo struct {
	*stage
	pg       *devenv.Postgres
	kafka    *broker
	file     string // the relay's configuration
	services []component
}

// component is the order service or the inventory service.
type component struct {
	log     zerolog.Logger
	handler http.Handler
	run     func(context.Context) error // runs in addition to its HTTP server
	close   func()
}

// visit starts the services in group, and lets the witness buy. Until a person stops it, it then places more orders, and
// lets the person break things. At the end it checks that every event has arrived once.
func (d *demo) visit(ctx, limited context.Context, group *errgroup.Group) error {
	relay, relays, err := d.relays(limited)
	if err != nil {
		return err
	}
	group.Go(func() error { return relay.run(ctx) })
	urls := [3]string{d.url}
	for i, start := range []func(context.Context) (component, error){d.orders, d.inventory} {
		c, err := start(limited)
		if err != nil {
			return err
		}
		d.services = append(d.services, c)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		urls[i+1] = "http://" + ln.Addr().String()
		group.Go(func() error { return app.Serve(ctx, ln, c.handler, c.log) })
		group.Go(func() error { return c.run(ctx) })
	}
	w, err := newWitness(limited, d.pg, d.kafka.brokers(), urls, d.patience, d.out)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.playOrders(limited); err != nil || d.Once {
		return err
	}
	if !d.keep() {
		return context.Canceled // Ctrl-C already
	}

	watching, quit := context.WithCancel(ctx)
	defer quit()
	defer context.AfterFunc(d.asked, quit)()
	keyboard, err := newKeyboard(watching, d.parts.keys, d.screen)
	if err != nil {
		return err
	}
	defer keyboard.restore()
	defer context.AfterFunc(watching, keyboard.restore)()
	h := &hands{
		say: w.say, relay: relay, kafka: d.kafka, orders: relays[0], database: w.database,
		walpost: "go run ./cmd/walpost -c " + d.file + " -p orders",
	}
	playing, watching := errgroup.WithContext(watching)
	playing.Go(keyboard.guard(func() error { return w.keepBuying(watching) }))
	playing.Go(keyboard.guard(func() error {
		defer quit()
		return h.work(watching, keyboard.keys)
	}))
	playing.Go(keyboard.guard(func() error { return w.followAll(watching, keyboard.given) }))
	if err := playing.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := h.heal(); err != nil {
		return err
	}
	return w.finish(ctx, d.Timeout)
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

// mayRead lets the relay's role read the outbox, which a relay does not need, so that the page finds an event by its row.
func (d *demo) mayRead(ctx context.Context, database string) error {
	conn, err := pgx.Connect(ctx, d.pg.URL(database))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "GRANT SELECT ON outbox TO walpost")
	return errors.Join(err, conn.Close(ctx))
}

// relays writes the relay's configuration, and creates the roles, slots, topics and first state records of its two
// pipelines. It returns the process, which does not run yet, and the pipelines with the operator's verbs.
func (d *demo) relays(ctx context.Context) (*relayProcess, pipeline.Group, error) {
	port, err := devenv.FreePort() // a relay that starts again has the same port
	if err != nil {
		return nil, nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	urls := [2]string{d.pg.URLFor("walpost", "", string(sql.Orders)), d.pg.URLFor("walpost", "", string(sql.Inventory))}
	if err := writeRelayFile(d.file, address, d.kafka.brokers()[0], urls[0], urls[1]); err != nil {
		return nil, nil, fmt.Errorf("write the relay's configuration: %w", err)
	}
	cfgs, err := loadRelay(d.file)
	if err != nil {
		return nil, nil, err
	}
	relays, err := pipeline.NewGroup(cfgs, pipeline.Options{Log: d.log, Operator: "demo"})
	if err != nil {
		return nil, nil, err
	}
	for i, database := range []sql.Database{sql.Orders, sql.Inventory} {
		if _, err := relays[i].Init(ctx, pipeline.InitOptions{AdminURL: d.pg.URL(string(database))}); err != nil {
			return nil, nil, err
		}
		if err := d.mayRead(ctx, string(database)); err != nil {
			return nil, nil, err
		}
	}
	program, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find this program, which is also the relay's: %w", err)
	}
	d.front.pass(address)
	command := func() *exec.Cmd {
		cmd := exec.Command(program, "--relay", d.file, "--log-level", d.LogLevel)
		cmd.Dir, cmd.Env, cmd.Stderr = filepath.Dir(d.file), append(os.Environ(), d.relayEnv...), d.stderr
		return cmd
	}
	say := func(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }
	return &relayProcess{command: command, front: d.front, say: say, again: make(chan struct{})}, relays, nil
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
	answers.Brokers, answers.Topic, answers.Group, answers.Pool, answers.Policy, answers.Log = d.kafka.brokers(), stockTopic, saga.Group, store.Pool(), inbox.ParkKey, log
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
		Brokers: d.kafka.brokers(), Topic: orderTopic, Group: "inventory", Store: stock, Metrics: metrics, Log: log, Policy: inbox.ParkKey,
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
