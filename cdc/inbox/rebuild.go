package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Rebuilt counts what a rebuild found on the topic.
type Rebuilt struct {
	Applied    int  // events that were applied, each once
	Duplicates int  // further copies of these events
	Excluded   int  // events that are parked, dropped, or wait for a parked event of their key: they are not applied
	Rejected   int  // events that cannot be applied: the consumer and its policy handle them, unless it has passed them already
	Others     int  // events of types that are not handled
	Cut        bool // the topic has lost its first records
}

// ErrCut is returned when the topic no longer has its first records.
var ErrCut = errors.New("the topic no longer reaches back to its first event")

// LockedGroup is a consumer group that applies nothing until a transaction ends.
type LockedGroup struct {
	operator *Operator
	tx       pgx.Tx
	days     days
}

// LockGroup keeps the group's consumers from applying events until tx ends, also those that start meanwhile. They retry
// until then.
func (o *Operator) LockGroup(ctx context.Context, tx pgx.Tx) (*LockedGroup, error) {
	g := &LockedGroup{operator: o, tx: tx}
	// This runs outside tx, because other transactions would wait for the end of tx.
	if err := o.cfg.Pool.QueryRow(ctx, `SELECT first_day, last_day FROM inbox_maintain($1, NULL)`, daysAhead).Scan(&g.days.first, &g.days.last); err != nil {
		return nil, fmt.Errorf("create the inbox's partitions: %w", err)
	}
	if _, err := tx.Exec(ctx, `SELECT FROM inbox_partitions WHERE consumer_group = $1 AND topic = $2 ORDER BY partition FOR UPDATE`, o.cfg.Group, o.cfg.Topic); err != nil {
		return nil, fmt.Errorf("lock the consumers of group %s: %w", o.cfg.Group, err)
	}
	return g, nil
}

// Rebuild applies every event of the topic in the transaction, from its beginning to its current end, whether or not
// the inbox knows it. It marks each event in the inbox, so that a consumer that reads it later finds a duplicate.
// Before this call, the caller must lock the tables that Handle writes (against a redrive) and empty them. If the
// transaction rolls back, nothing has changed. The error is ErrCut if the topic has lost its first records, unless opts
// allow that.
func (g *LockedGroup) Rebuild(ctx context.Context, opts RebuildOptions) (Rebuilt, error) {
	o := g.operator
	var done Rebuilt
	from, to, err := o.extent(ctx)
	if err != nil {
		return done, o.cfg.why(ctx, err)
	}
	var cut []string
	var read, of int64
	for p := range to {
		if from[p] > 0 {
			cut = append(cut, fmt.Sprintf("partition %d begins at offset %d", p, from[p]))
		}
		of += to[p] - from[p]
	}
	done.Cut = len(cut) > 0
	if done.Cut && !opts.Partial {
		slices.Sort(cut)
		return done, fmt.Errorf("%w: %s, %s", ErrCut, o.cfg.Topic, strings.Join(cut, ", "))
	}
	if _, err := g.tx.Exec(ctx, `CREATE TEMP TABLE inbox_rebuilt (event_id text PRIMARY KEY) ON COMMIT DROP`); err != nil {
		return done, fmt.Errorf("create the table of rebuilt events: %w", err)
	}
	err = o.read(ctx, from, to, func(_ int32, records []*kgo.Record) error {
		var events []Event
		for _, record := range records {
			if record.Attrs.IsControl() {
				continue
			}
			ev := newEvent(record)
			switch known := len(o.cfg.Types) == 0 || slices.Contains(o.cfg.Types, ev.Type); {
			case !known:
				done.Others++
			case ev.check(o.cfg.Types, 0, g.days.last) != nil:
				done.Rejected++
			default:
				events = append(events, ev)
			}
		}
		for batch := range slices.Chunk(events, o.cfg.Batch) {
			if err := g.applyNew(ctx, batch, &done); err != nil {
				return err
			}
		}
		read += int64(len(records))
		if opts.Progress != nil {
			opts.Progress(read, of)
		}
		return nil
	})
	if err != nil {
		return done, o.cfg.why(ctx, err)
	}
	if err := g.closeGaps(ctx, from); err != nil {
		return done, err
	}
	return done, o.recordDecision(ctx, g.tx, "rebuild", fmt.Sprintf("from topic %s: %+v", o.cfg.Topic, done))
}

