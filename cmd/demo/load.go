package main

import (
	"context"
	"fmt"
	"time"
)

const (
	passerBy  = "passer-by" // the buyer of keepBuying's orders
	passerSKU = "CUP-300"
)

// keepBuying places an order each second until ctx ends. It pays most of them, and cancels a few, paid or not: about five
// events a second.
func (w *witness) keepBuying(ctx context.Context) error {
	err := w.buyOn(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (w *witness) buyOn(ctx context.Context) error {
	if _, err := request(ctx, "PUT", w.inventory+"/stock/"+passerSKU, `{"available": 1000000}`, nil); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var last string // the order before
	refused := false
	for n := 1; ; n++ {
		order, err := w.passBy(ctx, n, last)
		switch {
		case err != nil && ctx.Err() == nil && !refused: // a person may have stopped a server
			w.say("\nAn order was not taken: %v. The next one is tried each second.", err)
		case err == nil && refused:
			w.say("\nOrders are taken again.")
		}
		refused, last = err != nil, order
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// passBy places the n-th order and returns its id. It pays most orders, and cancels some of those before, which last names.
func (w *witness) passBy(ctx context.Context, n int, last string) (string, error) {
	var order struct{ OrderID string }
	body := fmt.Sprintf(`{"buyerId": %q, "buyerEmail": "someone@shop.example", "items": [{"sku": %q, "quantity": %d, "unitPrice": "3.20"}]}`, passerBy, passerSKU, 1+n%3)
	if _, err := request(ctx, "POST", w.orders+"/orders", body, &order); err != nil {
		return "", err
	}
	if n%7 != 0 {
		if _, err := request(ctx, "POST", w.orders+"/orders/"+order.OrderID+"/pay", "", nil); err != nil {
			return order.OrderID, err
		}
	}
	if n%4 == 0 && last != "" {
		if _, err := request(ctx, "POST", w.orders+"/orders/"+last+"/cancel", "", nil); err != nil {
			return order.OrderID, err
		}
	}
	return order.OrderID, nil
}
