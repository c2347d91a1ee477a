// Package kafka is the sink: it makes windows of records, and the state record, durable in Kafka over franz-go.
//
// publisher.go is a session's client. state.go reads the state topic, read.go one partition. deadletter.go reads and
// resolves dead letters, count.go counts the published rows after an LSN, search.go finds an event's records.
// admin.go creates topics for `walpost init`, rights.go names missing rights, sink.go opens clients.
//
// Producing is idempotent, with acks=all and manual flushing: a whole window is given to the client, flushed, and
// every promise is checked. A window that fails leaves a clean prefix per partition; flushing while producing would
// not.
package kafka
