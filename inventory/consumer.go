package inventory

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/inbox"
)

// consumer is this service's name in its inbox. It is not the Kafka group: a process that reads the topic into this
// database, in any group, finds the events that are already in it.
const consumer = "inventory"

// ConsumerConfig configures the consumer. A field is required unless inbox.Config has a default for it.
type ConsumerConfig struct {
	Brokers []string // host:port, one broker that answers is enough
	Login   *identity.Login
	Topic   string // the topic with the order events
	Group   string // the processes of one group share the topic's partitions
	Store   *Store
	Metrics *Metrics
	Log     zerolog.Logger

	Policy    inbox.Policy
	Gap       inbox.GapPolicy
	Batch     int
	Retention time.Duration
}

// Inbox returns the configuration that applies the order events of a topic to the stock.
func (cfg ConsumerConfig) Inbox() inbox.Config {
	h := &applier{cfg}
	return inbox.Config{
		Brokers: cfg.Brokers, Login: cfg.Login, Topic: cfg.Topic, Group: cfg.Group, Consumer: consumer,
		Pool: cfg.Store.pool, Handle: h.apply, HandleBatch: h.applyAll, Types: handled, Ignore: ignored,
		Policy: cfg.Policy, Gap: cfg.Gap, Batch: cfg.Batch, Retention: cfg.Retention, Metrics: cfg.Metrics.inbox, Log: cfg.Log,
	}
}

type applier struct{ cfg ConsumerConfig }

func (a *applier) apply(ctx context.Context, tx pgx.Tx, record inbox.Event) error {
	return a.applyAll(ctx, tx, []inbox.Event{record})
}

func (a *applier) applyAll(ctx context.Context, tx pgx.Tx, records []inbox.Event) error {
	events := make([]Event, len(records))
	for i, record := range records {
		ev, err := Decode(record.Type, record.ID, record.Value)
		if err != nil {
			return inbox.Permanent(err)
		}
		events[i] = ev
	}
	done, err := a.cfg.Store.Apply(ctx, tx, events...)
	if err != nil {
		return err
	}
	for i, record := range records {
		record.OnCommit(func() { a.applied(record, events[i], done[i]) })
	}
	return nil
}

func (a *applier) applied(record inbox.Event, ev Event, done []Movement) {
	log := a.cfg.Log.With().Str("topic", record.Topic).Int32("partition", record.Partition).Int64("offset", record.Offset).
		Str("event_id", ev.ID).Str("order_id", ev.OrderID).Str("type", ev.Type).Logger()
	if ev.OrderNumber != "" {
		log = log.With().Str("order_number", ev.OrderNumber).Logger()
	}
	for _, m := range done {
		a.cfg.Metrics.moved(m.Reason)
		if m.Reason == Shortage {
			log.Info().Str("sku", m.SKU).Msg("shortage: not enough in stock, nothing taken for the whole order")
		}
	}
	log.Debug().Int("movements", len(done)).Msg("event applied")
}
