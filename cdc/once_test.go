package cdc

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// onceBroker checks the content of each Kafka transaction.
type onceBroker struct {
	broker
	t       *testing.T
	ends    time.Time
	slow    func(bytes int) error // called with the bytes of each window; its error fails the window
	largest []int                 // bytes of each attempted window
}

func (b *onceBroker) Open(context.Context) (Publisher, error) { return b, nil }

func (b *onceBroker) Publish(ctx context.Context, records []Record, st *State) error {
	if st == nil {
		b.t.Error("I9: a window without its state record")
		return nil
	}
	bytes := 0
	for i := range records {
		bytes += records[i].Row.Size()
	}
	if len(records) > 0 {
		if last := records[len(records)-1].Row.Position; st.Last() != last {
			b.t.Errorf("I9: the record says %s/%d, its window ends at %s/%d", st.CommitLSN, st.Ordinal, last.Commit, last.Ordinal)
		}
		if gap := time.Since(b.ends); gap < transactionGap {
			b.t.Errorf("a transaction began %s after the end of the last", gap)
		}
		b.largest = append(b.largest, bytes)
		if b.slow != nil {
			if err := b.slow(bytes); err != nil {
				return err
			}
		}
	}
	time.Sleep(3 * time.Millisecond)
	defer func() { b.ends = time.Now() }()
	return b.broker.Publish(ctx, records, st)
}

func once(t *testing.T, f func(s *server, b *onceBroker)) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		b := &onceBroker{t: t, broker: broker{state: &State{Version: 1, Pipeline: "p", SystemID: "7", Timeline: 1, Covered: 10}}}
		cfg := options()
		cfg.ExactlyOnce = true
		cfg.WindowBytes = 1 << 20
		relay := NewRelay(cfg, s, b, plainRoute{}, Observer{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- relay.Run(ctx) }()
		synctest.Wait()
		f(s, b)
		cancel()
		<-ended
	})
}

func TestEachTransactionHoldsItsStateRecordAndLeavesRoom(t *testing.T) {
	once(t, func(s *server, b *onceBroker) {
		for i := range LSN(300) {
			s.send(commit(20+10*i, 30+10*i, 1)...)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		if len(b.list()) != 300 {
			t.Errorf("%d rows", len(b.list()))
		}
		if b.count() < 20 {
			t.Errorf("%d windows in 300 ms", b.count())
		}
	})
}

// TestWindowsShrinkOnASlowWire: without shrinking, a window that takes longer than its transaction may last would
// fail every time.
func TestWindowsShrinkOnASlowWire(t *testing.T) {
	once(t, func(s *server, b *onceBroker) {
		b.slow = func(bytes int) error {
			if bytes > 200<<10 {
				return errors.New("the broker aborted the transaction: it took too long")
			}
			return nil
		}
		big := commit(20, 30, 100)
		for i := range big {
			if big[i].Kind == Insert {
				big[i].Row.Payload = make([]byte, 20<<10)
			}
		}
		for range 4 { // the server sends again everything that was not confirmed
			s.send(big...)
			time.Sleep(time.Minute)
			s.mu.Lock()
			s.messages = nil
			s.mu.Unlock()
		}
		if len(b.list()) != 100 {
			t.Errorf("%d rows of 100 arrived; windows of %v bytes", len(b.list()), b.largest)
		}
	})
}

// TestRelayThatLostTheSlotDoesNotJudge: the relay is frozen after it has read the state and before it compares it,
// and wakes up after another relay has taken over and moved both. It would see a slot ahead of the state, and its
// halt would stop its successor.
func TestRelayThatLostTheSlotDoesNotJudge(t *testing.T) {
	bubble(t, func(s *server, b *broker, _ func() error, relay *Relay) {
		s.set(func(f *Facts) { f.Slot.ActivePID, f.Slot.ConfirmedFlush = 99, 500 })
		s.fail(errors.New("connection reset"))
		time.Sleep(time.Minute)
		if role, err := relay.Role(); role != Retrying {
			t.Errorf("role %s, %v", role, err)
		}
		if st := b.now(); st.Halt != nil {
			t.Errorf("it wrote into the state record: %+v", st.Halt)
		}
	})
}
