package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/identity"
)

// minSecret is the smallest number of bytes that a signing secret may have.
const minSecret = 16

// shortestHidden is the length of the shortest URL value that is removed from answers: hiding 1 or true would hide
// nothing.
const shortestHidden = 5

// WebhookConfig configures a Webhook. Every field is required unless its comment says optional.
type WebhookConfig struct {
	identity.Unshown

	URL    string // https://, or http:// in a network that nobody can listen to
	Secret string // the key of the signature; at least 16 bytes

	Timeout time.Duration // optional: the limit for a request and its answer; 0: 30 s
}

// Webhook is the channel over HTTP: it POSTs each event unchanged, with
//
//	Idempotency-Key    the event's id: the same at every attempt
//	Webhook-Event      the event's type
//	Webhook-Signature  t=<Unix seconds>,v1=<hex of HMAC-SHA256, keyed with the secret, of "<t>." and the body>
//
// Any 2xx is a success. The receiver checks the signature with the time in it, rejects old times, and applies a key
// once.
type Webhook struct {
	identity.Unshown

	cfg    WebhookConfig
	to     string
	hidden []string // secrets of the configuration, in the forms in which an answer may repeat them
	client *http.Client
}

// NewWebhook checks cfg without connecting. The error lists every mistake, and no secret.
func NewWebhook(cfg WebhookConfig) (*Webhook, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	var errs []error
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		errs = append(errs, errors.New("--webhook-url (ORDERS_WEBHOOK_URL) is missing or not a URL: write it as in https://partner.example/orders"))
	}
	if len(cfg.Secret) < minSecret {
		errs = append(errs, fmt.Errorf("--webhook-secret (ORDERS_WEBHOOK_SECRET) is missing or shorter than %d bytes: make one with openssl rand -hex 32", minSecret))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = 64 << 10
	to := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path} // user and query may be secret
	password, _ := u.User.Password()
	hidden := []string{
		cfg.Secret, u.User.String(), base64.StdEncoding.EncodeToString([]byte(u.User.Username() + ":" + password)), password, u.RawQuery, u.EscapedFragment(),
	}
	for _, values := range u.Query() {
		hidden = append(hidden, values...)
	}
	return &Webhook{cfg: cfg, to: to.String(), hidden: hidden, client: &http.Client{
		Timeout: cfg.Timeout, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// To returns the URL in a form that may be shown: without user and query.
func (w *Webhook) To() string { return w.to }

// Close closes idle connections.
func (w *Webhook) Close() { w.client.CloseIdleConnections() }

func (w *Webhook) name() string { return ChannelWebhook }

func (w *Webhook) prepare(_ context.Context, n *task) error {
	n.Recipient = w.to
	return nil
}

func (w *Webhook) deliver(ctx context.Context, n *task) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.cfg.URL, bytes.NewReader(n.event))
	if err != nil {
		return "", &refusal{errors.New("the request cannot be made")}
	}
	for _, h := range [][2]string{
		{"Content-Type", "application/json"},
		{"User-Agent", "walpost-orders"},
		{"Idempotency-Key", n.EventID.String()},
		{"Webhook-Event", eventTypes[n.Kind]},
		{"Webhook-Signature", Sign(w.cfg.Secret, time.Now(), n.event)},
	} {
		req.Header.Set(h[0], h[1])
	}
	res, err := w.client.Do(req)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // without the URL
		}
		return "", errors.New(w.scrub(err.Error()))
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	answer := w.scrub(strings.TrimSpace(fmt.Sprintf("%d %s", res.StatusCode, body)))
	switch code := res.StatusCode; {
	case code/100 == 2:
		return answer, nil
	case code >= 500 || code == http.StatusRequestTimeout || code == http.StatusTooEarly || code == http.StatusTooManyRequests:
		return "", errors.New(answer)
	case code/100 == 3:
		return "", &refusal{fmt.Errorf("%s (redirects are not followed: give the URL it leads to)", answer)}
	default:
		return "", &refusal{errors.New(answer)}
	}
}

func (w *Webhook) scrub(text string) string {
	for _, hidden := range w.hidden {
		if len(hidden) >= shortestHidden {
			text = strings.ReplaceAll(text, hidden, "[secret]")
		}
	}
	return text
}

// Sign returns the value of Webhook-Signature for a body sent at that time.
func Sign(secret string, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(t + "."))
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
