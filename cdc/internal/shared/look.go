// Package shared lets many callers share one look at something slow.
package shared

import (
	"sync"
	"time"
)

// Look keeps the newest result of a function that takes long. One call of the function runs at a time.
type Look[T any] struct {
	mu      sync.Mutex
	last    *T
	at      time.Time
	looking chan struct{} // closed when the running call ends; nil if none runs
}

// Get returns the newest result, nil before the first. If it is older than fresh, Get calls ask with it and waits for the next, for at most
// within.
func (l *Look[T]) Get(fresh, within time.Duration, ask func(last *T) *T) *T {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != nil && time.Since(l.at) < fresh {
		return l.last
	}
	if l.looking == nil {
		done, last := make(chan struct{}), l.last
		l.looking = done
		go func() {
			next := ask(last)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.last, l.at, l.looking = next, time.Now(), nil
			close(done)
		}()
	}
	done := l.looking
	l.mu.Unlock()
	timer := time.NewTimer(within)
	select {
	case <-done:
	case <-timer.C:
	}
	timer.Stop()
	l.mu.Lock()
	return l.last
}
