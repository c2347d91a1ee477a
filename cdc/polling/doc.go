// Package polling publishes the pending rows of an outbox table. Status columns of the table say which rows are pending. It is
// for databases that allow no logical replication, and it works without Kafka, too.
//
//	table ──▶ settle ──▶ fetch ──▶ Target (cdc/route and cdc/kafka, or a Handler) ──▶ mark or delete
//
// The relay publishes a row, and then marks it. A relay that dies between the two publishes the row again; nothing is lost.
//
// # Order
//
// A row's place is its position, a number that the table draws from a sequence when the row is inserted. Positions become
// visible in another order than they were drawn, because a transaction may insert a row early and commit late. So the relay
// takes only rows up to a settled position. A position is settled when no further row can become visible at or before it.
//
// The relay finds it like this. H is the highest visible position. X is a transaction id that the relay draws after it has read
// H. Every row up to H, visible or not, had drawn its position before H became visible. The row's transaction had an id by then:
// in the table the column transaction comes before position, PostgreSQL fills columns in their order, and the column's default is
// pg_current_xact_id(), which gives the transaction its id. So that id is below X. All transactions below pg_snapshot_xmin have
// ended. As soon as pg_snapshot_xmin has reached X, all those transactions have ended, and every later snapshot sees the rows
// that they committed. H is settled.
//
// It is not enough to compare a row's own transaction with pg_snapshot_xmin. A transaction may take its id early and insert
// late. The relay would publish its row while an earlier row of the same key, of a younger transaction, still waits for a third
// transaction.
//
// One relay at a time has the table, by an advisory lock; others stand by. A rejected row holds the later rows of its key, while
// it is tried again and after it has failed.
//
// # At least once
//
// The lock is lost with the connection. A relay that is cut off from PostgreSQL, or frozen, while it publishes may have rows on
// the way to Kafka that its successor publishes too. These rows then arrive late: after A1, A2, A3 a consumer sees A1, A2 once
// more. At most one window is affected, in its order, and only with rows that also arrive in their place: the first appearances
// of a key's events are always in order, and a consumer that drops repeats by the header id never notices. On a compacted topic
// the late record is the key's newest until the key's next event. The relay checks its connection every second while it
// publishes, and abandons the window when the connection is lost; only records that were on the wire to Kafka can then arrive late.
package polling
