package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Newest calls f with the newest committed records of the topics: about most in all, the same number of each partition, in
// the order of topics, partitions and offsets. partitions is the topic's number of partitions.
func (s *Sink) Newest(ctx context.Context, topics []string, most int, f func(r *kgo.Record, partitions int) error) (read Searched, err error) {
	client, err := s.connect(ctx)
	if err != nil {
		return read, err
	}
	defer client.Close()
	type span struct {
		topic                 string
		partition, partitions int
		start, end            int64
	}
	var spans []span
	for _, name := range topics {
		found, err := s.describeTopic(ctx, client, name, "Read")
		if err != nil {
			return read, err
		}
		if found == nil {
			continue
		}
		starts, ends, err := s.kept(ctx, kadm.NewClient(client), name)
		if err != nil {
			return read, err
		}
		for partition := range found.partitions {
			start, _ := starts.Lookup(name, int32(partition))
			end, ok := ends.Lookup(name, int32(partition))
			if err := firstError(start.Err, end.Err); err != nil || !ok {
				return read, fmt.Errorf("ask for the offsets of %s, partition %d: %w", name, partition, s.denied(err, name, "Read"))
			}
			if start.Offset < end.Offset {
				spans = append(spans, span{name, partition, found.partitions, start.Offset, end.Offset})
			}
		}
	}
	read.Partitions = len(spans)
	for _, p := range spans {
		each := max(1, int64(most/len(spans)))
		r, err := s.reader(p.topic, int32(p.partition))
		if err != nil {
			return read, err
		}
		r.begin(max(p.start, p.end-each))
		var failed error
		err = r.readTo(ctx, p.end, func(record *kgo.Record) {
			if failed == nil {
				read.Records++
				failed = f(record, p.partitions)
			}
		})
		r.close()
		if err = firstError(failed, err); err != nil {
			return read, err
		}
	}
	return read, nil
}

// kept returns the first offsets of a topic's partitions that the brokers still have, and the ends of the committed ones.
func (s *Sink) kept(ctx context.Context, admin *kadm.Client, topic string) (starts, ends kadm.ListedOffsets, err error) {
	ctx, cancel := context.WithTimeout(ctx, listWithin)
	defer cancel()
	if ends, err = admin.ListCommittedOffsets(ctx, topic); err != nil {
		return nil, nil, fmt.Errorf("ask for the ends of %s: %w", topic, err)
	}
	if starts, err = admin.ListStartOffsets(ctx, topic); err != nil {
		return nil, nil, fmt.Errorf("ask for the first offsets of %s: %w", topic, err)
	}
	return starts, ends, nil
}
