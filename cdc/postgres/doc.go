// Package postgres is the WAL source: it streams a publication's changes from a logical replication slot (pgoutput,
// protocol 1) and decodes inserts into the outbox table.
//
// stream.go owns the replication connection, decode.go reads the messages, preflight.go asks over SQL, admin.go creates and removes
// what a pipeline needs. detour.go finds what leads rows past the stream, rowsecurity.go who is shown less than all rows, and age.go
// knows which instants a row's time can be. pgoutput's messages are described in the PostgreSQL manual,
// "Logical Replication Message Formats"; the frames around them in "Streaming Replication Protocol".
package postgres
