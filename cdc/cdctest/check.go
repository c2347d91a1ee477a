package cdctest

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Report is the result of Check. At-least-once delivery may have duplicates; a caller that allows none checks the
// number.
type Report struct {
	Records    int // records that were checked
	Events     int // different events among them
	Duplicates int // further records of the same event
	Replays    int // runs of consecutive duplicates

	Missing   Finding // committed, but in no topic
	Ghosts    Finding // never committed
	Reordered Finding // first appearances of a key or partition out of commit order
	Torn      Finding // another key or payload than committed, or a transaction that arrived only in part
	Misplaced Finding // duplicates that are no replay: a replay must continue without a gap to the former end of the log
	Disagreed Finding // ledger or positions that contradict the oracle
}

// Finding counts one kind of violation and describes the first few.
type Finding struct {
	Count    int
	Examples []string
}

func (f *Finding) add(format string, args ...any) {
	const enough = 5
	if f.Count++; f.Count <= enough {
		f.Examples = append(f.Examples, fmt.Sprintf(format, args...))
	}
}

func (f *Finding) err(kind string) error {
	if f.Count == 0 {
		return nil
	}
	return fmt.Errorf("%d %s:\n\t%s", f.Count, kind, strings.Join(f.Examples, "\n\t"))
}

// Err returns nil if nothing was violated.
func (r Report) Err() error {
	return errors.Join(r.Missing.err("missing"), r.Ghosts.err("ghost"), r.Reordered.err("reordered"), r.Torn.err("torn"),
		r.Misplaced.err("misplaced duplicate"), r.Disagreed.err("against the oracle"))
}

// Check compares a ledger with all records of its topics. Records of one partition must be in the order of their
// offsets.
//
// A duplicate is legal as part of a replay: the relay went back to an earlier row of the partition and sent every row
// from there again, in the same order and with the same positions. The relay may have been stopped during that and have
// gone back once more, but no new event arrives before a replay has reached the end of the log.
func Check(ledger Ledger, records []*kgo.Record) Report {
	c := checker{
		ledger: ledger,
		index:  make(map[uuid.UUID]int, len(ledger.Events)),
		seen:   make([]sighting, len(ledger.Events)),
		keySeq: map[keyPlace]int64{},
		parts:  map[place]*partition{},
	}
	for i, e := range ledger.Events {
		c.index[e.ID] = i
	}
	for _, r := range records {
		c.record(r)
	}
	c.transactions()
	c.oracle()
	return c.report
}

type checker struct {
	ledger Ledger
	index  map[uuid.UUID]int // into ledger.Events and seen
	seen   []sighting
	keySeq map[keyPlace]int64 // of the latest first appearance
	parts  map[place]*partition
	report Report
}

// sighting is the first appearance of an event. The zero value: not seen yet.
type sighting struct {
	part *partition
	at   int // its number among the partition's first appearances
	pos  position
}

// keyPlace is the scope in which a key is ordered: a partition, or with the zero place all of them.
type keyPlace struct {
	key string
	place
}

type place struct {
	topic     string
	partition int32
}

func (p place) String() string { return fmt.Sprintf("%s/%d", p.topic, p.partition) }

type partition struct {
	place
	offset int64
	firsts int // number of first appearances
	at     int // the number of the last record among them
	pos    position
}

// position is the position of a row in the WAL: its commit LSN, and its ordinal in the transaction.
type position struct {
	lsn pglogrepl.LSN
	seq int64
}

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.lsn, q.lsn), cmp.Compare(p.seq, q.seq))
}

func (p position) String() string { return fmt.Sprintf("(%s, %d)", p.lsn, p.seq) }

func (c *checker) record(r *kgo.Record) {
	c.report.Records++
	part := c.parts[place{r.Topic, r.Partition}]
	if part == nil {
		part = &partition{place: place{r.Topic, r.Partition}, offset: -1, at: -1}
		c.parts[part.place] = part
	}
	where := func() string { return fmt.Sprintf("%s offset %d", part.place, r.Offset) }
	if r.Offset <= part.offset {
		c.report.Reordered.add("%s was given to Check after offset %d: sort the records", where(), part.offset)
	}
	part.offset = r.Offset

	id, pos, err := headers(r, c.ledger.Polled)
	if err != nil {
		c.report.Ghosts.add("%s: %v", where(), err)
		return
	}
	i, committed := c.index[id]
	if !committed {
		what := "is unknown"
		if c.ledger.RolledBack[id] {
			what = "was rolled back"
		}
		c.report.Ghosts.add("%s: event %s %s", where(), id, what)
		return
	}
	event, first := &c.ledger.Events[i], &c.seen[i]
	if string(r.Key) != event.Key {
		c.report.Torn.add("%s: event %s has the key %q, committed was %q", where(), id, r.Key, event.Key)
	}
	if sha256.Sum256(r.Value) != event.Sum {
		c.report.Torn.add("%s: event %s: the payload is not the one committed%s", where(), id, whose(r.Value, id))
	}

	if first.part == nil {
		c.report.Events++
		if part.at != part.firsts-1 {
			c.report.Misplaced.add("%s: new event %s while a replay still lacked %d records", where(), id, part.firsts-1-part.at)
		}
		if !c.ledger.Polled && part.firsts > 0 && pos.compare(part.pos) <= 0 {
			c.report.Reordered.add("%s: event %s at %s comes after %s", where(), id, pos, part.pos)
		}
		order := keyPlace{key: event.Key}
		if c.ledger.Spread {
			order.place = part.place
		}
		if last := c.keySeq[order]; event.Seq <= last {
			c.report.Reordered.add("%s: event %s is number %d of key %s and comes after number %d", where(), id, event.Seq, event.Key, last)
		}
		c.keySeq[order] = max(event.Seq, c.keySeq[order])
		*first = sighting{part, part.firsts, pos}
		part.at, part.pos = part.firsts, pos
		part.firsts++
		return
	}

	c.report.Duplicates++
	switch {
	case first.part != part:
		c.report.Misplaced.add("%s: event %s had been in %s", where(), id, first.part.place)
		return
	case first.at > part.at+1:
		c.report.Misplaced.add("%s: event %s again, but the replay left out %d records before it", where(), id, first.at-part.at-1)
	case first.at <= part.at:
		c.report.Replays++
	}
	if pos != first.pos {
		c.report.Reordered.add("%s: event %s at %s had been at %s", where(), id, pos, first.pos)
	}
	part.at = first.at
}

