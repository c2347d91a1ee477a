// Package orders takes orders, and writes an event in the same transaction as every change of one.
//
//	         pay         stock reserved           ship           complete
//	created ─────▶ paid ────────────────▶ confirmed ────▶ shipped ────────▶ completed
//	   │            │ │                       │
//	   │            │ └─ stock rejected ──────┼──▶ rejected     the money goes back
//	   └────────────┴──────── cancel ─────────┴──▶ cancelled    the money goes back, if it was paid
//
// One event for each arrow (OrderPaid, OrderConfirmed, OrderRejected, OrderShipped, OrderCompleted, OrderCancelled), and OrderCreated for
// the beginning. A state without its event, or an event without its state, cannot be: Place, Pay and the others take the caller's transaction
// and write both. In the same transaction go the charge or the refund (table payments: a constraint lets nothing be committed that does not
// add up to the cent), and a line of the order's history. The SQL functions create_order, pay_order, cancel_order, ship_order and
// complete_order (sql/orders) do the same from psql. What an event holds is in schemas, one file per type and version, and an example of
// each in testdata; consumers test against these. That the stock was reserved or not is what orders/saga hears.
//
// Over HTTP:
//
//	POST /orders               place an order: 201 and the order
//	POST /orders/{id}/pay      200 and the order, 409 if it is not created
//	POST /orders/{id}/cancel   200 and the order, 409 if it is rejected, shipped, completed or cancelled already
//	POST /orders/{id}/ship     200 and the order, 409 if it is not confirmed; a body may have {"trackingCode": "…"}
//	POST /orders/{id}/complete 200 and the order, 409 if it is not shipped
//	GET  /orders/{id}          one order
//	GET  /orders/{id}/history  what happened to it, when, and which event told of it
//	GET  /orders?limit=&after= the newest first; next is the value of after for the following page
//	GET  /statistics?from=&to= what was sold, per day and product: package statistics counts it
//	GET  /schemas/{name}       the JSON Schema of an event
//	GET  /orders/{id}/mails and /webhooks, GET and PUT /customers/{id}/notifications: package notify tells people
//
// Amounts are decimal strings with at most two places ("19.90") and exact everywhere. Errors are problem+json (RFC 9457); 400 is a
// request that cannot be read, 422 one that can but asks for what cannot be, and after either nothing has changed.
//
// A POST may carry an Idempotency-Key. Its first success is kept in the transaction of the change, and the same request with the same
// key gets that answer again, byte for byte; one that comes while the first is at work waits for it. Only a success is kept: after an error
// nothing has changed and the key is free, so a fixed request may use it, and a 409 or 503 is decided anew. The same key with another
// method, path or body is 422. A key is the service's, not a client's: use UUIDs. After an answer of 503, or none at all, whether the
// change happened is unknown, and repeating the request with its key is the way to know.
//
// The package knows PostgreSQL and no Kafka: it takes orders whether or not anyone relays them.
package orders
