package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/internal/failpoint"
	"github.com/walpost/walpost/cdc/version"
)

// defaultLimit is a broker's default of max.message.bytes, used if the topic's limit may not be read.
const defaultLimit = 1048588

// maxBatch is the most bytes of one batch, even if the topic takes more. requestRoom is how many bytes a request has
// besides its batch.
const (
	maxBatch    = 64 << 20
	requestRoom = 4 << 10
)

// mostBytes returns the most bytes that a record may take, even if its topic allows more.
func (s *Sink) mostBytes() int { return min(maxBatch, int(s.cfg.Kafka.MaxRequestBytes)-requestRoom) }

// limit is the most bytes that a topic takes in a record.
type limit struct {
	bytes      int
	assumed    bool // the topic's limit may not be read
	partitions int
}

// publisher is one session's client.
type publisher struct {
	sink    *Sink
	client  *kgo.Client
	id      string                   // transactional id: each window is a transaction; empty: no transactions
	within  time.Duration            // time limit of Publish; 0: none
	promise func(*kgo.Record, error) // resolved, bound once: a method value per record would allocate

	limitsMu sync.Mutex       // the client asks for limits on its own goroutines
	limits   map[string]limit // max.message.bytes of the topics that exist
	counts   Partitions       // of the configured topics; replaced, never changed

	records []kgo.Record
	headers []kgo.RecordHeader

	cluster string // id of the Kafka cluster
	dead    deadReader
	stale   []string // keys of state records to tombstone with the next one
	// key of the former session's record, which becomes stale once this session's first record is durable
	former    string
	deadTopic string // built once: Check compares it for every row

	mu       sync.Mutex
	promised int
	failed   *kgo.Record
	err      error
}

var _ cdc.Publisher = (*publisher)(nil)

// State reads the newest state record, up to the end of the topic.
func (p *publisher) State(ctx context.Context) (*cdc.State, error) {
	log, err := p.sink.readState(ctx, false)
	p.stale = log.stale()
	newest := log.newest()
	if newest != nil {
		p.former = newest.Key()
	}
	return newest, err
}

// fence takes a producer id; without one Kafka would store a record that is sent twice. With a transactional id it
// also makes every other client with that id unable to write, and returns after a transaction that such a client had
// left open is aborted.
func (p *publisher) fence(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	producer, _, err := p.client.ProducerID(ctx)
	// the client itself would continue without an id
	switch unknown := err == nil && producer < 0 || unsupported(err); {
	case unknown && id == "":
		return &cdc.HaltError{
			Found: "this Kafka gives no producer ids (InitProducerID)",
			Means: "a record that is sent again could be stored twice, or after later records of its key; nothing is published, and nothing is lost",
			Run:   "use a Kafka with idempotent producers, and the relay resumes by itself",
		}
	case unknown || id != "" && errors.Is(err, kerr.InvalidRequest):
		return &cdc.HaltError{
			Found: "this Kafka has no transactions (InitProducerID with a transactional id)",
			Means: "delivery: exactly_once is not possible; nothing is published, and nothing is lost",
			Run:   "set delivery: at_least_once and restart the relay, or use a Kafka with transactions, and the relay resumes by itself",
		}
	case err == nil:
		return nil
	case errors.Is(err, kerr.InvalidTransactionTimeout):
		return fmt.Errorf("take the transactional id %s: %w: lower kafka.transaction_timeout (%s) to the brokers' transaction.max.timeout.ms", id, err, p.sink.cfg.Kafka.TransactionTimeout)
	case id == "":
		return fmt.Errorf("take a producer id: %w", p.denied(err, p.sink.writes()))
	case errors.Is(err, kerr.CoordinatorNotAvailable), ctx.Err() != nil:
		return fmt.Errorf("take the transactional id %s: %w: kafka has no coordinator for it: check that the topic __transaction_state exists and has its replicas; with fewer than three brokers it needs transaction.state.log.replication.factor and transaction.state.log.min.isr of that number", id, err)
	// Kafka 4.0.0 always answers so after it had to abort a transaction of the last epoch (KAFKA-19367)
	case errors.Is(err, kerr.UnknownServerError):
		return fmt.Errorf("take the transactional id %s: %w: the broker failed, and its log says why: if it names a producer epoch there, run Kafka 4.0.1 or later, and the relay resumes by itself; nothing is lost", id, err)
	}
	return fmt.Errorf("take the transactional id %s: %w", id, p.denied(err, p.sink.writes()))
}

