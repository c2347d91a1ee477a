package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// EachRecord calls f with every committed record of a topic of another program, partition by partition, each in the order
// of its offsets. whole is false if the topic has lost records other than by keeping the newest of each key; exists is false
// if there is no such topic.
func (s *Sink) EachRecord(ctx context.Context, topic string, f func(*kgo.Record)) (whole, exists bool, err error) {
	client, err := s.connect(ctx)
	if err != nil {
		return false, false, err
	}
	defer client.Close()
	found, err := s.describeTopic(ctx, client, topic, "Read")
	if err != nil || found == nil {
		return false, false, err
	}
	asking, cancel := context.WithTimeout(ctx, listWithin)
	defer cancel()
	starts, err := kadm.NewClient(client).ListStartOffsets(asking, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return false, false, fmt.Errorf("ask for the start of %s: %w", topic, s.denied(err, topic, "Read"))
	}
	whole = true
	var records, end int64
	for partition := range int32(found.partitions) {
		first, _ := starts.Lookup(topic, partition)
		whole = whole && first.Offset == 0
		of, err := s.eachOf(ctx, topic, partition, first.Offset, func(r *kgo.Record) { records++; f(r) })
		if err != nil {
			return false, false, err
		}
		end += of
	}
	return whole && (records > 0 || end == 0), true, nil
}

// eachOf reads one partition from an offset to its stable end, and returns that.
func (s *Sink) eachOf(ctx context.Context, topic string, partition int32, from int64, f func(*kgo.Record)) (end int64, err error) {
	r, err := s.reader(topic, partition)
	if err != nil {
		return 0, err
	}
	defer r.close()
	if end, err = r.end(ctx, true); err != nil {
		return 0, err
	}
	r.begin(from)
	return end, r.readTo(ctx, end, f)
}
