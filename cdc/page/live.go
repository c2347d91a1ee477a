package page

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/walpost/walpost/cdc/internal/shared"
)

// cache keeps the parts of the pages that were rendered last, because many browsers show the same one.
type cache struct {
	mu       sync.Mutex
	rendered map[string]*shared.Look[[]part] // by the target's URL
}

const mostRendered = 200

// parts returns the parts of a page, rendered from the newest facts. It waits for the first facts for at most firstWithin, and for newer
// ones for at most staleWithin.
func (s *site) parts(t target) []part {
	key := t.url("")
	s.cache.mu.Lock()
	look := s.cache.rendered[key]
	if look == nil {
		if s.cache.rendered == nil || len(s.cache.rendered) >= mostRendered {
			s.cache.rendered = map[string]*shared.Look[[]part]{}
		}
		look = &shared.Look[[]part]{}
		s.cache.rendered[key] = look
	}
	s.cache.mu.Unlock()
	parts := look.Get(s.Every/2, 2*firstWithin, func(*[]part) *[]part {
		parts := s.render(t)
		return &parts
	})
	if parts == nil {
		return nil
	}
	return *parts
}

const (
	heartbeat   = 10 * time.Second // a proxy or a browser must not take a quiet stream for a dead one
	writeWithin = 10 * time.Second
)

// live answers with server-sent events: first all parts of a page, and then each part that has changed.
func (s *site) live(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("pipeline")
	t := s.target(name, r.URL.Query())
	if name != "" && t.room == nil {
		w.WriteHeader(http.StatusNoContent) // the browser does not ask again
		return
	}
	select {
	case s.lives <- struct{}{}:
		defer func() { <-s.lives }()
	default:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy must not collect the events
	send := func(text string) bool {
		_ = out.SetWriteDeadline(time.Now().Add(writeWithin)) // the server's time limit for an answer would end the stream
		_, err := fmt.Fprint(w, text)
		return err == nil && out.Flush() == nil
	}
	if !send("retry: 2000\n\n") {
		return
	}
	tick := time.NewTicker(s.Every)
	defer tick.Stop()
	sent := map[string]string{}
	var last time.Time
	for {
		changed := map[string]string{}
		for _, p := range s.parts(t) {
			if sent[p.ID] != string(p.HTML) {
				changed[p.ID], sent[p.ID] = string(p.HTML), string(p.HTML)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(changed)) {
			data, err := json.Marshal(map[string]string{"id": id, "html": changed[id]})
			if err != nil || !send("event: part\ndata: "+string(data)+"\n\n") {
				return
			}
			last = time.Now()
		}
		if time.Since(last) > heartbeat {
			if !send(": still here\n\n") {
				return
			}
			last = time.Now()
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-s.ended:
			return
		}
	}
}
