package inbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// replayStall is how long a read of the log waits for the next record.
	replayStall = 30 * time.Second
	// askWithin is how long Kafka may take to answer about offsets and groups.
	askWithin = 30 * time.Second
)

// A Rewind is the plan for one partition: the group reads the records from From up to Committed again.
type Rewind struct {
	Partition       int32
	From, Committed int64
	LogStart        int64 // if it is above the requested offset, the records below are gone

	New        int // events that are not in the inbox: they will be applied
	Duplicates int // events that are in the inbox: they will be skipped
	Parked     int // events that are parked and stay parked
	Others     int // events of types that are not handled, and records without an id
}

// ErrGroupBusy is returned when the group has members: Kafka does not move the offsets of such a group.
var ErrGroupBusy = errors.New("the group has running consumers")

// Replay moves the group's offsets back, and returns for each partition which events the group gets again. It never
// moves an offset forward over records that were not consumed yet.
func (o *Operator) Replay(ctx context.Context, opts ReplayOptions) ([]Rewind, error) {
	client, err := o.cfg.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	plan, err := o.plan(ctx, admin, opts)
	if err == nil {
		err = o.count(ctx, plan)
	}
	if err == nil && !opts.DryRun {
		err = o.rewind(ctx, admin, plan)
	}
	return plan, o.cfg.why(ctx, err)
}

func (o *Operator) plan(ctx context.Context, admin *kadm.Client, opts ReplayOptions) ([]Rewind, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	committed, err := admin.FetchOffsetsForTopics(ctx, o.cfg.Group, o.cfg.Topic)
	if err == nil {
		err = committed.Error()
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("ask for the offsets of group %s: %w", o.cfg.Group, err)
	}
	starts, err := admin.ListStartOffsets(ctx, o.cfg.Topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the start of topic %s: %w", o.cfg.Topic, err)
	}
	var targets kadm.ListedOffsets
	if !opts.From.IsZero() {
		targets, err = admin.ListOffsetsAfterMilli(ctx, opts.From.UnixMilli(), o.cfg.Topic)
		if err == nil {
			err = targets.Error()
		}
		if err != nil {
			return nil, fmt.Errorf("ask for the offsets of %s: %w", opts.From.Format(time.RFC3339), err)
		}
	}
	var plan []Rewind
	starts.Each(func(start kadm.ListedOffset) {
		at, ok := committed.Lookup(o.cfg.Topic, start.Partition)
		if !ok || at.At < 0 || len(opts.Partitions) > 0 && !slices.Contains(opts.Partitions, start.Partition) {
			return
		}
		r := Rewind{Partition: start.Partition, From: opts.Offset, Committed: at.At, LogStart: start.Offset}
		if target, ok := targets.Lookup(o.cfg.Topic, start.Partition); ok {
			r.From = target.Offset
		}
		r.From = min(max(r.From, r.LogStart), r.Committed)
		plan = append(plan, r)
	})
	if len(plan) == 0 {
		return nil, fmt.Errorf("group %s has committed no offset in these partitions of topic %s: there is nothing to replay", o.cfg.Group, o.cfg.Topic)
	}
	slices.SortFunc(plan, func(a, b Rewind) int { return int(a.Partition - b.Partition) })
	return plan, nil
}

// count reads the records that would arrive again, and counts them by their state in the inbox.
func (o *Operator) count(ctx context.Context, plan []Rewind) error {
	of, from, to := map[int32]*Rewind{}, map[int32]int64{}, map[int32]int64{}
	for i := range plan {
		r := &plan[i]
		of[r.Partition], from[r.Partition], to[r.Partition] = r, r.From, r.Committed
	}
	return o.read(ctx, from, to, func(partition int32, records []*kgo.Record) error { return o.classify(ctx, of[partition], records) })
}

