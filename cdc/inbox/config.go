package inbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/identity"
)

// Config of a Consumer. What is not said to be optional is required.
type Config struct {
	Brokers []string // host:port, one that answers is enough
	Topic   string
	Group   string // its processes share the topic's partitions
	// Consumer names the effects in the inbox: whoever reads the topic under this name, in whatever group, finds the
	// events that have been applied. Empty: Group.
	Consumer string
	// Login is optional: how to prove to Kafka who we are. Without it connections have neither TLS nor a login.
	Login *identity.Login

	Pool   *pgxpool.Pool // of the database with the inbox and the effects; stays the caller's to close
	Handle Handler
	// HandleBatch is optional: Handle for several events at once, in their order, to save round trips or to take locks in
	// one order.
	HandleBatch func(ctx context.Context, tx pgx.Tx, events []Event) error

	// Types are the event types to handle; empty means all. Ignore are known types that are passed over without a trace.
	// An event of any other type is set aside as with Skip, whatever Policy says.
	Types, Ignore []string

	Policy Policy    // of events that can never be applied; empty: Block
	Gap    GapPolicy // of records that left the topic before they were applied; empty: Halt
	Batch  int       // most events in a transaction; 0: 500

	// Retention is how long the inbox remembers an event, counted from the time in its id; 0: for ever. Nothing is
	// forgotten while the topic itself keeps its records as long or longer.
	Retention time.Duration

	Metrics *Metrics // optional
	Log     zerolog.Logger
}

func (cfg Config) withDefaults() Config {
	if cfg.Consumer == "" {
		cfg.Consumer = cfg.Group
	}
	if cfg.Policy == "" {
		cfg.Policy = Block
	}
	if cfg.Gap == "" {
		cfg.Gap = Halt
	}
	if cfg.Batch == 0 {
		cfg.Batch = 500
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(prometheus.NewRegistry(), "inbox", cfg.Types...)
	}
	cfg.Log = cfg.Log.With().Str("topic", cfg.Topic).Str("group", cfg.Group).Logger()
	return cfg
}

func (cfg Config) validate() error {
	var errs []error
	for what, missing := range map[string]bool{
		"Brokers": len(cfg.Brokers) == 0, "Topic": cfg.Topic == "", "Group": cfg.Group == "", "Pool": cfg.Pool == nil, "Handle": cfg.Handle == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("%s is missing", what))
		}
	}
	if !slices.Contains([]Policy{Block, ParkKey, Skip}, cfg.Policy) {
		errs = append(errs, fmt.Errorf("policy %q is none of block, park_key, skip", cfg.Policy))
	}
	if cfg.Gap != Halt && cfg.Gap != GoOn {
		errs = append(errs, fmt.Errorf("gap %q is none of halt, go_on", cfg.Gap))
	}
	if cfg.Batch < 1 {
		errs = append(errs, fmt.Errorf("a batch of %d events: at least 1", cfg.Batch))
	}
	if cfg.Retention < 0 || cfg.Retention > 0 && cfg.Retention < 24*time.Hour {
		errs = append(errs, fmt.Errorf("a retention of %v: the inbox forgets by days, so at least 24h, or 0 for ever", cfg.Retention))
	}
	return errors.Join(errs...)
}

func (cfg Config) effects() *effects { return &effects{cfg.Consumer, cfg.Handle, cfg.HandleBatch} }

// owner names this process to people.
func owner() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

// client makes a client of the brokers, which is called like the consumer.
func (cfg Config) client(opts ...kgo.Opt) (*kgo.Client, error) {
	client, err := kgo.NewClient(append(cfg.clientOptions(), opts...)...)
	if err != nil {
		return nil, fmt.Errorf("configure the client: %w", err)
	}
	return client, nil
}

func (cfg Config) clientOptions() []kgo.Opt {
	return append(cfg.Login.Options(), kgo.SeedBrokers(cfg.Brokers...), kgo.ClientID(cfg.Consumer))
}

// why returns the sentence that says why Kafka does not let us in or what it does not allow, where that is behind err, and otherwise err.
func (cfg Config) why(ctx context.Context, err error) error {
	grant := func(kind, name string) error {
		return fmt.Errorf("%w: %s", err, cfg.Login.Grant(cfg.Brokers, kind, name, "Read"))
	}
	switch {
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return grant(identity.Topic, cfg.Topic)
	case errors.Is(err, kerr.GroupAuthorizationFailed):
		return grant(identity.Group, cfg.Group)
	}
	if refused := cfg.Login.Explain(ctx, strings.Join(cfg.Brokers, ", "), err); refused != nil {
		return refused
	}
	return err
}

func (c *Consumer) options() []kgo.Opt {
	return []kgo.Opt{
		kgo.WithHooks(newClient(func(client *kgo.Client) { c.client = client })),
		kgo.ConsumerGroup(c.cfg.Group),
		kgo.ConsumeTopics(c.cfg.Topic),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), // a position that is not in the log is found by positions alone
		kgo.AdjustFetchOffsetsFn(c.positions),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that the offset passes the end of a transaction, and lag can be 0
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.OnPartitionsAssigned(c.onAssigned),
		kgo.OnPartitionsRevoked(c.onRevoked),
		kgo.OnPartitionsLost(c.onLost),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(heartbeatInterval),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.MetadataMinAge(time.Second), // a topic that is made after us is found within seconds
		kgo.MetadataMaxAge(30 * time.Second),
	}
}
