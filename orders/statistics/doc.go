// Package statistics counts what is sold per day and product, from the order events alone.
//
//	OrderPaid                        ──▶ one order more on the day of payment, for each of its products
//	OrderRejected, OrderCancelled    ──▶ the same order is returned, on the same day
//
// It is a consumer group of its own, with its own inbox entries, and knows nothing but the topic: so its tables can be
// emptied and made anew from there (Rebuild), for a new kind of count or after a mistake. What it says is read by package
// orders (Store.Statistics).
package statistics
