package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// options returns a relay's options with the defaults of the configuration.
func options() Options {
	return Options{
		Pipeline: "p", WindowRows: 5000, WindowBytes: 4 << 20, Pace: 2 * time.Millisecond,
		StatusInterval: time.Second, CheckInterval: 30 * time.Second, QueueTimeout: time.Minute, ShutdownTimeout: 10 * time.Second,
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a PostgreSQL for tests of time and failure: it sends the messages that the test gives it, and records
// every status update.
type server struct {
	mu       sync.Mutex
	messages []Message
	arrived  chan struct{}
	wake     chan struct{}
	closed   bool
	opened   int
	statuses []statusUpdate
	inUse    bool
	err      error // ends the stream
	facts    Facts
	factsErr error
	first    error         // ends each stream at once
	early    error         // comes with the answer to Start: Next returns it, and nothing follows
	closes   time.Duration // how long Close takes
	onceOnly bool          // a connection accepts one status update, and is then lost
	onStatus func(confirmed LSN)
}

type statusUpdate struct {
	at        time.Time
	confirmed LSN
}

func newServer() *server {
	return &server{
		arrived: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		facts: Facts{Identity: Identity{SystemID: "7", Timeline: 1}, Slot: SlotFacts{Name: "s", Exists: true}, WALEnd: 1 << 40},
	}
}

func (s *server) Preflight(context.Context) (uint32, error) { return 7, nil }

func (s *server) Connect(_ context.Context, table uint32) (Stream, Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if table != 7 {
		return nil, Identity{}, fmt.Errorf("connected for table %d, Preflight has found 7", table)
	}
	s.opened++
	s.closed, s.err = false, s.first
	return s, s.facts.Identity, nil
}

func (s *server) Facts(context.Context) (Facts, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.facts, s.factsErr
}

func (s *server) Start(context.Context) error {
	if s.inUse {
		return fmt.Errorf("start: %w", ErrSlotInUse)
	}
	return nil
}

func (s *server) Fill(deadline time.Time) (int, error) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		s.mu.Lock()
		n, err := len(s.messages), s.err
		s.mu.Unlock()
		if n > 0 || err != nil {
			return 100 * n, err
		}
		select {
		case <-s.arrived:
		case <-s.wake:
			return 0, nil
		case <-timer.C:
			return 0, nil
		}
	}
}

func (s *server) Next(m *Message) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.early != nil {
		return false, s.early
	}
	if len(s.messages) == 0 {
		return false, nil
	}
	*m, s.messages = s.messages[0], s.messages[1:]
	return true, nil
}

func (s *server) Status(confirmed LSN, _ bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("closed")
	}
	s.closed = s.onceOnly
	s.statuses = append(s.statuses, statusUpdate{time.Now(), confirmed})
	s.facts.Slot.ConfirmedFlush = max(s.facts.Slot.ConfirmedFlush, confirmed)
	if s.onStatus != nil {
		s.onStatus(confirmed)
	}
	return nil
}

func (s *server) Rest(d time.Duration) { time.Sleep(d) }

func (s *server) Waiting() int { return 0 }

func (s *server) OpenWindow() {}

func (s *server) Interrupt() { signal(s.wake) }

func (s *server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	closes := s.closes
	s.mu.Unlock()
	time.Sleep(closes)
	s.mu.Lock()
	return nil
}

// send makes messages arrive.
func (s *server) send(messages ...Message) {
	s.mu.Lock()
	s.messages = append(s.messages, messages...)
	s.mu.Unlock()
	signal(s.arrived)
}

func (s *server) fail(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	signal(s.arrived)
}

func (s *server) opens() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

