package inventory

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/inbox/upcast"
)

// The event types that move stock.
const (
	OrderPaid      = "OrderPaid"
	OrderCancelled = "OrderCancelled"
)

var (
	handled = []string{OrderPaid, OrderCancelled}
	// ignored are the order events that move no stock. An event of any other type is unknown to this program, and
	// is parked.
	ignored = []string{"OrderCreated", "OrderRejected", "OrderConfirmed", "OrderShipped", "OrderCompleted"}
)

// versions has the upcasts for the events' JSON. Version 2 of OrderPaid moves the amount, which inventory does not
// read.
var versions = upcast.Steps{OrderPaid: {func(map[string]json.RawMessage) error { return nil }}}

// These limits of an event are wider than the values that the order service writes, and small enough to be harmless.
const (
	maxSKUBytes = 64            // the limit of the table
	maxQuantity = 1_000_000_000 // of a line; the sum over an event's lines stays far inside int64
)

// An Event has the parts of a paid or cancelled order that inventory needs.
type Event struct {
	ID          string // canonical UUID
	Type        string // OrderPaid or OrderCancelled
	OrderID     string // canonical UUID
	OrderNumber string // for the log; may be empty
	WasPaid     bool   // of OrderCancelled
	Items       []Item // at least one; a SKU may come more than once
}

// An Item is one line of an order.
type Item struct {
	SKU      string
	Quantity int64 // 1 to maxQuantity
}

// Decode reads the event of a record of one of these types from its value and its headers `type` and `id`. An error
// names the mistake and quotes nothing of the event; such an event can never be applied. Fields that inventory does not
// use are ignored.
func Decode(eventType, id string, value []byte) (Event, error) {
	switch {
	case eventType != OrderPaid && eventType != OrderCancelled:
		return Event{}, fmt.Errorf("the type is neither %s nor %s", OrderPaid, OrderCancelled)
	case id == "":
		return Event{}, errors.New("header id is missing")
	}

	var body struct {
		EventID     *string `json:"eventId"`
		EventType   *string `json:"eventType"`
		OrderID     *string `json:"orderId"`
		OrderNumber string  `json:"orderNumber"`
		WasPaid     *bool   `json:"wasPaid"`
		Items       []struct {
			SKU      *string `json:"sku"`
			Quantity *int64  `json:"quantity"`
		} `json:"items"`
	}
	if err := versions.Decode(eventType, value, &body); err != nil {
		return Event{}, err
	}

	switch {
	case body.EventID == nil:
		return Event{}, errors.New("eventId is missing")
	case body.EventType != nil && *body.EventType != eventType:
		return Event{}, errors.New("eventType differs from the header type")
	case body.OrderID == nil:
		return Event{}, errors.New("orderId is missing")
	case eventType == OrderCancelled && body.WasPaid == nil:
		return Event{}, errors.New("wasPaid is missing")
	case len(body.Items) == 0:
		return Event{}, errors.New("items are missing")
	}

	eventID, err := uuid.Parse(*body.EventID)
	if err != nil {
		return Event{}, errors.New("eventId is not a UUID")
	}
	if header, err := uuid.Parse(id); err != nil || header != eventID {
		return Event{}, errors.New("eventId differs from the header id")
	}
	orderID, err := uuid.Parse(*body.OrderID)
	if err != nil {
		return Event{}, errors.New("orderId is not a UUID")
	}

	ev := Event{
		ID:          eventID.String(),
		Type:        eventType,
		OrderID:     orderID.String(),
		OrderNumber: body.OrderNumber,
		WasPaid:     eventType == OrderCancelled && *body.WasPaid,
		Items:       make([]Item, len(body.Items)),
	}
	for i, item := range body.Items {
		at := fmt.Sprintf("items[%d].", i)
		switch {
		case item.SKU == nil:
			return Event{}, errors.New(at + "sku is missing")
		case item.Quantity == nil:
			return Event{}, errors.New(at + "quantity is missing")
		case *item.Quantity < 1 || *item.Quantity > maxQuantity:
			return Event{}, fmt.Errorf("%squantity is not between 1 and %d", at, maxQuantity)
		}
		if err := checkSKU(*item.SKU); err != nil {
			return Event{}, fmt.Errorf("%ssku %w", at, err)
		}
		ev.Items[i] = Item{SKU: *item.SKU, Quantity: *item.Quantity}
	}
	return ev, nil
}

// checkSKU returns an error if the table stock cannot store sku.
func checkSKU(sku string) error {
	switch {
	case sku == "":
		return errors.New("is empty")
	case len(sku) > maxSKUBytes:
		return fmt.Errorf("is longer than %d bytes", maxSKUBytes)
	case strings.ContainsFunc(sku, unicode.IsControl):
		return errors.New("holds a control character")
	case !utf8.ValidString(sku):
		return errors.New("is not UTF-8")
	}
	return nil
}
