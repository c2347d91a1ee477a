package orders_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/orders"
)

func TestAnOrderOverHTTPFromPlacedToCancelled(t *testing.T) {
	s := open(t)
	placed := s.do(201, "POST", "/orders", good)
	o := decode[orders.Order](t, placed.body)
	if o.Status != orders.Created || o.Number < 1 || o.Total != 44_80 || o.Currency != "EUR" || len(o.Items) != 2 || o.Items[1].UnitPrice != 5_00 ||
		time.Since(o.CreatedAt).Abs() > time.Minute || o.PaidAt != nil {
		t.Errorf("placed %+v", o)
	}
	path := "/orders/" + o.ID.String()
	if got := placed.header.Get("Location"); got != path {
		t.Errorf("Location %q, want %q", got, path)
	}
	if !strings.Contains(placed.body, `"totalAmount":"44.80"`) || !strings.Contains(placed.body, `"unitPrice":"5.00"`) {
		t.Errorf("amounts are not decimal strings with two places: %s", placed.body)
	}
	if got := s.do(200, "GET", path, ""); got.body != placed.body || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("read %s, placed %s", got.body, placed.body)
	}
	paid := decode[orders.Order](t, s.do(200, "POST", path+"/pay", "").body)
	if paid.Status != orders.Paid || paid.PaidAt == nil || paid.PaidAt.Before(o.CreatedAt) {
		t.Errorf("paid %+v", paid)
	}
	cancelled := decode[orders.Order](t, s.do(200, "POST", path+"/cancel", "{}").body)
	if cancelled.Status != orders.Cancelled || cancelled.CancelledAt == nil || cancelled.PaidAt == nil {
		t.Errorf("cancelled %+v", cancelled)
	}
	s.mustBeWhole()
	if n := scan[int](s, `SELECT count(*)::int FROM outbox`); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	s.place()
	want := `
# HELP orders_by_state Orders in the database, by state.
# TYPE orders_by_state gauge
orders_by_state{state="cancelled"} 1
orders_by_state{state="completed"} 0
orders_by_state{state="confirmed"} 0
orders_by_state{state="created"} 1
orders_by_state{state="paid"} 0
orders_by_state{state="rejected"} 0
orders_by_state{state="shipped"} 0
# HELP orders_outbox_rows_written_total Outbox rows committed by this process, by event type.
# TYPE orders_outbox_rows_written_total counter
orders_outbox_rows_written_total{type="OrderCancelled"} 1
orders_outbox_rows_written_total{type="OrderCompleted"} 0
orders_outbox_rows_written_total{type="OrderConfirmed"} 0
orders_outbox_rows_written_total{type="OrderCreated"} 2
orders_outbox_rows_written_total{type="OrderPaid"} 1
orders_outbox_rows_written_total{type="OrderRejected"} 0
orders_outbox_rows_written_total{type="OrderShipped"} 0
`
	if err := testutil.GatherAndCompare(s.registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestHistoryTellsWhatHappenedWhen(t *testing.T) {
	s := open(t)
	id := s.place()
	path := "/orders/" + id.String()
	s.do(200, "POST", path+"/pay", "")
	s.confirm(id)
	s.do(200, "POST", path+"/ship", `{"trackingCode": "JD 0146"}`)
	if o := decode[orders.Order](t, s.do(200, "POST", path+"/complete", "").body); o.Status != orders.Completed || o.TrackingCode != "JD 0146" ||
		o.ConfirmedAt == nil || o.ShippedAt.Before(*o.ConfirmedAt) || o.CompletedAt.Before(*o.ShippedAt) {
		t.Errorf("completed %+v", o)
	}
	story := func(path string) string {
		var lines []string
		h := decode[struct {
			OrderID uuid.UUID
			History []orders.Entry
		}](t, s.do(200, "GET", path+"/history", "").body)
		for i, e := range h.History {
			if e.EventID == nil || i > 0 && e.At.Before(h.History[i-1].At) {
				t.Errorf("%+v", e)
			}
			lines = append(lines, e.What+" "+compact(t, string(e.Detail)))
		}
		return strings.Join(lines, "\n")
	}
	if got, want := story(path), `OrderCreated {}
OrderPaid {}
charge {"amount":"44.80","currency":"EUR"}
StockReserved {}
OrderConfirmed {}
OrderShipped {"trackingCode":"JD 0146"}
OrderCompleted {}`; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	id = s.place()
	path = "/orders/" + id.String()
	s.do(200, "POST", path+"/pay", "")
	s.reject(id)
	if got, want := story(path), `OrderCreated {}
OrderPaid {}
charge {"amount":"44.80","currency":"EUR"}
StockRejected {}
OrderRejected {"reason":"out_of_stock","short":[{"available":1,"requested":2,"sku":"TEA-100"}]}
refund {"amount":"44.80","currency":"EUR"}`; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s.mustBeWhole()
}

// TestNoOtherArrowsThanTheDiagrams tries every change in every state.
func TestNoOtherArrowsThanTheDiagrams(t *testing.T) {
	s := open(t)
	way := map[orders.Status][]string{
		"created": {}, "paid": {"pay"}, "confirmed": {"pay", "confirm"}, "rejected": {"pay", "reject"}, "shipped": {"pay", "confirm", "ship"},
		"completed": {"pay", "confirm", "ship", "complete"}, "cancelled": {"cancel"},
	}
	arrows := map[string]orders.Status{
		"created pay": "paid", "created cancel": "cancelled", "paid confirm": "confirmed", "paid reject": "rejected", "paid cancel": "cancelled",
		"confirmed ship": "shipped", "confirmed cancel": "cancelled", "shipped complete": "completed",
	}
	try := func(id uuid.UUID, step string) (err error) {
		return pgx.BeginFunc(t.Context(), s.owner, func(tx pgx.Tx) error {
			switch step {
			case "confirm", "reject":
				o, err := orders.Receive(t.Context(), tx, id, "test", uuid.Must(uuid.NewV7()), struct{}{})
				if err == nil && step == "confirm" {
					_, err = orders.Confirm(t.Context(), tx, o)
				} else if err == nil {
					_, err = orders.Reject(t.Context(), tx, o, nil)
				}
				return err
			case "ship":
				_, err = orders.Ship(t.Context(), tx, id, "")
			default:
				_, err = map[string]func(context.Context, pgx.Tx, uuid.UUID) (orders.Change, error){
					"pay": orders.Pay, "complete": orders.Complete, "cancel": orders.Cancel,
				}[step](t.Context(), tx, id)
			}
			return err
		})
	}
	for from, steps := range way {
		for _, step := range []string{"pay", "confirm", "reject", "ship", "complete", "cancel"} {
			id := s.place()
			for _, before := range steps {
				if err := try(id, before); err != nil {
					t.Fatalf("%s: %v", before, err)
				}
			}
			err := try(id, step)
			want, legal := arrows[string(from)+" "+step]
			if !legal {
				want = from
			}
			if is := scan[string](s, `SELECT status FROM orders WHERE id = $1`, id); (err == nil) != legal || orders.Status(is) != want || !legal && !errors.As(err, new(*orders.StateError)) {
				t.Errorf("%s a %s order: %v, it is %s", step, from, err, is)
			}
			// The SQL functions allow the same changes.
			if step == "confirm" || step == "reject" || legal {
				continue
			}
			var refused *pgconn.PgError
			if _, err := s.owner.Exec(t.Context(), `SELECT `+step+`_order($1)`, id); !errors.As(err, &refused) || refused.Code != "55000" {
				t.Errorf("%s_order of a %s order: %v", step, from, err)
			}
		}
	}
	s.mustBeWhole()
}

func TestOfManyWhoPayAtOnceOneDoes(t *testing.T) {
	s := open(t)
	for range 5 {
		path := "/orders/" + s.place().String() + "/pay"
		var mu sync.Mutex
		var wg sync.WaitGroup
		got := map[int]int{}
		for range 6 {
			wg.Go(func() {
				answer, err := s.send("POST", path, "")
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				got[answer.status]++
				mu.Unlock()
			})
		}
		wg.Wait()
		if got[200] != 1 || got[409] != 5 {
			t.Errorf("answers by status: %v", got)
		}
	}
	s.mustBeWhole()
}

func TestListIsPagedFromTheNewest(t *testing.T) {
	s := open(t)
	var want []string
	for range 5 {
		want = append([]string{s.place().String()}, want...)
	}
	type page struct {
		Orders []orders.Order
		Next   string
	}
	var got []string
	path := "/orders?limit=2"
	for pages := 1; ; pages++ {
		p := decode[page](t, s.do(200, "GET", path, "").body)
		for _, o := range p.Orders {
			got = append(got, o.ID.String())
			if len(o.Items) != 2 || o.Items[0].SKU != "TEA-100" {
				t.Errorf("listed %+v", o)
			}
		}
		if p.Next == "" {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
		s.place() // a new order must not shift a page
		path = "/orders?limit=2&after=" + p.Next
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if p := decode[page](t, s.do(200, "GET", "/orders?after=1", "").body); p.Orders == nil || len(p.Orders) != 0 {
		t.Errorf("after the last page: %+v", p)
	}
}

// Every rejected request gets a problem with its status and sentence, and leaves the database unchanged.
func TestRefusedRequestsGetAProblemAndChangeNothing(t *testing.T) {
	s := open(t)
	created, paid, cancelled := "/orders/"+s.place().String(), "/orders/"+s.place().String(), "/orders/"+s.place().String()
	s.do(200, "POST", paid+"/pay", "")
	s.do(200, "POST", cancelled+"/cancel", "")
	id := s.place()
	confirmed := "/orders/" + id.String()
	s.do(200, "POST", confirmed+"/pay", "")
	s.confirm(id)
	const unknown = "/orders/0198c0de-0000-7000-8000-000000000001"
	with := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %s in the good order", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	before := s.fingerprint()
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		says                     string
		headers                  []string
	}{
		{"no body", "POST", "/orders", "", 415, "application/json", nil},
		{"another content type", "POST", "/orders", good, 415, "application/json", []string{"Content-Type", "text/plain"}},
		{"no content type", "POST", "/orders", good, 415, "application/json", []string{"Content-Type", ""}},
		{"not JSON", "POST", "/orders", `{"buyerId`, 400, "unexpected EOF", nil},
		{"an array", "POST", "/orders", `[]`, 400, "cannot unmarshal array", nil},
		{"two objects", "POST", "/orders", good + good, 400, "nothing after it", nil},
		{"null", "POST", "/orders", `null`, 422, "/buyerId", nil},
		{"an unknown field", "POST", "/orders", with(`"buyerId"`, `"discount": 1, "buyerId"`), 400, "unknown field \\\"discount\\\"", nil},
		{"an unknown field of an item", "POST", "/orders", with(`"sku"`, `"price": 1, "sku"`), 400, "unknown field \\\"price\\\"", nil},
		{"an order number of one's own", "POST", "/orders", with(`"buyerId"`, `"orderNumber": "1", "buyerId"`), 400, "unknown field", nil},
		{"a number as the buyer", "POST", "/orders", with(`"buyer-7"`, `7`), 400, "buyerId", nil},
		{"a price that is a number", "POST", "/orders", with(`"19.90"`, `19.90`), 400, "unitPrice", nil},
		{"a quantity as text", "POST", "/orders", with(`"quantity": 2`, `"quantity": "2"`), 400, "quantity", nil},
		{"half a piece", "POST", "/orders", with(`"quantity": 2`, `"quantity": 0.5`), 400, "quantity", nil},
		{"a quantity beyond an int", "POST", "/orders", with(`"quantity": 2`, `"quantity": 99999999999999999999`), 400, "quantity", nil},
		{"a negative quantity", "POST", "/orders", with(`"quantity": 2`, `"quantity": -2`), 422, "/items/0/quantity", nil},
		{"quantity zero", "POST", "/orders", with(`"quantity": 2`, `"quantity": 0`), 422, "/items/0/quantity", nil},
		{"too many pieces", "POST", "/orders", with(`"quantity": 2`, `"quantity": 10001`), 422, "/items/0/quantity", nil},
		{"a negative price", "POST", "/orders", with(`"19.90"`, `"-19.90"`), 422, "/items/0/unitPrice", nil},
		{"a price of three places", "POST", "/orders", with(`"19.90"`, `"19.901"`), 422, "/items/0/unitPrice", nil},
		{"a price too high", "POST", "/orders", with(`"19.90"`, `"10000000000.00"`), 422, "at most 9999999999.99", nil},
		{"the second item's price", "POST", "/orders", with(`"5"`, `"five"`), 422, "/items/1/unitPrice", nil},
		{"no items", "POST", "/orders", `{"buyerId": "b", "buyerEmail": "a@b.example", "items": []}`, 422, "/items", nil},
		{"too many items", "POST", "/orders", with(`[`, "["+strings.Repeat(`{"sku": "A", "quantity": 1, "unitPrice": "1"},`, 99)), 422, "1 to 100 lines", nil},
		{"a sku twice", "POST", "/orders", with(`CUP.white`, `TEA-100`), 422, "earlier line", nil},
		{"an empty sku", "POST", "/orders", with(`CUP.white`, ``), 422, "/items/1/sku", nil},
		{"a long sku", "POST", "/orders", with(`CUP.white`, strings.Repeat("a", 65)), 422, "/items/1/sku", nil},
		{"a sku with a line break", "POST", "/orders", with(`CUP.white`, `CUP\n`), 422, "/items/1/sku", nil},
		{"no buyer", "POST", "/orders", with(`"buyer-7"`, `""`), 422, "/buyerId", nil},
		{"a buyer with NUL", "POST", "/orders", with(`"buyer-7"`, `"b\u0000"`), 422, "/buyerId", nil},
		{"a header in the e-mail", "POST", "/orders", with(`ada@shop.example`, `ada@shop.example\r\nBcc: eve@shop.example`), 422, "/buyerEmail", nil},
		{"two e-mails", "POST", "/orders", with(`ada@shop.example`, `ada@shop.example,eve@shop.example`), 422, "/buyerEmail", nil},
		{"a long e-mail", "POST", "/orders", with(`ada@`, strings.Repeat("a", 250)+"@"), 422, "/buyerEmail", nil},
		{"a currency in small letters", "POST", "/orders", with(`"buyerId"`, `"currency": "eur", "buyerId"`), 422, "/currency", nil},
		{"two faults", "POST", "/orders", with(`"quantity": 2, "unitPrice": "19.90"`, `"quantity": -1, "unitPrice": "x"`), 422, `"/items/0/quantity"`, nil},
		{"too large a body", "POST", "/orders", with(`buyer-7`, strings.Repeat("a", 64<<10)), 413, "65536 bytes", nil},
		{"pay an unknown order", "POST", unknown + "/pay", "", 404, "no such order", nil},
		{"cancel an unknown order", "POST", unknown + "/cancel", "", 404, "no such order", nil},
		{"read an unknown order", "GET", unknown, "", 404, "no such order", nil},
		{"read a wrong id", "GET", "/orders/17", "", 404, "no such order", nil},
		{"pay a wrong id", "POST", "/orders/%00/pay", "", 404, "no such order", nil},
		{"pay twice", "POST", paid + "/pay", "", 409, "is paid and cannot become paid", nil},
		{"pay a cancelled order", "POST", cancelled + "/pay", "", 409, "is cancelled and cannot become paid", nil},
		{"cancel twice", "POST", cancelled + "/cancel", "", 409, "cannot become cancelled", nil},
		{"ship an order that is not confirmed", "POST", paid + "/ship", "", 409, "is paid and cannot become shipped", nil},
		{"complete an order that is not shipped", "POST", confirmed + "/complete", "", 409, "is confirmed and cannot become completed", nil},
		{"an empty tracking code", "POST", confirmed + "/ship", `{"trackingCode": ""}`, 422, "/trackingCode", nil},
		{"a long tracking code", "POST", confirmed + "/ship", `{"trackingCode": "` + strings.Repeat("1", 101) + `"}`, 422, "/trackingCode", nil},
		{"a tracking code with a line break", "POST", confirmed + "/ship", `{"trackingCode": "1\r\nBcc: eve@shop.example"}`, 422, "/trackingCode", nil},
		{"ship with another field", "POST", confirmed + "/ship", `{"carrier": "x"}`, 400, "unknown field", nil},
		{"history of an unknown order", "GET", unknown + "/history", "", 404, "no such order", nil},
		{"pay with a body", "POST", created + "/pay", `{"amount": "1"}`, 400, "unknown field", nil},
		{"pay with another content type", "POST", created + "/pay", `{}`, 415, "application/json", []string{"Content-Type", "text/plain"}},
		{"a key that is none", "POST", created + "/pay", "", 400, "Idempotency-Key", []string{"Idempotency-Key", "a b"}},
		{"an empty key", "POST", created + "/pay", "", 400, "Idempotency-Key", []string{"Idempotency-Key", ""}},
		{"a long key", "POST", created + "/pay", "", 400, "Idempotency-Key", []string{"Idempotency-Key", strings.Repeat("k", 256)}},
		{"a refused order with a key", "POST", "/orders", with(`"quantity": 2`, `"quantity": -2`), 422, "/items/0/quantity", []string{"Idempotency-Key", "k"}},
		{"a wrong state with a key", "POST", paid + "/pay", "", 409, "cannot become paid", []string{"Idempotency-Key", "k"}},
		{"delete", "DELETE", created, "", 405, "Method Not Allowed", nil},
		{"put", "PUT", "/orders", good, 405, "Method Not Allowed", nil},
		{"pay by GET", "GET", created + "/pay", "", 405, "Method Not Allowed", nil},
		{"another path", "GET", "/order", "", 404, "Not Found", nil},
		{"a schema that is not there", "GET", "/schemas/order_lost.v1.json", "", 404, "no such schema", nil},
		{"a schema outside", "GET", "/schemas/..%2fhttp.go", "", 404, "no such schema", nil},
		{"limit zero", "GET", "/orders?limit=0", "", 400, "limit must be", nil},
		{"limit too high", "GET", "/orders?limit=101", "", 400, "limit must be", nil},
		{"after nothing", "GET", "/orders?after=", "", 400, "after must be", nil},
		{"after a word", "GET", "/orders?after=x", "", 400, "after must be", nil},
		{"a torn query", "GET", "/orders?limit=%zz", "", 400, "query string", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := s.send(c.method, c.path, c.body, c.headers...)
			if err != nil {
				t.Fatal(err)
			}
			p := decode[struct {
				Title, Detail string
				Status        int
			}](t, got.body)
			if got.status != c.status || p.Status != c.status || p.Title != http.StatusText(c.status) || !strings.Contains(got.body, c.says) ||
				got.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%d %s %s; want %d with %q", got.status, got.header.Get("Content-Type"), got.body, c.status, c.says)
			}
			if (got.header.Get("Allow") != "") != (c.status == 405) {
				t.Errorf("Allow: %q", got.header.Get("Allow"))
			}
			if s.fingerprint() != before {
				t.Fatal("something has changed")
			}
		})
	}
}

