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

// Rebuilt is what a rebuild found on the topic.
type Rebuilt struct {
	Applied    int  // events, each once
	Duplicates int  // further copies of them
	Aside      int  // parked, dropped, or behind a parked event of their key: they stay where they are
	Refused    int  // cannot be applied: left to the consumer and its policy, unless it has passed them already
	Others     int  // of types that are not handled, and records that cannot be read
	Cut        bool // records are missing at the beginning
}

// ErrCut is returned when the topic no longer has the records it began with.
var ErrCut = errors.New("the topic no longer reaches back to its first event")

// LockedGroup is a consumer group that applies nothing until a transaction ends.
type LockedGroup struct {
	operator *Operator
	tx       pgx.Tx
	days     days
}

// LockGroup keeps the group's consumers, running or not, from applying anything until tx ends. They try again meanwhile.
func (o *Operator) LockGroup(ctx context.Context, tx pgx.Tx) (*LockedGroup, error) {
	h := &LockedGroup{operator: o, tx: tx}
	// Not in tx, whose end others would wait for.
	if err := o.cfg.Pool.QueryRow(ctx, `SELECT first_day, last_day FROM inbox_maintain($1, NULL)`, daysAhead).Scan(&h.days.first, &h.days.last); err != nil {
		return nil, fmt.Errorf("make the inbox's partitions: %w", err)
	}
	if _, err := tx.Exec(ctx, `SELECT FROM inbox_partitions WHERE consumer_group = $1 AND topic = $2 ORDER BY partition FOR UPDATE`, o.cfg.Group, o.cfg.Topic); err != nil {
		return nil, fmt.Errorf("hold the consumers of group %s: %w", o.cfg.Group, err)
	}
	return h, nil
}

// Rebuild applies every event of the topic, from its beginning to its end as of now, in the transaction, whether or not
// the inbox knows it, and marks it there, so that whoever reads it afterwards finds a duplicate. Before that, what Handle
// writes must have been locked, against a redrive, and emptied; when the transaction rolls back, nothing has happened. The
// error is ErrCut when records are missing at the beginning, unless opts allow it.
func (h *LockedGroup) Rebuild(ctx context.Context, opts RebuildOptions) (Rebuilt, error) {
	o := h.operator
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
	if _, err := h.tx.Exec(ctx, `CREATE TEMP TABLE inbox_rebuilt (event_id text PRIMARY KEY) ON COMMIT DROP`); err != nil {
		return done, fmt.Errorf("make a table of what is rebuilt: %w", err)
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
			case ev.check(o.cfg.Types, 0, h.days.last) != nil:
				done.Refused++
			default:
				events = append(events, ev)
			}
		}
		for batch := range slices.Chunk(events, o.cfg.Batch) {
			if err := h.again(ctx, batch, &done); err != nil {
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
	if err := h.closeGaps(ctx, from); err != nil {
		return done, err
	}
	return done, o.decide(ctx, h.tx, "rebuild", fmt.Sprintf("from topic %s: %+v", o.cfg.Topic, done))
}

// closeGaps ends the wait for records before from: what they did is not part of what was rebuilt, and whoever rebuilt it
// knows.
func (h *LockedGroup) closeGaps(ctx context.Context, from map[int32]int64) error {
	cfg := h.operator.cfg
	for p, start := range from {
		if _, err := h.tx.Exec(ctx, `
			UPDATE inbox_partitions SET next_offset = $4, blocked_offset = NULL, blocked_event = NULL, blocked_reason = NULL,
			       blocked_since = NULL, decision = NULL
			WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND next_offset < $4`, cfg.Group, cfg.Topic, p, start); err != nil {
			return fmt.Errorf("close the gap of partition %d: %w", p, err)
		}
	}
	if _, err := h.tx.Exec(ctx, `UPDATE inbox_parked SET status = 'dropped', resolved_at = clock_timestamp()
		WHERE consumer = $1 AND topic = $2 AND end_offset IS NOT NULL AND status = 'parked'`, cfg.Consumer, cfg.Topic); err != nil {
		return fmt.Errorf("close the gaps of topic %s: %w", cfg.Topic, err)
	}
	return nil
}

// extent is where each partition of the topic begins and ends. Behind an open transaction it ends for us.
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

// again applies what is neither set aside nor applied in this rebuild.
func (h *LockedGroup) again(ctx context.Context, events []Event, done *Rebuilt) error {
	effects := h.operator.effects
	aside, err := h.aside(ctx, events)
	if err != nil {
		return err
	}
	var ids []string
	for _, ev := range events {
		if !aside[ev.ID] {
			ids = append(ids, ev.ID)
		}
	}
	rows, _ := h.tx.Query(ctx, `INSERT INTO inbox_rebuilt SELECT unnest($1::text[]) ON CONFLICT DO NOTHING RETURNING event_id`, ids)
	first, err := set(rows, "note what is rebuilt")
	if err != nil {
		return err
	}
	var fresh []Event
	for _, ev := range events {
		switch {
		case aside[ev.ID]:
			done.Aside++
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
		return pgx.BeginFunc(ctx, h.tx, func(tx pgx.Tx) error {
			remembered := slices.DeleteFunc(slices.Clone(events), func(ev Event) bool { day := ev.day(); return 0 < day && day < h.days.first })
			if _, err := effects.mark(ctx, tx, remembered); err != nil {
				return err
			}
			return effects.make(ctx, tx, events)
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
			done.Refused++
		default:
			return err
		}
	}
	return nil
}

// aside returns which of the events a rebuild must leave alone.
func (h *LockedGroup) aside(ctx context.Context, events []Event) (map[string]bool, error) {
	ids, days, keys := make([]string, len(events)), make([]int, len(events)), make([][]byte, len(events))
	for i, ev := range events {
		ids[i], days[i], keys[i] = ev.ID, ev.day(), heldKey(ev.Key)
	}
	cfg := h.operator.cfg
	rows, _ := h.tx.Query(ctx, `
		SELECT event_id FROM unnest($3::text[], $4::integer[], $5::bytea[]) AS asked (event_id, event_day, key)
		WHERE EXISTS (SELECT FROM inbox_parked p WHERE p.consumer = $1 AND p.event_id = asked.event_id AND p.status <> 'redriven')
		OR EXISTS (SELECT FROM inbox_parked_keys k WHERE k.consumer = $1 AND k.topic = $2 AND k.key = asked.key)
			AND NOT EXISTS (SELECT FROM inbox i WHERE i.consumer = $1 AND i.event_id = asked.event_id AND i.event_day IN (0, asked.event_day))`,
		cfg.Consumer, cfg.Topic, ids, days, keys)
	return set(rows, "look for events that are set aside")
}
