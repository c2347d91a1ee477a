package saga

import (
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/inbox/upcast"
	"github.com/walpost/walpost/orders"
)

// The event types of the stock's answers.
const (
	StockReserved = "StockReserved"
	StockRejected = "StockRejected"
	StockReleased = "StockReleased"
)

// An Event has the parts of the stock's answer that an order needs.
type Event struct {
	ID      uuid.UUID
	Type    string
	OrderID uuid.UUID
	Detail  Detail
}

// Detail is stored in the order's history.
type Detail struct {
	CausedBy uuid.UUID      `json:"causedBy"` // the order's event
	Items    []Item         `json:"items,omitempty"`
	Short    []orders.Short `json:"short,omitempty"`
}

// Item is a line that was reserved or released.
type Item struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
}

// versions has the upcasts for the events' JSON.
var versions upcast.Steps

// Decode reads the event of a record from its value and its headers `type` and `id`. An error names the mistake and
// quotes nothing of the event; such an event can never be applied. Unknown fields are ignored.
func Decode(eventType, id string, value []byte) (Event, error) {
	var body struct {
		EventID   uuid.UUID      `json:"eventId"`
		EventType string         `json:"eventType"`
		OrderID   uuid.UUID      `json:"orderId"`
		CausedBy  uuid.UUID      `json:"causedBy"`
		Items     []Item         `json:"items"`
		Short     []orders.Short `json:"short"`
	}
	if err := versions.Decode(eventType, value, &body); err != nil {
		return Event{}, err
	}
	header, err := uuid.Parse(id)
	switch {
	case body.EventType != eventType:
		return Event{}, errors.New("eventType differs from the header type")
	case err != nil || body.EventID != header:
		return Event{}, errors.New("eventId differs from the header id")
	case body.OrderID == uuid.Nil:
		return Event{}, errors.New("orderId is missing")
	case body.CausedBy == uuid.Nil:
		return Event{}, errors.New("causedBy is missing")
	case (eventType == StockRejected) != (len(body.Short) > 0):
		return Event{}, errors.New("short is missing in StockRejected, or present in another type")
	case (eventType == StockRejected) != (len(body.Items) == 0):
		return Event{}, errors.New("items are missing, or present in StockRejected")
	}
	for i, line := range body.Items {
		if line.SKU == "" || line.Quantity < 1 {
			return Event{}, fmt.Errorf("items[%d] has no valid sku and quantity", i)
		}
	}
	for i, line := range body.Short {
		if line.SKU == "" || line.Available < 0 || line.Requested <= line.Available {
			return Event{}, fmt.Errorf("short[%d] has no valid sku with less available than requested", i)
		}
	}
	return Event{ID: header, Type: eventType, OrderID: body.OrderID, Detail: Detail{body.CausedBy, body.Items, body.Short}}, nil
}
