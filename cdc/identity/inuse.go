package identity

import (
	"cmp"
	"crypto/x509"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// expiresSoon is how long before a certificate's end the log warns.
const expiresSoon = 7 * 24 * time.Hour

// inUse has the client certificates that the newest connections use, by the names of their keys.
type inUse struct {
	log zerolog.Logger

	mu sync.Mutex
	of map[string]shown
}

// shown is a certificate that was logged.
type shown struct {
	leaf *x509.Certificate
	soon bool // the warning about its end was logged
}

// note records the certificate that is used from now on, nil for none. It logs a new certificate, and warns once when
// its end is near.
func (u *inUse) note(key string, leaf *x509.Certificate) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if leaf == nil {
		delete(u.of, key)
		return
	}
	left := time.Until(leaf.NotAfter)
	now := shown{leaf, left < expiresSoon}
	if before := u.of[key]; leaf.Equal(before.leaf) && now.soon == before.soon {
		return
	}
	if u.of == nil {
		u.of = map[string]shown{}
	}
	u.of[key] = now
	if now.soon {
		u.log.Warn().Str("key", key).Time("expires", leaf.NotAfter.UTC()).Msgf("the certificate %s expires in %s: renew it", leaf.Subject, cmp.Or(left.Truncate(time.Hour), left.Truncate(time.Second)))
		return
	}
	u.log.Info().Str("key", key).Time("expires", leaf.NotAfter.UTC()).Msgf("the certificate %s is used", leaf.Subject)
}

// ends returns when the certificates expire, by their keys.
func (u *inUse) ends() map[string]time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	ends := make(map[string]time.Time, len(u.of))
	for key, c := range u.of {
		ends[key] = c.leaf.NotAfter
	}
	return ends
}
