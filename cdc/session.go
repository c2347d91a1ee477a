package cdc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walpost/walpost/cdc/internal/failpoint"
)

// session is one replication connection, which owns the slot, and the Kafka client that was opened after it. Only the
// slot, the state record and the relay's memory outlive it, and the memory does not change what is delivered or
// confirmed.
type session struct {
	stream   Stream
	id       Identity
	interval time.Duration // between two status updates
	client   Publisher
	state    *State // the session's first record, which is durable
	facts    Facts  // the facts that the record was reconciled with
}

func (s *session) close() {
	if s.client != nil {
		s.client.Close()
	}
	_ = s.stream.Close()
}

// runSession runs one session from its first step to its end. It returns nil only if ctx ended and every received row
// was delivered, and confirmed unless the connection was lost.
func (r *Relay) runSession(ctx context.Context) error {
	s, err := r.start(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return r.stream(ctx, s)
}

// start runs steps 1 to 6 of a session. It is the only recovery path. The session that it returns owns the slot, and
// its state record is durable.
func (r *Relay) start(ctx context.Context) (_ *session, err error) {
	troubles := &r.memory.troubles
	// 1. Preflight over SQL, for early and clear errors. Problems of publication and table wait for step 6: their
	// halt must be latched, and only the slot's owner may latch.
	table, err := r.source.Preflight(ctx)
	if err != nil {
		return nil, err
	}
	// 2. A first, unfenced look at the state and at the server's identity. Kafka comes first: while Kafka is away no
	// replication connection is opened.
	seen, err := r.sink.Peek(ctx)
	if err != nil {
		troubles.commitsAgain(ctx, r.source)
		return nil, err
	}
	s := &session{}
	if s.stream, s.id, err = r.source.Connect(ctx, table); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	r.observer.Connected(s.id.Wire)
	if s.facts, err = r.facts(ctx, s.id); err != nil {
		return nil, err
	}
	if err := identify(r.cfg.Pipeline, seen, &s.facts); err != nil {
		return nil, err
	}
	// 3. Own the slot. Always start at 0/0: PostgreSQL silently accepts a start beyond the end of the WAL and loses
	// rows.
	if err := s.stream.Start(ctx); err != nil {
		return nil, r.notOwned(err, &s.facts.Slot)
	}
	troubles.pid = s.id.PID
	troubles.commits(&s.facts)
	s.interval = r.statusInterval(s.id.Timeout)
	// The next steps wait for Kafka, perhaps for a long time. Meanwhile the server gets status updates with 0/0,
	// which confirms nothing.
	whole := ctx // a halt is latched even if the connection is lost
	ctx, stop := answering(ctx, s.interval, func() error { return s.stream.Status(0, false) })
	defer func() {
		if lost := stop(); lost != nil && (err == nil || errors.Is(err, context.Canceled)) {
			err = lost
		}
	}()
	// 4. A new client, never before this session owns the slot.
	if s.client, err = r.sink.Open(ctx); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("after_open"); err != nil {
		return nil, err
	}
	// 5. The state record, never before 4.
	st, err := s.client.State(ctx)
	if err != nil {
		return nil, err
	}
	// 6. Everything compared with it is read now, after it.
	if s.facts, err = r.facts(ctx, s.id); err != nil {
		return nil, err
	}
	if s.facts.Slot.Exists && s.facts.Slot.ActivePID != s.id.PID {
		if s.facts, err = r.stillAlone(ctx, s, st); err != nil {
			return nil, err
		}
	}
	if s.state, err = Reconcile(r.cfg.Pipeline, st, s.facts); err != nil {
		return nil, r.latch(whole, s.client, st, err)
	}
	r.memory.begin(s.state.SystemID)
	r.observer.Noted(slices.Concat(s.facts.Notes, s.client.Notes(st)))
	if s.state.Timeline != st.Timeline {
		if err := r.countPhantoms(ctx, s.client, s.state); err != nil {
			return nil, err
		}
	}
	r.claim(s.state)
	if err := s.client.Publish(ctx, nil, s.state); err != nil {
		return nil, fmt.Errorf("write the session's first state record: %w", err)
	}
	r.observer.Covered(s.state)
	return s, nil
}

// stream runs step 7: reader, publisher and watcher work until one of them or ctx ends. Only this function receives
// their errors, and it writes the halt.
func (r *Relay) stream(ctx context.Context, s *session) error {
	sh := newExchange(s.state)
	q := newQueue(newWindow(r.cfg.WindowRows, r.memory.windowBytes))
	rd := newReader(s, q, sh, &r.cfg, &r.observer)
	p := newPublisher(s, q, sh, &r.cfg, &r.observer, r.route, &r.memory)
	w := newWatcher(s, sh, &r.cfg, &r.observer, r.source, &r.memory.troubles)
	w.remember(&s.facts, s.state.Open)
	r.SetRole(Streaming, nil)

	// After ctx ends the publisher delivers what was received, for at most shutdown_timeout.
	work, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(r.cfg.ShutdownTimeout, abandon) })()
	// The reader ends when ctx ends, when the publisher ends, or when the watcher has found a change. The cause of
	// the context says which.
	reading, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(reading, s.stream.Interrupt)()

	drain, drained := make(chan struct{}), make(chan struct{})
	var failed error // the publisher's, once drained is closed
	go func() {
		failed = p.run(work, drain)
		close(drained) // before the reader can know
		end(failed)
	}()
	watching, stopWatching := context.WithCancel(work)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		if err := w.run(watching, *s.state); err != nil {
			end(err)
		}
	})

	ended := rd.run(reading)
	if ended == nil {
		ended = context.Cause(reading)
	}
	var halt *HaltError
	if ctx.Err() == nil {
		// Close the connection at once and report the cause; the publisher may still wait for Kafka.
		_ = s.stream.Close()
		if errors.As(ended, &halt) {
			w.assess(ctx, halt)
		}
		select {
		case <-drained: // the session ends now, and its error has the cause
		default:
			if halt != nil {
				r.SetRole(Halted, halt)
			} else {
				r.SetRole(Retrying, ended)
			}
		}
	}
	close(drain)
	_, stopAnswering := answering(work, s.interval, rd.status) // it fails at once if the connection was closed above
	<-drained
	abandoned := failed != nil && work.Err() != nil
	var unwritten error
	if errors.As(errors.Join(failed, ended), &halt) {
		unwritten = p.writeHalt(work, halt)
	}
	_ = stopAnswering()
	_ = rd.status() // if the server is gone, only the state record keeps these rows from being repeated
	stopWatching()
	watcher.Wait()

	switch {
	case abandoned:
		return fmt.Errorf("%w: Kafka did not take all of it within shutdown_timeout (%s): the rest stays in the slot and is delivered after the next start", ErrUndelivered, r.cfg.ShutdownTimeout)
	case ctx.Err() != nil:
		if err := errors.Join(failed, unwritten); err != nil {
			return fmt.Errorf("%w: %w", ErrUndelivered, err)
		}
		return nil
	case errors.Is(ended, failed):
		failed = nil // reported once, as ended
	}
	err := errors.Join(ended, failed, unwritten)
	w.countFailure(err)
	return err
}

