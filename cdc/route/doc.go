// Package route turns an outbox row into a Kafka record: topic, key, headers, value.
//
// The record of a row: topic from a template over aggregate and event type, key aggregate_id, value the payload's bytes as
// PostgreSQL sent them, headers id, type, lsn, seq, source, created_at and the row's own. lsn is the CommitLSN of the row's
// transaction and seq its place in it, so that (lsn, seq) orders rows as they were committed.
package route
