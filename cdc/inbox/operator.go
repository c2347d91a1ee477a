package inbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// An Operator lists the events that a consumer has parked and the partitions that halt, and redrives, drops or passes
// them, whether or not the consumer runs. Each change writes a row of inbox_decisions in the same transaction.
type Operator struct {
	cfg     Config
	effects *effects
	by      string
}

// NewOperator returns an Operator for the inbox of the Consumer that cfg describes. by is the person's name in the
// recorded decisions. cfg.Brokers is needed for Replay and Rebuild only.
func NewOperator(cfg Config, by string) *Operator {
	cfg = cfg.withDefaults()
	return &Operator{cfg, cfg.effects(), by}
}

// Group returns the consumer group of the inbox.
func (o *Operator) Group() string { return o.cfg.Group }

// Parked is a parked event, or a gap.
type Parked struct {
	ID        int64     `json:"id"` // of the row in inbox_parked; a smaller id was parked earlier
	EventID   string    `json:"eventId,omitempty"`
	Type      string    `json:"type,omitempty"`
	Key       string    `json:"key,omitempty"`
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	HoldsKey  bool      `json:"holdsKey"` // later events of its key wait for it
	Reason    string    `json:"reason"`
	ParkedAt  time.Time `json:"parkedAt"`
	Status    string    `json:"status"` // parked, redriven or dropped
	// EndOffset is 0 for an event. For a gap, Offset is the first record that left the topic before it was applied, and
	// EndOffset is the offset after the last one.
	EndOffset int64      `json:"endOffset,omitempty"`
	Resolved  *time.Time `json:"resolvedAt,omitempty"`

	// Only Show sets these: the record itself. They are absent if only the record's place is known.
	Time    *time.Time `json:"time,omitempty"`
	Headers []Header   `json:"headers,omitempty"`
	Value   []byte     `json:"value,omitempty"`
}

// what returns the name of a parked event or gap for a recorded decision.
func (p *Parked) what(id int64) string {
	if p.EndOffset > 0 {
		return fmt.Sprintf("parked gap %d (offsets %d to %d of %s/%d)", id, p.Offset, p.EndOffset-1, p.Topic, p.Partition)
	}
	return fmt.Sprintf("parked event %d (event %s at %s/%d/%d)", id, p.EventID, p.Topic, p.Partition, p.Offset)
}

const parkedColumns = `id, coalesce(event_id, ''), coalesce(event_type, ''), key, topic, partition, kafka_offset, holds_key, reason, parked_at, status, coalesce(end_offset, 0), resolved_at`

func (p *Parked) fields(key *[]byte) []any {
	return []any{&p.ID, &p.EventID, &p.Type, key, &p.Topic, &p.Partition, &p.Offset, &p.HoldsKey, &p.Reason, &p.ParkedAt, &p.Status, &p.EndOffset, &p.Resolved}
}

// text returns b as text that people can read: record fields may hold any bytes.
func text(b []byte) string {
	return strings.ToValidUTF8(strings.ReplaceAll(string(b), "\x00", "?"), "?")
}