// transactions checks each transaction of the ledger, which lists its events together and in the order of the inserts.
func (c *checker) transactions() {
	owner := map[pglogrepl.LSN]int64{}
	for start := 0; start < len(c.seen); {
		tx, end, there := c.ledger.Events[start].Tx, start, 0
		var last *position
		for ; end < len(c.seen) && c.ledger.Events[end].Tx == tx; end++ {
			event, seen := &c.ledger.Events[end], &c.seen[end]
			if seen.part == nil {
				c.report.Missing.add("event %s, number %d of key %s, of transaction %d", event.ID, event.Seq, event.Key, tx)
				continue
			}
			there++
			if last != nil && !c.ledger.Polled && (last.lsn != seen.pos.lsn || last.seq >= seen.pos.seq) {
				c.report.Reordered.add("event %s at %s follows %s in transaction %d", event.ID, seen.pos, *last, tx)
			}
			last = &seen.pos
		}
		if 0 < there && there < end-start {
			c.report.Torn.add("transaction %d: %d of its %d events are there", tx, there, end-start)
		}
		if last != nil && !c.ledger.Polled {
			if other, taken := owner[last.lsn]; taken {
				c.report.Reordered.add("transactions %d and %d both at %s", other, tx, last.lsn)
			}
			owner[last.lsn] = tx
		}
		start = end
	}
}

// oracle compares each first appearance with its place in the true order. The row's transaction begins to commit at the
// end of the previous one, or later, and before its own end; the rows of a transaction are numbered in order. Since
// records are in the order of their positions, every partition is then in commit order.
func (c *checker) oracle() {
	if c.ledger.Commits == nil {
		return
	}
	known := 0
	var before pglogrepl.LSN
	for _, commit := range c.ledger.Commits {
		last := int64(-1)
		for _, id := range commit.IDs {
			i, in := c.index[id]
			if !in {
				c.report.Disagreed.add("event %s of transaction %d is not in the ledger", id, commit.XID)
				continue
			}
			known++
			seen := &c.seen[i]
			if seen.part == nil {
				continue
			}
			if seen.pos.lsn < before || seen.pos.lsn >= commit.End {
				c.report.Disagreed.add("event %s at %s: transaction %d commits between %s and %s", id, seen.pos, commit.XID, before, commit.End)
			}
			if seen.pos.seq <= last {
				c.report.Disagreed.add("event %s at %s: it was inserted after number %d of transaction %d", id, seen.pos, last, commit.XID)
			}
			last = seen.pos.seq
		}
		before = commit.End
	}
	if known != len(c.ledger.Events) {
		c.report.Disagreed.add("the oracle knows %d of the ledger's %d events", known, len(c.ledger.Events))
	}
}

// whose returns a description of a wrong payload: damaged, rewritten, or the payload of another event.
func whose(value []byte, id uuid.UUID) string {
	var p Payload
	if json.Unmarshal(value, &p) != nil || fmt.Sprintf("%x", sha256.Sum256([]byte(p.Body))) != p.Sum {
		return ": it is damaged"
	}
	if p.ID != id {
		return fmt.Sprintf(": it is that of event %s", p.ID)
	}
	return ": it was rewritten"
}

func headers(r *kgo.Record, polled bool) (id uuid.UUID, pos position, err error) {
	var found int
	for _, h := range r.Headers {
		switch h.Key {
		case "id":
			id, err = uuid.ParseBytes(h.Value)
		case "lsn":
			pos.lsn, err = pglogrepl.ParseLSN(string(h.Value))
		case "seq":
			pos.seq, err = strconv.ParseInt(string(h.Value), 10, 64)
		default:
			continue
		}
		if err != nil {
			return id, pos, fmt.Errorf("header %s=%q: %w", h.Key, h.Value, err)
		}
		found++
	}
	switch {
	case polled && found != 1:
		return id, pos, errors.New("not exactly one header id, or one of lsn and seq, which a polled row has not")
	case !polled && found != 3:
		return id, pos, errors.New("not exactly one header of each of id, lsn and seq")
	}
	return id, pos, nil
}

// Collect reads a topic until every event of the ledger has arrived, for at most within, and then to its end, because a
// replay may follow. Check reports the events that are missing.
func Collect(t testing.TB, brokers []string, topic string, ledger Ledger, within time.Duration) []*kgo.Record {
	t.Helper()
	missing := make(map[uuid.UUID]bool, len(ledger.Events))
	for _, e := range ledger.Events {
		missing[e.ID] = true
	}
	looked := 0
	consume(t, brokers, topic, Patience(within), func(records []*kgo.Record) bool {
		for _, r := range records[looked:] {
			if id, _, err := headers(r, ledger.Polled); err == nil {
				delete(missing, id)
			}
		}
		looked = len(records)
		return len(missing) == 0
	})
	records := ReadAll(t, brokers, topic)
	slices.SortStableFunc(records, func(a, b *kgo.Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	return records
}
