package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// tokenWithin is how long an endpoint may take to return a token. It is shorter than the timeout of a connection.
const tokenWithin = 8 * time.Second

// token proves our identity to Kafka until it expires.
type token struct {
	word    Secret
	expires time.Time // zero: unknown
}

func (t token) expired() bool { return !t.expires.IsZero() && !time.Now().Before(t.expires) }

// token returns the token with its source.
func (l *Login) token() *kept[token] {
	s := &l.k.SASL
	var key string
	var read func(context.Context) (token, error)
	switch {
	case s.TokenURL != "":
		key, read = "sasl.token_url", l.endpoint().get
	case s.TokenCommand != "":
		key, read = "sasl.token_command", inWord(fromCommand(s.TokenCommand))
	default:
		key, read = "sasl.token_file", inWord(fromFile(s.TokenFile))
	}
	return &kept[token]{key: l.name(key), log: l.log, read: read, ends: func(t token) time.Time { return t.expires }}
}

// inWord returns the token that a file or a command contains.
func inWord(read func(context.Context) (Secret, error)) func(context.Context) (token, error) {
	return func(ctx context.Context) (token, error) {
		word, err := read(ctx)
		if err != nil {
			return token{}, err
		}
		if !tokenPattern.MatchString(word.Reveal()) {
			return token{}, errNoToken
		}
		t := token{word, expiry(word.Reveal())}
		if t.expired() {
			return t, &expiredError{fmt.Errorf("the token has expired at %s: look why nothing has written or printed a new one", t.expires.UTC().Format(time.RFC3339))}
		}
		return t, nil
	}
}

// tokenPattern matches the tokens that RFC 6750 (2.1) allows.
var tokenPattern = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

var errNoToken = errors.New("this is not a token, because a token has no spaces, brackets or quotes: write the token alone")

// expiry returns the time when a token expires, if it is a JWT, which contains it.
func expiry(word string) time.Time {
	parts := strings.Split(word, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(text, &claims) != nil || claims.Exp <= 0 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Exp), 0)
}

// endpoint requests tokens with the client's secret.
type endpoint struct {
	login       *Login
	secret      *kept[Secret]
	connection  *connection // of https
	credentials clientcredentials.Config

	mu      sync.Mutex // one caller requests a token, the others wait for its answer
	token   token
	renewAt time.Time
	failed  error
	until   time.Time // until then failed counts, and the callers that have waited do not request once more
}

func (l *Login) endpoint() *endpoint {
	s := &l.k.SASL
	secret := &kept[Secret]{key: l.name("sasl.client_secret"), log: l.log, read: func(context.Context) (Secret, error) { return s.ClientSecret, nil }}
	if s.ClientSecretFile != "" {
		secret.key, secret.read = l.name("sasl.client_secret_file"), fromFile(s.ClientSecretFile)
	}
	return &endpoint{
		login: l, secret: secret, connection: &connection{authorities: l.authorities("sasl.token_ca_file", s.TokenCAFile)},
		credentials: clientcredentials.Config{ClientID: s.ClientID, TokenURL: s.TokenURL, Scopes: strings.Fields(s.Scope)},
	}
}

// renewSoon is the least time that a token must have left; with less, a new one is requested. A client that logs in
// with a token that expires within two seconds has to log in again within one second, which Kafka refuses.
const renewSoon = 10 * time.Second

// get returns the present token. It requests a new one if less than a fifth of its time is left, or, of a short time,
// less than half.
func (e *endpoint) get(ctx context.Context) (token, error) {
	asked := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Now().Before(e.renewAt) {
		return e.token, nil
	}
	if e.failed != nil && asked.Before(e.until) {
		return token{}, e.failed
	}
	t, err := e.ask(ctx)
	if err != nil && ctx.Err() != nil {
		return token{}, ctx.Err() // the caller gave up, which says nothing about the endpoint
	}
	if err != nil {
		e.failed, e.until = err, time.Now()
		return token{}, err
	}
	e.token, e.failed, e.renewAt = t, nil, time.Time{}
	if !t.expires.IsZero() {
		left := time.Until(t.expires)
		e.renewAt = t.expires.Add(-max(left/5, min(left/2, renewSoon)))
	}
	return t, nil
}

