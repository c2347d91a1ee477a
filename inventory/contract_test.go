package inventory_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/walpost/walpost/inventory"
)

var schemaFiles = map[string]string{
	inventory.StockReserved: "stock_reserved.v1.json", inventory.StockRejected: "stock_rejected.v1.json", inventory.StockReleased: "stock_released.v1.json",
}

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

func example(t *testing.T, eventType string) map[string]any {
	t.Helper()
	text, err := os.ReadFile("testdata/" + schemaFiles[eventType])
	if err != nil {
		t.Fatal(err)
	}
	return object(t, string(text))
}

func object(t *testing.T, text string) (fields map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatal(err)
	}
	return fields
}

// TestAnswersAreAsTheSchemasSay compares the outbox with schemas and examples, which the order service's tests read
// too.
func TestAnswersAreAsTheSchemasSay(t *testing.T) {
	t.Parallel()
	f := storeFixture(t, map[string]int64{"TEA-100": 3, "CUP.white": 1})
	order, late := orderID(), orderID()
	items := []inventory.Item{item("TEA-100", 2), item("CUP.white", 1)}
	pay, refused, cancel := paid(order, items...), paid(late, item("TEA-100", 2)), cancelled(order, true, items...)
	for _, e := range []event{pay, refused, cancel, cancelled(late, true, item("TEA-100", 2)), cancelled(orderID(), false, items...)} {
		f.mustApply(e)
	}
	rows, _ := f.owner().Query(t.Context(), `SELECT event_type, aggregate_type, aggregate_id, id::text, payload::text FROM outbox ORDER BY created_at, id`)
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ Type, Kind, Key, ID, Payload string }])
	if err != nil || len(got) != 3 {
		t.Fatalf("%d events: %+v (%v)", len(got), got, err)
	}
	for i, want := range []struct {
		eventType string
		cause     event
	}{{inventory.StockReserved, pay}, {inventory.StockRejected, refused}, {inventory.StockReleased, cancel}} {
		row, payload := got[i], object(t, got[i].Payload)
		if row.Type != want.eventType || row.Kind != "stock" || row.Key != want.cause.OrderID || payload["eventId"] != row.ID ||
			payload["orderId"] != want.cause.OrderID || payload["causedBy"] != want.cause.ID {
			t.Errorf("%+v", row)
		}
		if err := schema(t, want.eventType).Validate(payload); err != nil {
			t.Errorf("%s: %v", row.Payload, err)
		}
		golden := example(t, want.eventType)
		for _, own := range []string{"eventId", "occurredAt", "orderId", "causedBy"} {
			delete(payload, own)
			delete(golden, own)
		}
		a, _ := json.Marshal(payload)
		b, _ := json.Marshal(golden)
		if string(a) != string(b) {
			t.Errorf("got  %s\nwant %s", a, b)
		}
	}
}

// A schema that accepts everything would make a contract test that cannot fail.
func TestSchemasRefuseWhatIsNoAnswer(t *testing.T) {
	t.Parallel()
	for eventType := range schemaFiles {
		sch := schema(t, eventType)
		if err := sch.Validate(example(t, eventType)); err != nil {
			t.Errorf("example of %s: %v", eventType, err)
		}
		for field := range example(t, eventType) {
			without := example(t, eventType)
			delete(without, field)
			if sch.Validate(without) == nil {
				t.Errorf("%s is taken without %s", eventType, field)
			}
		}
		for _, change := range []string{
			`"eventType": "StockLost"`, `"schemaVersion": 2`, `"eventId": "1"`, `"causedBy": ""`, `"items": [], "short": []`,
			`"items": [{"sku": "", "quantity": 1}], "short": [{"sku": "", "requested": 2, "available": 1}]`,
			`"items": [{"sku": "a", "quantity": 0}], "short": [{"sku": "a", "requested": 0, "available": 0}]`,
			`"items": [{"sku": "a", "quantity": "1"}], "short": [{"sku": "a", "requested": 1, "available": -1}]`,
		} {
			changed := example(t, eventType)
			for field, value := range object(t, "{"+change+"}") {
				changed[field] = value
			}
			if sch.Validate(changed) == nil {
				t.Errorf("%s is taken with %s", eventType, change)
			}
		}
		if !strings.Contains(sch.Location, schemaFiles[eventType]) {
			t.Errorf("the schema of %s is %s", eventType, sch.Location)
		}
	}
}
