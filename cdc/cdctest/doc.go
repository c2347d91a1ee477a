// Package cdctest is the harness of walpost's tests: real databases, brokers, and a ledger of the committed events to
// compare with the records in Kafka.
//
// One PostgreSQL serves a whole test binary; each test gets a separate database in it. Kafka is in-process and separate
// for each test, unless WALPOST_TEST_KAFKA names a real broker: then tests make their names unique with Name.
// WALPOST_TEST_POSTGRES selects the server's major version.
package cdctest
