package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/sql"
)

// received has the mails and webhooks that the test's mail server and partner have received.
type received struct {
	mu    sync.Mutex
	mails []string
	keys  []string
}

func (t *received) NewSession(*smtp.Conn) (smtp.Session, error) { return mailSession{t}, nil }

type mailSession struct{ *received }

func (mailSession) Mail(string, *smtp.MailOptions) error { return nil }
func (mailSession) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (mailSession) Reset()                               {}
func (mailSession) Logout() error                        { return nil }

func (s mailSession) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mails = append(s.mails, string(text))
	return err
}

// The mail server is down until the mail has used up its attempts. Then it is back, and the mail arrives without a
// command of an operator. The webhook does not wait for it. The history shows all of it.
func TestWhatTheTopicSaysIsMailedAndPushed(t *testing.T) {
	c := newConsumed(t)
	inventory := cdctest.Database(t)
	as := func(role string) string { return cdctest.As(inventory, role) }
	if err := errors.Join(sql.Migrate(t.Context(), sql.Inventory, inventory, as("inventory_service"), io.Discard),
		sql.GrantReader(t.Context(), inventory, as("inventory_service"), as("inventory_reader"), io.Discard)); err != nil {
		t.Fatal(err)
	}
	got := &received{}
	partner := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got.mu.Lock()
		defer got.mu.Unlock()
		got.keys = append(got.keys, r.Header.Get("Idempotency-Key"))
	}))
	defer partner.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	_ = ln.Close()
	topic := cdctest.Name(t, "orders")
	cdctest.CreateTopic(t, strings.Split(c.env["ORDERS_KAFKA_BROKERS"], ","), topic, 1)
	maps.Copy(c.env, map[string]string{
		"ORDERS_TOPIC": topic, "ORDERS_SMTP_URL": "smtp://" + address + "?starttls=never", "ORDERS_MAIL_FROM": "Shop <shop@shop.example>", "ORDERS_CATALOG_URL": as("inventory_reader"),
		"ORDERS_WEBHOOK_URL": partner.URL, "ORDERS_WEBHOOK_SECRET": "of sixteen bytes: " + cdctest.Canary, "ORDERS_MAIL_BACKOFF": "10ms", "ORDERS_MAIL_RETRY_EVERY": "300ms",
	})
	order, eventID := c.paid(), uuid.Must(uuid.NewV7())
	c.topic = topic
	c.send(order, "OrderConfirmed", eventID, fmt.Sprintf(`{"eventId": %q, "eventType": "OrderConfirmed", "schemaVersion": 1, "occurredAt": "2026-01-02T03:06:05.120000Z", "orderId": %q,
		"orderNumber": "100001", "buyerId": "b", "buyerEmail": "ada@shop.example", "items": [{"sku": "tea", "quantity": 2, "unitPrice": "19.90"}], "totalAmount": "39.80", "currency": "EUR"}`, eventID, order))
	c.start("mail", "webhook")
	listed := func(channel string, words ...string) {
		t.Helper()
		cdctest.Eventually(t, time.Minute, func() error {
			out, err := c.command(channel, "list")
			for _, want := range append(words, order.String(), eventID.String(), "confirmed") {
				if !strings.Contains(out, want) {
					return fmt.Errorf("no %q in the list (%v):\n%s", want, err, out)
				}
			}
			return err
		})
	}
	listed("webhook", "SENT", partner.URL)
	listed("mail", "FAILED", "ada@shop.example", "5 attempts, the last: ", "refused")

	server := smtp.NewServer(got)
	if ln, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	defer func() { _, _ = server.Close(), <-served }()
	listed("mail", "SENT")
	got.mu.Lock()
	defer got.mu.Unlock()
	if len(got.mails) != 1 || !strings.Contains(got.mails[0], "Your order 100001 is confirmed") || len(got.keys) != 1 || got.keys[0] != eventID.String() {
		t.Errorf("mails %q, pushed with keys %q", got.mails, got.keys)
	}

	var id int
	if err := c.conn.QueryRow(t.Context(), `SELECT id FROM notifications WHERE channel = 'mail'`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	out, err := c.command("mail", "show", fmt.Sprint(id))
	for _, want := range []string{`"subject": "Your order 100001 is confirmed"`, `"outcome": "deferred"`, `"answer": "250`, `<h1`, eventID.String()} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("show has no %s (%v):\n%s", want, err, out)
		}
	}
	if _, err := c.command("webhook", "show", fmt.Sprint(id)); err == nil || !strings.Contains(err.Error(), "orders webhook list") {
		t.Errorf("a mail shown as a webhook: %v", err)
	}
	if out, err := c.command("mail", "list", "--json", "--since", "1h", "--status", "SENT"); err != nil || !strings.Contains(out, `"status":"SENT"`) {
		t.Errorf("as JSON (%v): %s", err, out)
	}
	if out, err := c.command("mail", "list", "--since", "2100-01-01"); err != nil || strings.Contains(out, "SENT") {
		t.Errorf("of the future (%v): %s", err, out)
	}
	if _, err := c.command("mail", "list", "--since", "yesterday"); err == nil || !strings.Contains(err.Error(), "--since") {
		t.Errorf("since yesterday: %v", err)
	}
	if out, err := c.command("mail", "retry", "--since", "2h"); err != nil || !strings.HasPrefix(out, "0 of 0 ") {
		t.Errorf("nothing to retry (%v): %s", err, out)
	}

	store, err := orders.Open(t.Context(), cdctest.PoolConfig(t, c.env["ORDERS_DATABASE_URL"]))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	history, err := store.History(t.Context(), order)
	told := map[string]int{}
	for _, e := range history {
		if e.EventID != nil && *e.EventID == eventID {
			told[e.What]++
		}
	}
	if err != nil || told["webhook"] != 1 || told["mail"] < 6 || !strings.Contains(string(history[len(history)-1].Detail), `"sent"`) {
		t.Errorf("history (%v): %+v", err, history)
	}
}

