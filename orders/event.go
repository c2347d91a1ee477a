package orders

import (
	"embed"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/outbox"
)

//go:embed schemas/*.json
var schemas embed.FS

// event is what is told about a change; schemas holds what each field promises, and append_order_event (sql/orders) builds the same.
type event struct {
	EventID       uuid.UUID `json:"eventId"`
	EventType     string    `json:"eventType"`
	SchemaVersion int       `json:"schemaVersion"`
	OccurredAt    string    `json:"occurredAt"`
	OrderID       uuid.UUID `json:"orderId"`
	OrderNumber   int64     `json:"orderNumber,string"`
	BuyerID       string    `json:"buyerId"`
	BuyerEmail    string    `json:"buyerEmail"`
	Items         []Item    `json:"items"`
	TotalAmount   Money     `json:"totalAmount"`
	Currency      string    `json:"currency"`
	WasPaid       *bool     `json:"wasPaid,omitempty"`
}

// lastEvent is the event of the change that made the order what it is.
func (o Order) lastEvent() (outbox.Event, error) {
	e := event{
		SchemaVersion: 1,
		OrderID:       o.ID, OrderNumber: o.Number, BuyerID: o.BuyerID, BuyerEmail: o.BuyerEmail,
		Items: o.Items, TotalAmount: o.Total, Currency: o.Currency,
	}
	var at time.Time
	switch o.Status {
	case Created:
		e.EventType, at = "OrderCreated", o.CreatedAt
	case Paid:
		e.EventType, at = "OrderPaid", *o.PaidAt
	case Cancelled:
		wasPaid := o.PaidAt != nil
		e.EventType, at, e.WasPaid = "OrderCancelled", *o.CancelledAt, &wasPaid
	}
	e.OccurredAt = at.UTC().Format("2006-01-02T15:04:05.000000Z")

	row := outbox.NewEvent("order", o.ID.String(), e.EventType)
	e.EventID = row.ID
	payload, err := json.Marshal(e)
	if err != nil {
		return outbox.Event{}, fmt.Errorf("encode %s: %w", e.EventType, err)
	}
	row.Payload = payload
	return row, nil
}
