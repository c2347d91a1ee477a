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
	*Sessions
	cfg      Options
	source   Source
	sink     Sink
	route    Route
	observer Observer
	instance string
	memory   memory
}

// memory is what a relay remembers of the sessions before. A relay that starts without it delivers and confirms the same: it learns it again.
type memory struct {
	suspect     suspect  // the publisher's
	windowBytes int      // of the next session's windows, halved while none of them could be made durable; the publisher's
	troubles    troubles // the watcher's while a session streams, and its start's before
}

// NewRelay makes a relay of a valid configuration. It holds nothing until Run.
func NewRelay(cfg Options, source Source, sink Sink, route Route, observer Observer) *Relay {
	host, _ := os.Hostname()
	r := &Relay{
		cfg: cfg, source: source, sink: sink, route: route, observer: observer,
		instance: fmt.Sprintf("%s-%d-%08x", host, os.Getpid(), rand.Uint32()),
	}
	r.memory = memory{windowBytes: cfg.WindowBytes, troubles: troubles{observer: &r.observer}}
	r.Sessions = NewSessions(observer, r.runSession)
	return r
}

// Sessions is a life of sessions, one after the other, whatever ends one of them.
type Sessions struct {
	session  func(context.Context) error
	observer Observer
	jitter   *rand.Rand // of the backoff

	mu   sync.Mutex
	role Role
	err  error
}

// NewSessions begins nothing until Run. A session ends with nil only when its context has ended and nothing is left to do.
func NewSessions(observer Observer, session func(context.Context) error) *Sessions {
	return &Sessions{session: session, observer: observer, role: Starting, jitter: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
}

// Run relays until ctx ends, through any number of sessions. It returns nil when everything that the last session received was delivered
// and confirmed, or when ctx ended between two sessions. It returns an error when the last session failed, or when shutdown_timeout was
// over before.
func (r *Sessions) Run(ctx context.Context) error {
	backoff := backoffMin
	for {
		began := time.Now()
		err := r.session(ctx)
		if ctx.Err() != nil {
			if err == nil || errors.Is(err, context.Canceled) {
				r.Enter(Stopped, context.Cause(ctx))
				return nil
			}
			r.Enter(Stopped, err)
			return err
		}
		var halt *Halt
		var wait time.Duration
		switch {
		case errors.As(err, &halt):
			r.Enter(Halted, halt)
			wait = haltRetry
		case errors.Is(err, errFormerSession):
			r.Enter(Retrying, err)
			wait = standbyRetry
		case errors.Is(err, ErrSlotInUse), errors.Is(err, ErrTableInUse):
			r.Enter(Standby, err)
			wait = standbyRetry
		default:
			if time.Since(began) > backoffMax {
				backoff = backoffMin
			}
			r.Enter(Retrying, err)
			wait = backoff/2 + time.Duration(r.jitter.Int64N(int64(backoff/2)))
			backoff = min(2*backoff, backoffMax)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			r.Enter(Stopped, context.Cause(ctx))
			return nil
		}
	}
}

// Role says what the relay is doing, and why where it is not streaming.
func (r *Sessions) Role() (Role, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.role, r.err
}

// Enter tells of a change once: a cause that repeats at every attempt is not news.
func (r *Sessions) Enter(role Role, err error) {
	r.mu.Lock()
	same := r.role == role && text(r.err) == text(err)
	r.role, r.err = role, err
	r.mu.Unlock()
	if !same {
		r.observer.role(role, err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
