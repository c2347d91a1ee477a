// Package inventory keeps the stock of what orders buy. It takes what paid orders bought, gives back what cancelled ones had taken, does
// so exactly once per event, and answers each with an event.
//
//	Kafka ──▶ cdc/inbox: one transaction for many events ──▶ commit offsets
//	            inbox rows (duplicates end here)
//	            Decode, Store.Apply:
//	              SELECT … FROM stock … FOR UPDATE
//	              stock, movements, outbox ──▶ relay ──▶ Kafka: StockReserved, StockRejected, StockReleased
//
// Rules, beside those of cdc/inbox:
//
//   - Stock never goes below zero. An order is served whole or not at all: where a line is short (an unknown SKU is,
//     too), nothing is taken, each short line is recorded as a shortage, and the answer is StockRejected with these lines.
//   - What moved was told, and what was told moved: movements and the outbox row are one transaction. Keys are the
//     orders', so that answers to an order stay in order; schemas says what an answer holds.
//   - A cancelled order gives back what its movements say was taken, not what the event lists. One that was paid, but
//     not here, can never be applied.
//   - The SKUs of a transaction are locked in sorted order, so that orders with the same SKUs wait for each other and
//     never deadlock.
//   - An event that can never be applied is parked, and with it, by default, the later events of its order. A database
//     that cannot be reached stops everything: nothing is skipped.
package inventory
