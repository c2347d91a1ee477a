package cdc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// shelf is a broker with a dead letter topic, and with a policy that Check does not know.
type shelf struct {
	*broker
	log       []shelved // the dead letter topic
	reads     []int64   // requested offsets
	order     []string  // ids in the order in which they became durable, dead letters in brackets
	policy    string    // id of a row that Kafka rejects after it was produced
	tooNarrow bool      // the dead letter topic rejects rows too
	onPublish func(records []Record)
}

type shelved struct {
	key     string
	headers []Header
	value   []byte
}

func (b *shelf) Open(context.Context) (Publisher, error) { return b, nil }

func (b *shelf) Check(ctx context.Context, r *Record) error {
	if r.Rejected != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.tooNarrow {
			return Reject(r.Row, TooLarge, r.Topic, "its record is too large for the shelf")
		}
		return nil
	}
	return b.broker.Check(ctx, r)
}

func (b *shelf) DeadLetters(_ context.Context, from int64, each func(string, []Header)) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads = append(b.reads, from)
	for _, s := range b.log[min(int(from), len(b.log)):] {
		each(s.key, s.headers)
	}
	return int64(len(b.log)), nil
}

func (b *shelf) Publish(ctx context.Context, records []Record, st *State) error {
	b.mu.Lock()
	onPublish := b.onPublish
	b.mu.Unlock()
	if onPublish != nil {
		onPublish(records)
	}
	b.mu.Lock()
	for i := range records {
		if string(records[i].Row.ID) == b.policy && records[i].Rejected == nil {
			defer b.mu.Unlock()
			// the batch's first record is named
			return Reject(records[0].Row, ByKafka, "t", "kafka rejects its record: POLICY_VIOLATION")
		}
	}
	b.mu.Unlock()
	if err := b.broker.Publish(ctx, records, st); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range records {
		r := &records[i]
		if r.Rejected == nil {
			b.order = append(b.order, string(r.Row.ID))
			continue
		}
		b.order = append(b.order, "("+string(r.Row.ID)+")")
		headers := []Header{}
		for _, h := range r.Headers {
			headers = append(headers, Header{h.Key, bytes.Clone(h.Value)})
		}
		b.log = append(b.log, shelved{string(r.Key), headers, bytes.Clone(r.Value)})
	}
	return nil
}

// set calls f under the lock.
func (b *shelf) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *shelf) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprint(b.order)
}

// resolve writes a redrive's tombstone.
func (b *shelf) resolve(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.log {
		if strings.HasSuffix(s.key, "/"+id) {
			b.log = append(b.log, shelved{key: s.key})
			b.order = append(b.order, id)
			return
		}
	}
}

// keyed is a route by the text that the test wrote into the row.
type keyed struct{}

func (keyed) NextWindow() {}

func (keyed) Route(row *Row, rec *Record) error {
	*rec = Record{Row: row, Topic: "t." + string(row.AggregateType), Key: row.AggregateID, Headers: rec.Headers[:0]}
	return nil
}

// tx returns a transaction of rows with ids and keys: "a:k" is row a of key k.
func tx(begin, end LSN, rows ...string) []Message {
	m := []Message{{Kind: Begin, LSN: begin, Row: Row{XID: uint32(begin)}}}
	for _, r := range rows {
		id, key, _ := strings.Cut(r, ":")
		m = append(m, Message{Kind: Insert, Row: Row{ID: []byte(id), AggregateType: []byte("order"), AggregateID: []byte(key), Payload: []byte("{}")}})
	}
	return append(m, Message{Kind: Commit, LSN: end})
}

// poisonPolicy is the poison policy of a relay; without a topic it halts.
type poisonPolicy struct {
	topic   string
	holdKey bool
}

