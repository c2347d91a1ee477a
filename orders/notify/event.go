package notify

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/inbox/upcast"
	"github.com/walpost/walpost/orders"
)

// kinds maps each event type that makes a notification to the kind of that notification.
var kinds = map[string]string{"OrderConfirmed": "confirmed", "OrderRejected": "rejected", "OrderShipped": "shipped"}

// eventTypes is the inverse of kinds.
var eventTypes = map[string]string{"confirmed": "OrderConfirmed", "rejected": "OrderRejected", "shipped": "OrderShipped"}

// Types are the event types that make notifications. Ignored are the other event types of an order.
var (
	Types   = []string{"OrderConfirmed", "OrderRejected", "OrderShipped"}
	Ignored = []string{"OrderCreated", "OrderPaid", "OrderCancelled", "OrderCompleted"}
)

// versions has the upcasts for the events' JSON.
var versions upcast.Steps

// event has the fields of an order event that a notification needs. Other fields are ignored.
type event struct {
	EventID      uuid.UUID     `json:"eventId"`
	EventType    string        `json:"eventType"`
	OrderID      uuid.UUID     `json:"orderId"`
	OrderNumber  string        `json:"orderNumber"`
	BuyerID      string        `json:"buyerId"`
	BuyerEmail   string        `json:"buyerEmail"`
	Items        []orders.Item `json:"items"`
	TotalAmount  orders.Money  `json:"totalAmount"`
	Currency     string        `json:"currency"`
	TrackingCode string        `json:"trackingCode"` // of OrderShipped
	Short        []struct {    // of OrderRejected
		SKU       string `json:"sku"`
		Available int64  `json:"available"`
	} `json:"short"`
}

var (
	numberForm   = regexp.MustCompile(`^[1-9][0-9]{0,18}$`)
	customerForm = regexp.MustCompile(`^[!-~]{1,100}$`)
	currencyForm = regexp.MustCompile(`^[A-Z]{3}$`)
	trackingForm = regexp.MustCompile(`^[ -~]{0,100}$`)
)

// decode reads the event of a record with these headers type and id. The error names the mistake and quotes nothing;
// such an event can never become a notification. The address is not checked here: an unusable address makes a
// notification FAILED, not an event unreadable.
func decode(eventType, id string, value []byte) (event, error) {
	var ev event
	if kinds[eventType] == "" {
		return ev, fmt.Errorf("the type is none of %s", strings.Join(Types, ", "))
	}
	if err := versions.Decode(eventType, value, &ev); err != nil {
		return event{}, err
	}
	switch {
	case ev.EventType != eventType:
		return event{}, errors.New("eventType differs from the header type")
	case ev.EventID == uuid.Nil || ev.EventID.String() != id:
		return event{}, errors.New("eventId differs from the header id")
	case ev.OrderID == uuid.Nil:
		return event{}, errors.New("orderId is missing")
	case !numberForm.MatchString(ev.OrderNumber):
		return event{}, errors.New("orderNumber is not a number as text")
	case !customerForm.MatchString(ev.BuyerID):
		return event{}, errors.New("buyerId is not 1 to 100 printable ASCII characters without space")
	case !currencyForm.MatchString(ev.Currency):
		return event{}, errors.New("currency is not three capital letters")
	case !trackingForm.MatchString(ev.TrackingCode):
		return event{}, errors.New("trackingCode is not at most 100 printable ASCII characters")
	case len(ev.Items) == 0:
		return event{}, errors.New("items are missing")
	}
	for i, item := range ev.Items {
		if item.SKU == "" || len(item.SKU) > 64 || strings.ContainsFunc(item.SKU, unicode.IsControl) || item.Quantity < 1 {
			return event{}, fmt.Errorf("items[%d] is not a sku of 1 to 64 bytes with a quantity above 0", i)
		}
	}
	return ev, nil
}
