package kafka

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// deadLetterBytes returns the topic's max.message.bytes: a value is at most twice its row (see cdc.DeadLetter), and
// headers and key are small.
func deadLetterBytes(cfg config.Config) int {
	return min(2*int(cfg.Source.MaxRowBytes)+64<<10, maxBatch)
}

func deadLetterPlan(cfg config.Config, replication int) TopicPlan {
	return TopicPlan{
		Name: cfg.DeadLetterTopic(), Partitions: 1, Replication: replication,
		Config: map[string]string{"cleanup.policy": "compact", "max.message.bytes": strconv.Itoa(deadLetterBytes(cfg))},
	}
}

// checkDeadLetters describes the dead letter topic, and returns a halt if it would lose dead letters.
func (s *Sink) checkDeadLetters(ctx context.Context, client *kgo.Client) error {
	name := s.cfg.DeadLetterTopic()
	found, err := s.describeTopic(ctx, client, name, "Read", "Write")
	if err != nil {
		return err
	}
	return checkDeadLetterTopic(name, found)
}

// checkDeadLetterTopic returns a halt for a topic that is missing, nil, or that would lose dead letters.
func checkDeadLetterTopic(name string, found *topic) error {
	if found == nil {
		return &cdc.HaltError{
			Found: fmt.Sprintf("the dead letter topic %s does not exist", name),
			Means: "rows that cannot be published have nowhere to go; nothing is published until this is fixed",
			Run:   "run `walpost init`, and the relay resumes by itself",
		}
	}
	if found.partitions != 1 {
		return &cdc.HaltError{Found: fmt.Sprintf("the dead letter topic %s has %d partitions", name, found.partitions), Means: "the order of dead letters would be lost", Run: "name another topic under poison.topic and run `walpost init`; or, if it is empty, delete it and run `walpost init`"}
	}
	if policy, known := found.config["cleanup.policy"]; known && policy != "compact" {
		return &cdc.HaltError{Found: fmt.Sprintf("the dead letter topic %s has cleanup.policy=%s", name, policy), Means: "Kafka would delete dead letters after a while", Run: "set it: kafka-configs.sh --alter --topic " + name + " --add-config cleanup.policy=compact"}
	}
	return nil
}

// deadReader reads the dead letter topic, and continues where it stopped.
type deadReader struct {
	sink *Sink
	r    *reader
}

func (d *deadReader) close() {
	if d.r != nil {
		d.r.close()
		d.r = nil
	}
}

// read calls each for the records from an offset up to the topic's present end. If next is less than from, the topic
// was created again.
func (d *deadReader) read(ctx context.Context, from int64, each func(*kgo.Record)) (next int64, err error) {
	if d.r == nil || d.r.next != from {
		d.close()
		if d.r, err = d.sink.reader(d.sink.cfg.DeadLetterTopic(), 0); err != nil {
			return 0, err
		}
		d.r.begin(from)
	}
	end, err := d.r.end(ctx, false)
	if err != nil || end < from {
		return end, err
	}
	err = d.r.readTo(ctx, end, each)
	return d.r.next, err
}

// DeadLetters calls each for the records of the dead letter topic.
func (p *publisher) DeadLetters(ctx context.Context, from int64, each func(key string, headers []cdc.Header)) (next int64, err error) {
	return p.dead.read(ctx, from, func(r *kgo.Record) { each(string(r.Key), deadHeaders(r)) })
}

// deadHeaders returns a record's headers; nil only for a tombstone.
func deadHeaders(r *kgo.Record) []cdc.Header {
	if r.Value == nil {
		return nil
	}
	headers := make([]cdc.Header, 0, len(r.Headers))
	for _, h := range r.Headers {
		headers = append(headers, cdc.Header{Key: h.Key, Value: h.Value})
	}
	return headers
}

// maxCounted bounds the memory of counting.
const maxCounted = 100_000

// Unresolved counts the dead letters that were neither redriven nor dropped. It only reads what came since the last
// count.
type Unresolved struct {
	sink *Sink
	mu   sync.Mutex
	next int64
	keys map[string]struct{}
}

// Unresolved returns a counter that has read nothing yet.
func (s *Sink) Unresolved() *Unresolved { return &Unresolved{sink: s} }

