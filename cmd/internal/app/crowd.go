package app

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
)

const (
	// maxConnections is the largest number of connections. For one more, the server closes the oldest one that is in no
	// handler.
	maxConnections = 1000
	// maxRequests is the largest number of requests in handlers at once, without those for operators.
	maxRequests = 250
)

// operators are the paths that are always answered, with any number of other requests.
var operators = []string{"/livez", "/readyz", "/metrics", "/status"}

// crowd limits the connections and requests of clients. Clients that send nothing, or never finish a request, cannot
// keep others out: at any time most connections are outside a handler, and the oldest of these is closed for a new one.
type crowd struct {
	mu       sync.Mutex
	waiting  []net.Conn            // connections in no handler, the oldest first
	handling map[net.Conn]struct{} // connections in a handler

	requests chan struct{}
}

// newCrowd returns an empty crowd.
func newCrowd() *crowd {
	return &crowd{handling: map[net.Conn]struct{}{}, requests: make(chan struct{}, maxRequests)}
}

type connectionKey struct{}

// context puts the connection into the context of its handlers.
func (*crowd) context(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

// state records that a connection was opened or closed.
func (g *crowd) state(c net.Conn, state http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(g.waiting) > 0 && len(g.waiting)+len(g.handling) >= maxConnections {
			_ = g.waiting[0].Close()
			g.waiting = g.waiting[1:]
		}
		g.waiting = append(g.waiting, c)
	case http.StateClosed, http.StateHijacked:
		g.leave(c)
		delete(g.handling, c)
	}
}

// leave removes c from waiting. The caller holds the lock.
func (g *crowd) leave(c net.Conn) {
	if at := slices.Index(g.waiting, c); at >= 0 {
		g.waiting = slices.Delete(g.waiting, at, at+1)
	}
}

// handler returns next with a limit on the number of requests at once.
func (g *crowd) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(operators, r.URL.Path) {
			select {
			case g.requests <- struct{}{}:
				defer func() { <-g.requests }()
			default:
				w.Header().Set("Connection", "close")
				w.Header().Set("Retry-After", "1")
				http.Error(w, "too many requests at once: try again", http.StatusServiceUnavailable)
				return
			}
		}
		c, _ := r.Context().Value(connectionKey{}).(net.Conn)
		g.mu.Lock()
		g.leave(c)
		g.handling[c] = struct{}{}
		g.mu.Unlock()
		defer func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			if _, open := g.handling[c]; open { // else it was closed meanwhile
				delete(g.handling, c)
				g.waiting = append(g.waiting, c)
			}
		}()
		next.ServeHTTP(w, r)
	})
}