func poisonBubble(t *testing.T, poison poisonPolicy, o Observer, f func(s *server, b *shelf, relay *Relay)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		b := &shelf{broker: &broker{state: &State{Version: 1, Pipeline: "p", SystemID: "7", Timeline: 1, Covered: 10}}}
		cfg := options()
		cfg.DeadLetters, cfg.HoldKey, cfg.WindowRows = poison.topic, poison.holdKey, 10
		relay := NewRelay(cfg, s, b, keyed{}, o)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- relay.Run(ctx) }()
		synctest.Wait()
		f(s, b, relay)
		cancel()
		<-ended
	})
}

var (
	aside = poisonPolicy{"walpost.dlq.p", false}
	held2 = poisonPolicy{"walpost.dlq.p", true}
)

// TestPoisonRowByPolicy checks what each policy does with a rejected row, and with the rows around it.
func TestPoisonRowByPolicy(t *testing.T) {
	rows := append(tx(20, 30, "a:k", "bad:k", "b:k", "c:j"), tx(30, 40, "d:k", "e:j")...)
	for name, c := range map[string]struct {
		policy poisonPolicy
		want   string
		held   bool
	}{
		"halt":                 {poisonPolicy{}, "[a]", false},
		"dead letter":          {aside, "[a (bad) b c d e]", false},
		"dead letter and hold": {held2, "[a (bad) (b) c (d) e]", true},
	} {
		t.Run(name, func(t *testing.T) {
			var told []string
			o := Observer{DeadLettered: func(r *Record) { told = append(told, string(r.Row.ID)+" "+string(r.Rejected.Class)) }}
			poisonBubble(t, c.policy, o, func(s *server, b *shelf, relay *Relay) {
				b.setRefuse("bad")
				s.send(rows...)
				time.Sleep(2 * time.Second)
				if got := b.said(); got != c.want {
					t.Errorf("durable: %s, want %s", got, c.want)
				}
				role, err := relay.Role()
				if c.policy.topic == "" {
					var halt *HaltError
					if role != Halted || !errors.As(err, &halt) || !strings.Contains(halt.Run, "poison.policy: dead_letter") || !strings.Contains(halt.Run, "walpost skip") {
						t.Errorf("role %s, %v", role, err)
					}
					return
				}
				if role != Streaming || b.now().Covered != 40 {
					t.Errorf("role %s (%v), covered %s", role, err, b.now().Covered)
				}
				if want := "[bad size]"; !c.held && fmt.Sprint(told) != want {
					t.Errorf("reported %v, want %s", told, want)
				}
				if want := "[bad size b held d held]"; c.held && fmt.Sprint(told) != want {
					t.Errorf("reported %v, want %s", told, want)
				}
			})
		})
	}
}

// TestDeadLetterIsDurableBeforeTheAck is I1 for dead letters: while the window with the dead letter is on its way,
// nothing of it is in the state record or confirmed.
func TestDeadLetterIsDurableBeforeTheAck(t *testing.T) {
	poisonBubble(t, aside, Observer{}, func(s *server, b *shelf, _ *Relay) {
		b.setRefuse("bad")
		stall := make(chan struct{})
		b.setStall(stall)
		s.send(tx(20, 30, "bad:k")...)
		time.Sleep(20 * time.Second)
		if st := b.now(); st.Covered != 10 {
			t.Errorf("the state record covers %s before the dead letter is durable", st.Covered)
		}
		s.mu.Lock()
		for _, u := range s.statuses {
			if u.confirmed > 10 {
				t.Errorf("I1: %s was confirmed before the dead letter is durable", u.confirmed)
			}
		}
		s.mu.Unlock()
		b.setStall(nil)
		close(stall)
		time.Sleep(2 * time.Second)
		if b.now().Covered != 30 || b.said() != "[(bad)]" {
			t.Errorf("covered %s, durable %s", b.now().Covered, b.said())
		}
	})
}

