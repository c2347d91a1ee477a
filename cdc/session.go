package cdc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walpost/walpost/cdc/internal/failpoint"
)

// session is one life of the replication connection, which owns the slot, and of the client that was opened after it. Nothing survives it
// but the slot, the state record and the relay's memory, on which it does not depend what is delivered and confirmed.
type session struct {
	stream   Stream
	id       Identity
	interval time.Duration // between two status updates
	client   Publisher
	state    *State // the session's first record, which is durable
	facts    Facts  // that the record was reconciled with
}

func (s *session) close() {
	if s.client != nil {
		s.client.Close()
	}
	_ = s.stream.Close()
}

// runSession is a session from its first step to what ends it. It returns nil only when ctx ended and everything received was delivered
// and confirmed.
func (r *Relay) runSession(ctx context.Context) error {
	s, err := r.start(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return r.stream(ctx, s)
}

// start is steps 1 to 6 of a session, the only recovery path there is. The session that it returns owns the slot, and may stream.
func (r *Relay) start(ctx context.Context) (_ *session, err error) {
	troubles := &r.memory.troubles
	// 1. Preflight over SQL, for early and clear errors. What is wrong with publication and table waits for step 6: it must be
	// latched, which only the slot's owner may.
	table, err := r.source.Preflight(ctx)
	if err != nil {
		return nil, err
	}
	// 2. A first, unfenced look at the state, and whose server this is. Kafka is asked first: while it is away no
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
	r.observer.connected(s.id.Wire)
	if s.facts, err = r.facts(ctx, s.id); err != nil {
		return nil, err
	}
	if err := identify(r.cfg.Pipeline, seen, &s.facts); err != nil {
		return nil, err
	}
	// 3. Own the slot. Never start above 0/0: a start beyond the WAL's end is accepted silently and loses rows.
	if err := s.stream.Start(ctx); err != nil {
		return nil, r.notOwned(err, &s.facts.Slot)
	}
	troubles.pid = s.id.PID
	troubles.commits(&s.facts)
	s.interval = r.statusInterval(s.id.Timeout)
	// Kafka may keep the next steps waiting for long. Until they have passed the server is answered with 0/0, which confirms nothing.
	ctx, stop := answering(ctx, s.interval, func() error { return s.stream.Status(0, false) })
	defer func() {
		if lost := stop(); lost != nil && (err == nil || errors.Is(err, context.Canceled)) {
			err = lost
		}
	}()
	// 4. A new client, never before the slot is owned.
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
		return nil, r.latch(ctx, s.client, st, err)
	}
	if s.state.Timeline != st.Timeline {
		if err := r.countPhantoms(ctx, s.client, s.state); err != nil {
			return nil, err
		}
	}
	r.claim(s.state)
	if err := s.client.Publish(ctx, nil, s.state); err != nil {
		return nil, fmt.Errorf("write the session's first state record: %w", err)
	}
	r.observer.covered(s.state)
	return s, nil
}

// stream is step 7: reader, publisher and watcher work until ctx or one of them ends. This is where their errors meet, and where a halt is
// written.
func (r *Relay) stream(ctx context.Context, s *session) error {
	sh := newExchange(s.state)
	q := newQueue(newWindow(r.cfg.WindowRows, r.memory.windowBytes))
	rd := newReader(s, q, sh, &r.cfg, &r.observer)
	p := newPublisher(s, q, sh, &r.cfg, &r.observer, r.route, &r.memory)
	w := newWatcher(s, sh, &r.cfg, &r.observer, r.source, &r.memory.troubles)
	w.remember(&s.facts, s.state.Open)
	r.SetRole(Streaming, nil)

	// What was received is delivered after the end of ctx too, as far as shutdown_timeout allows.
	work, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(r.cfg.ShutdownTimeout, abandon) })()
	// The reader ends with ctx, with the publisher, and with what the watcher finds. The cause says which.
	reading, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(reading, s.stream.Interrupt)()

	drain, drained := make(chan struct{}), make(chan struct{})
	var failed error // the publisher's end
	go func() {
		defer close(drained)
		failed = p.run(work, drain)
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
	var halt *Halt
	if ctx.Err() == nil {
		// Give the connection back at once and say why; the publisher may still wait for Kafka.
		_ = s.stream.Close()
		if errors.As(ended, &halt) {
			w.assess(ctx, halt)
			r.SetRole(Halted, halt)
		} else {
			r.SetRole(Retrying, ended)
		}
	}
	close(drain)
	_, stopAnswering := answering(work, s.interval, rd.status) // until everything is delivered, where the connection is still there
	<-drained
	_ = stopAnswering()
	_ = rd.status() // where the server is gone, the state record alone keeps rows from being repeated
	stopWatching()
	watcher.Wait()

	err := failed
	switch {
	case failed != nil && work.Err() != nil:
		return fmt.Errorf("kafka did not take what was received within shutdown_timeout (%s): it stays in the slot and is delivered after the next start", r.cfg.ShutdownTimeout)
	case ctx.Err() == nil && !errors.Is(ended, failed):
		err = errors.Join(ended, failed)
	}
	if errors.As(errors.Join(failed, ended), &halt) {
		if werr := p.writeHalt(work, halt); werr != nil {
			err = errors.Join(err, fmt.Errorf("write a halt into the state record: %w", werr))
		}
	}
	if ctx.Err() == nil {
		w.countFailure(err)
	}
	return err
}

