// Package cdc is the engine of walpost: it moves rows of an outbox table from PostgreSQL's WAL to Kafka in windows, and
// confirms an LSN only when everything at or below it is durable.
//
// The engine opens no sockets. The adapters do: cdc/postgres is the [Source], cdc/kafka the [Sink]. cdc/route turns a
// [Row] into a [Record]; cdc/debezium is another route. cdc/pipeline connects, runs and operates them. cdc/polling reads
// rows from the table where logical replication is not possible: it has the same rows, routes and sink, but no session of
// this kind.
//
// Read in this order: relay.go (the loop over sessions), session.go (the seven steps of a start, how a session ends, and
// what its parts exchange), reader.go, publisher.go and stall.go (the parts: reader, publisher and watcher), queue.go and
// window.go (how rows pass from reader to publisher), poison.go (rows that can never be published).
//
//	postgres.Stream ──▶ READER ──▶ queue (the filling window) ──▶ PUBLISHER ──▶ kafka.Publisher
//	      ▲            tracker                                   route, check, publish, state
//	      └── Status(confirmed) ◀──────────── confirmed LSN ◀───────────────┘
//
// # Windows
//
// The publisher takes the queued rows as one window and makes every record of it durable. Only then it counts the window,
// and every position that the window covers, as done. The watermark is therefore the last commit end of the last done
// window; no event is tracked on its own. A failure leaves a clean prefix per partition. Row bytes are copied once, into
// the window's slab, and the slab is reused.
//
// Exactly once is the same engine with one more step. Publisher.Publish begins a Kafka transaction, produces the window
// and the state record that covers this window, and ends the transaction. At least once has no transaction, and its state
// record covers the windows that were done earlier. Opening the publisher fences the earlier owner of the transactional
// id. So the publisher is opened after the session owns the slot, and the state is read after the publisher is open. An
// uncertain outcome (the answer to an end was lost, the epoch was fenced, the coordinator went away) ends the session: the
// next session reads the state record to learn it. Between two transactions the publisher waits 5 ms, because the broker
// is still writing the markers of the first.
//
// # Positions
//
// A row's [Position] is (CommitLSN, ordinal of the insert on the wire in its transaction). CommitLSN is the start of the
// commit record and is known from Begin; the EndLSN of Commit serves for confirming alone. The [State] record in Kafka
// has covered, the end of the last commit (or keepalive in order) whose rows are all durable, and the position of the
// last durable row.
//
// # Invariants
//
//   - I1 Confirm(L) only when every row of every commit with EndLSN ≤ L is durable in Kafka, on its topic or in the dead
//     letter topic.
//   - I2 L is a commit's EndLSN, or the WALEnd of a keepalive that came in order after it, and a state record with
//     covered ≥ L is durable. Never CommitLSN, a row's LSN, LSN+length.
//   - I3 Per partition, first appearances follow commit order; repeats are only contiguous runs of a suffix. At least
//     once has one exception: a relay that was frozen while another took over may write its one window late, a stale
//     contiguous run.
//   - I4 One goroutine at a time uses the replication connection: the reader, and `answering` before and after it. While
//     the connection is open a status update is sent at least every interval, also while Kafka does not answer.
//   - I5 A decode error, a missing publication (an error up to PostgreSQL 17, only a warning from 18 on), an unknown
//     relation: halt, never skip.
//   - I6 Configuration bounds the memory in bytes, for a transaction, a backlog or an outage of any size.
//   - I7 Nothing that is not committed is ever published; nothing committed is ever missed.
//   - I8 Sampled at any instant: everything at or below confirmed_flush_lsn is in Kafka.
//   - I9 In exactly-once a read_committed consumer sees each row exactly once, across any crash, pause or takeover.
//
// # Failure
//
// Crash-only: every session, first or thousandth, starts the same way (session.go) and reads its position from the state
// record and the slot. After a session ends, the next one starts with backoff.
//
// A [HaltError] needs a person. The relay closes the connection to the slot and the Kafka client, stays up but is not
// ready, reports what it found, and tries again every 30 s. A halt whose cause may have hidden rows is latched in the state
// record. reconcile.go has the table of comparisons, decide.go the decisions that an operator can take. A server, Kafka
// cluster, pipeline, slot or name that differs from the record is an error of the configuration, and is never latched.
//
// stall.go detects by positions alone that rows may be waiting while nothing moves, and waits.go finds the cause.
// tracker.go detects a server with another history by the transactions that the slot sends again. Until the stream has
// passed them nothing is confirmed.
//
// # Decisions
//
// cdc/adr records each decision and the alternatives that were rejected.
package cdc
