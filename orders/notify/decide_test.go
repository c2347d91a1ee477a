package notify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/notify"
)

// become sets an order's state with the times that belong to it.
func (s *shop) become(order uuid.UUID, state orders.Status) {
	s.Helper()
	since := func(states ...orders.Status) *string {
		for _, is := range states {
			if is == state {
				return new("2026-01-02T03:04:05Z")
			}
		}
		return nil
	}
	const shipped, completed, confirmed, rejected, cancelled = orders.Shipped, orders.Completed, orders.Confirmed, orders.Rejected, orders.Cancelled
	s.exec(s.owner, `ALTER TABLE orders DISABLE TRIGGER USER`)
	s.exec(s.owner, `UPDATE orders SET status = $2, paid_at = now(), confirmed_at = $3::text::timestamptz, rejected_at = $4::text::timestamptz,
		shipped_at = $5::text::timestamptz, completed_at = $6::text::timestamptz, cancelled_at = $7::text::timestamptz WHERE id = $1`,
		order, state, since(confirmed, shipped, completed), since(rejected), since(shipped, completed), since(completed), since(cancelled))
	s.exec(s.owner, `ALTER TABLE orders ENABLE TRIGGER USER`)
}

// Status and content, for each kind of notification, state of the order at that time, and setting of the customer.
func TestKindStateAndSettingsDecide(t *testing.T) {
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(*mailServer) {})
	s.send(s.channel(server.url))
	types := map[string]string{"confirmed": "OrderConfirmed", "rejected": "OrderRejected", "shipped": "OrderShipped"}
	on := map[string]bool{"confirmed": true, "rejected": true, "shipped": true}
	settings := map[string]*notify.Settings{
		"none set":       nil,
		"html, English":  {Kinds: on, Format: "html", Language: "en"},
		"html, German":   {Kinds: on, Format: "html", Language: "de"},
		"text, German":   {Kinds: on, Format: "text", Language: "de"},
		"this one off":   {Format: "html", Language: "en"},
		"the others off": {Format: "text", Language: "en"},
	}
	subjects := map[string]string{
		"confirmed en": "Your order 100001 is confirmed", "confirmed de": "Ihre Bestellung 100001 ist bestätigt",
		"rejected en": "Your order 100001 cannot be delivered", "rejected de": "Ihre Bestellung 100001 kann nicht geliefert werden",
		"shipped en": "Your order 100001 is on its way", "shipped de": "Ihre Bestellung 100001 ist unterwegs",
	}
	content := map[string]string{
		"confirmed en": "reserved for you", "confirmed de": "für Sie reserviert", "rejected en": "only in stock: 1", "rejected de": "nur auf Lager: 1",
		"shipped en": "Tracking code: JD0146", "shipped de": "Sendungsnummer: JD0146",
	}
	customers := 0
	for _, c := range []struct {
		kind   string
		states []orders.Status
	}{
		{"confirmed", []orders.Status{orders.Confirmed, orders.Shipped, orders.Completed, orders.Cancelled}},
		{"rejected", []orders.Status{orders.Rejected}},
		{"shipped", []orders.Status{orders.Shipped, orders.Completed}},
	} {
		for _, state := range c.states {
			for name, set := range settings {
				customers++
				customer := fmt.Sprintf("buyer-%d", customers)
				want := notify.Settings{Format: "html", Language: "en"}
				if set != nil {
					want = *set
					switch name {
					case "this one off":
						want.Kinds = map[string]bool{"confirmed": true, "rejected": true, "shipped": true, c.kind: false}
					case "the others off":
						want.Kinds = map[string]bool{c.kind: true}
					}
					if err := s.store.SetSettings(t.Context(), customer, want); err != nil {
						t.Fatal(err)
					}
				}
				suppressed := name == "this one off" || state == orders.Cancelled
				order := s.order()
				s.become(order, state)
				for _, channel := range []string{"mail", "webhook"} {
					if err := s.take(channel, event(types[c.kind], order, map[string]any{"buyerId": customer})); err != nil {
						t.Fatal(err)
					}
				}
				what := fmt.Sprintf("%s, the order %s, %s", c.kind, state, name)
				if n := s.one("webhook", order); (n.Status == notify.Suppressed) != suppressed || n.Format != "json" {
					t.Errorf("%s: the webhook is %+v", what, n)
				}
				if suppressed {
					n := s.one("mail", order)
					reason := map[bool]string{true: "the order is cancelled already", false: "the customer does not want a notification when an order is " + c.kind}[name != "this one off"]
					if n.Status != notify.Suppressed || n.Reason != reason || n.EndedAt == nil {
						t.Errorf("%s: %+v, want it suppressed for %q", what, n, reason)
					}
					continue
				}
				n := s.until("mail", order, notify.Sent)
				key := c.kind + " " + want.Language
				if n.Subject != subjects[key] || !strings.Contains(n.Text, content[key]) || (n.HTML != "") != (want.Format == "html") || n.Language != want.Language {
					t.Errorf("%s: %q\n%s\nHTML: %t", what, n.Subject, n.Text, n.HTML != "")
				}
				if l := server.all()[len(server.all())-1]; parts(t, l)["text/plain"] == "" || (parts(t, l)["text/html"] != "") != (want.Format == "html") {
					t.Errorf("%s: it was sent as %v", what, l.message.Header.Get("Content-Type"))
				}
			}
		}
	}
	if n := scan[int](s, `SELECT count(*)::int FROM notification_attempts a JOIN notifications n ON n.id = notification_id WHERE status <> 'SENT'`); n != 0 {
		t.Errorf("%d attempts to send a suppressed notification", n)
	}
	if done, err := s.store.Republish(t.Context(), notify.RepublishOptions{Channel: "mail", Since: epoch, Limit: 1000}); done != 0 || err != nil {
		t.Errorf("%d re-published: %v", done, err)
	}
}

