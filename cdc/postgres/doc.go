// Package postgres is the WAL source: it streams a publication's changes from a logical replication slot (pgoutput,
// protocol 1) and decodes inserts into the outbox table. It also holds what every source asks PostgreSQL for.
//
//   - the stream: stream.go owns the replication connection, socket.go how much the kernel takes ahead, decode.go reads the messages,
//     columns.go finds the outbox's columns in them
//   - what a session needs to know: preflight.go asks over SQL, identify.go who the server is, detour.go what leads rows past the
//     stream, waits.go what slot and commits wait for, lock.go keeps polling and streaming apart
//   - what a pipeline needs: plan.go says what init does, with ddl.go and rights.go; admin.go does it, slot.go makes, moves, counts and
//     drops the slot, remove.go takes away, cleanup.go keeps the table small
//   - the table over SQL: table.go looks at it, rows.go reads rows for `walpost replay` and `walpost where`, rowsecurity.go
//     finds who is shown less than all of them, age.go knows which instants a row's time can be
//   - connect.go opens connections, errors.go judges what comes back, quote.go writes names
//
// pgoutput's messages are described in the PostgreSQL manual, "Logical Replication Message Formats"; the frames around them in
// "Streaming Replication Protocol".
package postgres
