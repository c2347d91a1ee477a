package inbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// No rebalance can happen while polled records are being given to the workers. A worker that takes longer than patience
// continues alone: its partition is paused, and the other partitions continue. A rebalance that revokes the partition
// waits for the transaction that is open, but no longer than grace.
const (
	pollRecords      = 2000
	pollTime         = time.Second // an offset that can be committed waits at most this long
	patience         = time.Second
	grace            = 5 * time.Second  // for an open transaction when its partition is revoked or the process stops
	commitTimeout    = 3 * time.Second  // for the offsets of a batch
	claimTimeout     = 2 * time.Second  // in a rebalance; a partition that was not claimed in time is claimed by its worker
	rebalanceTimeout = 60 * time.Second // far above the sum of the times above

	// sessionTimeout is how long the partitions of a killed process wait until another one gets them.
	sessionTimeout    = 10 * time.Second
	heartbeatInterval = 3 * time.Second

	leaveTimeout  = 5 * time.Second
	watchInterval = 2 * time.Second
)

// A Consumer applies the events of a topic to a database.
type Consumer struct {
	cfg      Config
	effects  *effects
	log      zerolog.Logger
	client   *kgo.Client
	slots    chan struct{} // limits the transactions that are open at once
	wake     chan struct{} // a worker whose partition is paused is done
	database health
	kafka    health

	mu         sync.Mutex
	joined     bool
	partitions map[int32]*partition
	days       days
	keepReason string          // the last logged reason why the inbox forgets nothing; only maintain uses it
	topicID    [16]byte        // the topic's id as this session knows it
	known      int             // partitions that the topic had at the last look
	ends       map[int32]int64 // the log's end by partition, at the last look
	counted    map[int32]int64 // the offset up to which missing records are counted
}

// New returns a Consumer that has not connected yet. An error means that cfg is wrong.
func New(cfg Config) (*Consumer, error) {
	cfg = cfg.withDefaults()
	err := cfg.validate()
	if err != nil {
		return nil, fmt.Errorf("configure the consumer: %w", err)
	}
	c := &Consumer{
		cfg: cfg, effects: cfg.effects(), log: cfg.Log, wake: make(chan struct{}, 1), partitions: map[int32]*partition{},
		ends: map[int32]int64{}, counted: map[int32]int64{},
		slots: make(chan struct{}, max(1, cfg.Pool.Config().MaxConns-1)), // leave one connection for others
	}
	if err := kgo.ValidateOpts(append(cfg.clientOptions(), c.options()...)...); err != nil {
		return nil, fmt.Errorf("configure the consumer: %w", err)
	}
	return c, nil
}

// Run consumes until ctx ends. Then it finishes the open transaction of each partition, commits the offsets, leaves the
// group and returns nil. It waits for Kafka and for the database whenever they are away. It may be called once.
func (c *Consumer) Run(ctx context.Context) error {
	for failures := 0; ; {
		began := time.Now()
		if err := c.session(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			c.log.Info().Msg("consumer stopped")
			return nil
		}
		if failures++; time.Since(began) > time.Minute {
			failures = 0
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff(failures)):
		}
	}
}

// session consumes with one client, until ctx ends or the client cannot continue: when the topic was deleted and
// created again, or when its offset is no longer in the log. The next session finds its offsets from the inbox.
func (c *Consumer) session(ctx context.Context) error {
	c.mu.Lock()
	c.topicID, c.known = [16]byte{}, 0
	c.mu.Unlock()
	client, err := c.cfg.client(c.options()...)
	if err != nil {
		return err
	}

	ctx, end := context.WithCancelCause(ctx)
	var watchers sync.WaitGroup
	watchers.Go(func() { c.watch(ctx, end) })
	watchers.Go(func() { c.maintain(ctx) })
	c.consume(ctx, end)
	end(nil)
	watchers.Wait()

	stopping := context.WithoutCancel(ctx)
	c.stopWorkers(stopping, slices.Collect(maps.Values(c.owned())))
	leave, cancel := context.WithTimeout(stopping, leaveTimeout)
	defer cancel()
	if err := client.LeaveGroupContext(leave); err != nil {
		c.log.Warn().Err(err).Msg("could not leave the group; it continues without this process after the session timeout")
	}
	client.Close()
	c.mu.Lock()
	c.joined = false
	c.mu.Unlock()
	return nil
}

// newClient is called with a client before that client joins its group: callbacks of the group may run before
// kgo.NewClient returns.
type newClient func(*kgo.Client)

// OnNewClient implements kgo.HookNewClient.
func (f newClient) OnNewClient(client *kgo.Client) { f(client) }

