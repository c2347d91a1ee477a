package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/pglimit"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/orders/notify"
	"github.com/walpost/walpost/orders/saga"
	"github.com/walpost/walpost/orders/statistics"
)

// groups are this service's consumer groups. They are independent of each other; a new group is one entry here.
var groups = []group{
	{name: saga.Group, topic: stockEvents, inbox: func(s shared) inbox.Config { return saga.Inbox(s.log) }},
	{name: notify.ChannelMail, topic: orderEvents, inbox: func(s shared) inbox.Config { return notify.NewStore(s.pool).Inbox(notify.ChannelMail, "") }, sender: sendFlags.mail},
	{name: notify.ChannelWebhook, topic: orderEvents, inbox: func(s shared) inbox.Config { return notify.NewStore(s.pool).Inbox(notify.ChannelWebhook, s.to) }, sender: sendFlags.webhook},
	{name: statistics.Group, topic: orderEvents, inbox: func(shared) inbox.Config { return statistics.Inbox() }},
}

// A group applies the events of one topic to the orders database.
type group struct {
	name  string
	topic func(kafka) string
	inbox func(shared) inbox.Config // the part of the configuration that differs between groups
	// sender returns the sender that runs next to the consumer, or the mistakes in its flags. If none of its flags is
	// set, missing names the variables to set, and the group is left out, unless it was named. sender may be nil.
	sender func(sendFlags) (s sender, missing string, err error)
}

// background runs until ctx ends, and then returns nil.
type background func(ctx context.Context) error

// shared has the parts that a group's configuration may use.
type shared struct {
	pool  *pgxpool.Pool // for this group alone
	login *identity.Login
	reg   prometheus.Registerer
	log   zerolog.Logger
	to    string // the recipient of webhooks; empty if a command only looks at the inbox
}

func orderEvents(k kafka) string { return k.Topic }
func stockEvents(k kafka) string { return k.StockTopic }

// kafka says where the events are.
type kafka struct {
	Brokers     []string `name:"kafka-brokers" env:"ORDERS_KAFKA_BROKERS" placeholder:"HOST:PORT" help:"Kafka brokers, separated by commas."`
	Topic       string   `env:"ORDERS_TOPIC" default:"outbox.event.order" help:"Topic of the order events."`
	StockTopic  string   `env:"ORDERS_STOCK_TOPIC" default:"outbox.event.stock" help:"Topic of the stock's answers."`
	GroupPrefix string   `env:"ORDERS_GROUP_PREFIX" help:"Prefix for the names of the consumer groups; needed if several shops share a Kafka."`

	Identity identity.Kafka `embed:"" prefix:"kafka-" envprefix:"ORDERS_KAFKA_" group:"Kafka: TLS and login"`
}

func (k kafka) check() error {
	err := k.Identity.Check(identity.Flags("ORDERS_"))
	if len(k.Brokers) == 0 {
		return errors.Join(errors.New("--kafka-brokers (ORDERS_KAFKA_BROKERS) is missing: give at least one broker, as in 127.0.0.1:9092"), err)
	}
	return err
}

// login returns how the service logs in to Kafka. Its configuration keys are named like the flags.
func (k kafka) login(log zerolog.Logger) *identity.Login {
	return identity.NewLogin(k.Identity, k.Brokers, identity.Flags("ORDERS_"), log)
}

type consumeCmd struct {
	kafka
	sendFlags
	Groups    []string        `arg:"" optional:"" name:"group" help:"The groups to consume; without a name, all."`
	Policy    inbox.Policy    `env:"ORDERS_POLICY" enum:"block,park_key,skip" default:"park_key" help:"Policy for an event that can never be applied: ${enum}."`
	Gap       inbox.GapPolicy `env:"ORDERS_GAP" enum:"halt,go_on" default:"halt" help:"Policy for a partition whose next records left the topic before they were applied: ${enum}."`
	Batch     int             `env:"ORDERS_BATCH" default:"500" help:"The most events in one transaction."`
	Retention time.Duration   `env:"ORDERS_INBOX_RETENTION" default:"720h" help:"How long the inbox remembers an event; must be longer than the topics keep it. 0: no limit."`
	HTTP      string          `name:"http" env:"ORDERS_CONSUME_HTTP" default:"127.0.0.1:8083" placeholder:"HOST:PORT" help:"Address to listen on, for /livez, /readyz and /metrics."`
	Pprof     string          `name:"pprof" env:"ORDERS_CONSUME_PPROF" placeholder:"HOST:PORT" help:"Address for Go's profiles, on loopback only, as in 127.0.0.1:6063; empty: none."`
}

