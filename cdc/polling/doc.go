// Package polling publishes the rows of an outbox table that says of each whether it is pending, for databases that allow no
// logical replication, and without Kafka too.
//
//	table ──▶ settle ──▶ fetch ──▶ Target (cdc/route and cdc/kafka, or a Handler) ──▶ mark or delete
//
// A row is published, and then marked. A relay that dies between the two publishes it again; nothing is lost.
//
// # Order
//
// A row's place is its position, a number that the table draws from a sequence when the row is inserted. Numbers appear in
// another order than they were drawn: a transaction may commit late what it inserted early. So the relay takes only rows up to
// a position that is settled, which means that no row will appear at or before it any more.
//
// It is found like this. H is the highest position that can be seen. X is a transaction id that the relay draws after that. Any
// row up to H, seen or not, had drawn its position before H could be seen, and its transaction had an id by then: the table's
// column transaction stands before position, PostgreSQL fills columns in their order, and its default is
// pg_current_xact_id(), which gives the transaction its id. So that id is below X. As soon as pg_snapshot_xmin, below which
// every transaction has ended, has reached X, all of them have ended, and what they committed is seen by every later
// snapshot. H is settled.
//
// To compare a row's own transaction with pg_snapshot_xmin is not enough. A transaction may take its id early and insert late:
// its row would be let through while an earlier row of the same key, of a younger transaction, still waits for a third one.
//
// One relay at a time has the table, by an advisory lock; others stand by. A row that was refused holds the later rows of its key
// back, while it is tried again and once it has failed.
//
// # At least once
//
// The lock is lost with the connection. A relay that is cut off from PostgreSQL, or frozen, while it publishes may have rows under
// way to Kafka that its successor publishes too. They come late by then: behind A1, A2, A3 a consumer sees A1, A2 once more. It is
// one window at most, in its order, of rows that came or come in their place as well: the first appearances of a key's events are
// always in order, and whoever tells repeats by the header id sees nothing else. On a compacted topic the late one is a key's newest
// until its next event. The relay looks at its connection every second while it publishes, and gives the window up when that is lost;
// what then still comes late was on the wire to Kafka.
package polling
