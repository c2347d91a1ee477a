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

// Options configures a Relay.
type Options struct {
	Pipeline    string
	ExactlyOnce bool          // rows and state record in one Kafka transaction
	WindowRows  int           // most rows in a window
	WindowBytes int           // most bytes of rows in a window
	Pace        time.Duration // shortest time between two windows, and between two reads, of a quiet relay
	// DeadLetters is the topic for rows that can never be published. If it is empty, the relay halts at such a row.
	DeadLetters string
	HoldKey     bool // later rows of a key wait in DeadLetters while an earlier dead letter of that key is unresolved

	StatusInterval  time.Duration // longest time between two status updates
	CheckInterval   time.Duration // longest time between two checks of publication and table
	QueueTimeout    time.Duration // if Kafka takes no window for this long, the replication connection is closed
	ShutdownTimeout time.Duration // how long a stopping relay waits until Kafka has taken the rows that it received
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

// memory keeps what a relay learned in earlier sessions. A relay that starts without it delivers and confirms the
// same rows, and learns it again.
type memory struct {
	server      string   // system id of the server that the rest was learned from
	suspect     suspect  // only the publisher uses it
	windowBytes int      // size of the next windows: the publisher halves it after a session that made no window durable
	troubles    troubles // the start of a session uses it, then its watcher
}

// begin forgets what depends on the positions of another server.
func (m *memory) begin(server string) {
	if m.server != server {
		m.server, m.suspect = server, suspect{}
	}
}

// NewRelay returns a relay for a valid configuration. It opens nothing before Run.
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

// Supervisor runs one session after another until its context ends, with a pause in between.
type Supervisor struct {
	session func(context.Context) error
	onRole  func(Role, error) // may be nil
	jitter  *rand.Rand        // of the backoff

	mu   sync.Mutex
	role Role
	err  error
}

// NewSupervisor returns a supervisor, which starts nothing before Run. The function session returns nil only if its
// context has ended and everything it received is delivered, and ErrUndelivered if its context has ended and
// something is not delivered.
func NewSupervisor(observer Observer, session func(context.Context) error) *Supervisor {
	return &Supervisor{session: session, onRole: observer.Role, role: Starting, jitter: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
}

// Run runs sessions until ctx ends. It returns nil if everything that the last session received was delivered, or if
// that session had failed before ctx ended. It reports a halt in any case. Delivered rows are confirmed too, unless
// the connection was lost: then the server sends them again, and the next session recognizes them by the state
// record. Run returns an error that wraps ErrUndelivered if a session was stopped and could not deliver all that it
// had received.
func (s *Supervisor) Run(ctx context.Context) error {
	backoff := backoffMin
	for {
		began := time.Now()
		err := s.session(ctx)
		var halt *HaltError
		if errors.As(err, &halt) {
			s.SetRole(Halted, halt) // also if the relay is stopped while the session closes
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

// Role returns the relay's role, and the cause if it is not streaming.
func (s *Supervisor) Role() (Role, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.role, s.err
}

// SetRole records the role and its cause. It notifies the observer unless both are the same as before, so that a
// cause that repeats at every attempt is reported once.
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