// unsupported reports whether the brokers do not know a request, or no version of it that is new enough. The client
// does not export its errors.
func unsupported(err error) bool {
	return errors.Is(err, kerr.UnsupportedVersion) ||
		err != nil && (strings.Contains(err.Error(), "broker is too old") || strings.Contains(err.Error(), "request key is unknown"))
}

func (p *publisher) Close() {
	p.client.Close()
	p.dead.close()
}

// Check rejects a record that the topic would not take, and one that would look like a dead letter.
func (p *publisher) Check(ctx context.Context, r *cdc.Record) error {
	if r.Rejected == nil && r.Topic == p.deadTopic {
		return cdc.Reject(r.Row, cdc.BadTopic, r.Topic, "its topic would be %s, which is the dead letter topic: choose another poison.topic", r.Topic)
	}
	most, err := p.limit(ctx, r.Topic)
	if err != nil {
		return err
	}
	// A batch of one: 61 bytes of batch header, at most 32 of lengths and deltas.
	size := 61 + 32 + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		size += len(h.Key) + len(h.Value) + 10
	}
	if r.Placed && (r.Partition < 0 || int(r.Partition) >= most.partitions) {
		p.forget(r.Topic) // partitions may have been added since
		if most, err = p.limit(ctx, r.Topic); err != nil {
			return err
		}
		if r.Partition < 0 || int(r.Partition) >= most.partitions {
			return cdc.Reject(r.Row, cdc.BadPartition, r.Topic, "its partition would be %d, and topic %s has %d", r.Partition, r.Topic, most.partitions)
		}
	}
	switch {
	case size <= most.bytes:
		return nil
	case most.bytes == p.sink.mostBytes():
		return cdc.Reject(r.Row, cdc.TooLarge, r.Topic, "its record is %d bytes, and kafka.max_request_bytes allows %d", size, most.bytes)
	case most.assumed:
		return cdc.Reject(r.Row, cdc.TooLarge, r.Topic, "its record is %d bytes, and Kafka does not show the limit of topic %s: until it does, at most %d bytes are sent, the default of max.message.bytes: %s",
			size, r.Topic, most.bytes, p.sink.grant(identity.Topic, r.Topic, "DescribeConfigs"))
	}
	return cdc.Reject(r.Row, cdc.TooLarge, r.Topic, "its record is %d bytes, topic %s takes %d (max.message.bytes)", size, r.Topic, most.bytes)
}

// limit returns the topic's max.message.bytes, which it asks for once; a topic that does not exist is a HaltError.
func (p *publisher) limit(ctx context.Context, topic string) (limit, error) {
	if known, ok := p.known(topic); ok {
		return known, nil
	}
	if err := p.askLimits(ctx, topic); err != nil {
		return limit{}, err
	}
	known, _ := p.known(topic)
	return known, nil
}

func (p *publisher) known(topic string) (known limit, ok bool) {
	p.limitsMu.Lock()
	defer p.limitsMu.Unlock()
	known, ok = p.limits[topic]
	return known, ok
}

// forget lets the next limit ask Kafka for the topic again.
func (p *publisher) forget(topic string) {
	p.limitsMu.Lock()
	defer p.limitsMu.Unlock()
	delete(p.limits, topic)
}

// askLimits asks for the limits of topics, all at once; one that does not exist is a HaltError.
func (p *publisher) askLimits(ctx context.Context, topics ...string) error {
	found, err := p.sink.describeTopics(ctx, p.client, topics, "Write")
	if err != nil {
		return err
	}
	for _, topic := range topics {
		if found[topic] == nil && p.sink.cfg.Kafka.CreateTopics && topic != p.deadTopic {
			if found[topic], err = p.createTopic(ctx, topic); err != nil {
				return err
			}
		}
	}
	p.limitsMu.Lock()
	defer p.limitsMu.Unlock()
	for _, topic := range topics {
		if found[topic] == nil {
			return p.sink.noTopic(topic)
		}
		p.limits[topic] = p.sink.limitOf(found[topic])
		if slices.Contains(p.sink.topics, topic) && len(p.counts) < mostCounts {
			counts := Partitions{topic: found[topic].partitions}
			maps.Copy(counts, p.counts)
			p.counts = counts
		}
	}
	return nil
}

// noTopic returns the halt for a topic of rows that does not exist.
func (s *Sink) noTopic(name string) *cdc.HaltError {
	run := "run `walpost init`, or create the topic"
	if !slices.Contains(s.topics, name) { // init does not know the topic either
		run = "create it (" + s.CreateCommand(name) + ")"
	}
	return &cdc.HaltError{
		Found: fmt.Sprintf("topic %s does not exist", name),
		Means: "neither its rows nor later rows are published; nothing is lost",
		Run:   run + ", and the relay resumes by itself",
	}
}