func TestAllFaultsOfAnOrderAreToldAtOnce(t *testing.T) {
	_, err := orders.Request{BuyerEmail: "x", Currency: "?", Items: []orders.RequestItem{{SKU: "A", Quantity: 1, UnitPrice: "1"}, {Quantity: -1}}}.Order()
	var invalid orders.InvalidError
	if !errors.As(err, &invalid) {
		t.Fatal(err)
	}
	var got []string
	for _, f := range invalid {
		got = append(got, f.Pointer)
	}
	if want := "[/buyerId /buyerEmail /currency /items/1/sku /items/1/quantity /items/1/unitPrice]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestSchemasAreServed(t *testing.T) {
	s := open(t)
	got := s.do(200, "GET", "/schemas/order_paid.v1.json", "")
	if !strings.Contains(got.body, `"title": "OrderPaid"`) || got.header.Get("Content-Type") != "application/schema+json" {
		t.Errorf("got %s", got.body)
	}
}

func TestReadyNamesWhatIsMissing(t *testing.T) {
	s := open(t)
	ready := func(url string) error {
		store, err := orders.Open(t.Context(), cdctest.PoolConfig(t, url))
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		return store.Ready(t.Context())
	}
	if err := ready(s.serviceURL); err != nil {
		t.Error(err)
	}
	if err := ready(cdctest.Database(t)); err == nil || !strings.Contains(err.Error(), "orders migrate") {
		t.Errorf("without a schema: %v", err)
	}
	if err := ready("postgres://orders_service:s3cret@127.0.0.1:1/orders"); err == nil || !strings.Contains(err.Error(), "ORDERS_DATABASE_URL") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("without a server: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	store, err := orders.Open(ctx, cdctest.PoolConfig(t, s.serviceURL))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Ready(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