func (s *server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// commit returns a transaction of n rows whose commit record begins at begin.
func commit(begin, end LSN, n int) []Message {
	m := []Message{{Kind: Begin, LSN: begin, Row: Row{XID: uint32(begin)}}}
	for i := range n {
		m = append(m, Message{Kind: Insert, Row: Row{ID: fmt.Appendf(nil, "%d.%d", begin, i+1)}})
	}
	return append(m, Message{Kind: Commit, LSN: end})
}

// broker is a Kafka that can be stalled or fail.
type broker struct {
	mu      sync.Mutex
	state   *State
	rows    []string
	at      []time.Time
	windows int
	stall   chan struct{} // Publish waits until it is closed
	slow    time.Duration // how long Publish takes
	fail    error         // error of the next window
	refuse  string        // id of a row that Check rejects
	onState func()        // called before State returns
	away    error         // Peek's error
	clients int           // number of open clients
	failed  bool          // a window failed since the client was opened
	reused  bool          // a client was used after it had failed
}

func (b *broker) Peek(context.Context) (*State, error) {
	b.mu.Lock()
	away := b.away
	b.mu.Unlock()
	if away != nil {
		return nil, away
	}
	return b.State(context.Background())
}

func (b *broker) Open(context.Context) (Publisher, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clients, b.failed = b.clients+1, false
	return b, nil
}

func (b *broker) State(context.Context) (*State, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.onState != nil {
		b.onState()
	}
	return b.state, nil
}

func (b *broker) Check(_ context.Context, r *Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if string(r.Row.ID) == b.refuse {
		return Reject(r.Row, TooLarge, r.Topic, "refused")
	}
	return nil
}

func (b *broker) Publish(ctx context.Context, records []Record, st *State) error {
	b.mu.Lock()
	stall, fail, slow := b.stall, b.fail, b.slow
	b.fail, b.reused = nil, b.reused || b.failed
	b.failed = fail != nil
	b.mu.Unlock()
	if stall != nil {
		select {
		case <-stall:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail != nil {
		return fail
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range records {
		b.rows = append(b.rows, string(records[i].Row.ID))
		b.at = append(b.at, time.Now())
	}
	if len(records) > 0 {
		b.windows++
	}
	if st != nil {
		b.state = st
	}
	return nil
}

func (b *broker) DeadLetters(context.Context, int64, func(string, []Header)) (int64, error) {
	return 0, nil
}
func (b *broker) Notes(*State) []string { return nil }

func (b *broker) CountFrom(context.Context, LSN) (int, bool, error) { return 3, false, nil }

func (b *broker) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clients--
}

func (b *broker) setStall(c chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stall = c
}

func (b *broker) setRefuse(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = id
}

func (b *broker) now() *State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

func (b *broker) list() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rows
}

func (b *broker) first() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at[0]
}

func (b *broker) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.windows
}

func (b *broker) got() string { return fmt.Sprint(b.list()) }

type plainRoute struct{}

func (plainRoute) NextWindow() {}

func (plainRoute) Route(row *Row, rec *Record) error {
	*rec = Record{Row: row, Topic: "t"}
	return nil
}

// observe is the observer of bubble's relay.
var observe Observer

// bubble runs a relay in virtual time, and fails the test if an LSN was confirmed that is not durable.
func bubble(t *testing.T, f func(s *server, b *broker, stop func() error, relay *Relay)) {
	bubbleOf(t, 4, f)
}

// bubbleOf runs bubble with windows of rows rows.
func bubbleOf(t *testing.T, rows int, f func(s *server, b *broker, stop func() error, relay *Relay)) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		b := &broker{state: &State{Version: 1, Pipeline: "p", SystemID: "7", Timeline: 1, Covered: 10}}
		s.onStatus = func(confirmed LSN) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if confirmed > b.state.Covered {
				t.Errorf("I2: confirmed %s, the durable state record covers %s", confirmed, b.state.Covered)
			}
		}
		cfg := options()
		cfg.WindowRows = rows
		relay := NewRelay(cfg, s, b, plainRoute{}, observe)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- relay.Run(ctx) }()
		stop := sync.OnceValue(func() error {
			cancel()
			return <-ended
		})
		synctest.Wait()
		f(s, b, stop, relay)
		_ = stop()
		if !s.isClosed() || b.clients != 0 {
			t.Errorf("the last connection is closed: %t, %d clients are open", s.isClosed(), b.clients)
		}
	})
}