// The order service's own examples are read completely.
func TestTheExamplesOfTheOrderServiceAreTold(t *testing.T) {
	t.Parallel()
	s := open(t)
	server := startMailServer(t, "127.0.0.1:0", func(*mailServer) {})
	s.send(s.channel(server.url))
	for name, want := range map[string]string{"order_confirmed": "confirmed", "order_rejected": "cannot be delivered", "order_shipped": "on its way"} {
		value, err := os.ReadFile("../testdata/" + name + ".v1.json")
		if err != nil {
			t.Fatal(err)
		}
		var head struct {
			EventID, OrderID, OrderNumber, EventType string
			TotalAmount                              orders.Money
		}
		if err := json.Unmarshal(value, &head); err != nil {
			t.Fatal(err)
		}
		s.exec(s.owner, `INSERT INTO orders (id, buyer_id, buyer_email, total, currency) VALUES ($1, 'b', 'b@shop.example', 0, 'EUR') ON CONFLICT DO NOTHING`, head.OrderID)
		if err := s.take("mail", inbox.Event{ID: head.EventID, Type: head.EventType, Value: value}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		cdctest.Eventually(t, time.Minute, func() error {
			list, err := s.store.ByOrder(t.Context(), "mail", uuid.MustParse(head.OrderID))
			if err == nil && !slices.ContainsFunc(list, func(n notify.Notification) bool {
				return n.Status == notify.Sent && n.EventID.String() == head.EventID && strings.Contains(n.Subject, want) && strings.Contains(n.Text, head.TotalAmount.String())
			}) {
				err = fmt.Errorf("not there: %+v", list)
			}
			return err
		})
	}
}

func TestEventsThatCannotBeToldAreNamedAndQuoteNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	order := s.order()
	good := func(change map[string]any) inbox.Event { return event("OrderShipped", order, change) }
	poisoned := func(value string) inbox.Event {
		ev := good(nil)
		ev.Value = []byte(value)
		return ev
	}
	unknown := good(nil)
	unknown.Type = "OrderPaid"
	elsewhere := good(nil)
	elsewhere.ID = uuid.NewString()
	for name, c := range map[string]struct {
		ev   inbox.Event
		want string
	}{
		"no JSON":                {poisoned(`{"eventId": s3cret`), "not JSON"},
		"empty":                  {poisoned(""), "the value is empty"},
		"null":                   {poisoned("null"), "schemaVersion is missing"},
		"a list":                 {poisoned("[]"), "a JSON array where an object belongs"},
		"not UTF-8":              {poisoned("{\"a\": \"\xff\"}"), "not UTF-8"},
		"too large":              {poisoned(`{"a": "` + strings.Repeat("s3cret", 1<<18) + `"}`), "more than"},
		"another type":           {unknown, "the type is none of"},
		"another id":             {elsewhere, "eventId differs from the header"},
		"a version of tomorrow":  {good(map[string]any{"schemaVersion": 2}), "schemaVersion is 2"},
		"an amount as a number":  {good(map[string]any{"totalAmount": 44.8}), "totalAmount"},
		"an amount that is none": {good(map[string]any{"totalAmount": "s3cret"}), "not the JSON of an event"},
		"no lines":               {good(map[string]any{"items": []any{}}), "items are missing"},
		"half a line":            {good(map[string]any{"items": []any{map[string]any{"sku": "A"}}}), "items[0]"},
		"a customer with a NUL":  {good(map[string]any{"buyerId": "a\x00s3cret"}), "buyerId"},
		"a number with a break":  {good(map[string]any{"orderNumber": "1\r\nBcc: s3cret"}), "orderNumber"},
		"a code with a break":    {good(map[string]any{"trackingCode": "1\r\ns3cret"}), "trackingCode"},
		"no currency":            {good(map[string]any{"currency": "s3cret"}), "currency"},
		"an unknown order":       {good(map[string]any{"orderId": uuid.NewString()}), "does not exist here"},
		"no order":               {good(map[string]any{"orderId": nil}), "orderId is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, channel := range []string{"mail", "webhook"} {
				err := s.take(channel, c.ev)
				if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret") || fmt.Sprintf("%T", err) != "*inbox.permanent" {
					t.Errorf("got %T %v, want %q in it and the event not tried again", err, err, c.want)
				}
			}
		})
	}
	if n := scan[int](s, `SELECT count(*)::int FROM notifications`); n != 0 {
		t.Errorf("%d notifications of them", n)
	}
}

