package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Login makes the connections of all Kafka clients of one owner. Each new connection uses the present contents of the
// files. A nil Login connects without TLS and without a login.
type Login struct {
	Unshown

	k       Kafka
	brokers []string
	name    Names
	log     zerolog.Logger
	tls     *connection    // nil: no TLS
	sasl    sasl.Mechanism // nil: no login
	proof   proof          // the password or the token; nil: neither
	certs   inUse
	warned  sync.Once

	mu      sync.Mutex
	inside  bool                // a broker has accepted our login
	wanted  bool                // a broker has requested a client certificate, and there is none
	refused map[string]refusal  // by broker, the failure of the newest connection to it
	waits   map[*time.Time]bool // the start times of logins that wait for the password or the token
}

// refusedLately is how long a failed connection counts as the present state. A client tries again sooner than that.
const refusedLately = time.Minute

// refusal is the failure of a connection.
type refusal struct {
	err error
	at  time.Time
}

// NewLogin returns a Login for settings that Check has accepted. It reads no file before the first connection.
func NewLogin(k Kafka, brokers []string, name Names, log zerolog.Logger) *Login {
	l := &Login{k: k, brokers: brokers, name: name, log: log, certs: inUse{log: log}, refused: map[string]refusal{}, waits: map[*time.Time]bool{}}
	if k.TLS {
		l.tls = &connection{serverName: k.TLSServerName, authorities: l.authorities("tls_ca_file", k.TLSCAFile), pair: l.pair(), asked: l.askedForCertificate}
	}
	switch k.SASL.Mechanism {
	case NoLogin:
	case OAuthBearer:
		token := l.token()
		l.proof, l.sasl = token, &bearer{token: token, settings: k.SASL}
	case AWSMSKIAM:
		l.sasl = l.aws()
	case Plain:
		password := l.password()
		l.proof = password
		l.sasl = plain.Plain(func(ctx context.Context) (plain.Auth, error) {
			word, err := password.get(ctx)
			return plain.Auth{User: k.SASL.Username, Pass: word.Reveal()}, about(password.key, err)
		})
	default:
		password := l.password()
		l.proof = password
		get := func(ctx context.Context) (scram.Auth, error) {
			word, err := password.get(ctx)
			return scram.Auth{User: k.SASL.Username, Pass: word.Reveal()}, about(password.key, err)
		}
		l.sasl = scram.Sha256(get)
		if k.SASL.Mechanism == ScramSHA512 {
			l.sasl = scram.Sha512(get)
		}
	}
	if l.sasl != nil {
		l.sasl = &noted{l.sasl, l}
	}
	return l
}

