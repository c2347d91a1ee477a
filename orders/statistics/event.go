package statistics

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/inbox/upcast"
	"github.com/walpost/walpost/orders"
)

const (
	paid      = "OrderPaid"
	rejected  = "OrderRejected"
	cancelled = "OrderCancelled"
)

// versions has the upcasts for the events' JSON.
var versions = upcast.Steps{paid: {toPayment}}

// toPayment converts OrderPaid from version 1 to 2: it moves totalAmount and currency into payment.
func toPayment(fields map[string]json.RawMessage) error {
	payment, err := json.Marshal(map[string]json.RawMessage{"amount": fields["totalAmount"], "currency": fields["currency"]})
	if err != nil {
		return errors.New("totalAmount or currency is missing")
	}
	fields["payment"] = payment
	delete(fields, "totalAmount")
	delete(fields, "currency")
	return nil
}

// An event has the parts of an order event that are counted.
type event struct {
	order    uuid.UUID
	at       time.Time
	returned bool // otherwise paid
	currency string
	items    []item
}

type item struct {
	SKU       string        `json:"sku"`
	Quantity  int64         `json:"quantity"`
	UnitPrice *orders.Money `json:"unitPrice"`
}

// These limits are wider than the values that the order service writes, and small enough to be harmless.
const (
	maxSKUBytes = 64
	maxQuantity = 1_000_000_000
)

var currencyForm = regexp.MustCompile(`^[A-Z]{3}$`)

// decode returns nil for an order that was cancelled before it was paid. An error names the mistake and quotes nothing
// of the event.
func decode(ev inbox.Event) (*event, error) {
	var body struct {
		OrderID    *uuid.UUID `json:"orderId"`
		OccurredAt *time.Time `json:"occurredAt"`
		WasPaid    *bool      `json:"wasPaid"`
		Currency   string     `json:"currency"`
		Payment    struct {
			Currency string `json:"currency"`
		} `json:"payment"`
		Items []item `json:"items"`
	}
	if err := versions.Decode(ev.Type, ev.Value, &body); err != nil {
		return nil, err
	}
	if ev.Type == paid {
		body.Currency = body.Payment.Currency
	}
	switch {
	case body.OrderID == nil:
		return nil, errors.New("orderId is missing")
	case body.OccurredAt == nil:
		return nil, errors.New("occurredAt is missing")
	case ev.Type == cancelled && body.WasPaid == nil:
		return nil, errors.New("wasPaid is missing")
	case !currencyForm.MatchString(body.Currency):
		return nil, errors.New("the currency is not three capital letters")
	case len(body.Items) == 0:
		return nil, errors.New("items are missing")
	case ev.Type == cancelled && !*body.WasPaid:
		return nil, nil
	}
	for i, it := range body.Items {
		switch {
		case it.SKU == "" || len(it.SKU) > maxSKUBytes || strings.ContainsFunc(it.SKU, unicode.IsControl):
			return nil, fmt.Errorf("items[%d].sku is not 1 to %d bytes without control characters", i, maxSKUBytes)
		case it.Quantity < 1 || it.Quantity > maxQuantity:
			return nil, fmt.Errorf("items[%d].quantity is not between 1 and %d", i, maxQuantity)
		case it.UnitPrice == nil:
			return nil, fmt.Errorf("items[%d].unitPrice is missing", i)
		}
	}
	return &event{*body.OrderID, *body.OccurredAt, ev.Type != paid, body.Currency, body.Items}, nil
}
