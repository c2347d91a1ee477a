// Package inventory keeps the stock of the products that are sold. It reserves the items of paid orders and releases
// the items of cancelled ones, exactly once per event, and answers each event with an event.
//
//	Kafka ──▶ cdc/inbox: one transaction for many events ──▶ commit offsets
//	            inbox rows (duplicates end here)
//	            Decode, Store.Apply:
//	              SELECT … FROM stock … FOR UPDATE
//	              stock, movements, outbox ──▶ relay ──▶ Kafka: StockReserved, StockRejected, StockReleased
//
// Rules, in addition to those of cdc/inbox:
//
//   - Stock never goes below zero. An order is served whole or not at all: if a line is short (or its SKU is unknown),
//     nothing is taken, each short line is recorded as a shortage, and the answer is StockRejected with these lines.
//   - Movements and the outbox row are written in one transaction, so every movement has its event, and every event its
//     movements. The event's key is the order's id, so that the answers to an order stay in order. The folder schemas
//     says what an answer holds.
//   - A cancelled order gives back the quantities in its movements, not the quantities in the event. A cancellation of
//     a paid order whose payment was never applied here can never be applied.
//   - The SKUs of a transaction are locked in sorted order, so that orders with the same SKUs wait for each other and
//     never deadlock.
//   - An event that can never be applied is parked, and by default so are the later events of its order. If the
//     database cannot be reached, everything waits: nothing is skipped.
package inventory
