// Package inventory keeps the stock: it takes what paid orders bought, gives back what cancelled ones had taken, and
// does so exactly once per event.
//
//	Kafka ── poll ──▶ Decode ──▶ Store.Apply: one transaction ──▶ commit offsets ──▶ allow a rebalance, poll again
//	                    │          inbox row (a duplicate ends here)
//	                    │          UPDATE stock … WHERE available >= n
//	                    │          movements
//	                    └─ malformed: a row with place and reason, and on to the next
//
// Rules:
//
//   - An offset is committed after the transaction of every event below it, never before. A crash between the two
//     brings the event again, and the inbox knows it.
//   - Stock never goes below zero. A line that cannot be served whole takes nothing and is recorded as a shortage; an
//     unknown SKU is one too. The rest of the order is served.
//   - A cancelled order gives back what its movements say was taken, not what the event lists.
//   - SKUs are locked in sorted order, so that orders with the same SKUs wait for each other and never deadlock.
//   - The records of a partition are applied one after the other, so that the events of an order keep their order;
//     partitions go side by side.
//   - An event that can never be applied stops nothing. A database that cannot be reached stops everything: nothing is
//     skipped, the consumer stays in its group, goes back to the first record it has not applied and tries again.
package inventory
