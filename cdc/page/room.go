package page

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/walpost/walpost/cdc/internal/shared"
	"github.com/walpost/walpost/cdc/pipeline"
)

const (
	firstWithin   = 4 * time.Second // how long a page waits for the first look; a Status takes 3 s when a side hangs
	staleWithin   = 500 * time.Millisecond
	askWithin     = 5 * time.Second
	lettersEvery  = 15 * time.Second
	eventsEvery   = 4 * time.Second
	lastEvents    = 20
	searchWithin  = 20 * time.Second
	letterWithin  = 10 * time.Second
	lettersOnPage = 25
)

// room is a pipeline with what was last seen of it. All open pages share it.
type room struct {
	Pipeline

	seen    shared.Look[facts]
	began   atomic.Pointer[time.Time] // of the newest look
	letters shared.Look[letters]
	events  shared.Look[events]
}

// facts are what the page shows of a pipeline, as of one look.
type facts struct {
	at      time.Time
	status  pipeline.Status
	points  []pipeline.Point
	changes []pipeline.Change
}

type letters struct {
	at  time.Time
	all []pipeline.DeadLetter
	err error
}

type events struct {
	at  time.Time
	all []pipeline.Event // the newest first
	err error
}

// look returns the newest facts, nil if there are none yet. If they are older than fresh, it waits for newer ones: for firstWithin, and while
// a look is under way for long, as when a database hangs, for staleWithin.
func (r *room) look(fresh time.Duration) *facts {
	within, last := firstWithin, r.seen.Get(time.Hour, 0, r.ask)
	if began := r.began.Load(); began != nil && (last == nil || began.After(last.at)) {
		within = max(firstWithin-time.Since(*began), staleWithin)
	}
	return r.seen.Get(fresh, within, r.ask)
}

// ask looks at the pipeline.
func (r *room) ask(*facts) *facts {
	began := time.Now()
	r.began.Store(&began)
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	f := &facts{status: r.Status(ctx), points: r.History(), changes: r.Changes()}
	f.at = time.Now().UTC()
	return f
}

// unresolved returns the dead letters, if there are any.
func (r *room) unresolved(f *facts, within time.Duration) *letters {
	st := &f.status
	if (st.DeadLetters == nil || *st.DeadLetters == 0) && (st.Backlog == nil || st.Backlog.Failed == 0) {
		return &letters{}
	}
	return r.letters.Get(lettersEvery, within, func(last *letters) *letters {
		ctx, cancel := context.WithTimeout(context.Background(), askWithin)
		defer cancel()
		l := &letters{at: time.Now().UTC()}
		if l.all, l.err = r.DeadLetters(ctx); l.err != nil && last != nil {
			l.at, l.all = last.at, last.all
		}
		return l
	})
}

// newest returns the last events.
func (r *room) newest(within time.Duration) *events {
	return r.events.Get(eventsEvery, within, func(last *events) *events {
		ctx, cancel := context.WithTimeout(context.Background(), askWithin)
		defer cancel()
		e := &events{at: time.Now().UTC()}
		e.err = r.Tail(ctx, pipeline.TailOptions{Last: lastEvents}, func(event pipeline.Event) error {
			e.all = append(e.all, event)
			return nil
		})
		if e.err != nil && last != nil {
			e.at, e.all = last.at, last.all
			return e
		}
		slices.Reverse(e.all)
		return e
	})
}
