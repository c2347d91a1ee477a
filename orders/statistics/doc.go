// Package statistics counts sales per day and product, from the order events alone.
//
//	OrderPaid                        ──▶ counts the order on the day of payment, for each of its products
//	OrderRejected, OrderCancelled    ──▶ counts the same order as returned, on the same day
//
// It has a separate consumer group with separate inbox entries, and uses nothing but the topic. So its tables can be
// emptied and rebuilt from the topic (Rebuild), for a new kind of count or after a mistake. Package orders reads the
// tables (Store.Statistics).
package statistics
