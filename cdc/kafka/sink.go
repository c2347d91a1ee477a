package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
)

const (
	// answerWithin is how long Kafka may take to answer a request at a session's start. The relay's producing has no
	// limit.
	answerWithin = 10 * time.Second
	// publishWithin is how long Kafka may take to accept what a command publishes: a command must not wait without
	// end.
	publishWithin = time.Minute
	// createWithin is how long it may take until a topic is created and visible.
	createWithin = time.Minute
	// listWithin is how long Kafka may take to list topics and offsets, which may be many.
	listWithin = 30 * time.Second
	// askNext is how long a request waits for one broker before it also asks the next.
	askNext = 250 * time.Millisecond
)

// leaderAge is how soon a client looks again for leaders that have moved; the client's default of 5 s would be the
// pause after a broker fails.
const leaderAge = 250 * time.Millisecond

// Sink is one Kafka cluster, for one pipeline.
type Sink struct {
	identity.Unshown

	cfg    config.Config
	topics []string
	login  *identity.Login
	log    zerolog.Logger
	extra  []kgo.Opt
}

var _ cdc.Sink = (*Sink)(nil)

// NewSink returns a sink, and connects to nothing yet. init creates the known topics, and a session's start checks
// them, unless only the rows decide which topics are needed. The sink logs changes of certificates and secrets, and the
// topics that a relay creates. Each client also gets the extra options.
func NewSink(cfg config.Config, topics []string, log zerolog.Logger, extra ...kgo.Opt) *Sink {
	log = log.With().Str("pipeline", cfg.Pipeline).Logger()
	login := identity.NewLogin(cfg.Kafka.Kafka, cfg.Kafka.Brokers, identity.Keys, log)
	return &Sink{cfg: cfg, topics: topics, login: login, log: log, extra: extra}
}

// Trouble returns why Kafka does not accept the login of the sink's clients; nil if it does, or if it does not answer
// at all.
func (s *Sink) Trouble() error { return s.login.Trouble() }

// Certificates returns when the certificates in use expire, by their keys.
func (s *Sink) Certificates() map[string]time.Time { return s.login.Certificates() }

// client returns a client with the options that all uses share.
func (s *Sink) client(opts ...kgo.Opt) (*kgo.Client, error) {
	opts = append([]kgo.Opt{
		kgo.SeedBrokers(s.cfg.Kafka.Brokers...), kgo.ClientID("walpost-" + s.cfg.Pipeline), kgo.MetadataMinAge(leaderAge), kgo.DialTimeout(answerWithin),
	}, slices.Concat(s.login.Options(), opts)...)
	client, err := kgo.NewClient(append(opts, s.extra...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return client, nil
}

// ping checks that Kafka answers, before anything waits for it. It returns the cluster's id, empty if Kafka does not
// report it.
func (s *Sink) ping(ctx context.Context, client *kgo.Client) (cluster string, err error) {
	asking, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	seeds := strings.Join(s.cfg.Kafka.Brokers, ", ")
	answer, err := first(asking, client.SeedBrokers(), func() kmsg.Request {
		r := kmsg.NewPtrMetadataRequest()
		r.Topics = []kmsg.MetadataRequestTopic{} // none; nil would mean all
		return r
	})
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return "", fmt.Errorf("the request to kafka was stopped: %w", context.Cause(ctx))
		}
		if refused := s.login.Explain(ctx, seeds, err); refused != nil {
			return "", refused
		}
		return "", &awayError{found: fmt.Sprintf("kafka.brokers: none of %s answers", seeds), run: "start Kafka, or name the right brokers", err: err}
	}
	// The addresses that Kafka advertises are others, and clients use those.
	var brokers []*kgo.Broker
	var at []string
	for _, b := range answer.(*kmsg.MetadataResponse).Brokers {
		brokers, at = append(brokers, client.Broker(int(b.NodeID))), append(at, net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port))))
	}
	if _, err := first(asking, brokers, func() kmsg.Request { return kmsg.NewPtrApiVersionsRequest() }); err != nil && ctx.Err() == nil {
		refused := s.login.Explain(ctx, strings.Join(at, ", "), err)
		if ours := (*identity.RefusedError)(nil); errors.As(refused, &ours) && ours.Ours() {
			return "", refused // the addresses are not at fault
		}
		if refused != nil {
			return "", fmt.Errorf("kafka at %s says that its brokers are at %s (advertised.listeners), and these do not accept the login: %w", seeds, strings.Join(at, ", "), refused)
		}
		return "", &awayError{
			found: fmt.Sprintf("kafka at %s says that its brokers are at %s, and none of these answers", seeds, strings.Join(at, ", ")),
			run:   "set advertised.listeners of the brokers to addresses that lead to them from here", err: err, advertised: true,
		}
	}
	return clusterID(answer.(*kmsg.MetadataResponse)), ctx.Err()
}

