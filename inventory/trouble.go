package inventory

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// trouble is the state of something the consumer depends on. It is logged when it begins and when it ends, and not for
// each try in between.
type trouble struct {
	mu     sync.Mutex
	err    error // nil while all is well
	since  time.Time
	latest time.Time
}

func (t *trouble) failed(log zerolog.Logger, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.since.IsZero() {
		t.since = now
		log.Warn().Err(err).Msg("in trouble, trying again until it is over")
	}
	t.err, t.latest = err, now
}

// worked ends the trouble, unless it failed within the last quiet.
func (t *trouble) worked(log zerolog.Logger, quiet time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil || time.Since(t.latest) < quiet {
		return
	}
	if !t.since.IsZero() {
		log.Info().Dur("after", time.Since(t.since)).Msg("recovered")
	}
	t.err, t.since = nil, time.Time{}
}

func (t *trouble) current() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
