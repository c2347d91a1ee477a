package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/inbox"
)

// While polled records are held, no rebalance can happen: a partition is never given away with an event of it half
// applied. The times below bound how long that is, so that the group never waits for a slow database as long as
// rebalanceTimeout, at whose end it would go on without us.
const (
	batchRecords     = 500              // one poll
	batchTime        = 3 * time.Second  // no event of a batch begins later; the rest of it is fetched again
	applyTimeout     = 5 * time.Second  // one event; on a stop, all that is left
	commitTimeout    = 3 * time.Second  // the offsets of a batch
	rebalanceTimeout = 60 * time.Second // far above the sum of the three

	// sessionTimeout is how long the partitions of a killed process wait until another one gets them.
	sessionTimeout    = 10 * time.Second
	heartbeatInterval = 3 * time.Second

	maxHeaderBytes = 255

	leaveTimeout  = 5 * time.Second
	watchInterval = 2 * time.Second
	minBackoff    = 50 * time.Millisecond
	maxBackoff    = 5 * time.Second
)

// ConsumerConfig is all required.
type ConsumerConfig struct {
	Brokers []string // host:port, one that answers is enough
	Topic   string   // where the relay puts the order events
	Group   string   // the processes of one group share the topic's partitions
	Store   *Store
	Metrics *Metrics
	Log     zerolog.Logger
}

// A Consumer applies the events of a topic to a Store.
type Consumer struct {
	cfg      ConsumerConfig
	log      zerolog.Logger
	client   *kgo.Client
	database trouble
	kafka    trouble

	// applied has, by partition, the last record that is applied and whose offset is not committed. Only the poll loop
	// and the callbacks of a rebalance touch it, which kgo never lets run at the same time.
	applied map[int32]*kgo.Record

	mu       sync.Mutex
	joined   bool
	assigned map[int32]bool
}

// NewConsumer does not connect yet. An error is one of the configuration.
func NewConsumer(cfg ConsumerConfig) (*Consumer, error) {
	c := &Consumer{
		cfg: cfg, log: cfg.Log.With().Str("topic", cfg.Topic).Str("group", cfg.Group).Logger(),
		applied: map[int32]*kgo.Record{}, assigned: map[int32]bool{},
	}
	if err := kgo.ValidateOpts(c.options()...); err != nil {
		return nil, fmt.Errorf("configure the consumer: %w", err)
	}
	return c, nil
}

func (c *Consumer) options() []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(c.cfg.Brokers...),
		kgo.ClientID("inventory"),
		kgo.ConsumerGroup(c.cfg.Group),
		kgo.ConsumeTopics(c.cfg.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
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

// Run consumes until ctx ends; then it finishes the event in hand of each partition, commits the offsets, leaves the
// group and returns nil. It waits for Kafka and for the database whenever they are away. It may be called once.
func (c *Consumer) Run(ctx context.Context) error {
	client, err := kgo.NewClient(c.options()...)
	if err != nil {
		return fmt.Errorf("configure the consumer: %w", err)
	}
	c.client = client

	watching, stopWatching := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.watch(watching)
	}()
	c.consume(ctx)
	stopWatching()
	<-watched

	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := client.LeaveGroupContext(leave); err != nil {
		c.log.Warn().Err(err).Msg("could not leave the group; it goes on without this process after the session timeout")
	}
	client.Close()
	c.log.Info().Msg("consumer stopped")
	return nil
}

// Ready says what keeps events from being applied, in a sentence, or nil.
func (c *Consumer) Ready(ctx context.Context) error {
	var database error
	if err := c.cfg.Store.Ping(ctx); err != nil {
		database = fmt.Errorf("the database cannot be used: %w", err)
	} else if err := c.database.current(); err != nil {
		database = fmt.Errorf("events cannot be applied: %w", err)
	}
	kafka := c.kafka.current()
	c.mu.Lock()
	defer c.mu.Unlock()
	if kafka == nil && !c.joined {
		kafka = fmt.Errorf("the consumer is not in group %s yet", c.cfg.Group)
	}
	return errors.Join(database, kafka)
}