// TestDeadLetterTopicThatCannotTakeItHalts checks that the halt has both reasons.
func TestDeadLetterTopicThatCannotTakeItHalts(t *testing.T) {
	poisonBubble(t, aside, Observer{}, func(s *server, b *shelf, relay *Relay) {
		b.set(func() { b.tooNarrow = true })
		b.setRefuse("bad")
		s.send(tx(20, 30, "a:k", "bad:k", "b:k")...)
		time.Sleep(2 * time.Second)
		var halt *HaltError
		if _, err := relay.Role(); !errors.As(err, &halt) || !strings.Contains(halt.Found, "the dead letter topic cannot take it either") || !strings.Contains(halt.Run, "walpost skip") {
			t.Errorf("%v", err)
		}
		if b.said() != "[a]" {
			t.Errorf("durable: %s", b.said())
		}
	})
}

// TestRedriveFreesTheKeyWithoutRestart checks the races of a redrive that runs next to the relay: the order of the
// key holds.
func TestRedriveFreesTheKeyWithoutRestart(t *testing.T) {
	poisonBubble(t, held2, Observer{}, func(s *server, b *shelf, _ *Relay) {
		b.setRefuse("bad")
		s.send(tx(20, 30, "bad:k", "b:k")...)
		time.Sleep(time.Second)
		// The redrive has read the topic and found bad and b. Before it commits, the relay holds one more row.
		s.send(tx(30, 40, "c:k")...)
		time.Sleep(time.Second)
		b.resolve("bad")
		b.resolve("b")
		s.send(tx(40, 50, "d:k")...) // c came after the redrive had read the topic: it still holds the key
		time.Sleep(time.Second)
		b.resolve("c")
		b.resolve("d")
		s.send(tx(50, 60, "e:k")...)
		time.Sleep(time.Second)
		if got, want := b.said(), "[(bad) (b) (c) bad b (d) c d e]"; got != want {
			t.Errorf("durable: %s, want %s", got, want)
		}
		var before, after int
		b.set(func() { before = len(b.reads) })
		for i := range LSN(20) { // no key is held: the topic is not read
			s.send(tx(100+10*i, 110+10*i, "x:k")...)
			time.Sleep(10 * time.Millisecond)
		}
		if b.set(func() { after = len(b.reads) }); after != before {
			t.Errorf("%d reads of the dead letter topic while no key was held", after-before)
		}
	})
}

// TestRedriveDuringTheWindowOfAHeldRow commits the redrive after the relay has read the dead letter topic and before
// it writes.
func TestRedriveDuringTheWindowOfAHeldRow(t *testing.T) {
	poisonBubble(t, held2, Observer{}, func(s *server, b *shelf, _ *Relay) {
		b.setRefuse("bad")
		s.send(tx(20, 30, "bad:k")...)
		time.Sleep(time.Second)
		var once sync.Once
		b.set(func() {
			b.onPublish = func(records []Record) {
				if len(records) > 0 {
					once.Do(func() { b.resolve("bad") })
				}
			}
		})
		s.send(tx(30, 40, "b:k")...)
		time.Sleep(time.Second)
		s.send(tx(40, 50, "c:k")...)
		time.Sleep(time.Second)
		if got, want := b.said(), "[(bad) bad (b) (c)]"; got != want {
			t.Errorf("durable: %s, want %s: b was held already, and holds c", got, want)
		}
	})
}

