package cdc

import (
	"sync"
	"time"
)

// queue is the only place where reader and publisher meet: the window that is being filled. The publisher swaps it
// for an empty one, so at most two windows exist.
type queue struct {
	mu      sync.Mutex
	filling *Window
	busy    bool // the reader finds the stream busy: see pacer
	blocked bool // the reader has a row for which the window has no room

	wake chan struct{} // tells the publisher that something came
	room chan struct{} // tells the reader that the window was taken
}

func newQueue(w *Window) *queue {
	return &queue{filling: w, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// fill calls f with the filling window; f returns false if something did not fit.
func (q *queue) fill(busy bool, f func(*Window) (fits bool, err error)) (fits bool, err error) {
	q.mu.Lock()
	before := len(q.filling.Rows)
	fits, err = f(q.filling)
	if before == 0 && len(q.filling.Rows) > 0 {
		q.filling.since = time.Now()
	}
	q.busy, q.blocked = busy, !fits
	something := !q.filling.empty()
	q.mu.Unlock()
	if something {
		signal(q.wake)
	}
	return fits, err
}

// take swaps the filling window for the empty one, if it is time. An idle relay sends a single row at once. A quiet
// relay starts at most one window per pace. A busy relay sends a window when it is full or has reached age, never a
// small one. Otherwise take returns nil and how long to wait (zero: until woken).
func (q *queue) take(empty *Window, now, lastTaken time.Time, pace, age time.Duration, drain bool) (*Window, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.filling
	if w.empty() {
		return nil, 0
	}
	if !drain && !q.blocked && !w.full() {
		due := lastTaken.Add(pace)
		if q.busy && len(w.Rows) > 0 {
			due = w.since.Add(age)
		}
		if wait := due.Sub(now); wait > 0 {
			return nil, wait
		}
	}
	q.filling, q.blocked = empty, false
	signal(q.room)
	return w, 0
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
