// Package orders takes orders, and writes an event in the same transaction as every change of an order.
//
//	         pay         stock reserved           ship           complete
//	created ─────▶ paid ────────────────▶ confirmed ────▶ shipped ────────▶ completed
//	   │            │ │                       │
//	   │            │ └─ stock rejected ──────┼──▶ rejected     the money is refunded
//	   └────────────┴──────── cancel ─────────┴──▶ cancelled    the money is refunded, if the order was paid
//
// Each arrow has one event (OrderPaid, OrderConfirmed, OrderRejected, OrderShipped, OrderCompleted, OrderCancelled),
// and the start has OrderCreated. A state without its event, or an event without its state, is impossible: Place, Pay
// and the other functions take the caller's transaction and write both. The charge or the refund goes into the same
// transaction (table payments; a constraint rejects a commit whose sums differ by a cent), and so does a line of the
// order's history. The SQL functions create_order, pay_order, cancel_order, ship_order and complete_order (sql/orders)
// do the same from psql. The folder schemas describes each event, one file per type and version, and testdata has an
// example of each; consumers test against these. Package saga receives the stock's answers: reserved or rejected.
//
// Over HTTP:
//
//	POST /orders               place an order: 201 and the order
//	POST /orders/{id}/pay      200 and the order, 409 if it is not created
//	POST /orders/{id}/cancel   200 and the order, 409 if it is already rejected, shipped, completed or cancelled
//	POST /orders/{id}/ship     200 and the order, 409 if it is not confirmed; a body may have {"trackingCode": "…"}
//	POST /orders/{id}/complete 200 and the order, 409 if it is not shipped
//	GET  /orders/{id}          one order
//	GET  /orders/{id}/history  what happened to it and when, with the event's id
//	GET  /orders?limit=&after= the newest first; "next" is the value of after for the next page
//	GET  /statistics?from=&to= sales per day and product, counted by package statistics
//	GET  /schemas/{name}       the JSON Schema of an event
//	GET  /orders/{id}/mails and /webhooks, GET and PUT /customers/{id}/notifications: see package notify
//
// Amounts are decimal strings with at most two places ("19.90") and exact everywhere. Errors are problem+json (RFC
// 9457). 400 means that the request cannot be read, 422 that it can be read but is invalid. After either nothing has
// changed.
//
// A POST may carry an Idempotency-Key. Its first success is stored in the transaction of the change, and the same
// request with the same key gets that answer again, byte for byte. A second request waits while the first one is
// running. Only a success is stored: after an error nothing has changed and the key is free, so a corrected request may
// use it, and a 409 or 503 is decided again. The same key with another method, path or body gets 422. Keys are shared
// by all clients of the service: use UUIDs. After an answer of 503, or without an answer, the client does not know
// whether the change happened; it finds out by repeating the request with the same key.
//
// The package uses PostgreSQL and no Kafka: it takes orders whether or not a relay runs.
package orders
