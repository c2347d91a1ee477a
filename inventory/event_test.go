package inventory_test

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/walpost/walpost/inventory"
)

const (
	testEvent = "0198c0de-0000-7000-8000-0000000000e2"
	testOrder = "0198c0de-0000-7000-8000-000000000001"
)

func TestDecodeReadsWhatTheOrderServiceWrites(t *testing.T) {
	items := []inventory.Item{item("TEA-100", 2), item("CUP.white", 1)}
	for file, want := range map[string]inventory.Event{
		"order_paid.v1.json":      {Type: inventory.OrderPaid},
		"order_paid.v2.json":      {Type: inventory.OrderPaid},
		"order_cancelled.v1.json": {Type: inventory.OrderCancelled, WasPaid: true},
	} {
		value, err := os.ReadFile("../orders/testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var id struct{ EventID string }
		if err := json.Unmarshal(value, &id); err != nil {
			t.Fatal(err)
		}
		want.ID, want.OrderID, want.OrderNumber, want.Items = id.EventID, testOrder, "100001", items
		got, err := inventory.Decode(want.Type, id.EventID, value)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v", file, got, err)
		}
	}
}

func TestDecode(t *testing.T) {
	base := inventory.Event{ID: testEvent, Type: inventory.OrderPaid, OrderID: testOrder, Items: []inventory.Item{item("tea", 1)}}
	cancelled := base
	cancelled.Type = inventory.OrderCancelled
	with := func(field string, value any) []byte { return body(base, map[string]any{field: value}) }
	line := func(fields map[string]any) []byte { return with("items", []any{fields}) }
	long := strings.Repeat("x", 65)

	for _, c := range []struct {
		name, eventType, id string
		value               []byte
		err                 string // "": the event is valid
	}{
		{"a paid order", "OrderPaid", testEvent, body(base, nil), ""},
		{"unknown fields", "OrderPaid", testEvent, with("giftWrap", map[string]any{"ribbon": true}), ""},
		{"without the fields that inventory does not use", "OrderPaid", testEvent, body(base, map[string]any{"buyerEmail": nil, "totalAmount": nil, "eventType": nil}), ""},
		{"the id in capitals", "OrderPaid", strings.ToUpper(testEvent), body(base, nil), ""},
		{"a created order", "OrderCreated", testEvent, []byte("{"), "the type is neither"},
		{"a type of the future", "OrderShipped", "", nil, "the type is neither"},
		{"no type", "", testEvent, body(base, nil), "the type is neither"},
		{"no id", "OrderPaid", "", body(base, nil), "header id is missing"},
		{"another id", "OrderPaid", testOrder, body(base, nil), "eventId differs from the header id"},
		{"an id that is none", "OrderPaid", "17", body(base, nil), "eventId differs from the header id"},
		{"another type", "OrderCancelled", testEvent, body(base, nil), "eventType differs from the header type"},
		{"a tombstone", "OrderPaid", testEvent, nil, "the value is empty"},
		{"no JSON", "OrderPaid", testEvent, []byte("secret"), "not JSON, at byte 1"},
		{"half a JSON", "OrderPaid", testEvent, body(base, nil)[:40], "not JSON, at byte 40"},
		{"two JSONs", "OrderPaid", testEvent, append(body(base, nil), "{}"...), "not JSON"},
		{"an array", "OrderPaid", testEvent, []byte("[1]"), "a JSON array where an object belongs"},
		{"null", "OrderPaid", testEvent, []byte("null"), "schemaVersion is missing"},
		{"no UTF-8", "OrderPaid", testEvent, []byte("{\"sku\": \"\xff\"}"), "not UTF-8"},
		{"too large", "OrderPaid", testEvent, with("note", strings.Repeat("x", 1<<20)), "more than 1048576"},
		{"the next version", "OrderPaid", testEvent, with("schemaVersion", 3), "schemaVersion is 3 and not 1 to 2"},
		{"no event id", "OrderPaid", testEvent, with("eventId", nil), "eventId is missing"},
		{"an event id that is none", "OrderPaid", testEvent, with("eventId", "secret"), "eventId is not a UUID"},
		{"no order id", "OrderPaid", testEvent, with("orderId", nil), "orderId is missing"},
		{"an order id that is none", "OrderPaid", testEvent, with("orderId", "17"), "orderId is not a UUID"},
		{"no items", "OrderPaid", testEvent, with("items", nil), "items are missing"},
		{"empty items", "OrderPaid", testEvent, with("items", []any{}), "items are missing"},
		{"items as text", "OrderPaid", testEvent, with("items", "secret"), "items is a string of the wrong kind"},
		{"no sku", "OrderPaid", testEvent, line(map[string]any{"quantity": 1}), "items[0].sku is missing"},
		{"empty sku", "OrderPaid", testEvent, line(map[string]any{"sku": "", "quantity": 1}), "items[0].sku is empty"},
		{"long sku", "OrderPaid", testEvent, line(map[string]any{"sku": long, "quantity": 1}), "items[0].sku is longer than 64 bytes"},
		{"a sku PostgreSQL cannot hold", "OrderPaid", testEvent, line(map[string]any{"sku": "a\x00b", "quantity": 1}), "control character"},
		{"no quantity", "OrderPaid", testEvent, line(map[string]any{"sku": "tea"}), "items[0].quantity is missing"},
		{"quantity 0", "OrderPaid", testEvent, line(map[string]any{"sku": "tea", "quantity": 0}), "items[0].quantity is not between"},
		{"a negative quantity", "OrderPaid", testEvent, line(map[string]any{"sku": "tea", "quantity": -1}), "items[0].quantity is not between"},
		{"a huge quantity", "OrderPaid", testEvent, line(map[string]any{"sku": "tea", "quantity": 1 << 40}), "items[0].quantity is not between"},
		{"half a piece", "OrderPaid", testEvent, line(map[string]any{"sku": "tea", "quantity": 1.5}), "quantity is a number of the wrong kind"},
		{"quantity as text", "OrderPaid", testEvent, line(map[string]any{"sku": "tea", "quantity": "1"}), "quantity is a string of the wrong kind"},
		{"a cancellation that does not say whether it was paid", "OrderCancelled", testEvent, body(cancelled, map[string]any{"wasPaid": nil}), "wasPaid is missing"},
		{"wasPaid as text", "OrderCancelled", testEvent, body(cancelled, map[string]any{"wasPaid": "yes"}), "wasPaid is a string of the wrong kind"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := inventory.Decode(c.eventType, c.id, c.value)
			switch {
			case c.err == "":
				if err != nil {
					t.Errorf("got %v", err)
				}
			case err == nil || !strings.Contains(err.Error(), c.err):
				t.Errorf("got %v; want %q", err, c.err)
			case strings.Contains(err.Error(), "secret"):
				t.Errorf("%v quotes the payload", err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, file := range []string{"order_created.v1.json", "order_paid.v1.json", "order_cancelled.v1.json"} {
		value, err := os.ReadFile("../orders/testdata/" + file)
		if err != nil {
			f.Fatal(err)
		}
		for _, eventType := range []string{inventory.OrderPaid, inventory.OrderCancelled, "OrderCreated", ""} {
			f.Add(eventType, testEvent, value)
			f.Add(eventType, "0198c0de-0000-7000-8000-0000000000e3", value)
		}
	}
	f.Add("OrderPaid", testEvent, []byte(`{"items":[{"quantity":1e3}]}`))
	f.Fuzz(func(t *testing.T, eventType, id string, value []byte) {
		ev, err := inventory.Decode(eventType, id, value)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Fatalf("%d bytes of reason", len(err.Error()))
			}
			return
		}
		if ev.Type != eventType || len(ev.Items) == 0 || ev.WasPaid && ev.Type != inventory.OrderCancelled {
			t.Fatalf("%+v, %v", ev, err)
		}
		if header, err := uuid.Parse(id); err != nil || header.String() != ev.ID {
			t.Fatalf("id %q became %q", id, ev.ID)
		}
		if order, err := uuid.Parse(ev.OrderID); err != nil || order.String() != ev.OrderID {
			t.Fatalf("order id %q is not canonical", ev.OrderID)
		}
		var sum int64
		for _, i := range ev.Items {
			if i.Quantity < 1 || i.SKU == "" || len(i.SKU) > 64 || strings.ContainsRune(i.SKU, 0) {
				t.Fatalf("item %+v", i)
			}
			if sum += i.Quantity; sum < 0 {
				t.Fatal("the sum overflows")
			}
		}
		// A decoded event that is written again decodes to the same event.
		again, err := inventory.Decode(ev.Type, ev.ID, body(ev, map[string]any{"orderNumber": ev.OrderNumber}))
		if err != nil || !reflect.DeepEqual(again, ev) {
			t.Fatalf("%+v became %+v, %v", ev, again, err)
		}
	})
}
