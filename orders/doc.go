// Package orders takes orders, and writes an event in the same transaction as every change of one.
//
//	            pay                cancel
//	created ──────────▶ paid ──────────────▶ cancelled        OrderCreated, OrderPaid, OrderCancelled: one event for each arrow,
//	   └──────────────────── cancel ─────────────▲            and OrderCreated for the beginning
//
// A state without its event, or an event without its state, cannot be: Place, Pay and Cancel take the caller's transaction and write
// both. The SQL functions create_order, pay_order and cancel_order (sql/orders) do the same from psql. What an event holds is in
// schemas, one file per type and version, and an example of each in testdata; consumers test against these.
//
// Over HTTP:
//
//	POST /orders               place an order: 201 and the order
//	POST /orders/{id}/pay      200 and the order, 409 if it is not created
//	POST /orders/{id}/cancel   200 and the order, 409 if it is cancelled already
//	GET  /orders/{id}          one order
//	GET  /orders?limit=&after= the newest first; next is the value of after for the following page
//	GET  /schemas/{name}       the JSON Schema of an event
//
// Amounts are decimal strings with at most two places ("19.90") and exact everywhere. Errors are problem+json (RFC 9457); 400 is a
// request that cannot be read, 422 one that can but asks for what cannot be, and after either nothing has changed.
//
// A POST may carry an Idempotency-Key. Its first success is kept in the transaction of the change, and the same request with the same
// key gets that answer again, byte for byte; one that comes while the first is at work waits for it. Only a success is kept: after an error
// nothing has changed and the key is free, so a mended request may use it, and a 409 or 503 is decided anew. The same key with another
// method, path or body is 422. A key is the service's, not a client's: use UUIDs. After an answer of 503, or none at all, whether the
// change happened is unknown, and repeating the request with its key is the way to know.
//
// The package knows PostgreSQL and no Kafka: it takes orders whether or not anyone relays them.
package orders
