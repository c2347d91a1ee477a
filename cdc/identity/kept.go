package identity

import (
	"context"
	"sync"

	"github.com/rs/zerolog"
)

// kept is a value that is read at each new connection. Where that fails, the last good value stands.
type kept[T any] struct {
	key  string // names it to people: kafka.tls_cert_file
	read func(context.Context) (T, error)
	log  zerolog.Logger
	// still says that the last good value can be used: that its time is not over. nil: for ever.
	still func(T) bool

	mu   sync.Mutex
	last T
	good bool   // last holds a value
	said string // what the log has about the newest failure
}

// get reads the value. Where that fails and one was good before, it returns that one and logs the failure, once for each that is new.
// Its error does not name the key.
func (k *kept[T]) get(ctx context.Context) (T, error) { return k.of(ctx, k.read) }

// of is get where each reading depends on another.
func (k *kept[T]) of(ctx context.Context, read func(context.Context) (T, error)) (T, error) {
	value, err := read(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		if k.said != "" {
			k.log.Info().Str("key", k.key).Msg("is good again, and used")
		}
		k.last, k.good, k.said = value, true, ""
	case !k.good || ctx.Err() != nil || k.still != nil && !k.still(k.last):
		return value, err
	case err.Error() != k.said:
		k.said = err.Error()
		k.log.Warn().Str("key", k.key).Err(err).Msg("cannot be read again: the last good one is used; correct it")
	}
	return k.last, nil
}