func groupNames() (names []string) {
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

// chosen returns the groups with these names, or all groups if names is empty.
func chosen(names []string) ([]group, error) {
	for _, name := range names {
		if !slices.Contains(groupNames(), name) {
			return nil, fmt.Errorf("there is no group %q: name some of %s, or none for all", name, strings.Join(groupNames(), ", "))
		}
	}
	if len(names) == 0 {
		return groups, nil
	}
	return slices.DeleteFunc(slices.Clone(groups), func(g group) bool { return !slices.Contains(names, g.name) }), nil
}

// senders returns the groups that are configured, and their senders. A group that was named must be configured.
func (c *consumeCmd) senders(asked []group, log zerolog.Logger) (ready []group, senders map[string]sender, err error) {
	senders = map[string]sender{}
	for _, g := range asked {
		if g.sender == nil {
			ready = append(ready, g)
			continue
		}
		s, missing, wrong := g.sender(c.sendFlags)
		switch {
		case wrong != nil && (missing == "" || slices.Contains(c.Groups, g.name)):
			err = errors.Join(err, wrong)
		case wrong != nil:
			log.Warn().Str("group", g.name).Msg("group left out, because its recipient is not configured: set " + missing)
		default:
			ready, senders[g.name] = append(ready, g), s
		}
	}
	return ready, senders, err
}

// config returns the complete configuration of a group's consumer.
func (g group) config(k kafka, s shared) inbox.Config {
	cfg := g.inbox(s)
	cfg.Brokers, cfg.Login, cfg.Topic, cfg.Group, cfg.Consumer, cfg.Pool, cfg.Log = k.Brokers, s.login, g.topic(k), k.GroupPrefix+g.name, g.name, s.pool, s.log
	cfg.Metrics = inbox.NewMetrics(prometheus.WrapRegistererWith(prometheus.Labels{"group": g.name}, s.reg), "orders_inbox", cfg.Types...)
	return cfg
}

// connect opens a separate pool for a group, so that slow database work of one group does not delay another.
func (g group) connect(ctx context.Context, database *identity.Postgres) (*pgxpool.Pool, error) {
	config, err := database.Pool(ctx)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.RuntimeParams["application_name"] = "orders consume " + g.name
	pglimit.Set(&config.ConnConfig.Config)
	config.ConnConfig.Tracer = pglimit.Queries{Within: 10 * time.Minute} // a rebuild reads everything
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", databaseURL, err)
	}
	return pool, nil
}

// Run runs the chosen groups. If PostgreSQL or Kafka does not answer, it waits: /readyz and the log report that.
func (c *consumeCmd) Run(ctx context.Context, p *process) error {
	log, logErr := app.NewLogger(p.stderr, p.cli.LogLevel, p.cli.LogFormat)
	asked, err := chosen(c.Groups)
	asked, senders, sendErr := c.senders(asked, log)
	if err := errors.Join(err, checkURL(databaseURL, p.cli.DatabaseURL), c.check(), sendErr, logErr); err != nil {
		return err
	}
	log = log.With().Str("service", "orders").Logger()
	ln, err := net.Listen("tcp", c.HTTP)
	if err != nil {
		return fmt.Errorf("--http (ORDERS_CONSUME_HTTP): %w; stop what listens there or choose another address", err)
	}
	defer ln.Close()
	profiles, err := app.ListenPprof("--pprof (ORDERS_CONSUME_PPROF)", c.Pprof)
	if err != nil {
		return err
	}
	defer profiles.Close()
	reg, mux := app.NewRegistry(), http.NewServeMux()
	login := c.login(log)
	ready := map[string]func(context.Context) error{}
	work := []background{func(ctx context.Context) error { return app.Serve(ctx, ln, mux, log) }, func(ctx context.Context) error { return profiles.Serve(ctx, log) }}
	var metrics *notify.Metrics
	database := identity.NewPostgres(databaseURL, p.cli.DatabaseURL, log)
	for _, g := range asked {
		pool, err := g.connect(ctx, database)
		if err != nil {
			return err
		}
		defer pool.Close()
		s, sends := senders[g.name]
		cfg := g.config(c.kafka, shared{pool, login, reg, log, s.to})
		cfg.Policy, cfg.Gap, cfg.Batch, cfg.Retention = c.Policy, c.Gap, c.Batch, c.Retention
		consumer, err := inbox.New(cfg)
		if err != nil {
			return err
		}
		ready[g.name] = consumer.Ready
		work = append(work, consumer.Run)
		if sends {
			store := notify.NewStore(pool)
			if metrics == nil { // one set of metrics for all channels
				metrics = notify.NewMetrics(reg, store)
			}
			work = append(work, s.in(store, metrics, log))
		}
	}
	app.OpsRoutes(mux, reg, func(ctx context.Context) error {
		var errs []error
		for _, g := range asked {
			if err := ready[g.name](ctx); err != nil {
				errs = append(errs, fmt.Errorf("group %s: %w", g.name, database.Explain(err)))
			}
		}
		return errors.Join(errs...)
	})
	running, ctx := errgroup.WithContext(ctx)
	for _, do := range work {
		running.Go(func() error { return do(ctx) })
	}
	return running.Wait()
}
