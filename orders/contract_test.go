package orders_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/walpost/walpost/orders"
)

// row is a row of the outbox.
type row struct {
	ID            uuid.UUID
	AggregateType string
	AggregateID   string
	EventType     string
	Payload       string
	Headers       string
}

// written returns an order's rows in the order in which they were written.
func (s *shop) written(order uuid.UUID) []row {
	s.t.Helper()
	rows, _ := s.owner.Query(s.t.Context(), `SELECT id, aggregate_type, aggregate_id, event_type, payload::text AS payload, headers::text AS headers
		FROM outbox WHERE aggregate_id = $1 ORDER BY payload->>'occurredAt'`, order.String())
	found, err := pgx.CollectRows(rows, pgx.RowToStructByName[row])
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

var schemaFiles = map[string]string{
	"OrderCreated": "order_created.v1.json", "OrderPaid": "order_paid.v2.json", "OrderConfirmed": "order_confirmed.v1.json", "OrderRejected": "order_rejected.v1.json",
	"OrderShipped": "order_shipped.v1.json", "OrderCompleted": "order_completed.v1.json", "OrderCancelled": "order_cancelled.v1.json",
}

var optional = []string{"trackingCode"}

func schema(t *testing.T, eventType string) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	compiled, err := compiler.Compile("schemas/" + schemaFiles[eventType])
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

func golden(t *testing.T, eventType string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + schemaFiles[eventType])
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// own are the fields that differ in any two events or orders.
var own = []string{"eventId", "occurredAt", "orderId", "orderNumber"}

// common returns a payload without the fields in own.
func common(t *testing.T, payload string) string {
	t.Helper()
	fields := decode[map[string]json.RawMessage](t, payload)
	for _, name := range own {
		if _, there := fields[name]; !there {
			t.Errorf("no %s in %s", name, payload)
		}
		delete(fields, name)
	}
	if payment, there := fields["payment"]; there {
		fields["payment"] = json.RawMessage(regexp.MustCompile(`"id": ?"[0-9a-f-]{36}"`).ReplaceAllString(string(payment), `"id": ""`))
	}
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return compact(t, string(text))
}

// The contract: an order over HTTP and the same order from psql write the same rows, field for field, as the schemas
// and the goldens describe them.
func TestHTTPAndSQLWriteTheSameEvents(t *testing.T) {
	s := open(t)
	service, err := pgx.Connect(t.Context(), s.serviceURL)
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close(t.Context())
	call := func(statement string, args ...any) (id uuid.UUID) {
		t.Helper()
		if err := service.QueryRow(t.Context(), statement, args...).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	lines := make([]orders.RequestItem, orders.MaxItems)
	for i := range lines {
		lines[i] = orders.RequestItem{SKU: "S" + strings.Repeat("x", i%60) + string(rune('a'+i%26)) + string(rune('a'+i/26)), Quantity: orders.MaxQuantity - i, UnitPrice: "9999999999.9"}
	}
	largest, err := json.Marshal(orders.Request{BuyerID: `~!"'\/<&>`, BuyerEmail: "a!#$%&'*+/=?^_`{|}~-@b.example", Currency: "USD", Items: lines})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		order string
		steps []string
		want  []string
	}{
		"paid and cancelled": {good, []string{"pay", "cancel"}, []string{"OrderCreated", "OrderPaid", "OrderCancelled"}},
		"cancelled unpaid":   {good, []string{"cancel"}, []string{"OrderCreated", "OrderCancelled"}},
		"free of charge":     {strings.Replace(strings.Replace(good, "19.90", "0", 1), `"5"`, `"0.0"`, 1), []string{"pay"}, []string{"OrderCreated", "OrderPaid"}},
		"the largest":        {string(largest), []string{"pay", "cancel"}, []string{"OrderCreated", "OrderPaid", "OrderCancelled"}},
		"completed":          {good, []string{"pay", "confirm", "ship", "complete"}, []string{"OrderCreated", "OrderPaid", "OrderConfirmed", "OrderShipped", "OrderCompleted"}},
		"shipped untracked":  {good, []string{"pay", "confirm", "ship without a code"}, []string{"OrderCreated", "OrderPaid", "OrderConfirmed", "OrderShipped"}},
		"cancelled late":     {good, []string{"pay", "confirm", "cancel"}, []string{"OrderCreated", "OrderPaid", "OrderConfirmed", "OrderCancelled"}},
		"rejected":           {good, []string{"pay", "reject"}, []string{"OrderCreated", "OrderPaid", "OrderRejected"}},
	} {
		t.Run(name, func(t *testing.T) {
			over := decode[orders.Order](t, s.do(201, "POST", "/orders", c.order).body).ID
			r := decode[struct {
				orders.Request
				Items json.RawMessage `json:"items"`
			}](t, c.order)
			if r.Currency == "" {
				r.Currency = "EUR"
			}
			from := call(`SELECT create_order($1, $2, $3, $4)`, r.BuyerID, r.BuyerEmail, string(r.Items), r.Currency)
			for _, step := range c.steps {
				switch body, args := "", []any{from}; step {
				case "confirm":
					s.confirm(over)
					s.confirm(from)
				case "reject":
					s.reject(over)
					s.reject(from)
				case "ship":
					body, args = `{"trackingCode": "JD 0146 0000 1234"}`, append(args, "JD 0146 0000 1234")
					fallthrough
				default:
					step, _, _ = strings.Cut(step, " ")
					s.do(200, "POST", "/orders/"+over.String()+"/"+step, body)
					if got := call(`SELECT `+step+`_order(`+[]string{"$1", "$1, $2"}[len(args)-1]+`)`, args...); got != from {
						t.Errorf("%s_order returned %s", step, got)
					}
				}
			}
			const beside = `SELECT string_agg(line, E'\n') FROM (
				(SELECT what || detail AS line FROM order_history WHERE order_id = $1 ORDER BY at, id) UNION ALL
				(SELECT concat_ws(' ', kind, amount, currency) FROM payments WHERE order_id = $1 ORDER BY at)) AS lines`
			if a, b := scan[string](s, beside, over), scan[string](s, beside, from); a != b {
				t.Errorf("history or payments differ:\nHTTP %s\nSQL  %s", a, b)
			}
			// Both ways write the same kind of order.
			a, b := s.do(200, "GET", "/orders/"+over.String(), "").body, s.do(200, "GET", "/orders/"+from.String(), "").body
			x, y := decode[orders.Order](t, a), decode[orders.Order](t, b)
			if x.Total != y.Total || x.Status != y.Status || x.TrackingCode != y.TrackingCode || len(x.Items) != len(y.Items) || (x.PaidAt == nil) != (y.PaidAt == nil) {
				t.Errorf("orders differ:\n%s\n%s", a, b)
			}

			http, psql := s.written(over), s.written(from)
			if len(http) != len(c.want) || len(psql) != len(c.want) {
				t.Fatalf("%d events over HTTP and %d from SQL, want %d", len(http), len(psql), len(c.want))
			}
			for i, eventType := range c.want {
				for order, got := range map[uuid.UUID]row{over: http[i], from: psql[i]} {
					payload := decode[map[string]any](t, got.Payload)
					if got.EventType != eventType || got.AggregateType != "order" || got.AggregateID != order.String() || got.Headers != "{}" ||
						got.ID.Version() != 7 || payload["eventId"] != got.ID.String() || payload["orderId"] != order.String() {
						t.Errorf("%+v", got)
					}
					if err := schema(t, eventType).Validate(payload); err != nil {
						t.Errorf("%s: %v", got.Payload, err)
					}
				}
				for _, r := range []row{http[i], psql[i]} {
					if eventType == "OrderPaid" && scan[int](s, `SELECT count(*)::int FROM payments WHERE event_id = $1 AND id::text = $2 AND kind = 'charge'`,
						r.ID, decode[struct{ Payment struct{ ID string } }](t, r.Payload).Payment.ID) != 1 {
						t.Errorf("names no charge: %s", r.Payload)
					}
				}
				if a, b := common(t, http[i].Payload), common(t, psql[i].Payload); a != b {
					t.Errorf("events differ:\nHTTP %s\nSQL  %s", a, b)
				}
				if name == "paid and cancelled" || name == "completed" || name == "rejected" {
					if got, want := common(t, http[i].Payload), common(t, golden(t, eventType)); got != want {
						t.Errorf("golden differs:\ngot  %s\nwant %s", got, want)
					}
				}
			}
		})
	}
	s.mustBeWhole()
}

// total changes the amount of an event.
func total(to any) func(event, item map[string]any) {
	return func(event, _ map[string]any) {
		if payment, there := event["payment"].(map[string]any); there {
			payment["amount"] = to
		} else {
			event["totalAmount"] = to
		}
	}
}

// A schema that accepts everything would make a contract test that cannot fail.
func TestSchemasRefuseWhatIsNotAnEvent(t *testing.T) {
	for eventType := range schemaFiles {
		sch := schema(t, eventType)
		event := func() map[string]any { return decode[map[string]any](t, golden(t, eventType)) }
		if err := sch.Validate(event()); err != nil {
			t.Errorf("golden of %s: %v", eventType, err)
		}
		for field := range event() {
			without := event()
			delete(without, field)
			if (sch.Validate(without) == nil) != slices.Contains(optional, field) {
				t.Errorf("%s is taken without %s", eventType, field)
			}
		}
		for name, change := range map[string]func(e, item map[string]any){
			"total a number":      total(44.8),
			"total of one place":  total("44.8"),
			"total negative":      total("-44.80"),
			"another type":        func(e, _ map[string]any) { e["eventType"] = "OrderLost" },
			"another version":     func(e, _ map[string]any) { e["schemaVersion"] = 3 },
			"no uuid":             func(e, _ map[string]any) { e["eventId"] = "1" },
			"local time":          func(e, _ map[string]any) { e["occurredAt"] = "2026-01-02T03:04:05.000000+01:00" },
			"no items":            func(e, _ map[string]any) { e["items"] = []any{} },
			"price a number":      func(_, item map[string]any) { item["unitPrice"] = 19.9 },
			"quantity zero":       func(_, item map[string]any) { item["quantity"] = 0 },
			"quantity a fraction": func(_, item map[string]any) { item["quantity"] = 0.5 },
			"sku empty":           func(_, item map[string]any) { item["sku"] = "" },
		} {
			e := event()
			change(e, e["items"].([]any)[0].(map[string]any))
			if sch.Validate(e) == nil {
				t.Errorf("%s is taken with %s", eventType, name)
			}
		}
	}
}
