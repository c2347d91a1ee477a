package saga_test

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/saga"
)

// examples are the examples of the service that writes the events.
const examples = "../../inventory/testdata/"

func TestDecodeReadsWhatInventoryWrites(t *testing.T) {
	order := uuid.MustParse("0198c0de-0000-7000-8000-000000000001")
	for file, want := range map[string]saga.Event{
		"stock_reserved.v1.json": {Type: saga.StockReserved, Detail: saga.Detail{Items: []saga.Item{{SKU: "CUP.white", Quantity: 1}, {SKU: "TEA-100", Quantity: 2}}}},
		"stock_released.v1.json": {Type: saga.StockReleased, Detail: saga.Detail{Items: []saga.Item{{SKU: "CUP.white", Quantity: 1}, {SKU: "TEA-100", Quantity: 2}}}},
		"stock_rejected.v1.json": {Type: saga.StockRejected, Detail: saga.Detail{Short: []orders.Short{{SKU: "TEA-100", Requested: 2, Available: 1}}}},
	} {
		value, err := os.ReadFile(examples + file)
		if err != nil {
			t.Fatal(err)
		}
		var own struct{ EventID, CausedBy uuid.UUID }
		if err := json.Unmarshal(value, &own); err != nil {
			t.Fatal(err)
		}
		want.ID, want.OrderID, want.Detail.CausedBy = own.EventID, order, own.CausedBy
		got, err := saga.Decode(want.Type, own.EventID.String(), value)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v", file, got, err)
		}
	}
}

func TestDecodeNamesWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct{ eventType, change, err string }{
		"unknown fields":          {saga.StockReserved, `{"warehouse": "north"}`, ""},
		"no JSON":                 {saga.StockReserved, `secret`, "not JSON, at byte"},
		"nothing":                 {saga.StockReserved, ``, "the value is empty"},
		"an array":                {saga.StockReserved, `[]`, "a JSON array where an object belongs"},
		"another version":         {saga.StockReserved, `{"schemaVersion": 2}`, "schemaVersion is 2 and not 1"},
		"no version":              {saga.StockReserved, `{"schemaVersion": null}`, "schemaVersion is missing"},
		"another type":            {saga.StockReserved, `{"eventType": "StockReleased"}`, "eventType"},
		"another id":              {saga.StockReserved, `{"eventId": "0198c0de-0000-7000-8000-00000000dead"}`, "eventId differs from the header id"},
		"no uuid":                 {saga.StockReserved, `{"orderId": "secret"}`, "not the JSON of an event"},
		"no order":                {saga.StockReserved, `{"orderId": null}`, "orderId is missing"},
		"no cause":                {saga.StockReserved, `{"causedBy": null}`, "causedBy is missing"},
		"no items":                {saga.StockReserved, `{"items": null}`, "items are missing"},
		"no sku":                  {saga.StockReleased, `{"items": [{"quantity": 1}]}`, "items[0]"},
		"a negative quantity":     {saga.StockReserved, `{"items": [{"sku": "a", "quantity": -1}]}`, "items[0]"},
		"a quantity as text":      {saga.StockReserved, `{"items": [{"sku": "a", "quantity": "secret"}]}`, "wrong kind"},
		"reserved and short":      {saga.StockReserved, `{"short": [{"sku": "a", "requested": 1, "available": 0}]}`, "short"},
		"not short":               {saga.StockRejected, `{"short": [{"sku": "a", "requested": 1, "available": 1}]}`, "short[0]"},
		"a negative stock":        {saga.StockRejected, `{"short": [{"sku": "a", "requested": 1, "available": -1}]}`, "short[0]"},
		"rejected without a line": {saga.StockRejected, `{"short": []}`, "short"},
		"too large":               {saga.StockRejected, `{"note": "` + strings.Repeat("x", 1<<20) + `"}`, "more than 1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			file := map[string]string{saga.StockReserved: "stock_reserved.v1.json", saga.StockRejected: "stock_rejected.v1.json", saga.StockReleased: "stock_released.v1.json"}[c.eventType]
			text, err := os.ReadFile(examples + file)
			if err != nil {
				t.Fatal(err)
			}
			var body, change map[string]any
			if err := json.Unmarshal(text, &body); err != nil {
				t.Fatal(err)
			}
			id := body["eventId"].(string)
			value := []byte(c.change)
			if json.Unmarshal(value, &change) == nil {
				maps.Copy(body, change)
				value, _ = json.Marshal(body)
			}
			_, err = saga.Decode(c.eventType, id, value)
			switch {
			case c.err == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || !strings.Contains(err.Error(), c.err):
				t.Errorf("got %v, want %q", err, c.err)
			case strings.Contains(err.Error(), "secret"):
				t.Errorf("%v quotes the event", err)
			}
		})
	}
}