// read calls each with the topic's committed records from these offsets up to these offsets, in the order of each
// partition. Transaction markers are among the records.
func (o *Operator) read(ctx context.Context, from, to map[int32]int64, each func(partition int32, records []*kgo.Record) error) error {
	open, offsets := map[int32]bool{}, map[int32]kgo.Offset{}
	for p := range to {
		if from[p] < to[p] {
			open[p], offsets[p] = true, kgo.NewOffset().At(from[p])
		}
	}
	if len(open) == 0 {
		return nil
	}
	client, err := o.cfg.client(
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{o.cfg.Topic: offsets}))
	if err != nil {
		return err
	}
	defer client.Close()
	for len(open) > 0 {
		polled, cancel := context.WithTimeout(ctx, replayStall)
		fetches := client.PollRecords(polled, pollRecords)
		err := polled.Err()
		cancel()
		if err != nil {
			return fmt.Errorf("read topic %s, partitions %v were not read to their end: %w", o.cfg.Topic, slices.Sorted(maps.Keys(open)), err)
		}
		var failed error
		fetches.EachPartition(func(f kgo.FetchTopicPartition) {
			n := len(f.Records)
			if !open[f.Partition] || failed != nil || n == 0 {
				return
			}
			if f.Records[n-1].Offset >= to[f.Partition]-1 {
				delete(open, f.Partition)
			}
			behind := slices.IndexFunc(f.Records, func(r *kgo.Record) bool { return r.Offset >= to[f.Partition] })
			if behind < 0 {
				behind = n
			}
			failed = each(f.Partition, f.Records[:behind])
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}

func (o *Operator) classify(ctx context.Context, r *Rewind, records []*kgo.Record) error {
	var events []Event
	for _, record := range records {
		if record.Attrs.IsControl() {
			continue
		}
		ev := newEvent(record)
		if ev.ID == "" || len(o.cfg.Types) > 0 && !slices.Contains(o.cfg.Types, ev.Type) {
			r.Others++
			continue
		}
		events = append(events, ev)
	}
	seen, err := o.effects.seen(ctx, o.cfg.Pool, events)
	if err != nil {
		return err
	}
	parked, err := o.parked(ctx, events)
	if err != nil {
		return err
	}
	for _, ev := range events {
		switch {
		case seen[ev.ID]:
			r.Duplicates++
		case parked[ev.ID]:
			r.Parked++
		default:
			r.New++
		}
	}
	return nil
}

func (o *Operator) parked(ctx context.Context, events []Event) (map[string]bool, error) {
	ids := make([]string, len(events))
	for i, ev := range events {
		ids[i] = ev.ID
	}
	rows, _ := o.cfg.Pool.Query(ctx, `SELECT event_id FROM inbox_parked WHERE consumer = $1 AND status = 'parked' AND event_id = ANY($2)`, o.cfg.Consumer, ids)
	return set(rows, "look for parked events")
}

// rewind moves the offsets, and records the decision if they were moved.
func (o *Operator) rewind(ctx context.Context, admin *kadm.Client, plan []Rewind) error {
	groups, err := admin.DescribeGroups(ctx, o.cfg.Group)
	if err == nil {
		err = groups.Error()
	}
	if err != nil {
		return fmt.Errorf("ask for the members of group %s: %w", o.cfg.Group, err)
	}
	if n := len(groups[o.cfg.Group].Members); n > 0 {
		return fmt.Errorf("%w: %d in %s, stop the consumers and run this again", ErrGroupBusy, n, o.cfg.Group)
	}
	offsets := kadm.Offsets{}
	what := fmt.Sprintf("group %s on topic %s back to", o.cfg.Group, o.cfg.Topic)
	for _, r := range plan {
		offsets.AddOffset(o.cfg.Topic, r.Partition, r.From, -1)
		what += fmt.Sprintf(" %d/%d (from %d)", r.Partition, r.From, r.Committed)
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return pgx.BeginFunc(ctx, o.cfg.Pool, func(tx pgx.Tx) error {
		if err := o.recordDecision(ctx, tx, "replay", what); err != nil {
			return err
		}
		moved, err := admin.CommitOffsets(ctx, o.cfg.Group, offsets) // Kafka refuses this if a consumer has joined meanwhile
		if err == nil {
			err = moved.Error()
		}
		if err != nil {
			return fmt.Errorf("move the offsets of group %s (if its consumers were started again, stop them): %w", o.cfg.Group, err)
		}
		return nil
	})
}
