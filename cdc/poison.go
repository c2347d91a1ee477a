package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// suspect is of records that Kafka refused although Check had let them through (a broker's own policy, a limit that we
// may not read). Of a window it is not certain which one it was, and an innocent row must never be put aside. So it
// outlives the session: the next one publishes the same rows one at a time, each with the state record of the one
// before, and knows.
type suspect struct {
	until Position // rows up to here go one at a time
	row   Position // this is the one
	why   string
}

// prepare makes the row's record: what the row asks for or, where it can never be published and the policy says so, its
// dead letter.
func (p *publisher) prepare(ctx context.Context, row *Row, rec *Record) error {
	err := p.route.Route(row, rec)
	if err == nil {
		err = p.client.Check(ctx, rec)
	}
	if suspect := &p.memory.suspect; err == nil && suspect.row.Commit != 0 && row.Position == suspect.row {
		err = Reject(row, ByKafka, rec.Topic, "%s", suspect.why)
	}
	if p.cfg.HoldKey && err == nil {
		err = p.holds.check(ctx, p.client, row, rec.Topic)
	}
	if err == nil {
		return nil
	}
	var refused *RejectedError
	if !errors.As(err, &refused) {
		return err
	}
	if p.cfg.DeadLetters == "" {
		return refused.halt()
	}
	d := DeadLetter{
		Row: *row, Class: refused.Class, Reason: refused.Reason, Topic: refused.Topic, HeldFor: refused.heldFor,
		Source: p.cfg.Pipeline, Server: p.server, Time: time.Now(),
	}
	if err := d.record(p.cfg.DeadLetters, rec); err != nil {
		return err
	}
	rec.Row, rec.Refused = row, refused
	if err := p.client.Check(ctx, rec); err != nil {
		return deadLetterHalt(refused, err)
	}
	if p.cfg.HoldKey {
		p.holds.add(d.Key(), d.Holds())
	}
	return nil
}

func deadLetterHalt(refused *RejectedError, err error) error {
	var again *RejectedError
	if !errors.As(err, &again) {
		return err
	}
	halt := refused.halt()
	halt.Found += "; and the dead letter topic cannot take it either: " + again.Reason
	halt.Run = "remove what refuses the row (the topic's limit, kafka.aggregate_types), or raise max.message.bytes of the dead letter topic, and the relay goes on by itself; or " + giveUp(refused.Row.Commit)
	return halt
}

// refusedByKafka follows a record that Kafka would not take after Check had let it through. records are the window that
// was produced.
func (p *publisher) refusedByKafka(refused *RejectedError, records []Record) error {
	first, last := &records[0], &records[len(records)-1]
	if len(records) > 1 {
		p.memory.suspect = suspect{until: last.Row.Position}
		return fmt.Errorf("start over, one row at a time, to find out which it is: %w", errors.New(refused.Error()))
	}
	switch {
	case first.Refused != nil:
		return deadLetterHalt(first.Refused, refused)
	case p.cfg.DeadLetters == "":
		return refused.halt()
	}
	p.memory.suspect.row, p.memory.suspect.why = first.Row.Position, refused.Reason
	return fmt.Errorf("start over, with this row put aside: %w", errors.New(refused.Error()))
}

const (
	maxUnresolved = 100_000   // dead letters that hold_key keeps in memory
	rereadAfter   = time.Hour // well under the 24 h for which Kafka keeps a tombstone (delete.retention.ms)
)

// keyHolds knows which keys have an unresolved dead letter, of one session. It is read from the dead letter topic
// before the first row, and again, from where that stopped, before rows are held, once a window.
//
// The order of a key survives a redrive beside a running relay. A redrive publishes a key's dead letters in order and
// resolves them in one Kafka transaction, and only what is committed is read here. So a key is found free only when all
// that it held stands in its partition; what is published after that stands behind it. A row that is held while a
// redrive is under way came after that redrive looked: it is not part of it, stays unresolved, and by itself holds what
// follows.
type keyHolds struct {
	next    int64               // offset of the dead letter topic
	since   time.Time           // when it was read from its beginning
	fresh   bool                // it was read for this window
	entries map[string][]string // unresolved dead letters by key, with their identities (see holds)
	keys    map[string]*keyHold // by identity
}

// keyHold is of one identity: how many dead letters, and the last of them.
type keyHold struct {
	n    int
	last string
}

// begin is called before each window.
func (h *keyHolds) begin(ctx context.Context, pub Publisher) error {
	h.fresh = false
	if time.Since(h.since) < rereadAfter {
		return nil
	}
	*h = keyHolds{since: time.Now(), entries: map[string][]string{}, keys: map[string]*keyHold{}}
	return h.read(ctx, pub)
}

// check refuses a row that waits behind an unresolved dead letter of its key.
func (h *keyHolds) check(ctx context.Context, pub Publisher, row *Row, topic string) error {
	behind := h.behind(row, topic)
	if behind != "" && !h.fresh {
		if err := h.read(ctx, pub); err != nil {
			return err
		}
		behind = h.behind(row, topic)
	}
	if behind == "" {
		return nil
	}
	return &RejectedError{Row: row, Class: ForOrder, Topic: topic, Reason: "held: dead letter " + behind + " of the same key is unresolved", heldFor: behind}
}

// behind is the dead letter that the row would overtake. Its own, of an earlier delivery, counts: it stays where it is.
func (h *keyHolds) behind(row *Row, topic string) string {
	if len(h.keys) == 0 {
		return ""
	}
	for _, of := range holds(topic, row.AggregateType, row.AggregateID) {
		if hold := h.keys[of]; hold != nil {
			return hold.last
		}
	}
	return ""
}

func (h *keyHolds) read(ctx context.Context, pub Publisher) error {
	next, err := pub.DeadLetters(ctx, h.next, h.note)
	if err != nil {
		return err
	}
	if next < h.next {
		return errors.New("the dead letter topic was made again: start over, to read it from its beginning")
	}
	h.next, h.fresh = next, true
	if len(h.entries) > maxUnresolved {
		return &HaltError{
			Found: fmt.Sprintf("%d dead letters are unresolved, and poison.hold_key keeps at most %d in memory", len(h.entries), maxUnresolved),
			Means: "nothing more is published, and nothing is lost",
			Run:   "fix the cause, then `walpost dlq redrive --all` or `walpost dlq drop`",
		}
	}
	return nil
}

func (h *keyHolds) note(key string, headers []Header) {
	h.remove(key)
	if headers != nil {
		h.add(key, holdsOf(headers))
	}
}

func (h *keyHolds) add(key string, of []string) {
	h.remove(key)
	h.entries[key] = of
	for _, of := range of {
		if h.keys[of] == nil {
			h.keys[of] = &keyHold{}
		}
		h.keys[of].n++
		h.keys[of].last = key
	}
}

func (h *keyHolds) remove(key string) {
	for _, of := range h.entries[key] {
		if h.keys[of].n--; h.keys[of].n == 0 {
			delete(h.keys, of)
		}
	}
	delete(h.entries, key)
}
