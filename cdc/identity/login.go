package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Login makes the connections of all Kafka clients of one owner. Each new connection uses what the files hold then. A nil Login connects
// without TLS and logs in to nothing.
type Login struct {
	Unshown

	k       Kafka
	brokers []string
	name    Names
	log     zerolog.Logger
	tls     *connection    // nil: none
	sasl    sasl.Mechanism // nil: none
	certs   inUse
	warned  sync.Once

	mu      sync.Mutex
	inside  bool               // a broker has let us in
	wanted  bool               // a broker has asked for a client certificate, and there is none
	refused map[string]refusal // by broker: why the newest connection to it failed
}

// refusedLately is how long ago a connection may have failed that says how things are: a client tries again sooner.
const refusedLately = time.Minute

// refusal is why a connection failed.
type refusal struct {
	err error
	at  time.Time
}

// NewLogin makes a Login of settings that Check has found nothing wrong with. Nothing is read before the first connection.
func NewLogin(k Kafka, brokers []string, name Names, log zerolog.Logger) *Login {
	l := &Login{k: k, brokers: brokers, name: name, log: log, certs: inUse{log: log}, refused: map[string]refusal{}}
	if k.TLS {
		l.tls = &connection{serverName: k.TLSServerName, authorities: l.authorities("tls_ca_file", k.TLSCAFile), pair: l.pair(), asked: l.askedForCertificate}
	}
	switch k.SASL.Mechanism {
	case NoLogin:
	case OAuthBearer:
		l.sasl = &bearer{token: l.token(), settings: k.SASL}
	case AWSMSKIAM:
		l.sasl = l.aws()
	case Plain:
		password := l.password()
		l.sasl = plain.Plain(func(ctx context.Context) (plain.Auth, error) {
			word, err := password.get(ctx)
			return plain.Auth{User: k.SASL.Username, Pass: word.Reveal()}, about(password.key, err)
		})
	default:
		password := l.password()
		get := func(ctx context.Context) (scram.Auth, error) {
			word, err := password.get(ctx)
			return scram.Auth{User: k.SASL.Username, Pass: word.Reveal()}, about(password.key, err)
		}
		l.sasl = scram.Sha256(get)
		if k.SASL.Mechanism == ScramSHA512 {
			l.sasl = scram.Sha512(get)
		}
	}
	return l
}

// Options returns what each client needs beside its brokers.
func (l *Login) Options() []kgo.Opt {
	if l == nil {
		return nil
	}
	l.warned.Do(func() {
		for _, said := range l.k.warnings(l.name, l.brokers) {
			l.log.Warn().Msg(said)
		}
	})
	opts := []kgo.Opt{kgo.WithHooks(l)}
	if l.tls != nil {
		opts = append(opts, kgo.Dialer(l.tls.dial))
	}
	if l.sasl != nil {
		opts = append(opts, kgo.SASL(l.sasl))
	}
	return opts
}

// OnBrokerConnect is called by each client for each connection, once it is logged in, or is not.
func (l *Login) OnBrokerConnect(meta kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	at := net.JoinHostPort(meta.Host, strconv.Itoa(int(meta.Port)))
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		delete(l.refused, at)
		l.wanted, l.inside = false, true
		return
	}
	l.refused[at] = refusal{err, time.Now()}
}

// Trouble says why Kafka has not let the newest connection in, in a sentence, or returns nil: where all is well, or nobody answers at all.
func (l *Login) Trouble() error {
	if l == nil {
		return nil
	}
	var newest refusal
	var at string
	l.mu.Lock()
	for broker, r := range l.refused {
		if time.Since(r.at) < refusedLately && r.at.After(newest.at) {
			newest, at = r, broker
		}
	}
	l.mu.Unlock()
	if newest.err == nil {
		return nil
	}
	return l.explain(at, newest.err, nil)
}

// Certificates returns when the certificates in use expire, by the name of their key.
func (l *Login) Certificates() map[string]time.Time {
	if l == nil {
		return nil
	}
	return l.certs.ends()
}

func (l *Login) askedForCertificate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = true
}

// password returns where the password comes from.
func (l *Login) password() *kept[Secret] {
	s := &l.k.SASL
	key, read := "sasl.password", func(context.Context) (Secret, error) { return s.Password, nil }
	switch {
	case s.PasswordFile != "":
		key, read = "sasl.password_file", fromFile(s.PasswordFile)
	case s.PasswordCommand != "":
		key, read = "sasl.password_command", fromCommand(s.PasswordCommand)
	}
	return &kept[Secret]{key: l.name(key), log: l.log, read: read}
}

func fromFile(path string) func(context.Context) (Secret, error) {
	return func(context.Context) (Secret, error) {
		word, err := readWord(path)
		return Secret(word), err
	}
}

func fromCommand(command string) func(context.Context) (Secret, error) {
	return func(ctx context.Context) (Secret, error) {
		word, err := runForWord(ctx, command)
		return Secret(word), err
	}
}

// authorities returns where the certificates of authorities come from; nil where they are the system's.
func (l *Login) authorities(key, path string) *kept[*x509.CertPool] {
	if path == "" {
		return nil
	}
	return &kept[*x509.CertPool]{key: l.name(key), log: l.log, read: func(context.Context) (*x509.CertPool, error) { return readAuthorities(path) }}
}

// pair returns where the client certificate comes from; nil where there is none.
func (l *Login) pair() *kept[*tls.Certificate] {
	if l.k.TLSCertFile == "" {
		return nil
	}
	key := l.name("tls_cert_file")
	read := func(context.Context) (*tls.Certificate, error) {
		pair, err := readPair(key, l.k.TLSCertFile, l.name("tls_key_file"), l.k.TLSKeyFile, clearKey)
		if err == nil {
			err = about(key, inTime(pair))
		}
		if err == nil {
			l.certs.note(key, pair.Leaf)
		}
		return pair, err
	}
	return &kept[*tls.Certificate]{key: key, log: l.log, read: read, still: func(pair *tls.Certificate) bool { return inTime(pair) == nil }}
}
