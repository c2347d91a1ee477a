// Package route turns an outbox row into a Kafka record: topic, key, headers, value.
//
// The topic comes from a template over aggregate and event type. The key is aggregate_id. The value is the payload's
// bytes as PostgreSQL sent them. The headers are id, type, lsn, seq, source, created_at and the row's own. lsn is the
// CommitLSN of the row's transaction and seq the row's place in it, so that (lsn, seq) orders rows as they were
// committed.
package route
