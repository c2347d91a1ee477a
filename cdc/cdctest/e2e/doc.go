// Package e2e runs walpost for end-to-end tests. It has a database, a Kafka and a configuration for each test, commands
// and relays in the test's process or in a separate one, their logs and HTTP addresses, rows of the outbox, and the
// records in the topics.
package e2e
