// Package cdc is the engine of walpost: it moves rows of an outbox table from PostgreSQL's WAL to Kafka in windows, and
// confirms an LSN only when everything at or below it is durable.
//
// It opens no sockets. The adapters do: cdc/postgres is the [Source], cdc/kafka the [Sink], cdc/route turns a [Row] into a
// [Record]; cdc/pipeline puts them together, runs and operates them. cdc/polling takes rows from the table where there is no logical
// replication, with the same rows, routes and sink, and no session of this kind. A newcomer reads relay.go (the loop over sessions), session.go
// (the seven steps of a start, how a session ends, and what its parts tell each other), reader.go, publisher.go and stall.go (the parts:
// reader, publisher and watcher), queue.go and window.go (how rows pass from reader to publisher), poison.go (rows that can never be
// published).
//
//	postgres.Stream ──▶ READER ──▶ queue (the filling window) ──▶ PUBLISHER ──▶ kafka.Publisher
//	      ▲            tracker                                   route, check, publish, state
//	      └── Status(confirmed) ◀──────────── confirmed LSN ◀───────────────┘
//
// # Windows
//
// The publisher takes what is queued, makes every record of it durable, and only then counts the window, and with it every
// position it covers, as done. The watermark is therefore the last commit end of the last done window; there is no
// per-event tracking. A failure leaves a clean prefix per partition. Row bytes are copied once, into the window's slab,
// and the slab is reused.
//
// Exactly once is the same engine with one more step. Publisher.Publish begins a Kafka transaction, produces the window and
// the state record that tells of it, and ends the transaction; at least once leaves begin and end out, and its state
// record tells of windows that were done before. Opening the publisher fences whoever had the transactional id, so it comes
// after the slot is owned, and the state is read after that. Whatever is not certain (the answer to an end was lost, the
// epoch was fenced, the coordinator went away) ends the session: the next one asks the state record. 5 ms pass between two
// transactions, which the broker needs to write the markers of the first.
//
// # Positions
//
// A row's [Position] is (CommitLSN, ordinal of the insert on the wire in its transaction). CommitLSN is the start of the
// commit record and is known from Begin; the EndLSN of Commit serves for confirming alone. The [State] record in Kafka
// carries covered, the end of the last commit (or keepalive in order) whose rows are all durable, and the position of the
// last durable row.
//
// # Invariants
//
//   - I1 Confirm(L) only when every row of every commit with EndLSN ≤ L is durable in Kafka, on its topic or in the dead
//     letter topic.
//   - I2 L is a commit's EndLSN, or the WALEnd of a keepalive that came in order behind it, and a state record with
//     covered ≥ L is durable. Never CommitLSN, a row's LSN, LSN+length.
//   - I3 Per partition, first appearances follow commit order; repeats are only contiguous replays of a suffix. At least once there
//     is one exception: a relay that was frozen while another took over may land its one window late, a stale contiguous run.
//   - I4 One goroutine at a time touches the replication connection: the reader, and `answering` before and after it. While it is open a
//     status update goes out at least every interval, also while Kafka does not answer.
//   - I5 A decode error, a missing publication (an error up to PostgreSQL 17, only a warning from 18 on), an unknown relation: halt,
//     never skip.
//   - I6 Memory is bounded by configuration in bytes, whatever the transaction, the backlog or the outage.
//   - I7 Nothing that is not committed is ever published; nothing committed is ever missed.
//   - I8 Sampled at any instant: everything at or below confirmed_flush_lsn is in Kafka.
//   - I9 In exactly-once a read_committed consumer sees each row exactly once, across any crash, pause or takeover.
//
// # Failure
//
// Crash-only: every session, first or thousandth, starts the same way (session.go) and reads where it is from the state
// record and the slot. A session that ends is followed by the next with backoff. A [HaltError] is for a human: the slot and the
// Kafka client are given back, the process stays up, not ready, says what was found, and tries again every 30 s. One whose
// cause may have hidden rows is latched in the state record; reconcile.go is the table of what is compared, decide.go what an
// operator can decide on. A server, Kafka cluster, pipeline, slot or name that is not the record's is an error of the configuration, and is never
// latched. stall.go finds by positions alone that rows may be waiting while nothing moves, and waits.go says why. tracker.go notices
// another history by the transactions that the slot sends again, and until the stream has passed them nothing is confirmed.
//
// # Decisions
//
// cdc/adr says of each decision what was rejected and why.
package cdc
