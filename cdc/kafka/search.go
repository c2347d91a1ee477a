package kafka

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/header"
)

// Place is the place of a found record.
type Place struct {
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	LSN       string    `json:"lsn"`
	Seq       string    `json:"seq"`
	Time      time.Time `json:"time"`
	Redriven  bool      `json:"redriven"`
	Replayed  bool      `json:"replayed"` // published by `walpost replay`, which knows no LSN

	ID, Key, Type     string `json:"-"`
	Source, CreatedAt string `json:"-"`
}

// Search says what to look for on topics.
type Search struct {
	Topics []string
	// Key, if not nil, is the key of the records: then only one partition of each topic is read, the one that the
	// producer chooses.
	Key []byte
	// From is the time of the oldest record to read.
	From  time.Time
	Match func(id, key string) bool
}

// Searched counts what a Search has read, in records and partitions.
type Searched struct{ Records, Partitions int }

// Topics returns the existing topics whose names match.
func (s *Sink) Topics(ctx context.Context, pattern *regexp.Regexp) (names []string, err error) {
	client, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, listWithin)
	defer cancel()
	details, err := kadm.NewClient(client).ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	for _, name := range details.Names() {
		if pattern.MatchString(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// Search reads committed records from a time on, up to the partitions' ends when it begins.
func (s *Sink) Search(ctx context.Context, q Search) (places []Place, read Searched, err error) {
	client, err := s.connect(ctx)
	if err != nil {
		return nil, read, err
	}
	defer client.Close()
	for _, topic := range q.Topics {
		found, err := s.describeTopic(ctx, client, topic, "Read")
		if err != nil {
			return nil, read, err
		}
		if found == nil {
			continue
		}
		starts, ends, err := bounds(ctx, kadm.NewClient(client), topic, q.From)
		if err != nil {
			return nil, read, err
		}
		for partition := range int32(found.partitions) {
			if q.Key != nil && int(partition) != PartitionOf(topic, q.Key, found.partitions) {
				continue
			}
			start, _ := starts.Lookup(topic, partition)
			end, ok := ends.Lookup(topic, partition)
			if err := firstError(start.Err, end.Err); err != nil || !ok {
				return nil, read, fmt.Errorf("ask for the offsets of %s, partition %d: %w", topic, partition, s.denied(err, topic, "Read"))
			}
			read.Partitions++
			if start.Offset >= end.Offset {
				continue
			}
			r, err := s.reader(topic, partition)
			if err != nil {
				return nil, read, err
			}
			r.begin(start.Offset)
			err = r.readTo(ctx, end.Offset, func(record *kgo.Record) {
				read.Records++
				if p := PlaceOf(record); q.Match(p.ID, p.Key) {
					places = append(places, p)
				}
			})
			r.close()
			if err != nil {
				return nil, read, err
			}
		}
	}
	return places, read, nil
}

// bounds returns the offsets of a topic's partitions at a time, and their ends.
func bounds(ctx context.Context, admin *kadm.Client, topic string, from time.Time) (starts, ends kadm.ListedOffsets, err error) {
	ctx, cancel := context.WithTimeout(ctx, listWithin)
	defer cancel()
	if ends, err = admin.ListCommittedOffsets(ctx, topic); err != nil {
		return nil, nil, fmt.Errorf("ask for the ends of %s: %w", topic, err)
	}
	// Kafka has meanings for negative times: an event of 1960 is searched from the beginning.
	if starts, err = admin.ListOffsetsAfterMilli(ctx, max(0, from.UnixMilli()), topic); err != nil {
		return nil, nil, fmt.Errorf("ask for the offsets of %s at %s: %w", topic, from, err)
	}
	return starts, ends, nil
}

func firstError(errs ...error) error {
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return errs[i]
	}
	return nil
}

// PartitionOf returns the partition that the producer chooses for a key.
func PartitionOf(topic string, key []byte, partitions int) int {
	return partitioner().ForTopic(topic).Partition(&kgo.Record{Key: key}, partitions)
}

// PlaceOf returns where a record is, and what its headers say.
func PlaceOf(r *kgo.Record) Place {
	p := Place{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp.UTC(), Key: string(r.Key)}
	// The row's own headers come after walpost's, which may have other names.
	for _, h := range slices.Backward(r.Headers) {
		switch v := string(h.Value); h.Key {
		case header.ID, header.CloudEvents + header.ID:
			p.ID = v
		case header.Type, header.CloudEvents + header.Type:
			p.Type = v
		case header.LSN, header.CloudEvents + header.LSN:
			p.LSN = v
		case header.Seq, header.CloudEvents + header.Seq:
			p.Seq = v
		case header.Source, header.CloudEvents + header.Source:
			p.Source = v
		case header.CreatedAt, header.CloudEvents + header.Time:
			p.CreatedAt = v
		case header.Redriven:
			p.Redriven = true
		case header.Replay:
			p.Replayed = true
		}
	}
	return p
}