// List returns parked events in the order in which they were parked.
func (o *Operator) List(ctx context.Context, opts ListOptions) ([]Parked, error) {
	rows, _ := o.cfg.Pool.Query(ctx, `SELECT `+parkedColumns+` FROM inbox_parked
		WHERE consumer = $1 AND ($2 OR status = 'parked') AND id > $3 ORDER BY id LIMIT $4`, o.cfg.Consumer, opts.All, opts.After, opts.Limit)
	list := []Parked{}
	var p Parked
	var key []byte
	if _, err := pgx.ForEachRow(rows, p.fields(&key), func() error {
		p.Key = text(key)
		list = append(list, p)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("list parked events: %w", err)
	}
	return list, nil
}

// ErrUnknown is returned when there is no such parked event.
var ErrUnknown = errors.New("there is no such parked event")

// Show returns one parked event with its headers and value.
func (o *Operator) Show(ctx context.Context, id int64) (Parked, error) {
	p, _, err := o.load(ctx, o.cfg.Pool, id, "")
	return p, err
}

func (o *Operator) load(ctx context.Context, db querier, id int64, lock string) (Parked, Event, error) {
	var p Parked
	var headers []byte
	ev := Event{committed: new([]func())}
	err := db.QueryRow(ctx, `SELECT `+parkedColumns+`, produced_at, value, headers FROM inbox_parked WHERE consumer = $1 AND id = $2 `+lock,
		o.cfg.Consumer, id).Scan(append(p.fields(&ev.Key), &p.Time, &ev.Value, &headers)...)
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrUnknown
	}
	if err == nil && headers != nil {
		err = json.Unmarshal(headers, &ev.Headers)
	}
	if err != nil {
		return Parked{}, Event{}, fmt.Errorf("parked event %d: %w", id, err)
	}
	p.Key, p.Headers, p.Value = text(ev.Key), ev.Headers, ev.Value
	ev.ID, ev.Type, ev.Topic, ev.Partition, ev.Offset = p.EventID, p.Type, p.Topic, p.Partition, p.Offset
	if p.Time != nil {
		ev.Time = *p.Time
	}
	return p, ev, nil
}

// Done is the result for one parked event: what was done, or why nothing was done.
type Done struct {
	Parked
	Did string // applied, duplicate, dropped
	Err error  // why the event stays parked
}

// Redrive applies parked events through the inbox and under their ids, in one transaction for each. After the first
// event of a key it applies the events that wait for it, in order, until one cannot be applied. An event stays parked
// if applying it would break the order of its key, unless opts.Force is set. The transaction of a dry run
// locks the keys that it touches; a consumer that needs one of these keys waits for its end. An error comes from the
// database; events that were redriven before it stay redriven.
func (o *Operator) Redrive(ctx context.Context, opts RedriveOptions) (done []Done, err error) {
	ids, err := o.chosen(ctx, opts.IDs, opts.All)
	if err != nil {
		return nil, err
	}
	err = o.rehearse(ctx, opts.DryRun, func(db beginner) error {
		seen := map[int64]bool{} // already redriven, because it waited for another event
		for _, id := range ids {
			for next := id; next != 0 && !seen[next]; {
				seen[next] = true
				one, behind, err := o.redrive(ctx, db, next, opts.Force)
				if err != nil {
					return err
				}
				done = append(done, one)
				next = behind
			}
		}
		return nil
	})
	return done, err
}

type beginner interface {
	Begin(context.Context) (pgx.Tx, error)
}

// rehearse calls do with the pool, or for a dry run with a transaction that it rolls back afterwards.
func (o *Operator) rehearse(ctx context.Context, dryRun bool, do func(beginner) error) error {
	if !dryRun {
		return do(o.cfg.Pool)
	}
	tx, err := o.cfg.Pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	return do(tx)
}

// chosen returns ids, or with all the ids of every parked event.
func (o *Operator) chosen(ctx context.Context, ids []int64, all bool) ([]int64, error) {
	if !all {
		return ids, nil
	}
	rows, _ := o.cfg.Pool.Query(ctx, `SELECT id FROM inbox_parked WHERE consumer = $1 AND status = 'parked' ORDER BY id`, o.cfg.Consumer)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("list parked events: %w", err)
	}
	return ids, nil
}

// A refusal says why an event stays parked.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

func stays(format string, args ...any) error { return &refusal{fmt.Errorf(format, args...)} }