func TestIdleRelaySendsARowAtOnce(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, _ *Relay) {
		time.Sleep(time.Minute)
		began := time.Now()
		s.send(commit(20, 30, 1)...)
		synctest.Wait()
		if b.got() != "[20.1]" {
			t.Fatalf("published %s without waiting", b.got())
		}
		if took := b.first().Sub(began); took != 0 {
			t.Errorf("the first row after a silence was held back for %s", took)
		}
	})
}

func TestQuietRelayKeepsThePace(t *testing.T) {
	bubbleOf(t, 50, func(s *server, b *broker, _ func() error, _ *Relay) {
		for i := range LSN(100) { // 5,000 commits a second
			s.send(commit(20+10*i, 30+10*i, 1)...)
			time.Sleep(200 * time.Microsecond)
		}
		time.Sleep(time.Second)
		if b.count() > 15 {
			t.Errorf("%d windows in 20 ms: more than one per pace", b.count())
		}
		if len(b.list()) != 100 {
			t.Errorf("%d rows", len(b.list()))
		}
	})
}

// TestNothingIsConfirmedBeforeReconciling: until the state is compared, status updates carry 0/0, however long Kafka
// takes.
func TestNothingIsConfirmedBeforeReconciling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		b := &broker{state: &State{Version: 1, Pipeline: "p", SystemID: "7", Timeline: 1, Covered: 10}, stall: make(chan struct{})}
		cfg := options()
		relay := NewRelay(cfg, s, b, plainRoute{}, Observer{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- relay.Run(ctx) }()
		time.Sleep(10500 * time.Millisecond)
		s.mu.Lock()
		if n := len(s.statuses); n < 10 {
			t.Errorf("I4: %d status updates in ten seconds of waiting for Kafka", n)
		}
		for _, u := range s.statuses {
			if u.confirmed != 0 {
				t.Errorf("confirmed %s before the state was reconciled", u.confirmed)
			}
		}
		s.mu.Unlock()
		close(b.stall)
		cancel()
		<-done
	})
}

// TestLostConnectionEndsTheWaitForKafka: the connection is lost before the state is reconciled, and Kafka does not
// answer.
func TestLostConnectionEndsTheWaitForKafka(t *testing.T) {
	bubble(t, func(s *server, b *broker, stop func() error, relay *Relay) {
		b.setStall(make(chan struct{}))
		s.fail(errors.New("connection reset"))
		time.Sleep(5 * time.Second)
		opens := s.opens()
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		time.Sleep(1500 * time.Millisecond)
		if role, err := relay.Role(); s.opens() != opens+1 || role != Retrying || text(err) != "closed" {
			t.Errorf("%d connections since the last one was lost, role %s, %v", s.opens()-opens, role, err)
		}
		began := time.Now()
		if err := stop(); err != nil || time.Since(began) > 0 {
			t.Errorf("the stop took %s: %v", time.Since(began), err)
		}
	})
}

func TestBlockedKafkaStillAnswersTheServerAndGivesTheSlotBack(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		stall := make(chan struct{})
		b.setStall(stall)
		began := time.Now()
		s.send(commit(20, 30, 20)...)
		time.Sleep(59 * time.Second)
		if s.isClosed() {
			t.Fatal("the connection was closed before queue_timeout")
		}
		s.mu.Lock()
		last := began
		for _, u := range s.statuses {
			if u.at.Before(began) {
				continue
			}
			if gap := u.at.Sub(last); gap > 1100*time.Millisecond {
				t.Errorf("I4: %s without a status update", gap)
			}
			last = u.at
		}
		s.mu.Unlock()
		if since := time.Since(last); since > 1100*time.Millisecond {
			t.Errorf("I4: no status update for %s", since)
		}
		time.Sleep(3 * time.Second)
		if !s.isClosed() {
			t.Fatal("the queue was full for a minute and the connection is still open")
		}
		if role, err := relay.Role(); role != Retrying || !errors.Is(err, errQueueFull) {
			t.Errorf("role %s, %v", role, err)
		}
		time.Sleep(time.Hour)
		if s.opens() != 1 {
			t.Errorf("the connection was opened %d times before Kafka answered", s.opens())
		}
		s.mu.Lock()
		s.messages = nil
		s.mu.Unlock()
		b.setStall(nil)
		close(stall)
		time.Sleep(time.Minute)
		s.send(commit(20, 30, 20)...) // the server sends it again, because nothing of it was confirmed
		time.Sleep(time.Minute)
		if len(b.list()) != 20 {
			t.Errorf("%d rows after the outage, want each of 20 once: %s", len(b.list()), b.got())
		}
	})
}

