package notify_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/orders/notify"
)

// epoch is earlier than every notification.
var epoch = time.Unix(0, 0)

const secret = "of sixteen bytes: " + cdctest.Canary

// partner receives webhooks and keeps the accepted ones.
type partner struct {
	*httptest.Server
	mu     sync.Mutex
	taken  []*http.Request
	bodies []string
}

// startPartner starts a partner that answers the nth request with answer.
func startPartner(t *testing.T, answer func(n int, w http.ResponseWriter)) *partner {
	t.Helper()
	p := &partner{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		p.mu.Lock()
		p.taken, p.bodies = append(p.taken, r), append(p.bodies, string(body))
		n := len(p.taken)
		p.mu.Unlock()
		answer(n, w)
	}))
	t.Cleanup(p.Close)
	return p
}

func (s *shop) webhook(url string) *notify.Webhook {
	s.Helper()
	w, err := notify.NewWebhook(notify.WebhookConfig{URL: url, Secret: secret, Timeout: 5 * time.Second})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(w.Close)
	return w
}

func TestAWebhookIsSignedAndNamesItsEvent(t *testing.T) {
	t.Parallel()
	s := open(t)
	p := startPartner(t, func(n int, w http.ResponseWriter) {
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprint(w, "thank you, ", secret)
		if n == 1 {
			fmt.Fprint(w, " of user:pa55word?token=t0ken, t0ken, ", base64.StdEncoding.EncodeToString([]byte("user:pa55word")))
		}
	})
	order := s.order()
	ev := event("OrderShipped", order, nil)
	if err := s.take("webhook", ev); err != nil {
		t.Fatal(err)
	}
	s.send(s.webhook(strings.Replace(p.URL, "//", "//user:pa55word@", 1) + "/orders?token=t0ken"))
	n := s.until("webhook", order, notify.Sent)
	if outcomes(n) != "deferred sent" || n.History[1].Recipient != p.URL+"/orders" || n.History[1].Answer != "200 thank you, [secret]" || !strings.HasPrefix(n.History[0].Answer, "503") {
		t.Errorf("attempts %+v", n.History)
	}
	for i, r := range p.taken {
		if p.bodies[i] != string(ev.Value) || r.Method != "POST" || r.URL.Path != "/orders" || r.URL.RawQuery != "token=t0ken" {
			t.Errorf("%s %s %s", r.Method, r.URL, p.bodies[i])
		}
		if r.Header.Get("Idempotency-Key") != ev.ID || r.Header.Get("Webhook-Event") != "OrderShipped" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("header %v", r.Header)
		}
		stamp, signature, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Webhook-Signature"), "t="), ",v1=")
		mac := hmac.New(sha256.New, []byte(secret))
		fmt.Fprintf(mac, "%s.%s", stamp, p.bodies[i])
		seconds, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil || time.Since(time.Unix(seconds, 0)).Abs() > time.Minute || signature != hex.EncodeToString(mac.Sum(nil)) {
			t.Errorf("signature %s is not that of the body and a time near now", r.Header.Get("Webhook-Signature"))
		}
	}
	everything := s.log.String() + scan[string](s, `SELECT string_agg(n::text || a::text, '') FROM notifications n JOIN notification_attempts a ON a.notification_id = n.id`)
	for _, hidden := range []string{secret, "t0ken", "pa55word", base64.StdEncoding.EncodeToString([]byte("user:pa55word"))} {
		if strings.Contains(everything, hidden) {
			t.Errorf("%s is in the log or in the database", hidden)
		}
	}
	cdctest.NoSecret(t, "the log or the database", everything)
	metrics := `
# HELP orders_notification_attempts_total Attempts of this process to send a notification, by channel and outcome.
# TYPE orders_notification_attempts_total counter
orders_notification_attempts_total{channel="mail",outcome="deferred"} 0
orders_notification_attempts_total{channel="mail",outcome="refused"} 0
orders_notification_attempts_total{channel="mail",outcome="sent"} 0
orders_notification_attempts_total{channel="webhook",outcome="deferred"} 1
orders_notification_attempts_total{channel="webhook",outcome="refused"} 0
orders_notification_attempts_total{channel="webhook",outcome="sent"} 1
# HELP orders_notifications Notifications in the database, by channel and status.
# TYPE orders_notifications gauge
orders_notifications{channel="mail",status="FAILED"} 0
orders_notifications{channel="mail",status="PENDING"} 0
orders_notifications{channel="mail",status="SENT"} 0
orders_notifications{channel="mail",status="SUPPRESSED"} 0
orders_notifications{channel="webhook",status="FAILED"} 0
orders_notifications{channel="webhook",status="PENDING"} 0
orders_notifications{channel="webhook",status="SENT"} 1
orders_notifications{channel="webhook",status="SUPPRESSED"} 0
# HELP orders_notifications_oldest_pending_seconds How long the oldest PENDING notification has been waiting, by channel; 0 without one.
# TYPE orders_notifications_oldest_pending_seconds gauge
orders_notifications_oldest_pending_seconds{channel="mail"} 0
orders_notifications_oldest_pending_seconds{channel="webhook"} 0
`
	cdctest.Eventually(t, time.Minute, func() error { return testutil.GatherAndCompare(s.registry, strings.NewReader(metrics)) })
	s.mail("OrderConfirmed", nil)
	cdctest.Eventually(t, time.Minute, func() error {
		families, err := s.registry.Gather()
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "orders_notifications_oldest_pending_seconds" && m.GetGauge().GetValue() > 0 {
					return nil
				}
			}
		}
		return fmt.Errorf("nothing is old: %v", err)
	})
}

