// Package cdctest is the harness of walpost's tests: real databases, brokers, and a ledger of what was committed to
// compare with what arrived.
//
// One PostgreSQL serves a whole test binary; each test takes a database of its own from it. Kafka is in-process and
// each test's own, unless WALPOST_TEST_KAFKA names a real broker: then names made with Name keep tests apart.
// WALPOST_TEST_POSTGRES picks the server's major version.
package cdctest
