package cdc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

const (
	haltRetry    = 30 * time.Second
	standbyRetry = time.Second
	backoffMin   = 200 * time.Millisecond
	backoffMax   = 10 * time.Second
)

// Options is what a Relay needs to know of its pipeline.
type Options struct {
	Pipeline    string
	ExactlyOnce bool          // rows and state record in one Kafka transaction
	WindowRows  int           // most rows in a window
	WindowBytes int           // most bytes of rows in a window
	Pace        time.Duration // a quiet relay starts at most one window and one read in this time
	// DeadLetters is the topic for rows that can never be published; without one the relay halts at such a row.
	DeadLetters string
	HoldKey     bool // later rows of a key wait in DeadLetters while an earlier one is unresolved

	StatusInterval  time.Duration // longest time between two status updates
	CheckInterval   time.Duration // longest time between two looks at publication and table
	QueueTimeout    time.Duration // the replication connection is given back when Kafka has taken nothing for so long
	ShutdownTimeout time.Duration // how long the end waits for Kafka to take what was received
}

// Relay moves one pipeline's rows from its source to its sink.
type Relay struct {
	*Supervisor
	cfg      Options
	source   Source
	sink     Sink
	route    Route
	observer Observer
	instance string
	memory   memory
}

// memory is what a relay has learned in former sessions. A relay that starts without it delivers and confirms the same,
// and learns it again.
type memory struct {
	server      string   // system id of the one that the rest was learned of
	suspect     suspect  // only the publisher uses it
	windowBytes int      // size of the next windows: the publisher halves it after a session that could make none durable
	troubles    troubles // the start of a session uses it, then its watcher
}

// begin forgets what is known by the positions of another server.
func (m *memory) begin(server string) {
	if m.server != server {
		m.server, m.suspect = server, suspect{}
	}
}

// NewRelay makes a relay of a valid configuration. It holds nothing until Run.
func NewRelay(cfg Options, source Source, sink Sink, route Route, observer Observer) *Relay {
	host, _ := os.Hostname()
	r := &Relay{
		cfg: cfg, source: source, sink: sink, route: route, observer: Tee(observer),
		instance: fmt.Sprintf("%s-%d-%08x", host, os.Getpid(), rand.Uint32()),
	}
	r.memory = memory{windowBytes: cfg.WindowBytes, troubles: troubles{observer: &r.observer}}
	r.Supervisor = NewSupervisor(observer, r.runSession)
	return r
}

// Supervisor runs one session after the other until its context ends, with a pause in between.
type Supervisor struct {
	session func(context.Context) error
	onRole  func(Role, error) // nil when nobody wants to know
	jitter  *rand.Rand        // of the backoff

	mu   sync.Mutex
	role Role
	err  error
}

// NewSupervisor begins nothing until Run. A session ends with nil only when its context has ended and nothing is left
// to do, and with ErrUndelivered when its context has ended and something is.
func NewSupervisor(observer Observer, session func(context.Context) error) *Supervisor {
	return &Supervisor{session: session, onRole: observer.Role, role: Starting, jitter: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
}

// Run relays until ctx ends, through any number of sessions. It returns nil when everything that the last session
// received was delivered, or when that session had failed before ctx ended. A halt is announced in any case. What was
// delivered is confirmed, too, unless the connection was lost: then the server sends it again, and the state record knows
// it. Run returns an error that wraps ErrUndelivered when a session was stopped and could not deliver all it had received.
func (s *Supervisor) Run(ctx context.Context) error {
	backoff := backoffMin
	for {
		began := time.Now()
		err := s.session(ctx)
		var halt *HaltError
		if errors.As(err, &halt) {
			s.SetRole(Halted, halt) // also where the stop came while the session was closing
		}
		if ctx.Err() != nil {
			if errors.Is(err, ErrUndelivered) {
				s.SetRole(Stopped, err)
				return err
			}
			s.SetRole(Stopped, context.Cause(ctx))
			return nil
		}
		var wait time.Duration
		switch {
		case halt != nil:
			wait = haltRetry
		case errors.Is(err, errFormerSession):
			s.SetRole(Retrying, err)
			wait = standbyRetry
		case errors.Is(err, ErrSlotInUse), errors.Is(err, ErrTableInUse):
			s.SetRole(Standby, err)
			wait = standbyRetry
		default:
			if time.Since(began) > backoffMax {
				backoff = backoffMin
			}
			s.SetRole(Retrying, err)
			wait = backoff/2 + time.Duration(s.jitter.Int64N(int64(backoff/2)))
			backoff = min(2*backoff, backoffMax)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			s.SetRole(Stopped, context.Cause(ctx))
			return nil
		}
	}
}

// Role says what the relay is doing, and why where it is not streaming.
func (s *Supervisor) Role() (Role, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.role, s.err
}

// SetRole notes the role and its cause, and tells the observer unless both are as they were: a cause that repeats at every attempt is not
// news.
func (s *Supervisor) SetRole(role Role, err error) {
	s.mu.Lock()
	same := s.role == role && text(s.err) == text(err)
	s.role, s.err = role, err
	s.mu.Unlock()
	if !same && s.onRole != nil {
		s.onRole(role, err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