// redrive redrives one event. It also returns the next event of the key, if that one waits for this one and this one
// was resolved.
func (o *Operator) redrive(ctx context.Context, db beginner, id int64, force bool) (done Done, next int64, err error) {
	var ev Event
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) (err error) {
		if done.Parked, ev, err = o.lock(ctx, tx, id); err != nil {
			return err
		}
		if next, err = o.mayBeRedriven(ctx, tx, done.Parked, ev, force); err != nil {
			return err
		}
		first, err := o.mark(ctx, tx, ev)
		if err != nil {
			return err
		}
		done.Did = "duplicate"
		if first {
			done.Did = "applied"
			if err := o.effects.handle(ctx, tx, ev); err != nil {
				return stays("it still cannot be applied: %s", reasonOf(err))
			}
		}
		if err := o.resolve(ctx, tx, done.Parked, ev, "redriven"); err != nil {
			return err
		}
		how := done.Did
		if force {
			how += ", forced"
		}
		return o.recordDecision(ctx, tx, "redrive", fmt.Sprintf("parked event %d (event %s at %s/%d/%d): %s", id, ev.ID, ev.Topic, ev.Partition, ev.Offset, how))
	})
	var stay *refusal
	if errors.As(err, &stay) {
		done.Did, done.Err = "", stay
		return done, 0, nil
	}
	if _, rehearsal := db.(pgx.Tx); err == nil && !rehearsal {
		for _, f := range *ev.committed {
			f()
		}
	}
	return done, next, err
}

// mark writes ev into the inbox and reports whether it was not there yet. If the inbox no longer has a partition for
// ev's day, only the parked row prevents that ev is applied twice.
func (o *Operator) mark(ctx context.Context, tx pgx.Tx, ev Event) (first bool, err error) {
	var remembered bool
	if err := tx.QueryRow(ctx, `SELECT $1 = 0 OR $1 BETWEEN first_day AND last_day FROM inbox_maintain($2, NULL)`, ev.day(), daysAhead).Scan(&remembered); err != nil {
		return false, fmt.Errorf("create the inbox's partitions: %w", err)
	}
	if !remembered {
		return true, nil
	}
	marked, err := o.effects.mark(ctx, tx, []Event{ev})
	return marked[ev.ID], err
}

// lock locks the row of the event's key, if it exists, and then the event. Until tx ends, no consumer parks or applies
// an event of this key.
func (o *Operator) lock(ctx context.Context, tx pgx.Tx, id int64) (Parked, Event, error) {
	p, ev, err := o.load(ctx, tx, id, "")
	if err != nil {
		return p, ev, err
	}
	if _, err := tx.Exec(ctx, `SELECT FROM inbox_parked_keys WHERE consumer = $1 AND topic = $2 AND key = $3 FOR UPDATE`, o.cfg.Consumer, ev.Topic, heldKey(ev.Key)); err != nil {
		return p, ev, fmt.Errorf("lock the key of parked event %d: %w", id, err)
	}
	if p, ev, err = o.load(ctx, tx, id, "FOR UPDATE"); err != nil {
		return p, ev, err
	}
	if p.Status != "parked" {
		return p, ev, stays("it is %s already", p.Status)
	}
	return p, ev, nil
}