// limitOf returns the limit of a topic of rows.
func (s *Sink) limitOf(t *topic) limit {
	known := limit{defaultLimit, t.hidden, t.partitions}
	if n, err := strconv.Atoi(t.config["max.message.bytes"]); err == nil {
		known.bytes, known.assumed = n, false
	}
	known.bytes = min(known.bytes, s.mostBytes())
	return known
}

// createTopic creates the topic that a row names, and returns its description. A Kafka that does not let the relay do
// that is a HaltError.
func (p *publisher) createTopic(ctx context.Context, name string) (*topic, error) {
	admin := &Admin{sink: p.sink, client: p.client}
	plan := p.sink.plan(name)
	if _, err := admin.Create(ctx, plan); err != nil {
		if answer := (*kerr.Error)(nil); errors.As(err, &answer) && !answer.Retriable {
			return nil, &cdc.HaltError{
				Found: fmt.Sprintf("topic %s does not exist, and Kafka does not let the relay create it (kafka.create_topics): %v", name, err),
				Means: "neither its rows nor later rows are published; nothing is lost",
				Run:   "create it (" + p.sink.CreateCommand(name) + "), and the relay resumes by itself",
			}
		}
		return nil, err
	}
	p.sink.log.Info().Str("topic", name).Str("with", plan.String()).Msg("created a topic that a row names")
	return p.sink.describeTopic(ctx, p.client, name, "Write")
}

// mostCounts is for how many topics the state record has the number of partitions.
const mostCounts = 50

// Partitions has the number of partitions of topics.
type Partitions map[string]int

// Notes names the topics that had another number of partitions in the record of the earlier session, which may be
// nil.
func (p Partitions) Notes(former *cdc.State) (notes []string) {
	if former == nil {
		return nil
	}
	for _, topic := range slices.Sorted(maps.Keys(p)) {
		switch was, now := former.Partitions[topic], p[topic]; {
		case was > now:
			notes = append(notes, fmt.Sprintf("topic %s has %d partitions, and had %d: it was deleted and created again: its earlier records are gone", topic, now, was))
		case was != 0 && was < now:
			notes = append(notes, fmt.Sprintf("topic %s has %d partitions, and had %d: most keys have moved to another partition, and a consumer may read the new events of a key before its old ones: let it finish the old partitions before it reads the new ones", topic, now, was))
		}
	}
	return notes
}

func (p *publisher) partitions() Partitions {
	p.limitsMu.Lock()
	defer p.limitsMu.Unlock()
	return p.counts
}

// Notes names the topics that had another number of partitions in the earlier session.
func (p *publisher) Notes(former *cdc.State) []string { return p.partitions().Notes(former) }

// written returns the record with the fields that the sink adds.
func (p *publisher) written(st cdc.State) cdc.State {
	st.Walpost = version.Number
	if p.cluster != "" {
		st.Cluster = p.cluster
	}
	if counts := p.partitions(); counts != nil {
		st.Partitions = counts
	}
	return st
}

// batchLimit returns a topic's limit to the client, which asks when it first sees a topic. Check has seen the topic
// before.
func (p *publisher) batchLimit(topic string) int32 {
	known, ok := p.known(topic)
	if !ok {
		known.bytes = min(defaultLimit, p.sink.mostBytes())
	}
	return int32(max(known.bytes, 512))
}

// Publish gives the whole window to the client, flushes, and returns when every promise is resolved; in exactly-once
// all of it is one transaction. After an error the client must not be used again: the state record shows whether the
// transaction was committed.
func (p *publisher) Publish(ctx context.Context, records []cdc.Record, st *cdc.State) error {
	err := p.publishWithin(ctx, records, st)
	if err == nil && st != nil && p.former != "" {
		if p.former != st.Key() {
			p.stale = append(p.stale, p.former)
		}
		p.former = ""
	}
	return err
}

func (p *publisher) publishWithin(ctx context.Context, records []cdc.Record, st *cdc.State) error {
	if p.within == 0 {
		return p.publish(ctx, records, st)
	}
	limited, cancel := context.WithTimeout(ctx, p.within)
	defer cancel()
	err := p.publish(limited, records, st)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return fmt.Errorf("kafka has not taken it within %s, and may still take it: check the brokers, then run the command again: %w", p.within, err)
	}
	return err
}

