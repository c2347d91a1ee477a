// Package inbox applies each event of a topic to a database once, in order, whatever fails.
//
// The application gives a function; the rest is a Consumer:
//
//	consumer, err := inbox.New(inbox.Config{Brokers: brokers, Topic: "payments", Group: "accounting", Pool: pool,
//		Handle: func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error { … }})
//	err = consumer.Run(ctx)
//
// Kafka delivers at least once: after a crash, a rebalance or a replay the same event comes again. The inbox is a table
// of the events that were applied, in the same database as their effects:
//
//	poll ──▶ worker of the partition, up to Batch events at a time                      ──▶ commit offsets
//	           BEGIN
//	             UPDATE inbox_partitions … WHERE epoch = mine        0 rows: fenced
//	             INSERT INTO inbox … ON CONFLICT DO NOTHING          a row: the first time   none: seen before
//	             … the handler, for the first times only …
//	           COMMIT                                                all or nothing
//
// Rules:
//
//   - An offset is committed after the transaction of every event below it, never before. A crash between the two brings
//     the event again, and the inbox knows it.
//   - The primary key is the lock. A second transaction with the same event waits in its INSERT until the first has
//     ended: when that committed, the second sees a duplicate; when it rolled back, the second is the first. Looking
//     before inserting would let both through.
//   - The events of a partition are applied one after the other; partitions go side by side. When the transaction of
//     several events fails, they are tried one by one.
//   - What a handler returns is transient unless it is marked: the event is tried again in place, after a random time
//     that doubles up to 5 s. Its partition is paused meanwhile, the process stays in its group, others go on.
//   - What Permanent marks, and a record without an id, is the Policy's: block its partition, park its key, or skip it.
//     Parked and skipped events are rows of inbox_parked, whole, written in the transaction that passes them over.
//   - An event of a key that is parked is parked behind it, in order, until an Operator has redriven what is before it.
//   - Who claims a partition, when it is assigned, raises the epoch of its row; a transaction under an older one is
//     refused. So a process that has slept through a rebalance applies nothing behind its successor's back, and one that
//     the group does not know claims nothing. A frozen process's open transaction is ended by the server within 5 s.
//   - Where a partition goes on is the inbox's to say: its row has the position and the topic's id, and both are compared
//     with the log and with the group's offset at each assignment. Records below the log's start that were never applied
//     are a gap, which is logged, counted and recorded, and halts the partition if Config.Gap says so. Offsets missing
//     inside the log are none. A topic made again is read from its start.
//   - The order of a key holds within a partition. When partitions are added, a key may move to another one, and its new
//     events may be applied before its old ones; a parked key holds them in every partition.
//   - What follows from the topic alone can be made from it again: LockedGroup.Rebuild applies the whole topic to emptied
//     tables, in one transaction, and the inbox then knows all of it. The consumer waits and goes on behind it.
//
// # With database/sql
//
// A handler gets a pgx.Tx, because claim, inbox row and effect are one transaction on one connection, and database/sql cannot join a
// transaction that it has not begun itself. The SQL in it is the same, and the rest of the service may go on with database/sql over the
// same pool, through stdlib.OpenDBFromPool. Code that must have a *sql.Tx needs a consumer of its own around the one INSERT above, as in
// the example; it does without what Consumer adds: fencing, retries in place, parking, replay, retention.
//
// # What is remembered, and how long
//
// PostgreSQL enforces uniqueness within a partition of a table only, unless the key contains what the table is
// partitioned by. The time of processing would be the wrong thing: a copy that comes after midnight would meet another
// partition. The inbox is partitioned by the day of the event's id, which a UUIDv7 carries in its first 48 bits. It
// follows from the id alone (a CHECK holds every row to it), so all copies of an event meet in the same partition
// whenever they come, and the primary key (consumer, event_id, event_day) is as strict as (consumer, event_id). A day
// before 2020 or after tomorrow is none: such an id only looks like UUIDv7. When its day comes, the undated are asked first.
//
// Days are made a week ahead and dropped whole when they are older than Retention. An event of a dropped day is refused,
// as one that can never be applied: it cannot be told from a copy, so it is never applied twice. Nothing is dropped while
// the topic keeps its records as long. Ids that are no UUIDv7 have no day: their rows share one partition, out of which
// they are deleted by the time of processing, and a copy that comes after Retention is applied again. A group that comes
// back after long goes on at the inbox's position, although its offsets in Kafka have expired, so that what was applied
// and forgotten is not even read.
//
// The package schema has the SQL of the tables, for a migration of the service's own.
package inbox