func TestNotificationsOverHTTP(t *testing.T) {
	t.Parallel()
	s := open(t)
	mux := http.NewServeMux()
	notify.Routes(mux, s.store, zerolog.Nop())
	ask := func(status int, method, path, body string) string {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), method, path, bytes.NewReader([]byte(body)))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		text, err := io.ReadAll(w.Result().Body)
		if err != nil || w.Code != status {
			t.Errorf("%s %s: %d %s, want %d (%v)", method, path, w.Code, text, status, err)
		}
		return string(text)
	}
	const path = "/customers/buyer-7/notifications"
	const unset = `{"kinds":{"confirmed":true,"rejected":true,"shipped":true},"format":"html","language":"en"}`
	if got := ask(200, "GET", path, ""); got != unset {
		t.Errorf("unset: %s", got)
	}
	const set = `{"kinds":{"confirmed":true,"rejected":true,"shipped":false},"format":"text","language":"de"}`
	if got := ask(200, "PUT", path, `{"kinds":{"shipped":false},"format":"text","language":"de"}`); got != set || ask(200, "GET", path, "") != set {
		t.Errorf("set: %s", got)
	}
	if got := ask(200, "PUT", path, `{}`); got != unset || ask(200, "GET", path, "") != unset {
		t.Errorf("set to nothing: %s", got)
	}
	if got := ask(422, "PUT", path, `{"kinds":{"lost":true},"format":"pdf","language":"xx"}`); !strings.Contains(got, "/kinds") || !strings.Contains(got, "/format") || !strings.Contains(got, "/language") {
		t.Errorf("everything wrong: %s", got)
	}
	ask(400, "PUT", path, `{"colour": "red"}`)
	ask(400, "PUT", path, `{"kinds": 1}`)
	ask(422, "GET", "/customers/a%0Ab/notifications", "")
	ask(405, "DELETE", path, "")

	order := s.mail("OrderShipped", nil)
	got := ask(200, "GET", "/orders/"+order.String()+"/mails", "")
	for _, want := range []string{`"status":"PENDING"`, `"recipient":"ada@shop.example"`, `"kind":"shipped"`, `"eventId"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	if got := ask(200, "GET", "/orders/"+order.String()+"/webhooks", ""); got != `{"notifications":[]}` {
		t.Errorf("no webhooks: %s", got)
	}
	ask(404, "GET", "/orders/"+uuid.NewString()+"/mails", "")
	ask(404, "GET", "/orders/x/mails", "")
}