// answering calls status at once and then every interval, until status fails or stop is called; then the context that
// it returns ends. stop waits for the last call and returns its error, or nil if ctx has ended.
func answering(ctx context.Context, interval time.Duration, status func() error) (_ context.Context, stop func() error) {
	answered, cancel := context.WithCancel(ctx)
	var lost error
	var answers sync.WaitGroup
	answers.Go(func() {
		defer cancel()
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			if lost = status(); lost != nil {
				return
			}
			select {
			case <-tick.C:
			case <-answered.Done():
				return
			}
		}
	})
	return answered, func() error {
		cancel()
		answers.Wait()
		if ctx.Err() != nil {
			return nil
		}
		return lost
	}
}

// notOwned returns the error of a session that could not start its stream: err, or errFormerSession if an earlier
// session of this relay still has the slot.
func (r *Relay) notOwned(err error, slot *SlotFacts) error {
	if !errors.Is(err, ErrSlotInUse) {
		return err
	}
	r.memory.troubles.rest()
	if pid := slot.ActivePID; pid != 0 && pid == r.memory.troubles.pid {
		return fmt.Errorf("%w, PID %d: wait until the server notices that the connection is dead, or run SELECT pg_terminate_backend(%d)", errFormerSession, pid, pid)
	}
	return err
}

