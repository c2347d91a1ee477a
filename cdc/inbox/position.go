package inbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// positionTimeout is how long Kafka and the database may take to answer where a partition resumes.
const positionTimeout = 20 * time.Second

// A gap is a range of records that left the topic before they were applied: from is the first offset, to is the offset
// after the last one. Some of these offsets may have been transaction markers, or records that a compaction had
// removed.
type gap struct{ from, to int64 }

func (g gap) String() string {
	if g.to == g.from+1 {
		return fmt.Sprintf("the record at offset %d is gone from the topic and was never applied", g.from)
	}
	return fmt.Sprintf("the %d records at offsets %d to %d are gone from the topic and were never applied", g.to-g.from, g.from, g.to-1)
}

// A topic is the broker's current view of the topic.
type topic struct {
	id           [16]byte // zero if the broker gives topics no ids
	starts, ends map[int32]int64
}

// errCreatedAgain ends a session whose client knows an earlier topic of this name.
var errCreatedAgain = errors.New("the topic was deleted and created again")

// needsNewSession reports whether err, from a poll, is an error that this session's client cannot recover from.
func needsNewSession(err error) bool {
	return errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.InconsistentTopicID) || errors.Is(err, kerr.OffsetOutOfRange)
}

// describe asks the broker directly for the topic's id and number of partitions: kadm may answer from the client's
// cache.
func (c *Consumer) describe(ctx context.Context) (id [16]byte, partitions int, err error) {
	req := kmsg.NewPtrMetadataRequest()
	asked := kmsg.NewMetadataRequestTopic()
	asked.Topic = kmsg.StringPtr(c.cfg.Topic)
	req.Topics = append(req.Topics, asked)
	resp, err := within(ctx, func() (*kmsg.MetadataResponse, error) { return req.RequestWith(ctx, c.client) })
	if err == nil && len(resp.Topics) != 1 {
		err = fmt.Errorf("it answered about %d topics", len(resp.Topics))
	}
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	if err != nil {
		return id, 0, fmt.Errorf("ask Kafka at %s about topic %s: %w", strings.Join(c.cfg.Brokers, ","), c.cfg.Topic, err)
	}
	return resp.Topics[0].TopicID, len(resp.Topics[0].Partitions), nil
}

// within returns ask's result, or ctx's error as soon as ctx ends. A client that is logging in waits for its password
// or its token and does not observe a context meanwhile. In that case ask ends later: when the login succeeds or fails,
// or when the client is closed.
func within[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		value, err := ask()
		answers <- answer{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (c *Consumer) readTopic(ctx context.Context) (t topic, err error) {
	if t.id, _, err = c.describe(ctx); err != nil {
		return t, err
	}
	admin := kadm.NewClient(c.client)
	starts, err := within(ctx, func() (kadm.ListedOffsets, error) { return admin.ListStartOffsets(ctx, c.cfg.Topic) })
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return t, fmt.Errorf("ask for the start of topic %s: %w", c.cfg.Topic, err)
	}
	ends, err := within(ctx, func() (kadm.ListedOffsets, error) { return admin.ListEndOffsets(ctx, c.cfg.Topic) })
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return t, fmt.Errorf("ask for the end of topic %s: %w", c.cfg.Topic, err)
	}
	t.starts, t.ends = map[int32]int64{}, map[int32]int64{}
	starts.Each(func(l kadm.ListedOffset) { t.starts[l.Partition] = l.Offset })
	ends.Each(func(l kadm.ListedOffset) { t.ends[l.Partition] = l.Offset })
	return t, nil
}

// positions returns the offsets from which the partitions just assigned are read. The inbox knows which records were
// applied. The group's offsets, in committed, count only where they are lower, as after a replay. Differences are
// logged, and a gap is handed to the partition's worker. positions waits for Kafka and for the database until the
// partitions are revoked; the process stays in its group meanwhile.
func (c *Consumer) positions(ctx context.Context, committed map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	assigned := committed[c.cfg.Topic]
	for failures := 1; len(assigned) > 0; failures++ {
		err := c.position(ctx, assigned)
		if err == nil {
			c.measureStates()
			break
		}
		if ctx.Err() == nil {
			c.database.failed(c.log, fmt.Errorf("find the offsets to resume at: %w", err), 0)
		}
		select {
		case <-ctx.Done(): // they were revoked
			return nil, ctx.Err()
		case <-time.After(backoff(failures)):
		}
	}
	return committed, nil
}