// awayError reports a Kafka that does not answer.
type awayError struct {
	found, run string
	err        error
	advertised bool // the seeds answer, and the brokers that they name do not
}

func (a *awayError) Error() string { return fmt.Sprintf("%s: %s: %v", a.found, a.run, a.err) }
func (a *awayError) Unwrap() error { return a.err }

// first sends a request to one broker after another, without waiting long for any, and returns the first answer, or
// the errors of all.
func first(ctx context.Context, brokers []*kgo.Broker, req func() kmsg.Request) (kmsg.Response, error) {
	type answer struct {
		resp kmsg.Response
		err  error
	}
	ctx, done := context.WithCancel(ctx)
	defer done()
	answers := make(chan answer, len(brokers))
	next := time.NewTicker(askNext)
	defer next.Stop()
	var errs []error
	for asked := 0; len(errs) < len(brokers); {
		if asked < len(brokers) {
			b := brokers[asked]
			asked++
			go func() {
				resp, err := b.Request(ctx, req())
				answers <- answer{resp, err}
			}()
		}
		select {
		case a := <-answers:
			if a.err == nil {
				return a.resp, nil
			}
			errs = append(errs, a.err)
		case <-next.C:
		}
	}
	return nil, errors.Join(errs...)
}

// connect returns a client of a Kafka that answers.
func (s *Sink) connect(ctx context.Context, opts ...kgo.Opt) (*kgo.Client, error) {
	client, err := s.client(opts...)
	if err != nil {
		return nil, err
	}
	if _, err := s.ping(ctx, client); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// Peek reads the newest state record with a separate client. It does not wait for the end of an open transaction.
func (s *Sink) Peek(ctx context.Context) (*cdc.State, error) {
	log, err := s.readState(ctx, true)
	return log.newest(), err
}

// Open returns the session's client and checks the known topics. In exactly-once it fences the relay that had the
// slot before, and ends that relay's open transaction.
func (s *Sink) Open(ctx context.Context) (cdc.Publisher, error) {
	var id string
	if s.cfg.Delivery == config.ExactlyOnce {
		id = s.cfg.TransactionalID()
	}
	p, err := s.newPublisher(ctx, id, s.cfg.Kafka.TransactionTimeout)
	if err != nil {
		return nil, err
	}
	if err := s.checkTopics(ctx, p); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// OpenReplay returns a client for `walpost replay`, which works next to the relay's: in exactly-once it has another
// transactional id. In a dry run it has none, because it publishes nothing and must fence no replay that runs.
func (s *Sink) OpenReplay(ctx context.Context, dryRun bool) (cdc.Publisher, error) {
	var id string
	if s.cfg.Delivery == config.ExactlyOnce && !dryRun {
		id = s.cfg.TransactionalID() + ".replay"
	}
	p, err := s.newPublisher(ctx, id, s.cfg.Kafka.TransactionTimeout)
	if err != nil {
		return nil, err
	}
	p.within = publishWithin
	return p, nil
}

// Ready returns how many partitions the topics have. It returns an error if Kafka does not answer, and the HaltError
// of a session that would find a topic missing or of the wrong kind. It fences no client.
func (s *Sink) Ready(ctx context.Context) (Partitions, error) {
	p, err := s.newPublisher(ctx, "", s.cfg.Kafka.TransactionTimeout)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	err = s.checkTopics(ctx, p)
	return p.partitions(), err
}

func (s *Sink) checkTopics(ctx context.Context, p *publisher) error {
	if !strings.Contains(s.cfg.Kafka.Topic, "{event_type}") {
		if err := p.askLimits(ctx, s.topics...); err != nil {
			return err
		}
	}
	if s.cfg.Poison.Policy == config.PolicyDeadLetter {
		return s.checkDeadLetters(ctx, p.client)
	}
	return nil
}

// retryFor returns how long the client itself repeats a request. It never repeats the end of a transaction: before
// transaction version 2 a first attempt that was thought lost could arrive late, and end the next transaction in its
// middle.
func retryFor(key int16) time.Duration {
	if key == int16(kmsg.EndTxn) {
		return time.Nanosecond
	}
	return 30 * time.Second // the client's default
}

// newPublisher returns a client that publishes in transactions if it is given an id, and fences every other client
// with that id.
func (s *Sink) newPublisher(ctx context.Context, transactionalID string, timeout time.Duration) (*publisher, error) {
	p := &publisher{sink: s, id: transactionalID, limits: map[string]limit{}, dead: deadReader{sink: s}, deadTopic: s.cfg.DeadLetterTopic()}
	var codec kgo.CompressionCodec
	switch s.cfg.Kafka.Compression {
	case config.Gzip:
		codec = kgo.GzipCompression()
	case config.Snappy:
		codec = kgo.SnappyCompression()
	case config.LZ4:
		codec = kgo.Lz4Compression()
	case config.Zstd:
		codec = kgo.ZstdCompression()
	default:
		codec = kgo.NoCompression()
	}
	opts := []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ManualFlushing(),
		kgo.StopProducerOnDataLossDetected(),
		kgo.MaxBufferedRecords(s.cfg.Window.Rows + 2 + maxStale), // never reached: Produce must not block
		kgo.ProducerBatchCompression(codec),
		kgo.ProducerBatchMaxBytesFn(p.batchLimit),
		kgo.BrokerMaxWriteBytes(int32(s.cfg.Kafka.MaxRequestBytes)),
		kgo.RecordPartitioner(partitioner()),
	}
	if transactionalID != "" {
		opts = append(opts, kgo.TransactionalID(transactionalID), kgo.TransactionTimeout(timeout), kgo.RetryTimeoutFn(retryFor))
	}
	client, err := s.client(opts...)
	if err != nil {
		return nil, err
	}
	p.client = client
	p.promise = p.resolved
	p.cluster, err = s.ping(ctx, client)
	if err == nil {
		err = p.fence(ctx, transactionalID)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// placed is the context of a record whose partition the route has chosen.
var placed = context.WithValue(context.Background(), placedKey{}, true)

type placedKey struct{}

// partitioner returns murmur2 of the key, as in the Java client, except for records that are placed.
func partitioner() kgo.Partitioner { return places{kgo.StickyKeyPartitioner(nil)} }

// places keeps the partition of a record that is placed, and leaves the others to the partitioner.
type places struct{ kgo.Partitioner }

// ForTopic returns the partitioner of a topic.
func (p places) ForTopic(topic string) kgo.TopicPartitioner {
	others := p.Partitioner.ForTopic(topic)
	batches, _ := others.(kgo.TopicPartitionerOnNewBatch)
	return placesOfTopic{others, batches}
}

type placesOfTopic struct {
	kgo.TopicPartitioner
	batches kgo.TopicPartitionerOnNewBatch
}

// OnNewBatch lets records without a key change to another partition.
func (p placesOfTopic) OnNewBatch() { p.batches.OnNewBatch() }

// RequiresConsistency returns true for a placed record: it waits for a partition without a leader.
func (p placesOfTopic) RequiresConsistency(r *kgo.Record) bool {
	return r.Context == placed || p.TopicPartitioner.RequiresConsistency(r)
}

// Partition returns the partition of a record.
func (p placesOfTopic) Partition(r *kgo.Record, n int) int {
	if r.Context == placed {
		return int(r.Partition)
	}
	return p.TopicPartitioner.Partition(r, n)
}
