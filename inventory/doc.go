// Package inventory keeps the stock: it takes what paid orders bought, gives back what cancelled ones had taken, and
// does so exactly once per event.
//
//	Kafka ──▶ cdc/inbox: one transaction for many events ──▶ commit offsets
//	            inbox rows (duplicates end here)
//	            Decode, Store.Apply:
//	              UPDATE stock … WHERE available >= n
//	              movements
//
// Rules, beside those of cdc/inbox:
//
//   - Stock never goes below zero. A line that cannot be served whole takes nothing and is recorded as a shortage; an
//     unknown SKU is one too. The rest of the order is served.
//   - A cancelled order gives back what its movements say was taken, not what the event lists. One that was paid, but
//     not here, can never be applied.
//   - The SKUs of a transaction are locked in sorted order, so that orders with the same SKUs wait for each other and
//     never deadlock.
//   - An event that can never be applied is parked, and with it, by default, the later events of its order. A database
//     that cannot be reached stops everything: nothing is skipped.
package inventory
