package orders

import (
	"embed"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/outbox"
)

//go:embed schemas/*.json
var schemas embed.FS

// event is the JSON of an event. schemas says what each field guarantees, and append_order_event (sql/orders) builds
// the same JSON.
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
	TotalAmount   *Money    `json:"totalAmount,omitempty"`
	Currency      string    `json:"currency,omitempty"`
	Payment       *payment  `json:"payment,omitempty"` // of OrderPaid, instead of totalAmount and currency
	Detail
}

// payment is a charge or a refund.
type payment struct {
	ID       uuid.UUID `json:"id"`
	Amount   Money     `json:"amount"`
	Currency string    `json:"currency"`
}

// Detail has the fields that belong to one kind of change. They go into the event and into the order's history.
type Detail struct {
	WasPaid      *bool   `json:"wasPaid,omitempty"`      // of OrderCancelled
	Reason       string  `json:"reason,omitempty"`       // of OrderRejected
	Short        []Short `json:"short,omitempty"`        // of OrderRejected
	TrackingCode string  `json:"trackingCode,omitempty"` // of OrderShipped
}

// Short is an order line that the stock could not serve.
type Short struct {
	SKU       string `json:"sku"`
	Requested int64  `json:"requested"`
	Available int64  `json:"available"`
}

// lastEvent returns the event of the order's last change, and the time of the change. by is the payment that belongs to
// it.
func (o Order) lastEvent(detail Detail, by payment) (outbox.Event, time.Time, error) {
	at := o.CreatedAt
	if o.Status != Created {
		at = **o.changedAt()
	}
	row := outbox.NewEvent("order", o.ID.String(), o.Status.event())
	e := event{
		EventID: row.ID, EventType: row.Type, SchemaVersion: 1, OccurredAt: at.UTC().Format("2006-01-02T15:04:05.000000Z"),
		OrderID: o.ID, OrderNumber: o.Number, BuyerID: o.BuyerID, BuyerEmail: o.BuyerEmail, Items: o.Items, Detail: detail,
	}
	if o.Status == Paid {
		e.SchemaVersion, e.Payment = 2, &by
	} else {
		e.TotalAmount, e.Currency = &o.Total, o.Currency
	}
	payload, err := json.Marshal(e)
	if err != nil {
		return outbox.Event{}, at, fmt.Errorf("encode %s: %w", row.Type, err)
	}
	row.Payload = payload
	return row, at, nil
}

// event returns the type of the event that is written when an order becomes s.
func (s Status) event() string { return "Order" + strings.ToUpper(string(s[:1])) + string(s[1:]) }
