package app

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
)

const (
	// maxConnections is how many clients are connected at most. For one more the oldest that is not being answered is closed.
	maxConnections = 1000
	// maxRequests is how many requests are answered at once, those of operators apart.
	maxRequests = 250
)

// operators are the paths that are answered however many other requests there are.
var operators = []string{"/livez", "/readyz", "/metrics", "/status"}

// crowd limits what clients hold at once. Those that say nothing, or never end what they say, keep nobody out: most connections are outside
// a handler at any time, and the oldest of these gives way to the newest.
type crowd struct {
	mu       sync.Mutex
	waiting  []net.Conn // not in a handler, the oldest first
	handling map[net.Conn]struct{}

	requests chan struct{}
}

func newCrowd() *crowd {
	return &crowd{handling: map[net.Conn]struct{}{}, requests: make(chan struct{}, maxRequests)}
}

type connectionKey struct{}

// context makes the connection known to its handlers.
func (*crowd) context(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

// state hears of connections as they come and go.
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

// leave takes c out of those that wait. The lock is held.
func (g *crowd) leave(c net.Conn) {
	if at := slices.Index(g.waiting, c); at >= 0 {
		g.waiting = slices.Delete(g.waiting, at, at+1)
	}
}

// handler returns next with a limit on how many requests it has at once.
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
