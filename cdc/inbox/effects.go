package inbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// errFenced is returned when the database has a later owner of the partition.
var errFenced = errors.New("another process has claimed the partition")

// A claim is the right to apply a partition's events. It ends when the partition's row has a higher epoch.
type claim struct {
	group, topic string
	partition    int32
	epoch        int64
}

// take raises the epoch and so makes c the latest claim. It waits for an open transaction of the owner before. When
// take returns, that transaction is committed or rolled back, and the old owner can commit no other.
func (c *claim) take(ctx context.Context, db querier, owner string) error {
	err := db.QueryRow(ctx, `
		INSERT INTO inbox_partitions AS p (consumer_group, topic, partition, owner) VALUES ($1, $2, $3, $4)
		ON CONFLICT (consumer_group, topic, partition)
		DO UPDATE SET epoch = p.epoch + 1, owner = $4, claimed_at = clock_timestamp()
		RETURNING epoch`, c.group, c.topic, c.partition, owner).Scan(&c.epoch)
	if err != nil {
		return fmt.Errorf("claim partition %d of %s: %w", c.partition, c.topic, err)
	}
	return nil
}

// advance records in tx that every record below next is done, or returns errFenced. A replay does not lower the
// recorded offset.
func (c *claim) advance(ctx context.Context, tx pgx.Tx, next int64) error {
	tag, err := tx.Exec(ctx, `
		UPDATE inbox_partitions SET next_offset = greatest(next_offset, $5), blocked_offset = NULL, blocked_event = NULL, blocked_reason = NULL,
		       blocked_since = NULL, decision = NULL
		WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND epoch = $4`, c.group, c.topic, c.partition, c.epoch, next)
	switch {
	case err != nil:
		return fmt.Errorf("advance partition %d of %s: %w", c.partition, c.topic, err)
	case tag.RowsAffected() == 0:
		return errFenced
	}
	return nil
}

// block records that the partition halts at ev, and returns the operator's decision about it, or "".
func (c *claim) block(ctx context.Context, db querier, ev Event, reason string) (decision Policy, err error) {
	err = db.QueryRow(ctx, `
		UPDATE inbox_partitions SET
			blocked_since = CASE WHEN blocked_offset = $5 THEN blocked_since ELSE clock_timestamp() END,
			decision = CASE WHEN blocked_offset = $5 THEN decision END,
			blocked_offset = $5, blocked_event = nullif($6, ''), blocked_reason = $7
		WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND epoch = $4
		RETURNING coalesce(decision, '')`,
		c.group, c.topic, c.partition, c.epoch, ev.Offset, ev.ID, reason).Scan(&decision)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", errFenced
	case err != nil:
		return "", fmt.Errorf("record that partition %d of %s is blocked: %w", c.partition, c.topic, err)
	}
	return decision, nil
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// effects writes a consumer's inbox rows and calls its handler in a transaction.
type effects struct {
	consumer    string
	handle      Handler
	handleBatch func(context.Context, pgx.Tx, []Event) error
}

// outcome counts what happened to the events of a transaction.
type outcome struct {
	applied          []Event
	duplicates, held int
}

// apply marks the events in the inbox and calls the handler for those that were not in it. Events of a parked key are
// parked after the events that are parked already.
func (e *effects) apply(ctx context.Context, tx pgx.Tx, events []Event) (outcome, error) {
	var out outcome
	parked, err := e.parkedKeys(ctx, tx, events)
	if err != nil {
		return outcome{}, err
	}
	if len(parked) > 0 {
		waits := func(ev Event) bool { return parked[string(heldKey(ev.Key))] }
		held := slices.DeleteFunc(slices.Clone(events), func(ev Event) bool { return !waits(ev) })
		events = slices.DeleteFunc(slices.Clone(events), waits)
		seen, err := e.seen(ctx, tx, held)
		if err != nil {
			return outcome{}, err
		}
		for _, ev := range held {
			if seen[ev.ID] {
				out.duplicates++
				continue
			}
			if err := e.park(ctx, tx, ev, "an earlier event of its key is parked", true); err != nil {
				return outcome{}, err
			}
			out.held++
		}
	}
	first, err := e.mark(ctx, tx, events)
	if err != nil {
		return outcome{}, err
	}
	for _, ev := range events {
		if first[ev.ID] {
			delete(first, ev.ID) // a copy later in the batch is a duplicate
			*ev.committed = nil  // callbacks of an earlier attempt
			out.applied = append(out.applied, ev)
		}
	}
	out.duplicates += len(events) - len(out.applied)
	return out, e.callHandler(ctx, tx, out.applied)
}

// callHandler calls the handler for the events.
func (e *effects) callHandler(ctx context.Context, tx pgx.Tx, events []Event) error {
	if e.handleBatch != nil && len(events) > 1 {
		if err := e.handleBatch(ctx, tx, events); err != nil {
			return fmt.Errorf("apply %d events: %w", len(events), err)
		}
		return nil
	}
	for _, ev := range events {
		if err := e.handle(ctx, tx, ev); err != nil {
			return fmt.Errorf("apply event %s: %w", ev.ID, err)
		}
	}
	return nil
}

