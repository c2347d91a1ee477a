package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/header"
)

const (
	countWithin = 20 * time.Second
	countLimit  = 100_000 // records that are read back per partition
)

var errTopicsUnknown = errors.New("only the rows decide the topics: the template has {event_type}")

// CountFrom reads each partition back from its end, in growing steps, until it finds a row before lsn: within a
// partition rows are in the order of their commits.
func (p *publisher) CountFrom(ctx context.Context, lsn cdc.LSN) (rows int, atLeast bool, err error) {
	if len(p.sink.topics) == 0 {
		return 0, false, errTopicsUnknown
	}
	ctx, cancel := context.WithTimeout(ctx, countWithin)
	defer cancel()
	admin := kadm.NewClient(p.client)
	starts, err := admin.ListStartOffsets(ctx, p.sink.topics...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask for the ends of the topics: %w", err)
	}
	ends, err := admin.ListCommittedOffsets(ctx, p.sink.topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask for the ends of the topics: %w", err)
	}
	ends.Each(func(end kadm.ListedOffset) {
		start, _ := starts.Lookup(end.Topic, end.Partition)
		if err != nil || start.Offset >= end.Offset {
			return
		}
		n, more, cerr := p.countPartition(ctx, end.Topic, end.Partition, start.Offset, end.Offset, lsn)
		rows, atLeast, err = rows+n, atLeast || more, cerr
	})
	return rows, atLeast, err
}

func (p *publisher) countPartition(ctx context.Context, topic string, partition int32, start, end int64, lsn cdc.LSN) (rows int, atLeast bool, err error) {
	seen := map[cdc.Position]bool{}
	for back := int64(1000); ; back *= 10 {
		from := max(start, end-back)
		before, err := p.scan(ctx, topic, partition, from, end, lsn, seen)
		if err != nil || before || from == start {
			return len(seen), false, err
		}
		if back >= countLimit {
			return len(seen), true, nil
		}
	}
}

// scan counts the rows at or after lsn, and reports whether there was a row before it. Records before such a row are
// of an earlier server, whose LSNs were higher; a replay has all of its rows again after it.
func (p *publisher) scan(ctx context.Context, topic string, partition int32, from, end int64, lsn cdc.LSN, seen map[cdc.Position]bool) (before bool, err error) {
	r, err := p.sink.reader(topic, partition)
	if err != nil {
		return false, err
	}
	defer r.close()
	r.begin(from)
	err = r.readTo(ctx, end, func(r *kgo.Record) {
		if at, ok := p.position(r); ok && at.Commit >= lsn {
			seen[at] = true
		} else if ok {
			before = true
			clear(seen)
		}
	})
	return before, err
}

// position returns the position of a row of this pipeline from its headers; replayed rows and other pipelines' rows
// have none.
func (p *publisher) position(r *kgo.Record) (at cdc.Position, ok bool) {
	var source, lsn, seq string
	for _, h := range slices.Backward(r.Headers) {
		switch h.Key {
		case header.Source, header.CloudEvents + header.Source:
			source = string(h.Value)
		case header.LSN, header.CloudEvents + header.LSN:
			lsn = string(h.Value)
		case header.Seq, header.CloudEvents + header.Seq:
			seq = string(h.Value)
		}
	}
	commit, err := cdc.ParseLSN(lsn)
	n, serr := strconv.ParseUint(seq, 10, 32)
	return cdc.Position{Commit: commit, Ordinal: uint32(n)}, err == nil && serr == nil && (source == p.sink.cfg.Pipeline || source == p.sink.cfg.Kafka.EventSource(p.sink.cfg.Pipeline))
}
