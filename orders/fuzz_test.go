package orders_test

import (
	"encoding/json"
	"math/big"
	"regexp"
	"testing"

	"github.com/walpost/walpost/orders"
)

// For any body: an accepted order has only text that a mail's header, a log and a table can hold, and its amounts add
// up.
func FuzzDecodeOrder(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"buyerId": "b", "buyerEmail": "a@b.example", "currency": "USD", "items": [{"sku": "A", "quantity": 10000, "unitPrice": "9999999999.99"}]}`))
	f.Add([]byte(`{"buyerId": "b", "buyerEmail": "a@b.example\r\nBcc: c@d.example", "items": [{"sku": "A", "quantity": -1, "unitPrice": "1e9"}]}`))
	f.Add([]byte(`{"BUYERID": "b", "buyerId": 1, "items": [null]}{}`))
	printable := regexp.MustCompile(`^[!-~]+$`)
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := orders.DecodeOrder(body)
		if err != nil {
			return
		}
		sum := new(big.Int)
		seen := map[string]bool{}
		for _, item := range o.Items {
			if item.Quantity < 1 || item.Quantity > orders.MaxQuantity || item.UnitPrice < 0 || item.UnitPrice > orders.MaxPrice || seen[item.SKU] {
				t.Errorf("taken: %+v", item)
			}
			seen[item.SKU] = true
			sum.Add(sum, new(big.Int).Mul(big.NewInt(int64(item.Quantity)), big.NewInt(int64(item.UnitPrice))))
			if !printable.MatchString(item.SKU) {
				t.Errorf("taken: sku %q", item.SKU)
			}
		}
		if !sum.IsInt64() || sum.Int64() != int64(o.Total) || len(o.Items) == 0 || len(o.Items) > orders.MaxItems {
			t.Errorf("%d items of %s make a total of %s", len(o.Items), sum, o.Total)
		}
		if !printable.MatchString(o.BuyerID) || !printable.MatchString(o.BuyerEmail) || !printable.MatchString(o.Currency) {
			t.Errorf("taken: %q %q %q", o.BuyerID, o.BuyerEmail, o.Currency)
		}
		if _, err := json.Marshal(o); err != nil {
			t.Error(err)
		}
	})
}
