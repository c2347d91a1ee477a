package inventory

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc/outbox"
)

// The types of the events with which the stock answers; the folder schemas says what each field guarantees.
const (
	StockReserved = "StockReserved" // a paid order has everything it bought
	StockRejected = "StockRejected" // a paid order has nothing, because a line was short
	StockReleased = "StockReleased" // a cancelled order has given back what it had
)

// answer is the JSON of an event about a change of the stock. Its key is the order's id, like the key of the event that
// caused it.
type answer struct {
	EventID       string  `json:"eventId"`
	EventType     string  `json:"eventType"`
	SchemaVersion int     `json:"schemaVersion"`
	OccurredAt    string  `json:"occurredAt"`
	OrderID       string  `json:"orderId"`
	CausedBy      string  `json:"causedBy"`
	Items         []line  `json:"items,omitempty"`
	Short         []Short `json:"short,omitempty"`
}

type line struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
}

// Short is a line of an order that could not be served.
type Short struct {
	SKU       string `json:"sku"`
	Requested int64  `json:"requested"`
	Available int64  `json:"available"`
}

// answer returns the outbox row with the answer to ev.
func (ev Event) answer(done []Movement, short []Short) (outbox.Event, error) {
	eventType := StockReserved
	switch {
	case len(short) > 0:
		eventType = StockRejected
	case ev.Type == OrderCancelled:
		eventType = StockReleased
	}
	row := outbox.NewEvent("stock", ev.OrderID, eventType)
	a := answer{
		EventID: row.ID.String(), EventType: eventType, SchemaVersion: 1, OccurredAt: time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"),
		OrderID: ev.OrderID, CausedBy: ev.ID, Short: short,
	}
	for _, m := range done {
		if m.Change != 0 {
			a.Items = append(a.Items, line{m.SKU, max(m.Change, -m.Change)})
		}
	}
	payload, err := json.Marshal(a)
	if err != nil {
		return outbox.Event{}, fmt.Errorf("encode %s: %w", eventType, err)
	}
	row.Payload = payload
	return row, nil
}