// mark inserts the events into the inbox and returns the ids that were not in it. It waits for other transactions that
// insert the same event. An id whose day had not arrived when its event was applied is found among the undated.
func (e *effects) mark(ctx context.Context, tx pgx.Tx, events []Event) (map[string]bool, error) {
	ids, days, offsets, hashes := make([]string, len(events)), make([]int, len(events)), make([]int64, len(events)), make([]*int32, len(events))
	topics, partitions := make([]string, len(events)), make([]int32, len(events))
	for i, ev := range events {
		ids[i], days[i], topics[i], partitions[i], offsets[i] = ev.ID, ev.day(), ev.Topic, ev.Partition, ev.Offset
		if ev.Key != nil {
			hash := keyHash(ev.Key)
			hashes[i] = &hash
		}
	}
	rows, _ := tx.Query(ctx, `
		INSERT INTO inbox (consumer, event_id, event_day, topic, partition, kafka_offset, key_hash)
		SELECT $1, * FROM unnest($2::text[], $3::integer[], $4::text[], $5::integer[], $6::bigint[], $7::integer[]) AS asked (event_id)
		WHERE NOT EXISTS (SELECT FROM inbox i WHERE i.consumer = $1 AND i.event_id = asked.event_id AND i.event_day = 0)
		ON CONFLICT (consumer, event_id, event_day) DO NOTHING RETURNING event_id`, e.consumer, ids, days, topics, partitions, offsets, hashes)
	return set(rows, "mark events in the inbox")
}

// seen returns which of the events are in the inbox.
func (e *effects) seen(ctx context.Context, db interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}, events []Event,
) (map[string]bool, error) {
	ids, days := make([]string, len(events)), make([]int, len(events))
	for i, ev := range events {
		ids[i], days[i] = ev.ID, ev.day()
	}
	rows, _ := db.Query(ctx, `
		SELECT i.event_id FROM unnest($2::text[], $3::integer[]) AS asked (event_id, event_day)
		JOIN inbox i ON i.consumer = $1 AND i.event_id = asked.event_id AND i.event_day IN (0, asked.event_day)`, e.consumer, ids, days)
	return set(rows, "look for events in the inbox")
}

// parkedKeys returns the events' keys that are parked, and locks them until tx ends: a redrive that would free one of
// them has ended, or waits.
func (e *effects) parkedKeys(ctx context.Context, tx pgx.Tx, events []Event) (map[string]bool, error) {
	var keys [][]byte
	var topic string
	for _, ev := range events {
		topic = ev.Topic
		if len(ev.Key) > 0 {
			keys = append(keys, heldKey(ev.Key))
		}
	}
	rows, _ := tx.Query(ctx, `SELECT key FROM inbox_parked_keys WHERE consumer = $1 AND topic = $2 AND key = ANY($3) FOR SHARE`, e.consumer, topic, keys)
	return set(rows, "look for parked keys")
}

func set(rows pgx.Rows, what string) (map[string]bool, error) {
	found := map[string]bool{}
	var value []byte
	if _, err := pgx.ForEachRow(rows, []any{&value}, func() error {
		found[string(value)] = true
		return nil
	}); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return found, nil
}

// parkEvent parks ev because it cannot be applied. With ParkKey, or if the key is parked already, later events of its
// key wait for it.
func (e *effects) parkEvent(ctx context.Context, tx pgx.Tx, ev Event, reason string, policy Policy) error {
	parked, err := e.parkedKeys(ctx, tx, []Event{ev})
	if err != nil {
		return err
	}
	holds := len(ev.Key) > 0 && (policy == ParkKey || parked[string(heldKey(ev.Key))])
	if holds && !parked[string(heldKey(ev.Key))] {
		if _, err := tx.Exec(ctx, `INSERT INTO inbox_parked_keys (consumer, topic, key) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			e.consumer, ev.Topic, heldKey(ev.Key)); err != nil {
			return fmt.Errorf("park a key: %w", err)
		}
	}
	return e.park(ctx, tx, ev, reason, holds)
}

// park writes the whole record of ev into inbox_parked. A second call for the same record changes nothing.
func (e *effects) park(ctx context.Context, tx pgx.Tx, ev Event, reason string, holds bool) error {
	headers, err := json.Marshal(ev.Headers)
	if err == nil {
		_, err = tx.Exec(ctx, `
			INSERT INTO inbox_parked (consumer, topic, partition, kafka_offset, produced_at, event_id, event_type, key, value, headers, holds_key, reason)
			VALUES ($1, $2, $3, $4, $5, nullif($6, ''), nullif($7, ''), $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING`,
			e.consumer, ev.Topic, ev.Partition, ev.Offset, ev.Time.Truncate(time.Microsecond), ev.ID, ev.Type, ev.Key, ev.Value, headers, holds, reason)
	}
	if err != nil {
		return fmt.Errorf("park event %s: %w", ev.ID, err)
	}
	return nil
}
