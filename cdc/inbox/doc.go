// Package inbox applies a message at most once per consumer, in the caller's transaction.
//
// Kafka delivers at least once: after a crash, a rebalance or a replay of the relay the same event comes again. The
// inbox is a table of the events a consumer has applied, in the same database as their effects:
//
//	BEGIN
//	  INSERT INTO inbox (consumer, event_id, …) ON CONFLICT DO NOTHING    1 row: the first time   0 rows: seen before
//	  … the effect …                                                      only the first time
//	COMMIT                                                                both or neither
//	then commit the offset in Kafka
//
// The primary key is the lock. A second transaction with the same event waits in its INSERT until the first has ended:
// when that committed, the second sees a duplicate; when it rolled back, the second is the first. Looking before
// inserting would let both through.
//
// Why the order per key holds as well, even while a consumer that has lost its partition is still at work: a consumer
// starts at a committed offset, below which everything is applied, and passes its events one by one; it reaches event
// n+1 only when event n is committed, by itself or, seen as a duplicate, by somebody else.
//
// The table is the caller's to make (sql/inventory in this repository):
//
//	CREATE TABLE inbox (
//	    consumer     text        NOT NULL,
//	    event_id     text        NOT NULL,
//	    topic        text        NOT NULL,
//	    partition    integer     NOT NULL,
//	    kafka_offset bigint      NOT NULL,
//	    processed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
//	    PRIMARY KEY (consumer, event_id)
//	)
//
// Rows must be kept for longer than an event can come again: the topic's retention and whatever is replayed by hand.
package inbox
