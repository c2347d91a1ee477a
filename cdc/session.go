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

// session is one life of the replication connection. Nothing survives it but the slot and the state record.
type session struct {
	*Relay
	stream Stream
	id     Identity

	interval time.Duration // between two status updates

	queue     *queue
	confirmed atomic.Uint64 // LSN that may be confirmed: a state record with covered at or above it is durable
	started   chan *tracker // the publisher's word that step 6 has passed
	drain     chan struct{} // closed when the reader has added its last row
	ended     chan struct{} // closed when the publisher has ended
	err       error         // what it ended with, from then on
	delivered bool          // the publisher's: a window was made durable
	failed    bool          // the publisher's: a window was not, and the client must not be used again
	held      held          // the publisher's: keys that wait for a dead letter

	found   chan error           // the watcher's word that something changed
	looked  atomic.Pointer[look] // the last look that found publication and table unchanged
	at      moving
	place   atomic.Pointer[place] // of the last durable state record; nil before step 7
	lag     Lag
	refresh chan struct{}        // the watcher's wish for a state record
	halted  atomic.Pointer[Halt] // why the reader ended, where it is a halt; set before drain is closed
}

// session runs the seven steps of a start, the only recovery path there is, and then relays until something ends it.
// It returns nil only when ctx ended and everything received was delivered and confirmed.
func (r *Relay) session(ctx context.Context) error {
	// 1. Preflight over SQL, for early and clear errors. What is wrong with publication and table waits for step 6: it must be
	// latched, which only the slot's owner may.
	if err := r.source.Preflight(ctx); err != nil {
		return err
	}
	// 2. A first, unfenced look at the state, and whose server this is. Kafka is asked first: while it is away no
	// replication connection is opened.
	seen, err := r.sink.Peek(ctx)
	if err != nil {
		r.commitsAgain(ctx)
		return err
	}
	stream, id, err := r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	r.observer.connected(id.Wire)
	facts, err := r.facts(ctx, id)
	if err != nil {
		return err
	}
	if err := identify(r.cfg.Pipeline, seen, &facts); err != nil {
		return err
	}
	// 3. Own the slot. Never start above 0/0: a start beyond the WAL's end is accepted silently and loses rows.
	if err := stream.Start(ctx); err != nil {
		if !errors.Is(err, ErrSlotInUse) {
			return err
		}
		r.rest()
		if pid := facts.Slot.ActivePID; pid != 0 && pid == r.troubles.pid {
			return fmt.Errorf("%w, PID %d: it ends when the server finds its connection dead, or with SELECT pg_terminate_backend(%d)", errFormerSession, pid, pid)
		}
		return err
	}
	r.troubles.pid = id.PID
	r.commits(&facts)
	s := &session{
		Relay: r, stream: stream, id: id, interval: r.statusInterval(id.Timeout),
		queue:   newQueue(newWindow(r.cfg.WindowRows, r.windowBytes)),
		started: make(chan *tracker, 1),
		drain:   make(chan struct{}),
		ended:   make(chan struct{}),
		found:   make(chan error, 1),
		refresh: make(chan struct{}, 1),
	}
	err = s.run(ctx)
	if ctx.Err() == nil {
		s.countFailure(err)
	}
	if s.delivered {
		r.windowBytes = r.cfg.WindowBytes
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

func (s *session) run(ctx context.Context) error {
	// The publisher outlives ctx: what was received is delivered before the session ends.
	pctx, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	go func() {
		s.err = s.publishAll(ctx, pctx)
		close(s.ended)
		s.stream.Interrupt()
	}()
	unhook := context.AfterFunc(ctx, s.stream.Interrupt)
	defer unhook()

	readErr := s.read(ctx)
	if ctx.Err() == nil {
		// Give the connection back at once and say why; the publisher may still wait for Kafka.
		_ = s.stream.Close()
		var halt *Halt
		if errors.As(readErr, &halt) {
			s.assess(ctx, halt)
			s.halted.Store(halt)
			s.Enter(Halted, halt)
		} else {
			s.Enter(Retrying, readErr)
		}
	}
	close(s.drain)
	if ctx.Err() == nil {
		select {
		case <-s.ended:
			if errors.Is(readErr, s.err) {
				return readErr
			}
			return errors.Join(readErr, s.err)
		case <-ctx.Done():
		}
	}
	return s.stop(abandon)
}

// stop waits until what was received is delivered, answers the server meanwhile, and confirms.
func (s *session) stop(abandon context.CancelFunc) error {
	grace := time.NewTimer(s.cfg.ShutdownTimeout)
	defer grace.Stop()
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			_ = s.status(false) // where the server is gone, the state record alone keeps rows from being repeated
			return s.err
		case <-tick.C:
			if err := s.status(false); err != nil {
				tick.Stop()
			}
		case <-grace.C:
			abandon()
			<-s.ended
			return fmt.Errorf("kafka did not take what was received within shutdown_timeout (%s): it stays in the slot and is delivered after the next start", s.cfg.ShutdownTimeout)
		}
	}
}