func TestWhatPartnersDo(t *testing.T) {
	cdctest.Long(t, "waits for partners")
	t.Parallel()
	s := open(t)
	status := func(code int) func(int, http.ResponseWriter) {
		return func(n int, w http.ResponseWriter) {
			if n == 1 {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(code)
			}
		}
	}
	for name, c := range map[string]struct {
		answer   func(n int, w http.ResponseWriter)
		outcomes string
	}{
		"408":       {status(408), "deferred sent"},
		"425":       {status(425), "deferred sent"},
		"429":       {status(429), "deferred sent"},
		"500":       {status(500), "deferred sent"},
		"204":       {status(204), "sent"},
		"400":       {status(400), "refused"},
		"401":       {status(401), "refused"},
		"404":       {status(404), "refused"},
		"410":       {status(410), "refused"},
		"307":       {status(307), "refused"},
		"hangs up":  {func(n int, _ http.ResponseWriter) { panicOnce(n) }, "deferred sent"},
		"busy ever": {func(_ int, w http.ResponseWriter) { w.WriteHeader(502) }, "deferred deferred deferred deferred deferred"},
	} {
		t.Run(name, func(t *testing.T) {
			p := startPartner(t, c.answer)
			order := s.order()
			if err := s.take("webhook", event("OrderConfirmed", order, nil)); err != nil {
				t.Fatal(err)
			}
			stop := s.send(s.webhook(p.URL))
			want := notify.Failed
			if strings.HasSuffix(c.outcomes, "sent") {
				want = notify.Sent
			}
			n := s.until("webhook", order, want)
			stop()
			if outcomes(n) != c.outcomes || len(p.taken) != len(n.History) {
				t.Errorf("attempts %q, want %q: %+v", outcomes(n), c.outcomes, n.History)
			}
			if name == "307" && !strings.Contains(n.Reason, "give the URL it leads to") {
				t.Errorf("a redirect: %s", n.Reason)
			}
		})
	}
}

// panicOnce breaks the first connection.
func panicOnce(n int) {
	if n == 1 {
		panic(http.ErrAbortHandler)
	}
}

func TestChannelsNameEveryMistakeAtOnceAndNoSecret(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ url, from, want string }{
		{"", "", "is missing"},
		{"smtp://shop:s3cret%zz@host", "shop@shop.example", "is not a URL"},
		{"http://shop:s3cret@host", "shop@shop.example", "neither smtp:// nor smtps://"},
		{"smtp://:587", "shop@shop.example", "names no host"},
		{"smtp://host:0", "shop@shop.example", "port"},
		{"smtp://host:99999", "shop@shop.example", "port"},
		{"smtp://host?starttls=maybe", "shop@shop.example", "starttls"},
		{"smtp://host?tls=no", "shop@shop.example", "parameter"},
		{"smtp://host/path", "shop@shop.example", "path"},
		{"smtp://shop@host", "shop@shop.example", "without a password"},
		{"smtp://shop:s3cret@host?starttls=never", "shop@shop.example", "starttls=required"},
		{"smtp://host", "shop@shop.example\r\nBcc: eve@evil.example", "ORDERS_MAIL_FROM"},
		{"smtp://host", "nobody", "ORDERS_MAIL_FROM"},
	} {
		if _, err := notify.NewMail(notify.MailConfig{URL: c.url, From: c.from}); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q from %q: %v, want %q in it", c.url, c.from, err, c.want)
		}
	}
	for _, good := range []string{"smtp://host", "smtps://shop:s3cret@host", "smtp://shop:s3cret@host:25?starttls=optional", "smtp://mailpit:1025?starttls=never"} {
		if _, err := notify.NewMail(notify.MailConfig{URL: good, From: "Shop <shop@shop.example>"}); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, url := range []string{"", "ftp://host", "https://", "https://a:s3cret@%zz/"} {
		_, err := notify.NewWebhook(notify.WebhookConfig{URL: url, Secret: "s3cret"})
		if err == nil || !strings.Contains(err.Error(), "ORDERS_WEBHOOK_URL") || !strings.Contains(err.Error(), "ORDERS_WEBHOOK_SECRET") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", url, err)
		}
	}
	if id := uuid.NewString(); notify.Sign(secret, time.Unix(1, 0), []byte(id)) == notify.Sign(secret, time.Unix(2, 0), []byte(id)) {
		t.Error("the time is not signed")
	}
}
