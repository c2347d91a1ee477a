package orders

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// The limits of one order; CHECK constraints of the tables enforce the same.
const (
	MaxItems    = 100
	MaxQuantity = 10_000
)

// Status is the state of an order.
type Status string

// The states of an order. doc.go has a diagram of them.
const (
	Created   Status = "created"
	Paid      Status = "paid"
	Confirmed Status = "confirmed"
	Rejected  Status = "rejected"
	Shipped   Status = "shipped"
	Completed Status = "completed"
	Cancelled Status = "cancelled"
)

// next has the arrows of the diagram in doc.go.
var next = map[Status][]Status{
	Created:   {Paid, Cancelled},
	Paid:      {Confirmed, Rejected, Cancelled},
	Confirmed: {Shipped, Cancelled},
	Shipped:   {Completed},
	Rejected:  nil,
	Completed: nil,
	Cancelled: nil,
}

// Order is an order as the service stores and returns it.
type Order struct {
	ID          uuid.UUID  `json:"orderId"`
	Number      int64      `json:"orderNumber,string"` // for people; text in JSON, because it is not a quantity
	Status      Status     `json:"status"`
	BuyerID     string     `json:"buyerId"`
	BuyerEmail  string     `json:"buyerEmail"`
	Items       []Item     `json:"items"` // at least one, and no sku twice
	Total       Money      `json:"totalAmount"`
	Currency    string     `json:"currency"` // ISO 4217
	CreatedAt   time.Time  `json:"createdAt"`
	PaidAt      *time.Time `json:"paidAt,omitempty"` // kept when a paid order is rejected or cancelled
	ConfirmedAt *time.Time `json:"confirmedAt,omitempty"`
	RejectedAt  *time.Time `json:"rejectedAt,omitempty"`
	ShippedAt   *time.Time `json:"shippedAt,omitempty"`
	CompletedAt *time.Time `json:"completedAt,omitempty"`
	CancelledAt *time.Time `json:"cancelledAt,omitempty"`

	TrackingCode string `json:"trackingCode,omitempty"`
}

// changedAt returns the field for the time at which the order got its current state.
func (o *Order) changedAt() **time.Time {
	return map[Status]**time.Time{
		Paid: &o.PaidAt, Confirmed: &o.ConfirmedAt, Rejected: &o.RejectedAt, Shipped: &o.ShippedAt, Completed: &o.CompletedAt, Cancelled: &o.CancelledAt,
	}[o.Status]
}

// Item is one line of an order.
type Item struct {
	SKU       string `json:"sku"`
	Quantity  int    `json:"quantity"`
	UnitPrice Money  `json:"unitPrice"`
}

// ErrNotFound is returned for an id that no order has.
var ErrNotFound = errors.New("there is no such order")

// ErrDuplicate is returned for an event that is in the order's history already.
var ErrDuplicate = errors.New("the order has received this event already")

// StateError is returned when the order's state does not allow the requested change; a retry cannot help.
type StateError struct {
	Number int64
	Is     Status
	Asked  Status
}

func (e *StateError) Error() string {
	return fmt.Sprintf("order %d is %s and cannot become %s", e.Number, e.Is, e.Asked)
}

func (o Order) mayBecome(to Status) error {
	if slices.Contains(next[o.Status], to) {
		return nil
	}
	return &StateError{Number: o.Number, Is: o.Status, Asked: to}
}

// Request is a request to place an order, before it is checked.
type Request struct {
	BuyerID    string        `json:"buyerId"`
	BuyerEmail string        `json:"buyerEmail"`
	Currency   string        `json:"currency"` // empty means EUR
	Items      []RequestItem `json:"items"`
}

// RequestItem is an Item, unchecked.
type RequestItem struct {
	SKU       string `json:"sku"`
	Quantity  int    `json:"quantity"`
	UnitPrice string `json:"unitPrice"`
}

// Fault is one mistake in a request, with its place as a JSON Pointer.
type Fault struct {
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}

// InvalidError is returned for a request that can be read but is invalid. It holds every mistake.
type InvalidError []Fault

func (e InvalidError) Error() string {
	sentences := make([]string, len(e))
	for i, f := range e {
		sentences[i] = f.Pointer + " " + f.Detail
	}
	return strings.Join(sentences, "; ")
}

// Only printable ASCII is accepted, so that no value can break a line of a mail header or of a log. The e-mail pattern
// is the one of HTML.
var (
	buyerIDForm  = regexp.MustCompile(`^[!-~]{1,100}$`)
	emailForm    = regexp.MustCompile("^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\\.[A-Za-z0-9-]+)*$")
	skuForm      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	currencyForm = regexp.MustCompile(`^[A-Z]{3}$`)

	trackingCodeForm = regexp.MustCompile(`^[ -~]{1,100}$`)
)

// PlainEmail reports whether s is exactly one e-mail address, without anything else that a mail header would interpret.
func PlainEmail(s string) bool { return len(s) <= 254 && emailForm.MatchString(s) }

// Order checks the request and calculates its total. Number and time come from the database and are still zero. The
// error is an InvalidError.
func (r Request) Order() (Order, error) {
	var faults InvalidError
	must := func(ok bool, pointer, detail string) {
		if !ok {
			faults = append(faults, Fault{pointer, detail})
		}
	}
	if r.Currency == "" {
		r.Currency = "EUR"
	}
	must(buyerIDForm.MatchString(r.BuyerID), "/buyerId", "must be 1 to 100 printable ASCII characters without space")
	must(PlainEmail(r.BuyerEmail), "/buyerEmail", "must be one plain e-mail address")
	must(currencyForm.MatchString(r.Currency), "/currency", "must be three capital letters, as in EUR")
	must(len(r.Items) >= 1 && len(r.Items) <= MaxItems, "/items", "must be 1 to 100 lines")

	o := Order{
		ID: uuid.Must(uuid.NewV7()), Status: Created,
		BuyerID: r.BuyerID, BuyerEmail: r.BuyerEmail, Currency: r.Currency,
	}
	seen := map[string]bool{}
	for i, line := range r.Items[:min(len(r.Items), MaxItems)] {
		at := fmt.Sprintf("/items/%d/", i)
		price, err := ParseMoney(line.UnitPrice)
		must(skuForm.MatchString(line.SKU), at+"sku", "must be 1 to 64 letters, digits, dots, dashes and underscores, beginning with a letter or digit")
		must(!seen[line.SKU], at+"sku", "is in an earlier line, too: combine the lines into one")
		must(line.Quantity >= 1 && line.Quantity <= MaxQuantity, at+"quantity", "must be a whole number from 1 to 10000")
		must(err == nil, at+"unitPrice", errMoney.Error())
		must(price <= MaxPrice, at+"unitPrice", "must be at most "+MaxPrice.String())
		seen[line.SKU] = true
		o.Items = append(o.Items, Item{line.SKU, line.Quantity, price})
		o.Total += price * Money(line.Quantity)
	}
	if faults != nil {
		return Order{}, faults
	}
	return o, nil
}