func (c *Consumer) consume(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		fetches := c.client.PollRecords(ctx, batchRecords)
		if ctx.Err() != nil && fetches.NumRecords() == 0 {
			c.client.AllowRebalance()
			return
		}
		err := c.pollError(fetches)
		if err != nil {
			c.kafka.failed(c.log, err, 2*maxBackoff)
		}
		if applyErr := c.applyAll(ctx, fetches); applyErr != nil {
			c.database.failed(c.log, applyErr, 0)
			err = applyErr
		} else if fetches.NumRecords() > 0 {
			c.database.worked(c.log)
		}
		c.commit(ctx)
		c.client.AllowRebalance()

		if err == nil {
			failures = 0
			continue
		}
		failures++
		select {
		case <-ctx.Done():
		case <-time.After(backoff(failures)):
		}
	}
}

// backoff is a random time that doubles on average with each failure.
func backoff(failures int) time.Duration {
	most := min(maxBackoff, minBackoff<<min(failures, 16))
	return most/2 + rand.N(most/2)
}

func (c *Consumer) pollError(fetches kgo.Fetches) error {
	var first error
	fetches.EachError(func(topic string, partition int32, err error) {
		if first == nil && !errors.Is(err, context.Canceled) {
			first = fmt.Errorf("fetch from %s, partition %d: %w", topic, partition, err)
		}
	})
	return first
}

// applyAll applies what was polled, the partitions side by side. What it has not applied, because of the error it
// returns or for want of time, will be polled again.
func (c *Consumer) applyAll(ctx context.Context, fetches kgo.Fetches) error {
	// The end of ctx does not tear a transaction, but it ends the patience with one.
	apply, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(applyTimeout, cancel) })()

	var mu sync.Mutex
	rewind := map[int32]kgo.EpochOffset{}
	begun := time.Now()
	var group errgroup.Group
	group.SetLimit(max(1, int(c.cfg.Store.pool.Config().MaxConns)-1)) // leave one connection for HTTP
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) == 0 {
			return
		}
		group.Go(func() error {
			done, err := c.applyInOrder(apply, p.Records, func() bool { return ctx.Err() != nil || time.Since(begun) > batchTime })
			mu.Lock()
			defer mu.Unlock()
			if done > 0 {
				c.applied[p.Partition] = p.Records[done-1]
			}
			if done < len(p.Records) {
				next := p.Records[done]
				rewind[p.Partition] = kgo.EpochOffset{Epoch: next.LeaderEpoch, Offset: next.Offset}
			}
			return err
		})
	})
	err := group.Wait()
	if len(rewind) > 0 {
		c.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{c.cfg.Topic: rewind})
	}
	return err
}

// applyInOrder returns how many of the records, from the first on, are applied.
func (c *Consumer) applyInOrder(ctx context.Context, records []*kgo.Record, stop func() bool) (int, error) {
	for i, record := range records {
		if stop() {
			return i, nil
		}
		if err := c.apply(ctx, record); err != nil {
			return i, fmt.Errorf("partition %d, offset %d: %w", record.Partition, record.Offset, err)
		}
	}
	return len(records), nil
}

// apply returns nil when the record needs no more attention: it is applied, or it never can be.
func (c *Consumer) apply(ctx context.Context, record *kgo.Record) error {
	if record.Attrs.IsControl() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	eventType, id := header(record, "type"), header(record, "id")
	at := inbox.Message{EventID: id, Topic: record.Topic, Partition: record.Partition, Offset: record.Offset}
	log := c.cfg.Log.With().Str("topic", record.Topic).Int32("partition", record.Partition).Int64("offset", record.Offset).Logger()

	ev, ours, err := Decode(eventType, id, record.Value)
	if err != nil {
		return c.recordMalformed(ctx, log, at, err.Error())
	}
	if !ours {
		c.cfg.Metrics.skipped.Inc()
		log.Debug().Str("event_id", id).Str("type", eventType).Msg("event skipped: it moves no stock")
		return nil
	}

	log = log.With().Str("event_id", ev.ID).Str("order_id", ev.OrderID).Str("type", ev.Type).Logger()
	if ev.OrderNumber != "" {
		log = log.With().Str("order_number", ev.OrderNumber).Logger()
	}
	done, err := c.cfg.Store.Apply(ctx, ev, at)
	if reason, refused := refusal(err); refused {
		return c.recordMalformed(ctx, log, at, reason)
	}
	if err != nil {
		return err
	}
	c.cfg.Metrics.observe(ev.Type, done)
	if done.Duplicate {
		log.Debug().Msg("event skipped: it is in the inbox already")
		return nil
	}
	for _, m := range done.Movements {
		if m.Reason == Shortage {
			log.Info().Str("sku", m.SKU).Msg("shortage: not enough in stock, nothing taken")
		}
	}
	log.Debug().Int("movements", len(done.Movements)).Msg("event applied")
	return nil
}