// Options returns the options that each client needs in addition to its brokers.
func (l *Login) Options() []kgo.Opt {
	if l == nil {
		return nil
	}
	l.warned.Do(func() {
		for _, said := range l.k.Warnings(l.name, l.brokers) {
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

// OnBrokerConnect records the result of a connection. Each client calls it for each connection, after the login has
// succeeded or failed.
func (l *Login) OnBrokerConnect(meta kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	at := net.JoinHostPort(meta.Host, strconv.Itoa(int(meta.Port)))
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		delete(l.refused, at)
		l.wanted, l.inside = false, true
		return
	}
	if gaveUp(err) && !errors.As(err, new(*mistakeError)) {
		return // the error says nothing about the broker, and must not replace another connection's failure
	}
	l.refused[at] = refusal{err, time.Now()}
}

// gaveUp reports whether an error says only that a timeout has passed, or that the client has stopped waiting.
func gaveUp(err error) bool {
	return timedOut(err) || errors.Is(err, context.Canceled) || errors.Is(err, kgo.ErrClientClosed) || errors.Is(err, net.ErrClosed)
}

// timedOut reports whether an error is a timeout of a context or of a connection.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// Trouble returns the reason why Kafka has refused the newest connection, or what that connection waits for. It returns
// nil if Kafka has accepted it, or if no broker answers.
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
	if !errors.As(newest.err, new(*mistakeError)) { // such an error is how the wait has ended
		if waits := l.awaits(); waits != "" {
			return &RefusedError{sentence: waits, err: context.DeadlineExceeded, ours: true}
		}
	}
	if newest.err == nil {
		return nil
	}
	return l.explain(at, newest.err, nil)
}

// proof is a kept password or token, which proves our identity.
type proof interface {
	cause(renewed bool) (said string, ending bool)
}

// noted is a mechanism that records in the Login how long it waits for the password or the token.
type noted struct {
	sasl.Mechanism
	login *Login
}

// Authenticate begins a login. It reads the password or the token, and sends nothing to Kafka.
func (n *noted) Authenticate(ctx context.Context, host string) (sasl.Session, []byte, error) {
	began, l := time.Now(), n.login
	l.mu.Lock()
	l.waits[&began] = true
	l.mu.Unlock()
	session, first, err := n.Mechanism.Authenticate(ctx, host)
	l.mu.Lock()
	delete(l.waits, &began)
	l.mu.Unlock()
	if ctx.Err() != nil { // the client was closed, so the error does not show a fault
		return nil, nil, ctx.Err()
	}
	return session, first, err
}

// waitsLong is how long a login waits for the password or the token before Trouble reports it.
const waitsLong = time.Second

// awaits returns a sentence about the file, command or endpoint that a login has waited for; "" if no login waits long.
func (l *Login) awaits() string {
	l.mu.Lock()
	long := false
	for began := range l.waits {
		long = long || time.Since(*began) > waitsLong
	}
	l.mu.Unlock()
	if !long {
		return ""
	}
	command := func(key, command string) string {
		return fmt.Sprintf("%s: the command %s has printed nothing yet: run it by hand", l.name(key), strings.Fields(command)[0])
	}
	s := &l.k.SASL
	switch {
	case s.TokenURL != "":
		return fmt.Sprintf("%s: %s has not answered yet: start it, or let connections through to it", l.name("sasl.token_url"), HideURL(s.TokenURL))
	case s.TokenCommand != "":
		return command("sasl.token_command", s.TokenCommand)
	case s.PasswordCommand != "":
		return command("sasl.password_command", s.PasswordCommand)
	case s.Mechanism == AWSMSKIAM:
		return l.name("sasl.mechanism") + ": nothing has given AWS credentials yet: look at what gives them to this process"
	}
	key, file := "sasl.token_file", s.TokenFile
	if file == "" {
		key, file = "sasl.password_file", s.PasswordFile
	}
	return fmt.Sprintf("%s: the file %s has not been read yet: look at the disk that it is on", l.name(key), file)
}

// Certificates returns the times when the certificates in use expire, by the name of their key.
func (l *Login) Certificates() map[string]time.Time {
	if l == nil {
		return nil
	}
	return l.certs.ends()
}

// askedForCertificate records that a broker has requested a client certificate, and there is none.
func (l *Login) askedForCertificate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = true
}

// password returns the password with its source.
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

// fromFile returns the function that reads a password from a file.
func fromFile(path string) func(context.Context) (Secret, error) {
	return func(context.Context) (Secret, error) {
		word, err := readWord(path)
		return Secret(word), err
	}
}

// fromCommand returns the function that reads a password from a command.
func fromCommand(command string) func(context.Context) (Secret, error) {
	return func(ctx context.Context) (Secret, error) {
		word, err := runForWord(ctx, command)
		return Secret(word), err
	}
}

// authorities returns the certificates of authorities with their file; nil for the system's.
func (l *Login) authorities(key, path string) *kept[*x509.CertPool] {
	if path == "" {
		return nil
	}
	return &kept[*x509.CertPool]{key: l.name(key), log: l.log, read: func(context.Context) (*x509.CertPool, error) { return readAuthorities(path) }}
}

// pair returns the client certificate with its files; nil if there is none.
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
	return &kept[*tls.Certificate]{key: key, log: l.log, read: read, ends: endOf}
}
