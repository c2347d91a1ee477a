// Package postgres is the WAL source: it streams a publication's changes from a logical replication slot (pgoutput,
// protocol 1) and decodes inserts into the outbox table. It also has the SQL that every source needs.
//
//   - the stream: stream.go owns the replication connection, socket.go controls how much the kernel receives ahead,
//     decode.go decodes the messages, columns.go finds the outbox's columns in them
//   - what a session needs to know: preflight.go checks over SQL, identify.go reads the server's identity, detour.go
//     finds what leads rows past the stream, waits.go finds what the slot and the commits wait for, lock.go keeps
//     polling and streaming apart
//   - what a pipeline needs: plan.go plans what init does, with ddl.go and rights.go; admin.go runs it, slot.go
//     creates, moves, counts and drops the slot, remove.go removes everything, cleanup.go keeps the table small
//   - the table over SQL: table.go describes it, rows.go reads rows for `walpost replay` and `walpost where`,
//     rowsecurity.go finds roles that do not see all rows, age.go computes which instants a row's time can be
//   - connect.go opens connections, errors.go turns server errors into decisions, quote.go quotes names
//
// The PostgreSQL manual describes pgoutput's messages in "Logical Replication Message Formats", and the frames around
// them in "Streaming Replication Protocol".
package postgres