func TestConfirmedFollowsTheStateRecord(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, _ *Relay) {
		s.send(commit(20, 30, 2)...)
		time.Sleep(2 * time.Second)
		s.send(Message{Kind: Keepalive, LSN: 500})
		time.Sleep(3 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if last := s.statuses[len(s.statuses)-1].confirmed; last != 500 {
			t.Errorf("confirmed %s, want the keepalive's 500: an idle outbox would hold WAL", last)
		}
	})
}

// TestStoppingServerIsLetGo: a server that wants to stop asks until everything is confirmed. It is confirmed in well
// under a second, without a storm of answers.
func TestStoppingServerIsLetGo(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, _ *Relay) {
		time.Sleep(10*time.Second + 100*time.Millisecond) // between two ticks
		s.mu.Lock()
		before := len(s.statuses)
		s.mu.Unlock()
		began := time.Now()
		for i := 0; ; i++ {
			s.send(Message{Kind: Keepalive, LSN: 900, ReplyRequested: true})
			time.Sleep(time.Millisecond)
			s.mu.Lock()
			n, last := len(s.statuses), s.statuses[len(s.statuses)-1].confirmed
			s.mu.Unlock()
			if last == 900 {
				t.Logf("confirmed after %s and %d answers", time.Since(began), n-before)
				if n-before > 50 {
					t.Errorf("%d answers to a server that asks all the time", n-before)
				}
				return
			}
			if time.Since(began) > time.Second/2 {
				t.Fatal("a server that wants to stop was not confirmed within half a second")
			}
		}
	})
}

func TestStopDrainsAndConfirms(t *testing.T) {
	bubble(t, func(s *server, b *broker, stop func() error, _ *Relay) {
		time.Sleep(time.Second / 2) // a second after the last state record, another one is due at once
		s.send(commit(20, 30, 3)...)
		synctest.Wait()
		s.send(commit(30, 40, 3)[:3]...) // in the middle of a transaction
		time.Sleep(time.Millisecond)
		stall := make(chan struct{})
		b.setStall(stall) // the last state record does not become durable at once
		time.AfterFunc(10*time.Millisecond, func() { close(stall) })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if b.got() != "[20.1 20.2 20.3 30.1 30.2]" {
			t.Errorf("published %s", b.got())
		}
		if b.now().Covered != 30 || b.now().CommitLSN != 30 || b.now().Ordinal != 2 {
			t.Errorf("state %+v does not name the last durable row", b.now())
		}
		if last := s.statuses[len(s.statuses)-1].confirmed; last != 30 {
			t.Errorf("confirmed %s at the stop", last)
		}
	})
}

func TestStopWithKafkaAwayEndsInTimeAndSaysSo(t *testing.T) {
	bubble(t, func(s *server, b *broker, stop func() error, _ *Relay) {
		b.setStall(make(chan struct{}))
		s.send(commit(20, 30, 3)...)
		time.Sleep(time.Second)
		began := time.Now()
		if err := stop(); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("stopped with rows undelivered, and said %v", err)
		}
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("the stop took %s", took)
		}
		for i := 1; i < len(s.statuses); i++ {
			if gap := s.statuses[i].at.Sub(s.statuses[i-1].at); gap > 1100*time.Millisecond {
				t.Errorf("I4: %s without a status update", gap)
			}
		}
		if since := time.Since(s.statuses[len(s.statuses)-1].at); since > 1100*time.Millisecond {
			t.Errorf("I4: no status update for %s", since)
		}
	})
}