// mayBeRedriven returns an error if the event cannot be applied or would be applied out of order; otherwise it returns
// the next parked event of the key.
func (o *Operator) mayBeRedriven(ctx context.Context, tx pgx.Tx, p Parked, ev Event, force bool) (next int64, err error) {
	switch {
	case p.EndOffset > 0:
		return 0, stays("these records are gone from the topic: restore their effects by a rebuild or by hand, then drop this gap")
	case p.Headers == nil:
		return 0, stays("only its place is known: replay the topic from offset %d of partition %d", p.Offset, p.Partition)
	case ev.ID == "":
		return 0, stays("it has no id, so the inbox cannot tell it from a copy: drop it, and publish it again with an id")
	case len(o.cfg.Types) > 0 && !slices.Contains(o.cfg.Types, ev.Type):
		return 0, stays("its type %s is still unknown to this program", ev.Type)
	}
	if len(ev.Key) == 0 {
		return 0, nil
	}
	var earlier int64
	var later bool
	if err := tx.QueryRow(ctx, `
		SELECT coalesce(min(id) FILTER (WHERE id < $4), 0), coalesce(min(id) FILTER (WHERE id > $4 AND holds_key), 0)
		FROM inbox_parked WHERE consumer = $1 AND topic = $2 AND key = $3 AND sha256(key) = sha256($3) AND status = 'parked' AND (holds_key OR id < $4)`,
		o.cfg.Consumer, ev.Topic, ev.Key, p.ID).Scan(&earlier, &next); err != nil {
		return 0, fmt.Errorf("look for parked events of the same key: %w", err)
	}
	// An event that waited for another one could be applied before it only by force. An event that did not wait could
	// be applied at any time.
	sql := `SELECT EXISTS (SELECT FROM inbox_parked WHERE consumer = $1 AND topic = $2 AND key = $3 AND id > $4 AND status = 'redriven')`
	args := []any{o.cfg.Consumer, ev.Topic, ev.Key, p.ID}
	if !p.HoldsKey {
		sql = `SELECT EXISTS (SELECT FROM inbox WHERE consumer = $1 AND topic = $2 AND partition = $3 AND kafka_offset > $4
			AND coalesce(key_hash, $5) = $5 AND event_id <> $6 AND (event_day = 0 OR event_day >= $7))`
		args = []any{o.cfg.Consumer, ev.Topic, ev.Partition, ev.Offset, keyHash(ev.Key), ev.ID, ev.day() - 1}
	}
	if err := tx.QueryRow(ctx, sql, args...).Scan(&later); err != nil {
		return 0, fmt.Errorf("look for later events of the same key: %w", err)
	}
	switch {
	case force:
		return next, nil
	case earlier != 0:
		return 0, stays("parked event %d of the same key comes first: redrive or drop that one", earlier)
	case later:
		return 0, stays("later events of its key were applied already: only --force applies it out of order")
	}
	return next, nil
}

// resolve gives a parked event its final status, and deletes the key's hold when this was the key's last parked event.
func (o *Operator) resolve(ctx context.Context, tx pgx.Tx, p Parked, ev Event, status string) error {
	if _, err := tx.Exec(ctx, `UPDATE inbox_parked SET status = $2, resolved_at = clock_timestamp() WHERE id = $1`, p.ID, status); err != nil {
		return fmt.Errorf("resolve parked event %d: %w", p.ID, err)
	}
	if _, err := tx.Exec(ctx, `
		DELETE FROM inbox_parked_keys WHERE consumer = $1 AND topic = $2 AND key = $4 AND NOT EXISTS (
			SELECT FROM inbox_parked WHERE consumer = $1 AND topic = $2 AND key = $3 AND sha256(key) = sha256($3) AND status = 'parked' AND holds_key)`,
		o.cfg.Consumer, ev.Topic, ev.Key, heldKey(ev.Key)); err != nil {
		return fmt.Errorf("free the key of parked event %d: %w", p.ID, err)
	}
	return nil
}

// Drop gives parked events up: they are never applied, even if they are delivered again. Events that wait for them stay
// parked and can be redriven.
func (o *Operator) Drop(ctx context.Context, opts DropOptions) (done []Done, err error) {
	ids, err := o.chosen(ctx, opts.IDs, opts.All)
	if err != nil {
		return nil, err
	}
	err = o.rehearse(ctx, opts.DryRun, func(db beginner) error {
		for _, id := range ids {
			one, err := o.drop(ctx, db, id)
			if err != nil {
				return err
			}
			done = append(done, one)
		}
		return nil
	})
	return done, err
}

func (o *Operator) drop(ctx context.Context, db beginner, id int64) (Done, error) {
	done := Done{Did: "dropped"}
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		p, ev, err := o.lock(ctx, tx, id)
		if err != nil {
			return err
		}
		done.Parked = p
		if ev.ID != "" {
			if _, err := o.mark(ctx, tx, ev); err != nil {
				return err
			}
		}
		if err := o.resolve(ctx, tx, p, ev, "dropped"); err != nil {
			return err
		}
		if p.EndOffset > 0 {
			if err := o.giveUp(ctx, tx, p); err != nil {
				return err
			}
		}
		return o.recordDecision(ctx, tx, "drop", p.what(id))
	})
	var stay *refusal
	if errors.As(err, &stay) {
		done.Did, done.Err, err = "", stay, nil
	}
	return done, err
}