func (c *Consumer) position(ctx context.Context, assigned map[int32]kgo.Offset) error {
	ctx, cancel := context.WithTimeout(ctx, positionTimeout)
	defer cancel()
	owned := c.owned()
	for id := range assigned {
		if p := owned[id]; p != nil && p.claim.epoch == 0 {
			if err := c.claim(ctx, p); err != nil { // before its row is read: the last owner can apply nothing after the claim
				return err
			}
		}
	}
	t, err := c.readTopic(ctx)
	if err != nil {
		return c.cfg.why(ctx, err)
	}
	if err := c.enroll(ctx, t); err != nil {
		return err
	}
	places, err := c.places(ctx)
	if err != nil {
		return err
	}
	gaps := map[*partition]gap{}
	for id, at := range assigned {
		p := owned[id]
		if p == nil {
			continue
		}
		log := c.log.With().Int32("partition", id).Logger()
		place, start, end, group := places[id], t.starts[id], t.ends[id], at.EpochOffset().Offset
		switch made := place.id != t.id && place.id != [16]byte{} && t.id != [16]byte{}; {
		case made || end < place.next:
			begin := int64(0) // every record of a topic that was created again is new
			if !made {
				begin = start
			}
			if err := c.restart(ctx, t, id, place, begin); err != nil {
				return err
			}
			place.next, group = begin, begin
		case group < 0 && place.next > start:
			log.Warn().Int64("offset", place.next).Msg("the group has no offset in Kafka (it expired or was deleted): resuming at the inbox's offset")
			group = place.next
		case group < 0:
			group = place.next
		case group > place.next:
			log.Warn().Int64("committed", group).Int64("offset", place.next).
				Msg("the group's offset was moved past records that were not applied: resuming at the inbox's offset")
			group = place.next
		case group < place.next:
			log.Info().Int64("offset", group).Int64("applied", place.next).Msg("the group's offset is lower than the inbox's: events that were applied already are skipped")
		}
		if place.next < start {
			gaps[p] = gap{place.next, start}
		}
		if group = max(group, start); group != at.EpochOffset().Offset {
			assigned[id] = kgo.NewOffset().At(group)
		}
	}
	for id, place := range places { // partitions of the earlier topic that the new one does not have
		if _, there := t.starts[id]; !there && place.id != t.id && place.id != [16]byte{} && t.id != [16]byte{} {
			if err := c.vanished(ctx, t, id, place); err != nil {
				return err
			}
		}
	}
	c.mu.Lock()
	c.topicID = t.id // from here on c.ends is about this topic
	c.mu.Unlock()
	for p, g := range gaps { // last: after an earlier failure all of this is repeated
		c.startAtGap(p, g)
	}
	return nil
}

// A place is the inbox's record of a partition.
type place struct {
	next int64
	id   [16]byte // the topic's id
}