// TestStopDuringTheEndOfAFailedSessionSaysSo: closing the connection takes a second, and only then the relay notices the
// stop.
func TestStopDuringTheEndOfAFailedSessionSaysSo(t *testing.T) {
	bubble(t, func(s *server, b *broker, stop func() error, _ *Relay) {
		s.mu.Lock()
		s.closes = time.Second
		s.mu.Unlock()
		b.mu.Lock()
		b.fail = errors.New("broker lost")
		b.mu.Unlock()
		s.send(commit(20, 30, 3)...)
		time.Sleep(time.Second / 2)
		if !s.isClosed() {
			t.Fatal("the session has not failed")
		}
		if err := stop(); err == nil || !strings.Contains(err.Error(), "broker lost") {
			t.Errorf("stopped with rows undelivered, and said %v", err)
		}
	})
}

// TestFailedWindowStartsOverFromTheState: nothing of a failed window counts, and the next session delivers it.
func TestFailedWindowStartsOverFromTheState(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, _ *Relay) {
		s.send(commit(20, 30, 2)...)
		time.Sleep(time.Second)
		b.mu.Lock()
		b.fail = errors.New("broker lost")
		b.mu.Unlock()
		s.send(commit(30, 40, 2)...)
		time.Sleep(50 * time.Millisecond)
		if b.now().Covered >= 40 {
			t.Fatalf("covered %s although the window failed", b.now().Covered)
		}
		time.Sleep(time.Second)
		s.send(commit(20, 30, 2)...) // a slot that went back sends this again
		s.send(commit(30, 40, 2)...)
		time.Sleep(2 * time.Second)
		if b.got() != "[20.1 20.2 30.1 30.2]" {
			t.Errorf("published %s", b.got())
		}
		if s.opens() < 2 {
			t.Error("no new session after a failed window")
		}
	})
}

// TestRefusedRowStopsWhatIsBehindIt: the rows before the rejected one are durable and in the state record, and no
// later row is published.
func TestRefusedRowStopsWhatIsBehindIt(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		b.setRefuse("30.2")
		s.send(append(append(commit(20, 30, 1), commit(30, 40, 3)...), commit(40, 50, 1)...)...)
		time.Sleep(time.Second)
		if b.got() != "[20.1 30.1]" {
			t.Errorf("published %s", b.got())
		}
		if b.now().Covered != 30 || b.now().Last() != (Position{30, 1}) {
			t.Errorf("state %+v", b.now())
		}
		var halt *HaltError
		if role, err := relay.Role(); role != Halted || !errors.As(err, &halt) {
			t.Errorf("role %s, %v", role, err)
		}
		if !s.isClosed() {
			t.Error("a halted relay keeps the slot")
		}
		b.setRefuse("")
		time.Sleep(31 * time.Second)
		s.send(append(commit(30, 40, 3), commit(40, 50, 1)...)...)
		time.Sleep(time.Second)
		if b.got() != "[20.1 30.1 30.2 30.3 40.1]" {
			t.Errorf("after the cause was fixed: %s", b.got())
		}
	})
}

func TestLostConnectionDeliversWhatWasReceived(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, _ *Relay) {
		s.send(commit(20, 30, 2)...)
		synctest.Wait()
		s.fail(errors.New("connection reset"))
		time.Sleep(time.Second)
		if b.got() != "[20.1 20.2]" || b.now().Covered != 30 {
			t.Errorf("published %s, covered %s", b.got(), b.now().Covered)
		}
	})
}

