package inbox

import (
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/identity"
)

// trouble is the state of something the consumer depends on. It is logged when it begins and when it ends, and not for
// each try in between, unless Kafka gives another reason for not letting us in.
type trouble struct {
	mu    sync.Mutex
	err   error // nil while all is well
	since time.Time
	until time.Time // it lasts at least so long
}

// failed begins the trouble or goes on with it, for at least the time given: for an error that shows itself now and then.
func (t *trouble) failed(log zerolog.Logger, err error, atLeast time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.err == nil {
		t.since = now
	}
	if t.err == nil || errors.As(err, new(*identity.RefusedError)) && err.Error() != t.err.Error() {
		log.Warn().Err(err).Msg("in trouble, trying again until it is over")
	}
	t.err, t.until = err, now.Add(atLeast)
}

// worked ends the trouble.
func (t *trouble) worked(log zerolog.Logger) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil || time.Now().Before(t.until) {
		return
	}
	log.Info().Dur("after", time.Since(t.since)).Msg("recovered")
	t.err = nil
}

func (t *trouble) current() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
