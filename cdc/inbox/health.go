package inbox

import (
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/identity"
)

// health is the state of Kafka or of the database, as the consumer sees it. A failure is logged when it begins and when
// it ends, not at each retry in between, unless Kafka refuses the login for another reason.
type health struct {
	mu    sync.Mutex
	err   error // nil while it works
	since time.Time
	until time.Time // the failure counts until then at least
}

// failed records a failure, for at least the time given: some errors show only now and then.
func (h *health) failed(log zerolog.Logger, err error, atLeast time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.err == nil {
		h.since = now
	}
	if h.err == nil || errors.As(err, new(*identity.RefusedError)) && err.Error() != h.err.Error() {
		log.Warn().Err(err).Msg("failing, retrying until it works")
	}
	h.err, h.until = err, now.Add(atLeast)
}

// worked records that it works again, unless the failure must still count.
func (h *health) worked(log zerolog.Logger) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil || time.Now().Before(h.until) {
		return
	}
	log.Info().Dur("after", time.Since(h.since)).Msg("recovered")
	h.err = nil
}

func (h *health) current() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}