// Ready returns nil while events can be applied, and otherwise an error that says what prevents it.
func (c *Consumer) Ready(ctx context.Context) error {
	var database error
	if _, err := c.cfg.Pool.Exec(ctx, `SELECT FROM inbox, inbox_partitions, inbox_parked, inbox_parked_keys LIMIT 0`); err != nil {
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
	var blocked []error
	for _, id := range slices.Sorted(maps.Keys(c.partitions)) {
		if err := c.partitions[id].state().blocked; err != nil {
			blocked = append(blocked, err)
		}
	}
	return errors.Join(append([]error{database, kafka}, blocked...)...)
}

func (c *Consumer) consume(ctx context.Context, end context.CancelCauseFunc) {
	failures := 0
	for ctx.Err() == nil {
		c.resume()
		fetches := c.poll(ctx)
		err := pollError(fetches)
		if err != nil {
			c.kafka.failed(c.log, c.cfg.why(ctx, err), 2*maxBackoff)
			if needsNewSession(err) {
				end(err)
			}
		}
		if ctx.Err() == nil {
			c.dispatch(ctx, fetches)
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

// poll returns without records when a worker of a paused partition is done, or when an offset should be committed.
func (c *Consumer) poll(ctx context.Context) kgo.Fetches {
	ctx, cancel := context.WithTimeout(ctx, pollTime)
	defer cancel()
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		select {
		case <-c.wake:
			cancel()
		case <-ctx.Done():
		}
	}()
	fetches := c.client.PollRecords(ctx, pollRecords)
	cancel()
	<-woken
	return fetches
}

func pollError(fetches kgo.Fetches) error {
	var first error
	fetches.EachError(func(topic string, partition int32, err error) {
		switch {
		case first != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		case topic == "": // an error about the group names no topic
			first = err
		case partition < 0:
			first = fmt.Errorf("fetch from %s: %w", topic, err)
		default:
			first = fmt.Errorf("fetch from %s, partition %d: %w", topic, partition, err)
		}
	})
	return first
}

// dispatch gives the polled records to the partitions' workers, and pauses the partitions whose workers take long.
func (c *Consumer) dispatch(ctx context.Context, fetches kgo.Fetches) {
	c.mu.Lock()
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		if p := c.partitions[f.Partition]; p != nil && len(f.Records) > 0 {
			p.start(func() { c.work(p, f.Records) })
		}
	})
	c.mu.Unlock()
	late := time.NewTimer(patience)
	defer late.Stop()
	waiting := true
	for id, p := range c.owned() {
		if waiting && !p.isPaused() {
			select {
			case <-p.idle():
			case <-late.C:
				waiting = false
			case <-ctx.Done():
				waiting = false
			}
		}
		if p.detach(c.wake) {
			c.client.PauseFetchPartitions(map[string][]int32{c.cfg.Topic: {id}})
		}
	}
}

// resume ends the pause of partitions whose worker is done.
func (c *Consumer) resume() {
	for id, p := range c.owned() {
		if p.resumable() {
			c.client.ResumeFetchPartitions(map[string][]int32{c.cfg.Topic: {id}})
		}
	}
}

func (c *Consumer) owned() map[int32]*partition {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.partitions)
}

// commit commits the offsets of the records that are done. An offset that it cannot commit now is committed after the
// next poll, or when the partition is revoked. If it is never committed, the events arrive again and are duplicates.
func (c *Consumer) commit(ctx context.Context) {
	done := map[*partition]*kgo.Record{}
	for _, p := range c.owned() {
		if record := p.uncommitted(); record != nil {
			done[p] = record
		}
	}
	if len(done) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := c.client.CommitRecords(ctx, slices.Collect(maps.Values(done))...); err != nil {
		c.kafka.failed(c.log, c.cfg.why(ctx, fmt.Errorf("commit offsets: %w", err)), 0)
		return
	}
	for p, record := range done {
		p.committed(record)
	}
}

func (c *Consumer) onAssigned(ctx context.Context, client *kgo.Client, assigned map[string][]int32) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	for _, id := range assigned[c.cfg.Topic] {
		p := newPartition(claim{group: c.cfg.Group, topic: c.cfg.Topic, partition: id})
		if err := c.claim(ctx, p); err != nil {
			c.log.Debug().Err(err).Int32("partition", id).Msg("partition not claimed yet")
		}
		c.mu.Lock()
		c.partitions[id] = p
		c.mu.Unlock()
	}
	client.ResumeFetchPartitions(assigned) // a partition that this process owned before may still be paused
	c.mu.Lock()
	c.joined = true
	c.mu.Unlock()
	c.logPartitions("partitions assigned", assigned[c.cfg.Topic])
}

func (c *Consumer) onRevoked(ctx context.Context, _ *kgo.Client, revoked map[string][]int32) {
	var ending []*partition
	owned := c.owned()
	for _, id := range revoked[c.cfg.Topic] {
		if p := owned[id]; p != nil {
			ending = append(ending, p)
		}
	}
	c.stopWorkers(ctx, ending)
	c.forget(revoked[c.cfg.Topic])
	c.logPartitions("partitions revoked", revoked[c.cfg.Topic])
}

