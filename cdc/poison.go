package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// suspect isolates a record that Kafka rejected although Check had accepted it (a broker's own policy, or a limit
// that the relay may not read). A rejected window does not say which record was at fault, and no innocent row may
// become a dead letter. So the next session sends the window's rows one at a time, each with the state record of the
// row before. suspect therefore outlives the session.
type suspect struct {
	until Position // rows up to here are sent one at a time
	row   Position // the row that Kafka rejected when it was sent alone
	why   string
}

// prepare makes the row's record. If the row can never be published, it makes the row's dead letter or returns a
// halt, as the policy says.
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
	var rejected *RejectedError
	if !errors.As(err, &rejected) {
		return err
	}
	if p.cfg.DeadLetters == "" {
		return rejected.halt()
	}
	d := DeadLetter{
		Row: *row, Class: rejected.Class, Reason: rejected.Reason, Topic: rejected.Topic, HeldFor: rejected.heldFor,
		Source: p.cfg.Pipeline, Server: p.server, Time: time.Now(),
	}
	if err := d.record(p.cfg.DeadLetters, rec); err != nil {
		return err
	}
	rec.Row, rec.Rejected = row, rejected
	if err := p.client.Check(ctx, rec); err != nil {
		return deadLetterHalt(rejected, err)
	}
	if p.cfg.HoldKey {
		p.holds.add(d.Key(), d.Holds())
	}
	return nil
}

func deadLetterHalt(rejected *RejectedError, err error) error {
	var again *RejectedError
	if !errors.As(err, &again) {
		return err
	}
	halt := rejected.halt()
	halt.Found += "; and the dead letter topic cannot take it either: " + again.Reason
	halt.Run = "raise the topic's limit, or max.message.bytes of the dead letter topic, and the relay resumes by itself; or correct the configuration (kafka.aggregate_types or kafka.rename, for example) and restart it; or " + giveUp(rejected.Row.Commit)
	return halt
}

// rejectedByKafka decides what follows when Kafka has rejected a record that Check had accepted. records is the
// window that was produced.
func (p *publisher) rejectedByKafka(rejected *RejectedError, records []Record) error {
	first, last := &records[0], &records[len(records)-1]
	if len(records) > 1 {
		p.memory.suspect = suspect{until: last.Row.Position}
		return fmt.Errorf("kafka rejected one record of the window: the relay starts again and sends the rows one at a time, to find out which: %w", errors.New(rejected.Error()))
	}
	switch {
	case first.Rejected != nil:
		return deadLetterHalt(first.Rejected, rejected)
	case p.cfg.DeadLetters == "":
		return rejected.halt()
	}
	p.memory.suspect.row, p.memory.suspect.why = first.Row.Position, rejected.Reason
	return fmt.Errorf("kafka rejected this row: the relay starts again and makes it a dead letter: %w", errors.New(rejected.Error()))
}

const (
	maxUnresolved = 100_000   // dead letters that hold_key keeps in memory
	rereadAfter   = time.Hour // well below the 24 h for which Kafka keeps a tombstone (delete.retention.ms)
)

// keyHolds knows the keys that have an unresolved dead letter. It belongs to one session, and is read from the dead
// letter topic before the first row. Before it holds a row it reads on to the topic's end, at most once a window.
//
// The order of a key survives a redrive that runs next to the relay. A redrive publishes a key's dead letters in
// order and resolves them in one Kafka transaction, and keyHolds reads only what is committed. So a key is found free
// only when all records that it held are in its partition; every later record comes after them. A row that is held
// during a redrive came after the redrive had read the topic: it is not part of that redrive, stays unresolved, and
// itself holds the rows after it.
type keyHolds struct {
	next    int64               // offset in the dead letter topic from which to read on
	since   time.Time           // when the topic was last read from its beginning
	fresh   bool                // the topic was read for this window
	entries map[string][]string // names of the orders (see holds) of each unresolved dead letter, by its key
	keys    map[string]*keyHold // by name of an order
}

// keyHold counts the dead letters of one order, and keeps the key of the last.
type keyHold struct {
	n    int
	last string
}

// begin prepares for a window: it reads the topic again if the last full read is too old.
func (h *keyHolds) begin(ctx context.Context, pub Publisher) error {
	h.fresh = false
	if time.Since(h.since) < rereadAfter {
		return nil
	}
	*h = keyHolds{since: time.Now(), entries: map[string][]string{}, keys: map[string]*keyHold{}}
	return h.read(ctx, pub)
}

// check rejects a row that must wait for an unresolved dead letter of its key.
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

// behind returns the key of the dead letter that the row would overtake. The row's own dead letter, of an earlier
// delivery, counts too: it stays a dead letter.
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
		return errors.New("the dead letter topic was created again: the relay starts again and reads it from its beginning")
	}
	h.next, h.fresh = next, true
	if len(h.entries) > maxUnresolved {
		return &HaltError{
			Found: fmt.Sprintf("%d dead letters are unresolved, and poison.hold_key keeps at most %d in memory", len(h.entries), maxUnresolved),
			Means: "nothing more is published; nothing is lost",
			Run:   "fix the cause, then run `walpost dlq redrive --all` or `walpost dlq drop`",
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