// publishAll is the publisher's goroutine: steps 4 to 6, which end with ctx, then windows until drained, which do not.
func (s *session) publishAll(ctx, drain context.Context) error {
	// 4. A new client, never before the slot is owned.
	pub, err := s.sink.Open(ctx)
	if err != nil {
		return err
	}
	defer pub.Close()
	if err := failpoint.Hit("after_open"); err != nil {
		return err
	}
	// 5. The state record, never before 4.
	st, err := pub.State(ctx)
	if err != nil {
		return err
	}
	// 6. Everything compared with it is read now, after it.
	facts, err := s.facts(ctx, s.id)
	if err != nil {
		return err
	}
	if facts.Slot.Exists && facts.Slot.ActivePID != s.id.PID {
		if facts, err = s.stillAlone(ctx, pub, st, facts); err != nil {
			return err
		}
	}
	next, err := Reconcile(s.cfg.Pipeline, st, facts)
	if err != nil {
		return s.latch(ctx, pub, st, err)
	}
	if next.Timeline != st.Timeline {
		if err := s.count(ctx, pub, next); err != nil {
			return err
		}
	}
	s.claim(next)
	if err := pub.Publish(ctx, nil, next); err != nil {
		return fmt.Errorf("write the session's first state record: %w", err)
	}
	s.observer.covered(next)
	s.place.Store(&place{next.Covered, next.Last()})
	s.remember(&facts, next.Open)
	s.started <- newTracker(next, facts.Slot.ConfirmedFlush)
	// 7. Stream, and watch what could hide rows.
	watching, stop := context.WithCancel(drain)
	var watcher sync.WaitGroup
	watcher.Go(func() { s.watch(watching, *next) })
	defer watcher.Wait()
	defer stop()
	p := newProgress(next, time.Now())
	return s.note(drain, pub, p, s.publish(drain, pub, p))
}

// stillAlone is asked when the slot is no longer read by this session. It was stopped or cut off, and another relay may have
// moved slot and state since: then it must not judge. Or the server cannot decode what comes first and has ended the stream at
// once: then nobody has begun after it, and it has to say so.
func (s *session) stillAlone(ctx context.Context, pub Publisher, st *State, facts Facts) (Facts, error) {
	lost := errors.New("the slot was lost before the session had begun")
	if facts.Slot.ActivePID != 0 {
		return facts, lost
	}
	again, err := pub.State(ctx)
	if err != nil {
		return facts, err
	}
	if again == nil || st == nil || again.Key() != st.Key() {
		return facts, lost
	}
	facts, err = s.facts(ctx, s.id)
	if err == nil && facts.Slot.ActivePID != 0 {
		err = lost
	}
	return facts, err
}

// assess names the range that is at risk, for a halt of which the stream could not tell: since the last look that found
// nothing.
func (s *session) assess(ctx context.Context, halt *Halt) {
	last := s.looked.Load()
	if !halt.Latch || !halt.Risk.IsZero() || last == nil {
		return
	}
	halt.Risk = Range{last.facts.WALEnd, last.facts.WALEnd}
	if facts, err := s.source.Facts(ctx); err == nil {
		halt.Risk.To = facts.WALEnd
		halt.Run += ", and " + replay(&State{CheckedAt: last.facts.Time, Open: last.open}, &facts) + " publishes the rows of that time"
	}
}

// record is what to write of what is durable now.
func (s *session) record(p *progress, now time.Time) *State {
	st := p.record(now)
	if last := s.looked.Load(); last != nil {
		st.Checked, st.CheckedAt, st.Open = last.facts.WALEnd, last.facts.Time, last.open
	}
	if at := s.lag.Current(st.Covered); !at.IsZero() {
		st.CurrentAt = at // else the last session's stands: its position was current then, and nothing was delivered since
	}
	return st
}

// claim makes the record this session's own.
func (s *session) claim(st *State) {
	st.Epoch, st.Instance, st.Time = st.Epoch+1, s.instance, time.Now().UTC()
}

// latch writes a halt that reconciling found into the state record, if it is one that must be latched. This session owns the
// slot, and identify has made sure that it is on the right server; where the slot cannot be owned nothing is latched,
// because another relay may rightly be at work, and what is found then (a slot missing or lost, a server that is not ours)
// is found again from the same facts.
func (s *session) latch(ctx context.Context, pub Publisher, st *State, err error) error {
	var halt *Halt
	if !errors.As(err, &halt) || !halt.Latch {
		return err
	}
	latched := *st
	latched.Version, latched.Halt = StateVersion, halt.record(time.Now())
	s.claim(&latched)
	if werr := pub.Publish(ctx, nil, &latched); werr != nil {
		return fmt.Errorf("write a halt into the state record: %w", errors.Join(werr, err))
	}
	return err
}

// note writes the halt that ended the session, if one did, into its state record: for `walpost status`, and for the sessions
// to come where it is latched. When Kafka does not take it, the cause still stands in slot, server and fingerprint, and is
// found again.
func (s *session) note(ctx context.Context, pub Publisher, p *progress, err error) error {
	halt := s.halted.Load()
	if err != nil && !errors.As(err, &halt) || halt == nil || s.failed {
		return err
	}
	st := s.record(p, time.Now())
	st.Halt = halt.record(st.Time)
	if werr := pub.Publish(ctx, nil, st); werr != nil {
		return errors.Join(err, fmt.Errorf("write a halt into the state record: %w", werr))
	}
	s.observer.covered(st)
	return err
}

// count finds out how many rows a failover took back.
func (s *session) count(ctx context.Context, pub Publisher, st *State) error {
	ph := st.Phantoms
	if ph == nil {
		return nil
	}
	ph.At = time.Now().UTC()
	var err error
	if ph.Rows, ph.AtLeast, err = pub.CountFrom(ctx, ph.Range.From); err != nil {
		ph.Rows = -1
	}
	s.observer.phantoms(ph)
	return ctx.Err()
}