// facts reads the facts from the server that the replication connection leads to. It compares the timelines, because
// an address can move to another server between two queries.
func (r *Relay) facts(ctx context.Context, id Identity) (Facts, error) {
	f, err := r.source.Facts(ctx)
	if err == nil && f.Timeline != id.Timeline {
		err = fmt.Errorf("the server answered on timeline %d and then on timeline %d: a failover is under way, the relay tries again", id.Timeline, f.Timeline)
	}
	f.Identity = id
	return f, err
}

// statusInterval returns source.status_interval, or less if the server's timeout is shorter: the server would close
// the connection.
func (r *Relay) statusInterval(timeout time.Duration) time.Duration {
	configured := r.cfg.StatusInterval
	if timeout <= 0 || configured <= timeout/2 {
		return configured
	}
	r.observer.Hurried(timeout, timeout/2)
	return timeout / 2
}

// stillAlone is called when this session no longer holds the slot. If another relay has taken over since, it may have
// moved slot and state: this session ends without a verdict. If not, the server itself ended the stream, because it
// cannot decode the first change, and this session must report that.
func (r *Relay) stillAlone(ctx context.Context, s *session, st *State) (Facts, error) {
	lost := errors.New("this session lost the slot before it could stream: the relay tries again")
	if s.facts.Slot.ActivePID != 0 {
		return s.facts, lost
	}
	again, err := s.client.State(ctx)
	if err != nil {
		return s.facts, err
	}
	if again == nil || st == nil || again.Key() != st.Key() {
		return s.facts, lost
	}
	facts, err := r.facts(ctx, s.id)
	if err == nil && facts.Slot.ActivePID != 0 {
		err = lost
	}
	return facts, err
}

// claim raises the record's epoch and makes this session its owner.
func (r *Relay) claim(st *State) {
	st.Epoch, st.Instance, st.Time = st.Epoch+1, r.instance, time.Now().UTC()
}

// latch writes the halt that Reconcile returned into the state record, if that halt must be latched. It may: this
// session owns the slot, and identify has checked that the server is the right one. A session that does not own the
// slot latches nothing, because another relay may rightly be at work. A halt that such a session finds (the slot is
// missing or lost, the server is not the record's) is found again from the same facts.
func (r *Relay) latch(ctx context.Context, client Publisher, st *State, err error) error {
	var halt *HaltError
	if !errors.As(err, &halt) || !halt.Latch {
		return err
	}
	latched := *st
	latched.Version, latched.Halt = StateVersion, halt.record(time.Now())
	r.claim(&latched)
	if werr := client.Publish(ctx, nil, &latched); werr != nil {
		return fmt.Errorf("write a halt into the state record: %w", errors.Join(werr, err))
	}
	return err
}

// countPhantoms counts the published rows that a failover took back.
func (r *Relay) countPhantoms(ctx context.Context, client Publisher, st *State) error {
	ph := st.Phantoms
	if ph == nil {
		return nil
	}
	ph.At = time.Now().UTC()
	var err error
	if ph.Rows, ph.AtLeast, err = client.CountFrom(ctx, ph.Range.From); err != nil {
		ph.Rows = -1
	}
	r.observer.Phantoms(ph)
	return ctx.Err()
}

// exchange holds what reader, publisher and watcher of a session share, besides the rows in the queue.
type exchange struct {
	// confirmed is the LSN that may be confirmed: a state record with covered at or above it is durable. The publisher
	// raises it with each state record. The reader sends it, and sets it to the covered of the session's first record
	// once the stream has passed that.
	confirmed atomic.Uint64
	// looked is the last look that found publication and table unchanged. The watcher writes it; reader, publisher
	// and watcher read it.
	looked  atomic.Pointer[look]
	motion  motion                // reader and publisher write, the watcher reads
	place   atomic.Pointer[place] // of the last durable state record: the publisher writes, the watcher reads
	lag     Lag                   // the watcher writes, watcher and publisher read
	refresh chan struct{}         // the watcher asks the publisher for a new state record, if the last is stale
}

func newExchange(st *State) *exchange {
	s := &exchange{refresh: make(chan struct{}, 1)}
	s.place.Store(&place{st.Covered, st.Last()})
	return s
}
