package identity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// kept is a value that is read again for each new connection. If that fails, it keeps the last good value.
type kept[T any] struct {
	key  string // the setting's name: kafka.tls_cert_file
	read func(context.Context) (T, error)
	log  zerolog.Logger
	// ends returns the time when a value expires. A nil function and a zero time mean never.
	ends func(T) time.Time

	mu     sync.Mutex
	last   T
	good   bool  // last holds a value
	failed error // why the value could not be read again; nil if it could
}

// get reads the value. If that fails and there is a last good value, get returns that one, and logs each new failure
// once. Its error does not contain the key.
func (k *kept[T]) get(ctx context.Context) (T, error) { return k.of(ctx, k.read) }

// of does what get does, with another function to read the value.
func (k *kept[T]) of(ctx context.Context, read func(context.Context) (T, error)) (T, error) {
	value, err := read(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		if k.failed != nil {
			k.log.Info().Str("key", k.key).Msg("is good again, and used")
		}
		k.last, k.good, k.failed = value, true, nil
	case !k.good || ctx.Err() != nil:
		return value, err
	case k.over(0):
		k.failed = err
		return value, k.withEnd(err)
	case k.failed == nil || err.Error() != k.failed.Error():
		k.failed = err
		k.log.Warn().Str("key", k.key).Err(err).Msg("cannot be read again: the last good one is used; correct it")
	}
	return k.last, nil
}

// over reports whether the last good value has expired, or expires within the time.
func (k *kept[T]) over(within time.Duration) bool {
	end := k.end()
	return !end.IsZero() && time.Until(end) <= within
}

// end returns the time when the last good value expires; zero if it does not, or there is none.
func (k *kept[T]) end() time.Time {
	if !k.good || k.ends == nil {
		return time.Time{}
	}
	return k.ends(k.last)
}

// withEnd returns the error with the time when the last good value expires, if it does.
func (k *kept[T]) withEnd(err error) error {
	end := k.end()
	switch said := end.UTC().Format(time.RFC3339); {
	case end.IsZero(), errors.As(err, new(*expiredError)): // an expiredError has the time
		return err
	case k.over(0):
		return fmt.Errorf("%w; the last good one has expired at %s", err, said)
	default:
		return fmt.Errorf("%w; the last good one expires at %s", err, said)
	}
}

// cause returns the reason why the server refuses the last good value, in a sentence that begins with the key, or "".
// renewed says that the server refused to renew a login; it also refuses a value that expires within seconds. ending
// reports that the value's end is the whole reason.
func (k *kept[T]) cause(renewed bool) (said string, ending bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch ending = k.over(renewSoon); {
	case k.failed != nil:
		return about(k.key, k.withEnd(k.failed)).Error(), ending
	case renewed && ending:
		return fmt.Sprintf("%s: the token expires at %s, and there is no newer one: have a new one written or printed sooner; nothing is lost", k.key, k.end().UTC().Format(time.RFC3339)), true
	}
	return "", false
}