// ask requests a new token.
func (e *endpoint) ask(ctx context.Context) (token, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenWithin)
	defer cancel()
	secret, err := e.secret.get(ctx)
	if err != nil {
		return token{}, about(e.secret.key, err)
	}
	tlsConfig, err := e.connection.config(ctx)
	if err != nil {
		return token{}, err
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig, DisableKeepAlives: true, ForceAttemptHTTP2: true}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	e.credentials.ClientSecret = secret.Reveal()
	t, err := e.credentials.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
	if err != nil {
		return token{}, e.says(ctx, err, secret)
	}
	if !tokenPattern.MatchString(t.AccessToken) {
		return token{}, fmt.Errorf("%s answers with an access_token that is none: it has a character that no token has: ask who runs it", HideURL(e.credentials.TokenURL))
	}
	return token{Secret(t.AccessToken), t.Expiry}, nil
}

// says returns the meaning of an answer without a token. It leaves out other text of the endpoint, which can be a
// secret.
func (e *endpoint) says(ctx context.Context, err error, secret Secret) error {
	l, at := e.login, HideURL(e.credentials.TokenURL)
	var refused *oauth2.RetrieveError
	var network net.Error
	switch {
	case errors.As(err, &refused) && refused.ErrorCode != "":
		said := refused.ErrorCode
		if refused.ErrorDescription != "" {
			said += ", " + oneLine(refused.ErrorDescription)
		}
		said = secret.Scrub(said, l.k.SASL.ClientID)
		switch refused.ErrorCode {
		case "invalid_client", "unauthorized_client", "access_denied":
			return fmt.Errorf("%s refuses the client %q (%s): correct %s and %s", at, l.k.SASL.ClientID, said, l.name("sasl.client_id"), e.secret.key)
		case "invalid_scope":
			return fmt.Errorf("%s does not know the scope %q (%s): correct %s", at, l.k.SASL.Scope, said, l.name("sasl.scope"))
		}
		return fmt.Errorf("%s gives no token (%s): ask who runs it", at, said)
	case errors.As(err, &refused) && refused.Response.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%s refuses the client %q (%s): correct %s and %s", at, l.k.SASL.ClientID, refused.Response.Status, l.name("sasl.client_id"), e.secret.key)
	case errors.As(err, &refused):
		return fmt.Errorf("%s answers %s and no token: name the service's token endpoint", at, refused.Response.Status)
	case strings.Contains(err.Error(), "cannot parse"):
		return fmt.Errorf("%s answers with something that is no token, a web page for example: name the service's token endpoint", at)
	case strings.Contains(err.Error(), "missing access_token"):
		return fmt.Errorf("%s answers without an access_token: name the service's token endpoint", at)
	case ctx.Err() != nil, errors.As(err, &network) && network.Timeout():
		return fmt.Errorf("%s has not answered within %s: start it, or let connections through to it", at, tokenWithin)
	}
	if said := certificateTrouble(at, err, l.name("sasl.token_ca_file"), l.k.SASL.TokenCAFile, ""); said != "" {
		return errors.New(said)
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return fmt.Errorf("%s speaks no TLS: name the endpoint with TLS, or write http://", at)
	}
	return fmt.Errorf("%s cannot be reached: %w: start it, or name the service's token endpoint", at, errors.Unwrap(err))
}

// oneLine returns the text of another program as one short line, without control characters.
func oneLine(said string) string {
	said = strings.Join(strings.FieldsFunc(said, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if cut := []rune(said); len(cut) > 200 {
		said = string(cut[:197]) + "..."
	}
	return said
}

// bearer logs in with a token.
type bearer struct {
	token    *kept[token]
	settings SASL
}

// Name returns the mechanism's name.
func (*bearer) Name() string { return "OAUTHBEARER" }

// Authenticate begins a login.
func (b *bearer) Authenticate(ctx context.Context, host string) (sasl.Session, []byte, error) {
	pairs, err := b.settings.extensions()
	if err != nil {
		return nil, nil, err
	}
	t, err := b.token.get(ctx)
	if err != nil {
		return nil, nil, about(b.token.key, err)
	}
	session, first, err := oauth.Auth{Token: t.word.Reveal(), Extensions: pairs}.AsMechanism().Authenticate(ctx, host)
	return &bearerSession{Session: session}, first, err
}

// bearerSession is a login with a token. It reads the reason why Kafka refuses a token, which by RFC 7628 takes two
// steps.
type bearerSession struct {
	sasl.Session
	refused string // Kafka's reason, from the first step
}

var errTokenRefused = errors.New("kafka refuses the token")

// Challenge reads Kafka's answer to the token.
func (s *bearerSession) Challenge(said []byte) (bool, []byte, error) {
	switch {
	case s.refused != "":
		return true, nil, fmt.Errorf("%w: %s", errTokenRefused, s.refused)
	case len(said) > 0:
		s.refused = oneLine(string(said))
		return false, []byte{1}, nil // Kafka then answers with an error that has its reason
	}
	return s.Session.Challenge(said)
}
