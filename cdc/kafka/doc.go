// Package kafka is the sink: it makes windows of records, and the state record, durable in Kafka over franz-go.
//
// publisher.go is a session's client, state.go reads the state topic, admin.go makes topics for `walpost init`. Producing
// is idempotent, with acks=all and manual flushing: a whole window is handed over, flushed, and every promise is checked. A
// window that fails leaves a clean prefix per partition, which flushing as you go does not.
package kafka