func (c *Consumer) onLost(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	owned := c.owned()
	for _, id := range lost[c.cfg.Topic] {
		if p := owned[id]; p != nil {
			p.stop(0)
		}
	}
	c.forget(lost[c.cfg.Topic]) // without a commit: another process owns it now
	c.mu.Lock()
	c.joined = false
	c.mu.Unlock()
	c.logPartitions("partitions lost", lost[c.cfg.Topic])
}

// stopWorkers stops the workers, waits up to grace for their open transactions, and commits the offsets of their
// records.
func (c *Consumer) stopWorkers(ctx context.Context, partitions []*partition) {
	var stopping sync.WaitGroup
	for _, p := range partitions {
		stopping.Go(func() { p.stop(grace) })
	}
	stopping.Wait()
	c.commit(ctx)
}

func (c *Consumer) forget(ids []int32) {
	c.mu.Lock()
	for _, id := range ids {
		delete(c.partitions, id)
		c.cfg.Metrics.forgetLag(c.cfg.Topic, id)
	}
	c.mu.Unlock()
	c.measureStates()
}

func (c *Consumer) logPartitions(what string, ids []int32) {
	c.measureStates()
	if len(ids) > 0 {
		c.log.Info().Ints32("changed", ids).Ints32("partitions", slices.Sorted(maps.Keys(c.owned()))).Msg(what)
	}
}

// watch reads the end of the log from Kafka, to measure the lag and to know that Kafka answers, and counts the parked
// events in the database.
func (c *Consumer) watch(ctx context.Context, end context.CancelCauseFunc) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		c.measureParked(ctx)
		err := c.sameTopic(ctx)
		if errors.Is(err, errCreatedAgain) {
			end(err)
		}
		if err == nil {
			err = c.measureLag(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.kafka.failed(c.log, c.cfg.why(ctx, err), 0)
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

// sameTopic returns errCreatedAgain when the topic is no longer the one in which this session found its offsets. It also
// makes the client read partitions at once that were added to the topic.
func (c *Consumer) sameTopic(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*watchInterval)
	defer cancel()
	id, partitions, err := c.describe(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.topicID != [16]byte{} && id != c.topicID {
		return errCreatedAgain
	}
	if c.known != 0 && partitions > c.known {
		c.client.ForceMetadataRefresh()
	}
	c.known = partitions
	return nil
}

func (c *Consumer) measureLag(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*watchInterval)
	defer cancel()
	ends, err := within(ctx, func() (kadm.ListedOffsets, error) { return kadm.NewClient(c.client).ListEndOffsets(ctx, c.cfg.Topic) })
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("ask Kafka at %s for the offsets of topic %s: %w", strings.Join(c.cfg.Brokers, ","), c.cfg.Topic, err)
	}
	committed := c.client.CommittedOffsets()[c.cfg.Topic]
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.partitions {
		end, _ := ends.Lookup(c.cfg.Topic, p)
		c.cfg.Metrics.setLag(c.cfg.Topic, p, max(0, end.Offset-committed[p].Offset))
		if c.topicID != [16]byte{} {
			c.ends[p] = max(c.ends[p], end.Offset)
		}
	}
	return nil
}

// measureStates sets the gauges of partition states. It is called whenever a partition is assigned, is revoked or
// changes its state.
func (c *Consumer) measureStates() {
	var blocked, retrying int
	owned := c.owned()
	for _, p := range owned {
		switch s := p.state(); {
		case s.blocked != nil:
			blocked++
		case s.transient != nil:
			retrying++
		}
	}
	c.cfg.Metrics.partitions.Set(float64(len(owned)))
	c.cfg.Metrics.blocked.Set(float64(blocked))
	c.cfg.Metrics.retrying.Set(float64(retrying))
	if blocked+retrying == 0 {
		c.database.worked(c.log)
	}
}

// measureParked sets the gauges of parked events. It leaves them unchanged while the database does not answer.
func (c *Consumer) measureParked(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, watchInterval)
	defer cancel()
	var parked, keys int64
	var oldest float64
	if err := c.cfg.Pool.QueryRow(ctx, `
		SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(parked_at)), 0)::float8,
		       (SELECT count(*) FROM inbox_parked_keys WHERE consumer = $1)
		FROM inbox_parked WHERE consumer = $1 AND status = 'parked'`, c.cfg.Consumer).Scan(&parked, &oldest, &keys); err == nil {
		c.cfg.Metrics.parked.Set(float64(parked))
		c.cfg.Metrics.parkedKeys.Set(float64(keys))
		c.cfg.Metrics.oldestParked.Set(oldest)
	}
}
