package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// lookEvery is how often a Tail looks for new topics and partitions. The look also notices that Kafka is away.
const lookEvery = 5 * time.Second

// Tail says which committed records to read: those of all topics that match, from Back offsets before the end of each
// partition on.
type Tail struct {
	Topics *regexp.Regexp
	Known  []string // topics for which a missing right is an error; Kafka does not list a topic that the user may not see
	Back   int64

	Each     func(*kgo.Record) error // is called with each record, in the order of the offsets of a partition
	CaughtUp func() error            // is called once, when the records that were there at the beginning are read
	Follow   bool                    // read on until ctx ends, also topics and partitions that are created meanwhile
}

// Tail reads the newest records, commits no offset, joins no group and creates no topic. With Follow it returns nil when
// ctx ends, and an error when Kafka does not answer any more.
func (s *Sink) Tail(ctx context.Context, t Tail) error {
	f := &tail{Tail: t, sink: s, spans: map[string]map[int32]*span{}, answers: map[int32]int64{}}
	var err error
	if f.client, err = s.connect(ctx, append(readOptions(), kgo.WithHooks(f))...); err != nil {
		return err
	}
	defer f.client.Close()
	err = f.look(ctx, true)
	if err == nil {
		err = f.readToEnds(ctx)
	}
	if err == nil {
		err = t.CaughtUp()
	}
	if err == nil && t.Follow {
		err = f.follow(ctx)
	}
	if t.Follow && ctx.Err() != nil {
		return nil
	}
	return err
}

// tail is a Tail that runs.
type tail struct {
	Tail
	sink   *Sink
	client *kgo.Client
	spans  map[string]map[int32]*span // by topic and partition

	mu      sync.Mutex
	answers map[int32]int64 // number of answered fetches of each broker
}

// span is a partition, with the records that were there at the beginning.
type span struct {
	next, end int64
	leader    int32
}

// OnBrokerE2E counts answers, as that of reader does.
func (f *tail) OnBrokerE2E(broker kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	if key == int16(kmsg.Fetch) && e2e.Err() == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.answers[broker.NodeID]++
	}
}

// answered returns the number of answered fetches of each broker.
func (f *tail) answered() map[int32]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.answers)
}

// look adds the topics and partitions that are new. Those of the first look begin Back offsets before their end, the others
// at their start.
func (f *tail) look(ctx context.Context, first bool) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	admin := kadm.NewClient(f.client)
	listed, err := admin.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("kafka at %s does not list its topics: start Kafka, then run the command again: %w", strings.Join(f.sink.cfg.Kafka.Brokers, ", "), err)
	}
	for _, name := range f.Known {
		if first && !listed.Has(name) {
			if _, err := f.sink.describeTopic(ctx, f.client, name, "Read"); err != nil {
				return err
			}
		}
	}
	var changed []string
	for _, name := range listed.Names() {
		ours := f.Topics.MatchString(name) && !strings.HasPrefix(name, "__") && !strings.HasPrefix(name, "walpost.")
		if ours && len(listed[name].Partitions) > len(f.spans[name]) {
			changed = append(changed, name)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	ends, err := admin.ListCommittedOffsets(ctx, changed...)
	if err != nil {
		return fmt.Errorf("ask for the ends of %s: %w", strings.Join(changed, ", "), err)
	}
	starts, err := admin.ListStartOffsets(ctx, changed...)
	if err != nil {
		return fmt.Errorf("ask for the first offsets of %s: %w", strings.Join(changed, ", "), err)
	}
	more := map[string]map[int32]kgo.Offset{}
	for _, name := range changed {
		for partition, detail := range listed[name].Partitions {
			start, _ := starts.Lookup(name, partition)
			end, ok := ends.Lookup(name, partition)
			switch err := firstError(start.Err, end.Err); {
			case f.spans[name][partition] != nil:
				continue
			case (err != nil || !ok) && !first:
				continue // the next look finds it
			case err != nil || !ok:
				return fmt.Errorf("ask for the offsets of %s, partition %d: %w", name, partition, f.sink.denied(err, name, "Read"))
			}
			if f.spans[name] == nil {
				f.spans[name] = map[int32]*span{}
			}
			if more[name] == nil {
				more[name] = map[int32]kgo.Offset{}
			}
			at := start.Offset
			if first {
				at = max(at, end.Offset-f.Back)
			}
			f.spans[name][partition] = &span{next: at, end: end.Offset, leader: detail.Leader}
			more[name][partition] = kgo.NewOffset().At(at)
		}
	}
	f.client.AddConsumePartitions(more)
	return nil
}

// poll calls Each with the records that have arrived, and returns how many those are, also of other kinds.
func (f *tail) poll(ctx context.Context) (n int, err error) {
	poll, done := context.WithTimeout(ctx, readPause)
	fetches := f.client.PollFetches(poll)
	done()
	if ctx.Err() != nil {
		return 0, fmt.Errorf("read the newest records: %w", context.Cause(ctx))
	}
	for _, e := range fetches.Errors() {
		if !errors.Is(e.Err, context.DeadlineExceeded) {
			return 0, fmt.Errorf("read %s: %w", e.Topic, f.sink.denied(e.Err, e.Topic, "Read"))
		}
	}
	for _, r := range fetches.Records() {
		n++
		if p := f.spans[r.Topic][r.Partition]; p != nil {
			p.next = r.Offset + 1
		}
		if !r.Attrs.IsControl() {
			if err := f.Each(r); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// pending returns the partitions that are not read up to the end that they had.
func (f *tail) pending() (spans []*span) {
	for _, partitions := range f.spans {
		for _, p := range partitions {
			if p.next < p.end {
				spans = append(spans, p)
			}
		}
	}
	return spans
}

// readToEnds reads all partitions up to the ends that they had.
func (f *tail) readToEnds(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readWithin, errors.New("kafka has stopped sending: look at its brokers, then run the command again"))
	defer cancel()
	var quiet map[int32]int64 // answers when nothing more came
	for {
		answered := f.answered()
		pending := f.pending()
		if len(pending) == 0 {
			return nil
		}
		n, err := f.poll(ctx)
		switch {
		case err != nil:
			return err
		case n > 0:
			quiet = nil
			continue
		case quiet == nil:
			quiet = answered
			continue
		}
		for _, p := range pending {
			if answered[p.leader] >= quiet[p.leader]+3 { // as in readTo: compaction removed the rest
				p.next = p.end
			}
		}
	}
}

// follow reads on until ctx ends.
func (f *tail) follow(ctx context.Context) error {
	for next := time.Now().Add(lookEvery); ; {
		if _, err := f.poll(ctx); err != nil {
			return err
		}
		if time.Now().After(next) {
			if err := f.look(ctx, false); err != nil {
				return err
			}
			next = time.Now().Add(lookEvery)
		}
	}
}