// Count reads on and returns the number of unresolved dead letters.
func (u *Unresolved) Count(ctx context.Context) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.keys == nil {
		if err := u.sink.askDeadLetters(ctx); err != nil {
			return 0, err
		}
		u.next, u.keys = 0, map[string]struct{}{}
	}
	dead := deadReader{sink: u.sink}
	defer dead.close()
	next, err := dead.read(ctx, u.next, func(r *kgo.Record) {
		switch key := string(r.Key); {
		case r.Value == nil:
			delete(u.keys, key)
		case len(u.keys) <= maxCounted:
			u.keys[key] = struct{}{}
		}
	})
	if err != nil || next < u.next || len(u.keys) > maxCounted {
		u.keys = nil // start from the beginning the next time
	}
	switch {
	case err != nil:
		return 0, err
	case next < u.next:
		return 0, fmt.Errorf("topic %s was made again", u.sink.cfg.DeadLetterTopic())
	case u.keys == nil:
		return maxCounted, fmt.Errorf("more than %d dead letters are unresolved", maxCounted)
	}
	u.next = next
	return len(u.keys), nil
}

// askDeadLetters checks the topic with a separate client.
func (s *Sink) askDeadLetters(ctx context.Context) error {
	client, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return s.checkDeadLetters(ctx, client)
}

// Entry is an unresolved dead letter.
type Entry struct {
	Key    string
	Offset int64
	Value  []byte
	Letter *cdc.DeadLetter
	Err    error // why the value cannot be read; Letter is nil then
}

// redriveTimeout is how long the open transaction of a killed redrive may block read_committed consumers.
const redriveTimeout = 15 * time.Second

// Redriver resolves dead letters. Only one may work at a time: a second one fences the first.
type Redriver struct{ p *publisher }

// Redrive takes the pipeline's transactional id for dead letters, unless onlyCheck is true. Read the dead letter
// topic after this call.
func (s *Sink) Redrive(ctx context.Context, onlyCheck bool) (*Redriver, error) {
	id := s.cfg.TransactionalID() + ".dlq"
	if onlyCheck {
		id = ""
	}
	p, err := s.newPublisher(ctx, id, redriveTimeout)
	if err != nil {
		return nil, err
	}
	p.within = publishWithin
	return &Redriver{p}, nil
}

// Close ends the connection.
func (r *Redriver) Close() { r.p.Close() }

// Check rejects a record that can still not be published.
func (r *Redriver) Check(ctx context.Context, rec *cdc.Record) error { return r.p.Check(ctx, rec) }

// MostResolved returns how many dead letters Resolve takes at once.
func (r *Redriver) MostResolved() int { return max(1, min(r.p.sink.cfg.Window.Rows/2, 500)) }

// Resolve publishes records, if any, and resolves dead letters, all in one Kafka transaction. It sets each record's
// partition and offset. After an error it must not be called again.
func (r *Redriver) Resolve(ctx context.Context, records []cdc.Record, keys []string) error {
	all := slices.Clone(records)
	for _, key := range keys {
		all = append(all, cdc.Record{Row: &cdc.Row{}, Topic: r.p.sink.cfg.DeadLetterTopic(), Key: []byte(key)})
	}
	if err := r.p.Publish(ctx, all, nil); err != nil {
		return fmt.Errorf("%w: `walpost dlq list` shows which dead letters are unresolved", err)
	}
	copy(records, all)
	return nil
}

// Entries returns the unresolved dead letters in the order of their rows; none if the topic does not exist.
func (s *Sink) Entries(ctx context.Context) ([]Entry, error) {
	client, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if found, err := s.describeTopic(ctx, client, s.cfg.DeadLetterTopic(), "Read"); err != nil || found == nil {
		return nil, err
	}
	dead := deadReader{sink: s}
	defer dead.close()
	unresolved := map[string]Entry{}
	if _, err := dead.read(ctx, 0, func(r *kgo.Record) {
		if r.Value == nil {
			delete(unresolved, string(r.Key))
			return
		}
		letter, err := cdc.ParseDeadLetter(deadHeaders(r), r.Value)
		unresolved[string(r.Key)] = Entry{string(r.Key), r.Offset, r.Value, letter, err}
	}); err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(unresolved))
	for _, e := range unresolved {
		entries = append(entries, e)
	}
	sortEntries(entries)
	return entries, nil
}

// sortEntries sorts dead letters by the order of their rows. Positions of two servers cannot be compared: the server
// whose first dead letter is older comes first. Unreadable records come last.
func sortEntries(entries []Entry) {
	first := map[string]int64{} // offset, by server
	for _, e := range entries {
		if e.Letter == nil {
			continue
		}
		if at, known := first[e.Letter.Server]; !known || e.Offset < at {
			first[e.Letter.Server] = e.Offset
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		if a.Letter == nil || b.Letter == nil {
			return cmp.Or(cmp.Compare(boolInt(a.Letter == nil), boolInt(b.Letter == nil)), cmp.Compare(a.Offset, b.Offset))
		}
		return cmp.Or(cmp.Compare(first[a.Letter.Server], first[b.Letter.Server]), a.Letter.Row.Compare(b.Letter.Row.Position), cmp.Compare(a.Offset, b.Offset))
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