// answering calls status at once and every interval, until it fails or stop is called. The context that it returns ends then too. stop waits
// for the last call and returns its error, unless ctx has ended.
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

// notOwned returns why the slot is not this session's: err, or, where it is a former session's, that.
func (r *Relay) notOwned(err error, slot *SlotFacts) error {
	if !errors.Is(err, ErrSlotInUse) {
		return err
	}
	r.memory.troubles.rest()
	if pid := slot.ActivePID; pid != 0 && pid == r.memory.troubles.pid {
		return fmt.Errorf("%w, PID %d: it ends when the server finds its connection dead, or with SELECT pg_terminate_backend(%d)", errFormerSession, pid, pid)
	}
	return err
}

// facts are of the server that the replication connection leads to: an address can change hands between two questions.
func (r *Relay) facts(ctx context.Context, id Identity) (Facts, error) {
	f, err := r.source.Facts(ctx)
	if err == nil && f.Timeline != id.Timeline {
		err = fmt.Errorf("the server answered on timeline %d and then on timeline %d: a failover is under way", id.Timeline, f.Timeline)
	}
	f.Identity = id
	return f, err
}

// statusInterval returns source.status_interval, or less where the server would take the relay for gone before.
func (r *Relay) statusInterval(timeout time.Duration) time.Duration {
	configured := r.cfg.StatusInterval
	if timeout <= 0 || configured <= timeout/2 {
		return configured
	}
	r.observer.hurried(timeout, timeout/2)
	return timeout / 2
}

// stillAlone is asked when the slot is no longer read by this session. It was stopped or cut off, and another relay may have
// moved slot and state since: then it must not judge. Or the server cannot decode what comes first and has ended the stream at
// once: then nobody has begun after it, and it has to say so.
func (r *Relay) stillAlone(ctx context.Context, s *session, st *State) (Facts, error) {
	lost := errors.New("the slot was lost before the session had begun")
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

// claim makes the record this session's own.
func (r *Relay) claim(st *State) {
	st.Epoch, st.Instance, st.Time = st.Epoch+1, r.instance, time.Now().UTC()
}

// latch writes a halt that reconciling found into the state record, if it is one that must be latched. This session owns the
// slot, and identify has made sure that it is on the right server; where the slot cannot be owned nothing is latched,
// because another relay may rightly be at work, and what is found then (a slot missing or lost, a server that is not ours)
// is found again from the same facts.
func (r *Relay) latch(ctx context.Context, client Publisher, st *State, err error) error {
	var halt *Halt
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

// countPhantoms finds out how many rows a failover took back.
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
	r.observer.phantoms(ph)
	return ctx.Err()
}

// exchange is what reader, publisher and watcher of a session tell each other, besides the rows in the queue.
type exchange struct {
	// confirmed is the LSN that may be confirmed: a state record with covered at or above it is durable. The reader takes it from 0 to where
	// the session began when the stream has passed what was delivered before, the publisher raises it, and the reader sends it.
	confirmed atomic.Uint64
	motion    motion                // written by reader and publisher, read by the watcher
	place     atomic.Pointer[place] // of the last durable state record: written by the publisher, read by the watcher
	looked    atomic.Pointer[look]  // the last look that found publication and table unchanged: written by the watcher, read by all
	lag       Lag                   // written by the watcher, read by the publisher
	refresh   chan struct{}         // the watcher's wish for a state record, to the publisher
}

func newExchange(st *State) *exchange {
	s := &exchange{refresh: make(chan struct{}, 1)}
	s.place.Store(&place{st.Covered, st.Last()})
	return s
}