func (c *Consumer) recordMalformed(ctx context.Context, log zerolog.Logger, at inbox.Message, reason string) error {
	first, err := c.cfg.Store.RecordMalformed(ctx, at, reason)
	if err != nil {
		return err
	}
	if first {
		c.cfg.Metrics.malformed.Inc()
		log.Warn().Str("reason", reason).Msg("malformed event recorded and passed over")
	}
	return nil
}

// header is the first one of that key, or "". What anybody may have written there is cut to what a log and a column of
// text can take.
func header(record *kgo.Record, key string) string {
	for _, h := range record.Headers {
		if h.Key == key {
			value := strings.ToValidUTF8(string(h.Value[:min(len(h.Value), maxHeaderBytes)]), "?")
			return strings.ReplaceAll(value, "\x00", "?")
		}
	}
	return ""
}

// commit tells Kafka what is applied. What it cannot commit now it commits with the next batch, or when the partition
// is revoked; if it never can, the events come again and are duplicates.
func (c *Consumer) commit(ctx context.Context) {
	if len(c.applied) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := c.client.CommitRecords(ctx, slices.Collect(maps.Values(c.applied))...); err != nil {
		c.kafka.failed(c.log, fmt.Errorf("commit offsets: %w", err), 0)
		return
	}
	clear(c.applied)
}

func (c *Consumer) onAssigned(_ context.Context, _ *kgo.Client, assigned map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined = true
	for _, p := range assigned[c.cfg.Topic] {
		c.assigned[p] = true
	}
	c.cfg.Metrics.partitions.Set(float64(len(c.assigned)))
	c.log.Info().Ints32("assigned", assigned[c.cfg.Topic]).Ints32("partitions", slices.Sorted(maps.Keys(c.assigned))).Msg("partitions assigned")
}

func (c *Consumer) onRevoked(ctx context.Context, _ *kgo.Client, revoked map[string][]int32) {
	c.commit(ctx)
	c.forget(revoked[c.cfg.Topic], "partitions revoked")
}

func (c *Consumer) onLost(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	c.forget(lost[c.cfg.Topic], "partitions lost")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined = false
}

func (c *Consumer) forget(partitions []int32, why string) {
	if len(partitions) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range partitions {
		delete(c.applied, p)
		delete(c.assigned, p)
		c.cfg.Metrics.forgetLag(c.cfg.Topic, p)
	}
	c.cfg.Metrics.partitions.Set(float64(len(c.assigned)))
	c.log.Info().Ints32("revoked", partitions).Ints32("partitions", slices.Sorted(maps.Keys(c.assigned))).Msg(why)
}

// watch asks Kafka how long the log is, for the lag and to know that it answers.
func (c *Consumer) watch(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		err := c.measure(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.kafka.failed(c.log, err, 0)
		default:
			c.kafka.worked(c.log)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c *Consumer) measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*watchInterval)
	defer cancel()
	admin := kadm.NewClient(c.client)
	ends, err := admin.ListEndOffsets(ctx, c.cfg.Topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("ask Kafka at %s for the offsets of topic %s: %w", strings.Join(c.cfg.Brokers, ","), c.cfg.Topic, err)
	}
	committed := c.client.CommittedOffsets()[c.cfg.Topic]
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.assigned {
		end, _ := ends.Lookup(c.cfg.Topic, p)
		c.cfg.Metrics.setLag(c.cfg.Topic, p, max(0, end.Offset-committed[p].Offset))
	}
	return nil
}