func TestRetrySaysHowFarItIs(t *testing.T) {
	c := newConsumed(t)
	c.paid()
	if _, err := c.conn.Exec(t.Context(), `
		INSERT INTO orders (id, buyer_id, buyer_email, total, currency) SELECT gen_random_uuid(), 'b', 'b@shop.example', 0, 'EUR' FROM generate_series(1, 229);
		INSERT INTO notifications (order_id, channel, kind, event_id, event, recipient, language, format, status, reason, ended_at)
		SELECT id, 'mail', 'confirmed', id, '{}', 'b@shop.example', 'en', 'text', 'FAILED', 'it did', now() FROM orders`); err != nil {
		t.Fatal(err)
	}
	out, err := c.command("mail", "retry", "--limit", "210")
	if err != nil || out != "100 of 210 re-published\n200 of 210 re-published\n210 of 210 re-published\n"+
		"210 of 230 that FAILED are PENDING again; to see those that fail again: orders mail list --status FAILED\n" {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestNotificationsNameEveryMistakeAtOnce(t *testing.T) {
	c := &consumed{T: t, env: map[string]string{
		"ORDERS_SMTP_URL": "smtp://shop:" + cdctest.Canary + "@:x", "ORDERS_MAIL_RATE": "-1", "ORDERS_MAIL_RETRY_EVERY": "often", "ORDERS_MAIL_RETRY_AGE": "0s", "ORDERS_MAIL_BACKOFF": "-1s",
		"ORDERS_MAIL_TEMPLATES": t.TempDir(), "ORDERS_WEBHOOK_SECRET": cdctest.Canary,
	}}
	_, err := c.command("consume")
	for _, want := range []string{
		"ORDERS_SMTP_URL", "ORDERS_MAIL_FROM", "ORDERS_CATALOG_URL", "ORDERS_MAIL_RATE", "ORDERS_MAIL_RETRY_EVERY", "ORDERS_MAIL_RETRY_AGE", "ORDERS_MAIL_BACKOFF", "ORDERS_MAIL_TEMPLATES",
		"ORDERS_WEBHOOK_URL", "ORDERS_WEBHOOK_SECRET", "ORDERS_DATABASE_URL",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
	c.env = nil
	if _, err := c.command("consume", "mail", "webhook"); err == nil || !strings.Contains(err.Error(), "ORDERS_SMTP_URL") || !strings.Contains(err.Error(), "ORDERS_WEBHOOK_URL") {
		t.Errorf("named and not configured: %v", err)
	}
	if _, err := c.command("consume"); err == nil || strings.Contains(err.Error(), "ORDERS_SMTP_URL") || strings.Contains(err.Error(), "ORDERS_WEBHOOK_URL") {
		t.Errorf("not named and not configured: %v", err)
	}
}
