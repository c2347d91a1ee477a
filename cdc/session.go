package cdc

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/walpost/walpost/cdc/internal/failpoint"
)

// session is one life of the replication connection. Nothing survives it but the slot and the state record.
type session struct {
	*Relay
	stream Stream
	id     Identity

	queue     *queue
	confirmed atomic.Uint64 // LSN that may be confirmed: a state record with covered at or above it is durable
	started   chan *State   // the publisher's word that step 6 has passed
	drain     chan struct{} // closed when the reader has added its last row
	ended     chan error    // the publisher's end
	delivered bool          // the publisher's: a window was made durable
	held      held          // the publisher's: keys that wait for a dead letter
}

// session runs the seven steps of a start, the only recovery path there is, and then relays until something ends it.
// It returns nil only when ctx ended and everything received was delivered and confirmed.
func (r *Relay) session(ctx context.Context) error {
	// 1. Preflight over SQL, for early and clear errors.
	if err := r.source.Preflight(ctx); err != nil {
		return err
	}
	// 2. A first, unfenced look at the state, and whose server this is. Kafka is asked first: while it is away no
	// replication connection is opened.
	seen, err := r.sink.Peek(ctx)
	if err != nil {
		return err
	}
	stream, id, err := r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	facts, err := r.source.Facts(ctx)
	if err != nil {
		return err
	}
	facts.Identity = id
	if err := identify(r.cfg.Pipeline, seen, facts); err != nil {
		return err
	}
	// 3. Own the slot. Never start above 0/0: a start beyond the WAL's end is accepted silently and loses rows.
	if err := stream.Start(ctx); err != nil {
		return err
	}
	s := &session{
		Relay: r, stream: stream, id: id,
		queue:   newQueue(newWindow(r.cfg.Window.Rows, r.windowBytes)),
		started: make(chan *State, 1),
		drain:   make(chan struct{}),
		ended:   make(chan error, 1),
	}
	err = s.run(ctx)
	if s.delivered {
		r.windowBytes = int(r.cfg.Window.Bytes)
	}
	return err
}

func (s *session) run(ctx context.Context) error {
	// The publisher outlives ctx: what was received is delivered before the session ends.
	pctx, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	go func() {
		err := s.publishAll(ctx, pctx)
		s.ended <- err
		s.stream.Interrupt()
	}()
	unhook := context.AfterFunc(ctx, s.stream.Interrupt)
	defer unhook()

	readErr := s.read(ctx)
	close(s.drain)
	if ctx.Err() == nil {
		// Give the connection back at once and say why; the publisher may still wait for Kafka.
		_ = s.stream.Close()
		if halt := new(Halt); !errors.As(readErr, &halt) {
			s.enter(Retrying, readErr)
		}
		select {
		case err := <-s.ended:
			return errors.Join(readErr, err)
		case <-ctx.Done():
		}
	}
	return s.stop(abandon)
}

// stop waits until what was received is delivered, answers the server meanwhile, and confirms.
func (s *session) stop(abandon context.CancelFunc) error {
	grace := time.NewTimer(s.cfg.ShutdownTimeout)
	defer grace.Stop()
	tick := time.NewTicker(s.cfg.Source.StatusInterval)
	defer tick.Stop()
	for {
		select {
		case err := <-s.ended:
			_ = s.status(false) // where the server is gone, the state record alone keeps rows from being repeated
			return err
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
	facts, err := s.source.Facts(ctx)
	if err != nil {
		return err
	}
	facts.Identity = s.id
	if err := Reconcile(s.cfg.Pipeline, st, facts); err != nil {
		return err
	}
	claim := *st
	claim.Epoch, claim.Instance, claim.Time = st.Epoch+1, s.instance, time.Now().UTC()
	if err := pub.Publish(ctx, nil, &claim); err != nil {
		return fmt.Errorf("write the session's first state record: %w", err)
	}
	s.confirmed.Store(uint64(claim.Covered))
	s.observer.covered(&claim)
	s.started <- &claim
	// 7. Stream.
	return s.publish(drain, pub, newProgress(&claim, time.Now()))
}
