// Package inbox applies each event of a topic to a database once and in order, across crashes and rebalances.
//
// The application gives a handler; a Consumer does the rest:
//
//	consumer, err := inbox.New(inbox.Config{Brokers: brokers, Topic: "payments", Group: "accounting", Pool: pool,
//		Handle: func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error { … }})
//	err = consumer.Run(ctx)
//
// Kafka delivers at least once: after a crash, a rebalance or a replay the same event arrives again. The inbox is a
// table of the events that were applied, in the same database as their effects:
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
//   - The consumer commits an offset only after the transactions of all events below it are committed. After a crash
//     between the two, Kafka delivers the event again, and the inbox recognises it.
//   - The primary key is the lock. A second transaction with the same event waits in its INSERT until the first has
//     ended. If the first committed, the second finds a duplicate. If the first rolled back, the second applies the
//     event. A SELECT before the INSERT would let both through.
//   - The events of a partition are applied one after the other; partitions run in parallel. When the transaction of
//     several events fails, the consumer applies them one by one.
//   - An error of a handler is transient unless the handler marks it with Permanent. The consumer tries the event again
//     in place, after a random time that doubles up to 5 s. The partition is paused meanwhile. The process stays in its
//     group, and other partitions continue.
//   - An error marked with Permanent, or a record without an id, is a case for Config.Policy: block the partition, park
//     the key, or skip the event. A parked or skipped event is a whole row in inbox_parked. The transaction that writes
//     this row also moves the partition past the event.
//   - While an event of a key is parked, later events of that key are parked after it, in order, until an Operator has
//     redriven the earlier ones.
//   - When a partition is assigned, the consumer claims it: it raises the epoch in the partition's row. PostgreSQL then
//     refuses transactions under an older epoch. So a process that slept through a rebalance cannot write over its
//     successor, and a process that the group does not know claims nothing. The server ends the open transaction of a
//     frozen process within 5 s.
//   - The inbox decides where a partition resumes. Its row has the next offset and the topic's id. At each assignment
//     the consumer compares both with the log and with the group's offset. Records below the log's start that were
//     never applied are a gap: it is logged, counted and recorded, and it halts the partition if Config.Gap says so.
//     Missing offsets inside the log are not a gap. A topic that was deleted and created again is read from its start.
//   - The order of a key holds within a partition. When partitions are added, a key may move to another one, and its
//     new events may be applied before its old ones. A parked key holds its events in every partition.
//   - Tables whose contents follow from the topic alone can be rebuilt: LockedGroup.Rebuild applies the whole topic to
//     emptied tables, in one transaction, and marks every event in the inbox. The consumer waits, and resumes
//     afterwards.
//
// # With database/sql
//
// A handler gets a pgx.Tx, because the claim, the inbox row and the effect are one transaction on one connection, and
// database/sql cannot join a transaction that it did not begin. The SQL in the handler is the same. The rest of the
// service may use database/sql over the same pool, through stdlib.OpenDBFromPool. Code that needs a *sql.Tx must write
// a separate consumer around the one INSERT above, as in the example. It does without fencing, retries in place,
// parking, replay and retention.
//
// # How long the inbox remembers an event
//
// PostgreSQL enforces uniqueness only within a partition of a table, unless the key contains the partition column. The
// inbox cannot be partitioned by the time of processing: a copy that arrives after midnight would be compared with
// another partition. It is partitioned by the day in the event's id, which a UUIDv7 carries in its first 48 bits. The
// day follows from the id alone (a CHECK enforces it for every row). So all copies of an event go to the same partition
// at any time, and the primary key (consumer, event_id, event_day) is as strict as (consumer, event_id). An id whose
// day is before 2020 or after tomorrow only looks like a UUIDv7 and counts as undated. When that day arrives, the inbox
// looks among the undated rows first.
//
// The consumer creates partitions a week ahead, and drops a whole day when it is older than Retention. An event of a
// dropped day is rejected, as one that can never be applied: the inbox cannot tell it from a copy, so it is never
// applied twice. Nothing is dropped while the topic keeps its records at least as long. Ids that are not UUIDv7 have no
// day. Their rows share one partition and are deleted by the time of processing; a copy that arrives after Retention is
// applied again. A group that returns after a long time resumes at the inbox's offset, although its offsets in Kafka
// have expired. So events that were applied and then forgotten are not even read.
//
// The package schema has the SQL of the tables, for the service's migrations.
package inbox
