package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	readWithin = time.Minute // without progress; longer than any transaction of walpost may stay open on a topic
	readPause  = 250 * time.Millisecond
)

// reader reads the committed records of one partition, and continues where it stopped.
type reader struct {
	sink      *Sink
	client    *kgo.Client
	topic     string
	partition int32
	next      int64
	answers   atomic.Int64 // number of answered fetches
}

// reader returns a reader that has read nothing; begin sets its first offset.
func (s *Sink) reader(topic string, partition int32) (*reader, error) {
	r := &reader{sink: s, topic: topic, partition: partition}
	client, err := s.client(append(readOptions(), kgo.WithHooks(r))...)
	if err != nil {
		return nil, err
	}
	r.client = client
	return r, nil
}

// readOptions returns the options of a client that reads committed records.
func readOptions() []kgo.Opt {
	return []kgo.Opt{
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that the last offset is seen, with any kind of record
		kgo.FetchMaxWait(100 * time.Millisecond),
		kgo.FetchMaxBytes(4 << 20), // a larger record still arrives, alone
	}
}

// begin sets the offset of the next record. It is called once.
func (r *reader) begin(from int64) {
	r.next = from
	r.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: {r.partition: kgo.NewOffset().At(from)}})
}

func (r *reader) close() { r.client.Close() }

// OnBrokerE2E counts answers: they show that a compacted partition has nothing left before its end.
func (r *reader) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	if key == int16(kmsg.Fetch) && e2e.Err() == nil {
		r.answers.Add(1)
	}
}

// end returns the partition's present end or, if stable, the offset of its first open transaction.
func (r *reader) end(ctx context.Context, stable bool) (int64, error) {
	admin := kadm.NewClient(r.client)
	list := admin.ListEndOffsets
	if stable {
		list = admin.ListCommittedOffsets
	}
	ctx, cancel := context.WithTimeout(ctx, listWithin)
	defer cancel()
	offsets, err := list(ctx, r.topic)
	if err != nil {
		return 0, fmt.Errorf("ask for the end of %s: %w", r.topic, err)
	}
	end, ok := offsets.Lookup(r.topic, r.partition)
	if !ok {
		return 0, fmt.Errorf("ask for the end of %s: kafka does not know partition %d", r.topic, r.partition)
	}
	if end.Err != nil {
		return 0, fmt.Errorf("ask for the end of %s: partition %d: %w", r.topic, r.partition, r.sink.denied(end.Err, r.topic, "Read"))
	}
	return end.Offset, nil
}

// readTo calls each for the records before end. It waits for open transactions there, and returns an error when
// nothing has come for readWithin.
func (r *reader) readTo(ctx context.Context, end int64, each func(*kgo.Record)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	giveUp := time.AfterFunc(readWithin, func() { cancel(context.DeadlineExceeded) })
	defer giveUp.Stop()
	quiet := int64(-1) // answers when the partition was stable up to end and nothing more came
	for r.next < end {
		answered := r.answers.Load()
		poll, done := context.WithTimeout(ctx, readPause)
		fetches := r.client.PollFetches(poll)
		done()
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("read %s: stopped at offset %d of %d: a transaction may be open on it: try again: %w", r.topic, r.next, end, err)
		}
		for _, f := range fetches.Errors() {
			if !errors.Is(f.Err, context.DeadlineExceeded) {
				return fmt.Errorf("read %s: %w", r.topic, r.sink.denied(f.Err, r.topic, "Read"))
			}
		}
		records := fetches.Records()
		for _, record := range records {
			r.next = record.Offset + 1
			if !record.Attrs.IsControl() && record.Offset < end {
				each(record)
			}
		}
		if len(records) > 0 {
			giveUp.Reset(readWithin)
			quiet = -1
			continue
		}
		if quiet < 0 {
			if stable, err := r.end(ctx, true); err != nil {
				return err
			} else if stable >= end {
				quiet = answered
			}
			continue
		}
		// The first of three answers may have been requested earlier; the third is requested only after the second
		// was empty.
		if answered >= quiet+3 {
			r.next = end // compaction removed the rest
		}
	}
	return nil
}