// TestHeldKeysOutliveTheSession: the next session, and any later process, reads the held keys from the topic. A
// session notices within an hour that Kafka has removed a dead letter and its tombstone.
func TestHeldKeysOutliveTheSession(t *testing.T) {
	poisonBubble(t, held2, Observer{}, func(s *server, b *shelf, _ *Relay) {
		b.setRefuse("bad")
		s.send(tx(20, 30, "bad:k")...)
		time.Sleep(2 * time.Second)
		s.fail(errors.New("connection reset"))
		time.Sleep(2 * time.Second)
		s.send(tx(30, 40, "b:k", "c:j")...)
		time.Sleep(2 * time.Second)
		if got, want := b.said(), "[(bad) (b) c]"; got != want {
			t.Errorf("durable: %s, want %s", got, want)
		}
		b.mu.Lock()
		b.log = []shelved{{key: "compacted"}, {key: "away"}} // resolved long ago; the tombstones are gone too
		b.mu.Unlock()
		opened := s.opens()
		for range 2 * 60 * 12 { // two hours of one session
			s.send(Message{Kind: Keepalive, LSN: 40})
			time.Sleep(5 * time.Second)
		}
		if s.opens() != opened {
			t.Fatal("the session did not last")
		}
		s.send(tx(40, 50, "d:k")...)
		time.Sleep(2 * time.Second)
		if got, want := b.said(), "[(bad) (b) c d]"; got != want {
			t.Errorf("durable: %s, want %s", got, want)
		}
	})
}

// TestRefusedAfterProduce: Kafka rejects a batch, not a row. The innocent rows around the rejected one are published,
// each once according to the state record of the row before. The rejected row is found and treated by the policy.
func TestRefusedAfterProduce(t *testing.T) {
	for name, c := range map[string]struct {
		policy poisonPolicy
		want   string
	}{
		"halt":        {poisonPolicy{}, "[a b]"},
		"dead letter": {aside, "[a b (bad) c d]"},
	} {
		t.Run(name, func(t *testing.T) {
			poisonBubble(t, c.policy, Observer{}, func(s *server, b *shelf, relay *Relay) {
				b.set(func() { b.policy = "bad" })
				rows := append(tx(20, 30, "a:k", "b:k", "bad:k", "c:k"), tx(30, 40, "d:k")...)
				seen := 0
				for range 60 { // in each session the server sends again everything that was not confirmed
					if n := s.opens(); n > seen {
						seen = n
						s.mu.Lock()
						s.messages = nil
						s.mu.Unlock()
						if st := b.now(); st.Covered < 40 {
							s.send(rows...)
						}
					}
					time.Sleep(100 * time.Millisecond)
				}
				if got := b.said(); got != c.want {
					t.Errorf("durable: %s, want %s", got, c.want)
				}
				role, err := relay.Role()
				if c.policy.topic == "" && (role != Halted || !strings.Contains(err.Error(), `"bad"`)) {
					t.Errorf("role %s, %v: want a Halt that names the one row", role, err)
				}
				if c.policy.topic != "" && role != Streaming {
					t.Errorf("role %s, %v", role, err)
				}
			})
		})
	}
}