func TestStandbyNeverOpensKafka(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.inUse = true
		b := &broker{state: &State{Version: 1, Pipeline: "p", SystemID: "7", Timeline: 1, Covered: 10}}
		cfg := options()
		roles := []Role{}
		relay := NewRelay(cfg, s, b, plainRoute{}, Observer{Role: func(r Role, _ error) { roles = append(roles, r) }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- relay.Run(ctx) }()
		time.Sleep(10500 * time.Millisecond)
		synctest.Wait()
		if fmt.Sprint(roles) != "[standby]" || b.now().Epoch != 0 {
			t.Errorf("roles %v, epoch %d: a standby reports itself once and claims nothing", roles, b.now().Epoch)
		}
		if s.opens() < 8 {
			t.Errorf("%d attempts in ten seconds", s.opens())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestStateWrittenForItsTimeConfirmsNothing: the covered LSN of the session's first record may be confirmed only
// after the stream has passed it. Otherwise a slot on a server with another history would move beyond the
// transactions that show it.
func TestStateWrittenForItsTimeConfirmsNothing(t *testing.T) {
	opts, observer := options(), Tee()
	s := &session{client: &broker{}, state: &State{Covered: 100}}
	sh := newExchange(s.state)
	p := newPublisher(s, newQueue(newWindow(1, 1)), sh, &opts, &observer, nil, &memory{})
	if err := p.write(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := sh.confirmed.Load(); got != 0 {
		t.Errorf("%d is confirmed before the stream has passed it", got)
	}
	p.checkpointer.done(nil, 200, time.Now())
	if err := p.write(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := sh.confirmed.Load(); got != 200 {
		t.Errorf("%d is confirmed, want 200", got)
	}
}

// TestStopWhileAFailedSessionEnds: the failure is reported already, and the stop is not part of it.
func TestStopWhileAFailedSessionEnds(t *testing.T) {
	for _, c := range []struct{ session, run error }{
		{&HaltError{Found: "another history"}, nil},
		{errors.New("connection reset"), nil},
		{ErrSlotInUse, nil},
		{fmt.Errorf("%w: kafka is away", ErrUndelivered), ErrUndelivered},
		{fmt.Errorf("%w: %w", ErrUndelivered, context.Canceled), ErrUndelivered},
	} {
		ctx, stop := context.WithCancel(t.Context())
		announced := false
		s := NewSupervisor(Observer{Role: func(r Role, _ error) { announced = announced || r == Halted }}, func(context.Context) error {
			stop()
			return c.session
		})
		if err := s.Run(ctx); !errors.Is(err, c.run) {
			t.Errorf("a session that ended with %v: Run returned %v, want %v", c.session, err, c.run)
		}
		if role, _ := s.Role(); role != Stopped {
			t.Errorf("role %s", role)
		}
		var halt *HaltError
		if errors.As(c.session, &halt) != announced {
			t.Errorf("a session that ended with %v: halt announced: %t", c.session, announced)
		}
	}
}

// TestAnotherServerIsNotSuspected: a relay keeps running while another server replaces its own at the same address.
// It makes no row a dead letter because of the position of a row that Kafka rejected on the old server.
func TestAnotherServerIsNotSuspected(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		time.Sleep(time.Second)
		s.mu.Lock()
		s.facts.SystemID, s.err = "8", errors.New("the server was switched")
		s.mu.Unlock()
		s.Interrupt()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if role, err := relay.Role(); role != Halted {
			t.Fatalf("role %s, %v", role, err)
		}
		relay.memory.suspect = suspect{until: Position{50, 1}, row: Position{20, 1}, why: "it was rejected on the old server"}
		b.mu.Lock()
		b.state = &State{Version: StateVersion, Pipeline: "p", SystemID: "8", Timeline: 1, Covered: 10, Epoch: b.state.Epoch + 1}
		windows := b.windows
		b.mu.Unlock()
		time.Sleep(40 * time.Second)
		s.send(commit(20, 30, 2)...)
		time.Sleep(time.Second)
		if role, err := relay.Role(); role != Streaming || b.got() != "[20.1 20.2]" {
			t.Errorf("role %s, %v, published %s", role, err, b.got())
		}
		if n := b.count() - windows; n != 1 {
			t.Errorf("%d windows, want both rows in one", n)
		}
	})
}