func (p *publisher) publish(ctx context.Context, records []cdc.Record, st *cdc.State) error {
	if p.id == "" {
		return p.produce(ctx, records, st)
	}
	if err := p.client.BeginTransaction(); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	if err := failpoint.Hit("after_begin_txn"); err != nil {
		return err
	}
	if err := p.produce(ctx, records, st); err != nil {
		if ctx.Err() != nil { // not all promises are resolved
			return err
		}
		// So that consumers need not wait until the next session, or the broker, aborts it.
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		_ = p.client.EndTransaction(ctx, kgo.TryAbort)
		return err
	}
	if err := failpoint.Hit("before_end_txn"); err != nil {
		return err
	}
	// Every promise was checked: otherwise the client would commit a window of which only a part was written.
	if err := p.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("end a transaction: %w", p.denied(err, p.sink.writes()))
	}
	return failpoint.Hit("after_end_txn")
}

// produce returns when everything is durable. After an error, a prefix per partition is durable.
func (p *publisher) produce(ctx context.Context, records []cdc.Record, st *cdc.State) error {
	p.promised, p.failed, p.err = 0, nil, nil
	p.convert(records)
	for i := range p.records {
		if i == len(p.records)/2 {
			if err := failpoint.Hit("mid_produce"); err != nil {
				return err
			}
		}
		p.client.Produce(context.Background(), &p.records[i], p.promise)
	}
	expected := len(p.records)
	if st != nil {
		value, err := json.Marshal(p.written(*st))
		if err != nil {
			return fmt.Errorf("encode state record: %w", err)
		}
		p.client.Produce(context.Background(), &kgo.Record{Topic: p.sink.cfg.StateTopic(), Key: []byte(st.Key()), Value: value}, p.promise)
		expected++
		for _, key := range p.stale {
			p.client.Produce(context.Background(), &kgo.Record{Topic: p.sink.cfg.StateTopic(), Key: []byte(key)}, p.promise)
			expected++
		}
		p.stale = nil
	}
	if err := p.client.Flush(ctx); err != nil {
		return fmt.Errorf("flush a window: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.failure(records)
	}
	if len(records) > 0 {
		if err := failpoint.Hit("after_flush"); err != nil {
			return err
		}
	}
	if p.promised != expected {
		return fmt.Errorf("the kafka client resolved %d of %d records of a window", p.promised, expected)
	}
	for i := range records {
		records[i].Partition, records[i].Offset = p.records[i].Partition, p.records[i].Offset
	}
	return nil
}

// convert fills the client's records, whose memory is used again for each window.
func (p *publisher) convert(records []cdc.Record) {
	if cap(p.records) < len(records) {
		p.records = make([]kgo.Record, len(records))
	}
	p.records = p.records[:len(records)]
	p.headers = p.headers[:0]
	for i := range records {
		r, at := &records[i], len(p.headers)
		for _, h := range r.Headers {
			p.headers = append(p.headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
		p.records[i] = kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: p.headers[at:len(p.headers):len(p.headers)], Timestamp: r.Timestamp}
		if r.Placed {
			p.records[i].Partition, p.records[i].Context = r.Partition, placed
		}
	}
}

// resolved keeps the first failure. It runs on a goroutine of the client.
func (p *publisher) resolved(r *kgo.Record, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.promised++
	if p.promised == 1 && err == nil && len(p.records) > 1 {
		err = failpoint.Hit("mid_flush") // one partition's share is durable
	}
	if err != nil && p.err == nil {
		p.failed, p.err = r, err
	}
}

// failure distinguishes a row that Kafka rejects for good from a Kafka with a problem. A batch is rejected as a
// whole, so of several rows it names only the first. The limits that Check used are dropped with the session.
func (p *publisher) failure(records []cdc.Record) error {
	for _, permanent := range []error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidTopicException, kerr.InvalidRecord, kerr.PolicyViolation} {
		if !errors.Is(p.err, permanent) {
			continue
		}
		for i := range records {
			if &p.records[i] == p.failed {
				return cdc.Reject(records[i].Row, cdc.ByKafka, records[i].Topic, "kafka rejects its record for topic %s: %v", records[i].Topic, p.err)
			}
		}
	}
	if errors.Is(p.err, kerr.InvalidTimestamp) {
		for i := range records {
			if &p.records[i] == p.failed && !records[i].Timestamp.IsZero() {
				return cdc.Reject(records[i].Row, cdc.ByKafka, records[i].Topic, "kafka does not take its timestamp %s for topic %s: %v", records[i].Timestamp.UTC().Format(time.RFC3339), records[i].Topic, p.err)
			}
		}
		return fmt.Errorf("produce to topic %s: %w: the clock of this machine says %s, and Kafka takes no record from more than an hour ahead or from earlier than a limit (message.timestamp.after.max.ms, message.timestamp.before.max.ms): set the clock, here or on the brokers",
			p.failed.Topic, p.err, time.Now().UTC().Format(time.RFC3339))
	}
	if errors.Is(p.err, kerr.UnsupportedCompressionType) {
		return fmt.Errorf("produce to topic %s: %w: this Kafka does not take kafka.compression: %s: set another, or none", p.failed.Topic, p.err, p.sink.cfg.Kafka.Compression)
	}
	return fmt.Errorf("produce to topic %s: %w", p.failed.Topic, p.denied(p.err, p.failed.Topic))
}

// topic is Kafka's description of a topic. config is empty if the configuration may not be read.
type topic struct {
	cluster     string // the topic's cluster; empty if Kafka does not report it
	partitions  int
	replication int
	config      map[string]string
	hidden      bool  // the configuration may not be read
	allowed     int32 // a bit for each operation that the login may do; negative if Kafka does not say it
}

// describeTopic asks for one topic, on which operations are to be done; nil if there is no such topic.
func (s *Sink) describeTopic(ctx context.Context, client *kgo.Client, name string, operations ...string) (*topic, error) {
	found, err := s.describeTopics(ctx, client, []string{name}, operations...)
	return found[name], err
}

// describeTopics asks the brokers, not the client's cache, for topics, and returns those that exist, by name.
func (s *Sink) describeTopics(ctx context.Context, client *kgo.Client, names []string, operations ...string) (map[string]*topic, error) {
	return s.describe(ctx, client, names, false, operations...)
}

// describe does the same as describeTopics. If rights is true, it also asks what the login may do on each topic.
func (s *Sink) describe(ctx context.Context, client *kgo.Client, names []string, rights bool, operations ...string) (map[string]*topic, error) {
	found := map[string]*topic{}
	if len(names) == 0 { // an empty request would ask for all topics
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	all := strings.Join(names, ", ")
	req, conf := kmsg.NewPtrMetadataRequest(), kmsg.NewPtrDescribeConfigsRequest()
	req.AllowAutoTopicCreation, req.IncludeTopicAuthorizedOperations = false, rights
	for _, name := range names {
		req.Topics = append(req.Topics, kmsg.MetadataRequestTopic{Topic: &name})
	}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("ask kafka for topic %s: %w", all, err)
	}
	if len(resp.Topics) != len(names) {
		return nil, fmt.Errorf("ask kafka for topic %s: %d answers", all, len(resp.Topics))
	}
	for _, answer := range resp.Topics {
		name := *answer.Topic
		switch err := kerr.ErrorForCode(answer.ErrorCode); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case errors.Is(err, kerr.TopicAuthorizationFailed):
			return nil, &cdc.HaltError{Found: fmt.Sprintf("kafka does not show topic %s to walpost", name), Means: "walpost can neither read the topic nor write to it; nothing is lost", Run: s.grant(identity.Topic, name, operations...)}
		case err != nil:
			return nil, fmt.Errorf("ask kafka for topic %s: %w", name, err)
		}
		t := &topic{cluster: clusterID(resp), partitions: len(answer.Partitions), config: map[string]string{}, allowed: answer.AuthorizedOperations}
		if t.partitions > 0 {
			t.replication = len(answer.Partitions[0].Replicas)
		}
		found[name] = t
		resource := kmsg.NewDescribeConfigsRequestResource()
		resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, name
		conf.Resources = append(conf.Resources, resource)
	}
	if len(found) == 0 {
		return found, nil
	}
	said, err := conf.RequestWith(ctx, client)
	if unsupported(err) {
		return found, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask kafka for the configuration of topic %s: %w", all, err)
	}
	for _, r := range said.Resources {
		if t := found[r.ResourceName]; t != nil {
			t.hidden = errors.Is(kerr.ErrorForCode(r.ErrorCode), kerr.TopicAuthorizationFailed)
		}
		for _, c := range r.Configs {
			if t := found[r.ResourceName]; t != nil && c.Value != nil {
				t.config[c.Name] = *c.Value
			}
		}
	}
	return found, nil
}

func clusterID(resp *kmsg.MetadataResponse) string {
	if resp.ClusterID == nil {
		return ""
	}
	return *resp.ClusterID
}

// waitTopic waits until all brokers know a topic that was just created.
func (s *Sink) waitTopic(ctx context.Context, client *kgo.Client, name string) error {
	for {
		t, err := s.describeTopic(ctx, client, name, prepares...)
		if err != nil || t != nil {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for topic %s: %w", name, ctx.Err())
		}
	}
}