// giveUp moves the partition's next offset past a gap, so that a partition that halts there continues.
func (o *Operator) giveUp(ctx context.Context, tx pgx.Tx, p Parked) error {
	if _, err := tx.Exec(ctx, `
		UPDATE inbox_partitions SET next_offset = $5, blocked_offset = NULL, blocked_event = NULL, blocked_reason = NULL,
		       blocked_since = NULL, decision = NULL
		WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND next_offset = $4 AND blocked_offset = $4`,
		o.cfg.Group, p.Topic, p.Partition, p.Offset, p.EndOffset); err != nil {
		return fmt.Errorf("drop a gap: %w", err)
	}
	return nil
}

// A Blocked partition halts at an event that cannot be applied, or at a gap.
type Blocked struct {
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	EventID   string    `json:"eventId,omitempty"`
	Reason    string    `json:"reason"`
	Since     time.Time `json:"since"`
	Gap       bool      `json:"gap,omitempty"` // it halts at a gap, not at an event
}

// Blocked returns the group's partitions that halt.
func (o *Operator) Blocked(ctx context.Context) ([]Blocked, error) {
	rows, _ := o.cfg.Pool.Query(ctx, `
		SELECT topic, partition, blocked_offset, coalesce(blocked_event, ''), blocked_reason, blocked_since,
			EXISTS (SELECT FROM inbox_parked g WHERE g.consumer = $2 AND g.topic = p.topic AND g.partition = p.partition
				AND g.kafka_offset = blocked_offset AND g.end_offset IS NOT NULL AND g.status = 'parked')
		FROM inbox_partitions p WHERE consumer_group = $1 AND blocked_offset IS NOT NULL ORDER BY topic, partition`, o.cfg.Group, o.cfg.Consumer)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Blocked])
	if err != nil {
		return nil, fmt.Errorf("list blocked partitions: %w", err)
	}
	return list, nil
}

// Pass orders the consumer to park or skip the event at which a partition halts. The consumer does this at its next
// try, within seconds.
func (o *Operator) Pass(ctx context.Context, partition int32, offset int64, policy Policy) error {
	if policy != ParkKey && policy != Skip {
		return fmt.Errorf("a blocked event can be passed with park_key or skip, not with %q", policy)
	}
	return pgx.BeginFunc(ctx, o.cfg.Pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE inbox_partitions SET decision = $5
			WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND blocked_offset = $4`, o.cfg.Group, o.cfg.Topic, partition, offset, policy)
		switch {
		case err != nil:
			return fmt.Errorf("pass an event: %w", err)
		case tag.RowsAffected() == 0:
			return fmt.Errorf("partition %d of %s does not halt at offset %d: list the blocked partitions to see the offset", partition, o.cfg.Topic, offset)
		}
		return o.recordDecision(ctx, tx, "pass", fmt.Sprintf("event at %s/%d/%d: %s", o.cfg.Topic, partition, offset, policy))
	})
}

// A Decision is a recorded change that an operator made.
type Decision struct {
	At      time.Time `json:"at"`
	Command string    `json:"command"`
	By      string    `json:"by"`
	What    string    `json:"what"`
}

// Decisions returns the latest decisions, newest first.
func (o *Operator) Decisions(ctx context.Context, limit int) ([]Decision, error) {
	rows, _ := o.cfg.Pool.Query(ctx, `SELECT at, command, by_whom, what FROM inbox_decisions WHERE consumer = $1 ORDER BY id DESC LIMIT $2`, o.cfg.Consumer, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Decision])
	if err != nil {
		return nil, fmt.Errorf("list decisions: %w", err)
	}
	return list, nil
}

func (o *Operator) recordDecision(ctx context.Context, tx pgx.Tx, command, what string) error {
	if _, err := tx.Exec(ctx, `INSERT INTO inbox_decisions (consumer, command, by_whom, what) VALUES ($1, $2, $3, $4)`,
		o.cfg.Consumer, command, o.by, what); err != nil {
		return fmt.Errorf("record the decision: %w", err)
	}
	return nil
}