// TestDeadLetterIsTheWholeRow: NULL, empty, bytes that are no text, control characters, a megabyte: nothing is lost,
// and no value takes more than twice its bytes.
func TestDeadLetterIsTheWholeRow(t *testing.T) {
	for name, row := range map[string]Row{
		"everything NULL": {},
		"everything empty": {
			ID: []byte{}, AggregateType: []byte{}, AggregateID: []byte{}, EventType: []byte{}, Payload: []byte{}, Headers: []byte{}, CreatedAt: []byte{},
		},
		"text": {
			Position: Position{0x16B3748, 3}, XID: 7, CommitTime: time.Date(2026, 11, 22, 8, 0, 0, 500, time.UTC), ID: []byte("e1"),
			Payload: []byte(`{"a": "<b>&\u2028 ü"}`), Headers: []byte(`{}`), CreatedAt: []byte("2026-11-22 08:00:00+00"),
		},
		"bytes":                           {ID: []byte{0xff, 0}, AggregateID: []byte("\xc3("), Payload: []byte{0, 1, 0xfe, 0xff}},
		"text with one byte that is none": {Payload: []byte("caf\xe9 au lait, s'il vous plait"), Headers: []byte("\xff and much more text than that")},
		"columns that a route asked for": {
			ID: []byte("e1"), Further: [][]byte{nil, {}, []byte("t"), {0xff}}, Former: [][]byte{[]byte("e0"), nil},
			Shape: &Shape{Table: "public.outbox", ID: &Column{Name: "id", Type: 2950, TypeName: "uuid", Modifier: -1, NotNull: true}, Further: []*Column{nil, {Name: "a", Labels: []string{"x"}, Default: "1"}, {Name: "b"}, {Name: "c"}}},
		},
		"control characters": {Payload: bytes.Repeat([]byte{1}, 1000)},
		"a megabyte":         {Payload: bytes.Repeat([]byte(`"\`), 600_000)},
	} {
		d := DeadLetter{Row: row, Class: TooLarge, Reason: "why", Topic: "t", HeldFor: "0/1/1/x", Source: "p", Time: time.Date(2026, 11, 22, 8, 0, 0, 1, time.UTC)}
		var rec Record
		if err := d.record("dead", &rec); err != nil {
			t.Fatal(err)
		}
		got, err := ParseDeadLetter(rec.Headers, rec.Value)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(*got, d) {
			t.Errorf("%s:\n got  %.300v\n want %.300v", name, *got, d)
		}
		if most := 2*row.Size() + 2048; len(rec.Value) > most {
			t.Errorf("%s: %d bytes became %d", name, row.Size(), len(rec.Value))
		}
		if !slices.Equal(holdsOf(rec.Headers), d.Holds()) {
			t.Errorf("%s: the headers hold %q, the letter %q", name, holdsOf(rec.Headers), d.Holds())
		}
	}
}

// TestGiantKeyIsCutWhereItIsRepeated: it is cut in key and headers, not in the value.
func TestGiantKeyIsCutWhereItIsRepeated(t *testing.T) {
	d := DeadLetter{Row: Row{ID: bytes.Repeat([]byte("i"), 1<<20), AggregateID: bytes.Repeat([]byte("k"), 1<<20)}}
	var rec Record
	if err := d.record("dead", &rec); err != nil {
		t.Fatal(err)
	}
	size := len(rec.Key)
	for _, h := range rec.Headers {
		size += len(h.Value)
	}
	if size > 16<<10 {
		t.Errorf("key and headers take %d bytes", size)
	}
	if got, err := ParseDeadLetter(rec.Headers, rec.Value); err != nil || len(got.Row.AggregateID) != 1<<20 {
		t.Errorf("%v", err)
	}
}

// FuzzDeadLetter: reading does not panic, and a dead letter that was read is the same after it is written and read
// again.
func FuzzDeadLetter(f *testing.F) {
	f.Add([]byte(`{"version":1,"lsn":"0/1","seq":1,"payload":{"base64":"AP8="},"id":null,"headers":"{}"}`), "reason", []byte("x"))
	f.Add([]byte(`{"version":1,"lsn":"0/1","commit_time":"2026-11-22T08:00:00Z","payload":""}`), "dead_lettered_at", []byte("2026-11-22T08:00:00Z"))
	f.Add([]byte(`{"version":1,"lsn":"0/1","payload":{}}`), "", []byte{})
	f.Fuzz(func(t *testing.T, value []byte, name string, header []byte) {
		d, err := ParseDeadLetter([]Header{{name, header}}, value)
		if err != nil {
			return
		}
		var rec Record
		if err := d.record("dead", &rec); err != nil {
			return // a year that JSON cannot represent
		}
		again, err := ParseDeadLetter(rec.Headers, rec.Value)
		if err != nil {
			t.Fatalf("written, but not read: %v", err)
		}
		if !d.Row.CommitTime.Equal(again.Row.CommitTime) {
			t.Errorf("commit time %s became %s", d.Row.CommitTime, again.Row.CommitTime)
		}
		again.Row.CommitTime, again.Time = d.Row.CommitTime, d.Time
		if !reflect.DeepEqual(d, again) {
			t.Errorf("%+v became %+v", d, again)
		}
	})
}