// enroll inserts the group's row for each partition that has none, so that records that leave the topic later are
// noticed. If the topic is new to the group, a partition begins at the group's offset, or else at the start of the log.
// A partition that was added later begins at 0. For a row that an earlier version left without a topic id, the group's
// offset is trusted.
func (c *Consumer) enroll(ctx context.Context, t topic) error {
	known, err := c.places(ctx)
	if err != nil {
		return err
	}
	var missing []int32
	var next []int64
	for id := range t.starts {
		if _, ok := known[id]; !ok {
			missing, next = append(missing, id), append(next, 0)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if len(known) == 0 {
		committed, err := kadm.NewClient(c.client).FetchOffsetsForTopics(ctx, c.cfg.Group, c.cfg.Topic)
		if err == nil {
			err = committed.Error()
		}
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return fmt.Errorf("ask for the offsets of group %s: %w", c.cfg.Group, err)
		}
		for i, id := range missing {
			next[i] = t.starts[id]
			if at, ok := committed.Lookup(c.cfg.Topic, id); ok && at.At >= 0 {
				next[i] = min(at.At, t.ends[id])
			}
		}
	}
	rows, _ := c.cfg.Pool.Query(ctx, `
		INSERT INTO inbox_partitions AS p (consumer_group, topic, partition, epoch, owner, next_offset, topic_id)
		SELECT $1, $2, asked.partition, 0, '', next, $5::uuid FROM unnest($3::integer[], $4::bigint[]) AS asked (partition, next) ORDER BY 3
		ON CONFLICT (consumer_group, topic, partition) DO UPDATE SET next_offset = greatest(p.next_offset, excluded.next_offset), topic_id = excluded.topic_id
		WHERE p.topic_id IS NULL RETURNING partition`, c.cfg.Group, c.cfg.Topic, missing, next, t.id)
	added, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return fmt.Errorf("record the partitions of topic %s: %w", c.cfg.Topic, err)
	}
	if len(known) > 0 && len(added) > 0 {
		c.log.Warn().Ints32("added", added).Int("partitions", len(t.starts)).Msg("partitions were added to the topic; they are read from their beginning, " +
			"and a key that moved to another partition may have its new events applied before its old ones")
	}
	return nil
}

