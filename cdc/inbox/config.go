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

// Config configures a Consumer. A field is required unless its comment gives a default or says optional.
type Config struct {
	Brokers []string // host:port; one broker that answers is enough
	Topic   string
	Group   string // the processes of a group share the topic's partitions
	// Consumer is the name under which the inbox records applied events. Two groups with the same Consumer share these
	// records: an event that one has applied is a duplicate for the other. Empty: Group.
	Consumer string
	// Login is optional: how the consumer logs in to Kafka. Without it connections use neither TLS nor a login.
	Login *identity.Login

	Pool   *pgxpool.Pool // to the database with the inbox and the effects; the caller closes it
	Handle Handler
	// HandleBatch is optional. It applies several events at once, in their order: it can save round trips, or take
	// locks in a fixed order. For a single event Handle is called.
	HandleBatch func(ctx context.Context, tx pgx.Tx, events []Event) error

	// Types are the event types to handle; empty means all. Ignore lists known types that the consumer passes over
	// without recording them. An event of any other type is parked as with Skip, regardless of Policy.
	Types, Ignore []string

	Policy Policy    // for events that can never be applied; empty: Block
	Gap    GapPolicy // for records that left the topic before they were applied; empty: Halt
	Batch  int       // the most events in one transaction; 0: 500

	// Retention is how long the inbox remembers an event, counted from the time in its id; 0: without limit. The inbox
	// forgets nothing while the topic itself keeps its records as long or longer.
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
		errs = append(errs, fmt.Errorf("policy %q: it must be block, park_key or skip", cfg.Policy))
	}
	if cfg.Gap != Halt && cfg.Gap != GoOn {
		errs = append(errs, fmt.Errorf("gap policy %q: it must be halt or go_on", cfg.Gap))
	}
	if cfg.Batch < 1 {
		errs = append(errs, fmt.Errorf("a batch of %d events: it must be at least 1", cfg.Batch))
	}
	if cfg.Retention < 0 || cfg.Retention > 0 && cfg.Retention < 24*time.Hour {
		errs = append(errs, fmt.Errorf("a retention of %v: the inbox forgets whole days, so it must be at least 24h, or 0 to forget nothing", cfg.Retention))
	}
	return errors.Join(errs...)
}

func (cfg Config) effects() *effects { return &effects{cfg.Consumer, cfg.Handle, cfg.HandleBatch} }

// owner returns the host name and process id of this process, for the operator who reads inbox_partitions.
func owner() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

// client returns a client of the brokers with the consumer's name as its client id.
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

// why returns the sentence that explains why Kafka refused the login or the access, if err comes from that; otherwise
// err.
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
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), // only c.positions handles an offset that is not in the log
		kgo.AdjustFetchOffsetsFn(c.positions),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that the committed offset moves past a transaction marker, and lag can be 0
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.OnPartitionsAssigned(c.onAssigned),
		kgo.OnPartitionsRevoked(c.onRevoked),
		kgo.OnPartitionsLost(c.onLost),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(heartbeatInterval),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.MetadataMinAge(time.Second), // a topic that is created later is found within seconds
		kgo.MetadataMaxAge(30 * time.Second),
	}
}