// closeGaps moves the partitions past records below from, and drops the recorded gaps. The rebuilt tables do not
// contain the effects of these records, and the operator who allowed that knows it.
func (g *LockedGroup) closeGaps(ctx context.Context, from map[int32]int64) error {
	cfg := g.operator.cfg
	for p, start := range from {
		if _, err := g.tx.Exec(ctx, `
			UPDATE inbox_partitions SET next_offset = $4, blocked_offset = NULL, blocked_event = NULL, blocked_reason = NULL,
			       blocked_since = NULL, decision = NULL
			WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND next_offset < $4`, cfg.Group, cfg.Topic, p, start); err != nil {
			return fmt.Errorf("close the gap of partition %d: %w", p, err)
		}
	}
	if _, err := g.tx.Exec(ctx, `UPDATE inbox_parked SET status = 'dropped', resolved_at = clock_timestamp()
		WHERE consumer = $1 AND topic = $2 AND end_offset IS NOT NULL AND status = 'parked'`, cfg.Consumer, cfg.Topic); err != nil {
		return fmt.Errorf("close the gaps of topic %s: %w", cfg.Topic, err)
	}
	return nil
}

// extent returns the first offset and the end of each partition. The end is the last stable offset: records after the
// start of an open transaction do not count.
func (o *Operator) extent(ctx context.Context) (from, to map[int32]int64, err error) {
	client, err := o.cfg.client()
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	admin := kadm.NewClient(client)
	starts, err := admin.ListStartOffsets(ctx, o.cfg.Topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("ask for the start of topic %s: %w", o.cfg.Topic, err)
	}
	ends, err := admin.ListCommittedOffsets(ctx, o.cfg.Topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("ask for the end of topic %s: %w", o.cfg.Topic, err)
	}
	from, to = map[int32]int64{}, map[int32]int64{}
	starts.Each(func(l kadm.ListedOffset) { from[l.Partition] = l.Offset })
	ends.Each(func(l kadm.ListedOffset) { to[l.Partition] = l.Offset })
	return from, to, nil
}

// applyNew applies the events that are neither parked nor held nor applied earlier in this rebuild.
func (g *LockedGroup) applyNew(ctx context.Context, events []Event, done *Rebuilt) error {
	effects := g.operator.effects
	excluded, err := g.excluded(ctx, events)
	if err != nil {
		return err
	}
	var ids []string
	for _, ev := range events {
		if !excluded[ev.ID] {
			ids = append(ids, ev.ID)
		}
	}
	rows, _ := g.tx.Query(ctx, `INSERT INTO inbox_rebuilt SELECT unnest($1::text[]) ON CONFLICT DO NOTHING RETURNING event_id`, ids)
	first, err := set(rows, "record the rebuilt events")
	if err != nil {
		return err
	}
	var fresh []Event
	for _, ev := range events {
		switch {
		case excluded[ev.ID]:
			done.Excluded++
		case first[ev.ID]:
			delete(first, ev.ID)
			fresh = append(fresh, ev)
		default:
			done.Duplicates++
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	apply := func(events ...Event) error {
		return pgx.BeginFunc(ctx, g.tx, func(tx pgx.Tx) error {
			remembered := slices.DeleteFunc(slices.Clone(events), func(ev Event) bool { day := ev.day(); return 0 < day && day < g.days.first })
			if _, err := effects.mark(ctx, tx, remembered); err != nil {
				return err
			}
			return effects.callHandler(ctx, tx, events)
		})
	}
	if err := apply(fresh...); err == nil {
		done.Applied += len(fresh)
		return nil
	}
	for _, ev := range fresh {
		switch err := apply(ev); {
		case err == nil:
			done.Applied++
		case isPermanent(err):
			done.Rejected++
		default:
			return err
		}
	}
	return nil
}

// excluded returns the events that a rebuild must not apply: parked, dropped, or held by their key.
func (g *LockedGroup) excluded(ctx context.Context, events []Event) (map[string]bool, error) {
	ids, days, keys := make([]string, len(events)), make([]int, len(events)), make([][]byte, len(events))
	for i, ev := range events {
		ids[i], days[i], keys[i] = ev.ID, ev.day(), heldKey(ev.Key)
	}
	cfg := g.operator.cfg
	rows, _ := g.tx.Query(ctx, `
		SELECT event_id FROM unnest($3::text[], $4::integer[], $5::bytea[]) AS asked (event_id, event_day, key)
		WHERE EXISTS (SELECT FROM inbox_parked p WHERE p.consumer = $1 AND p.event_id = asked.event_id AND p.status <> 'redriven')
		OR EXISTS (SELECT FROM inbox_parked_keys k WHERE k.consumer = $1 AND k.topic = $2 AND k.key = asked.key)
			AND NOT EXISTS (SELECT FROM inbox i WHERE i.consumer = $1 AND i.event_id = asked.event_id AND i.event_day IN (0, asked.event_day))`,
		cfg.Consumer, cfg.Topic, ids, days, keys)
	return set(rows, "look for events that are parked or held")
}