func (c *Consumer) places(ctx context.Context) (map[int32]place, error) {
	rows, _ := c.cfg.Pool.Query(ctx, `SELECT partition, next_offset, topic_id FROM inbox_partitions
		WHERE consumer_group = $1 AND topic = $2 AND topic_id IS NOT NULL`, c.cfg.Group, c.cfg.Topic)
	known := map[int32]place{}
	var id int32
	var p place
	if _, err := pgx.ForEachRow(rows, []any{&id, &p.next, &p.id}, func() error {
		known[id] = p
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read the inbox's offsets of topic %s: %w", c.cfg.Topic, err)
	}
	return known, nil
}

// restart sets a partition back to begin after its topic was created again or the end of its log was lost, and logs
// this. Records that the old log is known to have held after the inbox's offset are lost; they are recorded as a gap.
func (c *Consumer) restart(ctx context.Context, t topic, id int32, old place, begin int64) error {
	c.mu.Lock()
	lost := gap{old.next, c.ends[id]}
	delete(c.ends, id)
	delete(c.counted, id)
	c.mu.Unlock()
	err := pgx.BeginFunc(ctx, c.cfg.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			UPDATE inbox_partitions SET next_offset = $4, topic_id = $5, blocked_offset = NULL, blocked_event = NULL, blocked_reason = NULL,
			       blocked_since = NULL, decision = NULL
			WHERE consumer_group = $1 AND topic = $2 AND partition = $3`, c.cfg.Group, c.cfg.Topic, id, begin, t.id); err != nil {
			return fmt.Errorf("restart topic %s: %w", c.cfg.Topic, err)
		}
		if lost.to <= lost.from {
			return nil
		}
		return c.effects.recordGap(ctx, tx, c.cfg.Topic, id, lost)
	})
	if err != nil {
		return err
	}
	what := "the topic was deleted and created again: it is read from its beginning, and events that the inbox knows are skipped; records that the old topic held at and after this offset, if any, were never applied"
	if old.id == t.id || t.id == [16]byte{} {
		what = "the log ends below the offset that was applied, so it was truncated or replaced: it is read from its beginning, and events that the inbox knows are skipped"
	}
	level := zerolog.WarnLevel
	if lost.to > lost.from {
		level, what = zerolog.ErrorLevel, what+"; "+lost.String()
		c.cfg.Metrics.countGone(c.cfg.Topic, id, lost.to-lost.from)
	}
	c.log.WithLevel(level).Int32("partition", id).Int64("applied", old.next).Msg(what)
	return nil
}

// vanished records a gap for a partition that no longer exists, if this process knows that its log went on after the
// inbox's offset. If this process has not looked at the partition, its row stays unchanged: another process may know,
// and an event at which the partition halts was never applied.
func (c *Consumer) vanished(ctx context.Context, t topic, id int32, old place) error {
	c.mu.Lock()
	end, known := c.ends[id]
	c.mu.Unlock()
	switch {
	case known && end > old.next:
		return c.restart(ctx, t, id, old, 0)
	case known: // all its records were applied
		return nil
	}
	c.mu.Lock()
	c.ends[id] = old.next // so that the warning is logged once
	c.mu.Unlock()
	c.log.Warn().Int32("partition", id).Int64("applied", old.next).
		Msg("the topic was deleted and created again with fewer partitions: records that this partition held at and after this offset, if any, were never applied")
	return nil
}

// startAtGap hands a gap to the partition's worker, which halts there or continues after it.
func (c *Consumer) startAtGap(p *partition, g gap) {
	id := p.claim.partition
	c.mu.Lock()
	n := g.to - max(g.from, c.counted[id])
	c.counted[id] = max(c.counted[id], g.to)
	c.mu.Unlock()
	c.cfg.Metrics.countGone(c.cfg.Topic, id, max(0, n))
	p.gap = &g
	p.start(func() { c.work(p, nil) })
}

// passGap moves p past its gap, and records the gap among the parked events, if the configuration or an operator says
// so. If an operator has dropped the gap, or has rebuilt the tables, the inbox's offset is at the gap's end already.
func (c *Consumer) passGap(ctx context.Context, p *partition) error {
	g := *p.gap
	var next int64
	if err := c.cfg.Pool.QueryRow(ctx, `SELECT next_offset FROM inbox_partitions WHERE consumer_group = $1 AND topic = $2 AND partition = $3`,
		c.cfg.Group, c.cfg.Topic, p.claim.partition).Scan(&next); err != nil {
		return fmt.Errorf("read the inbox's offset of partition %d: %w", p.claim.partition, err)
	}
	if next >= g.to {
		c.log.Info().Int32("partition", p.claim.partition).Int64("offset", next).Msg("continuing after a gap that an operator dropped or a rebuild closed")
		p.gap = nil
		return nil
	}
	level, what := zerolog.ErrorLevel, g.String()+": continuing after the gap; `parked list` shows it"
	if c.cfg.Gap == Halt {
		level, what = zerolog.InfoLevel, "continuing after a gap that an operator passed"
		var decision Policy
		if err := pgx.BeginTxFunc(ctx, c.cfg.Pool, pgx.TxOptions{BeginQuery: begin}, func(tx pgx.Tx) (err error) {
			if decision, err = p.claim.block(ctx, tx, Event{Offset: g.from}, g.String()); err != nil {
				return err
			}
			return c.effects.recordGap(ctx, tx, c.cfg.Topic, p.claim.partition, g)
		}); err != nil {
			return err
		}
		if decision == "" {
			return &blockedError{errors.New(g.String())}
		}
	}
	if err := c.transact(ctx, p, g.to, func(tx pgx.Tx) error {
		return c.effects.recordGap(ctx, tx, c.cfg.Topic, p.claim.partition, g)
	}); err != nil {
		return err
	}
	c.log.WithLevel(level).Int32("partition", p.claim.partition).Msg(what)
	p.gap = nil
	return nil
}

// recordGap writes a gap among the parked events, once.
func (e *effects) recordGap(ctx context.Context, tx pgx.Tx, topic string, partition int32, g gap) error {
	tag, err := tx.Exec(ctx, `UPDATE inbox_parked SET end_offset = $5, reason = $6 WHERE consumer = $1 AND topic = $2 AND partition = $3
		AND kafka_offset = $4 AND end_offset IS NOT NULL AND status = 'parked'`, e.consumer, topic, partition, g.from, g.to, g.String())
	if err == nil && tag.RowsAffected() == 0 {
		_, err = tx.Exec(ctx, `INSERT INTO inbox_parked (consumer, topic, partition, kafka_offset, end_offset, holds_key, reason)
			VALUES ($1, $2, $3, $4, $5, false, $6)`, e.consumer, topic, partition, g.from, g.to, g.String())
	}
	if err != nil {
		return fmt.Errorf("record a gap: %w", err)
	}
	return nil
}
