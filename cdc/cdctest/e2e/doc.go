// Package e2e runs walpost for end-to-end tests: a database, a Kafka and a configuration for each test, commands and relays in the test's
// process or in their own, their logs and their HTTP addresses, rows of the outbox, and what arrives in the topics.
package e2e
