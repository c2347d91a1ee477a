// Package connect runs Kafka Connect with Debezium's PostgreSQL connector, for tests that compare walpost with the real
// Debezium. It has the build tag debezium, and needs Java 17 and Maven: Maven fetches the jars of pom.xml once, into the
// user's cache folder.
//
//	worker := connect.Start(t, connect.Config{Brokers: connect.Kafka(t)})
//	worker.Deploy("outbox", connect.Connector(url, map[string]string{"slot.name": "debezium"}))
//
// A worker's methods that take no error back fail the test. Every process ends with the test, also if the test is killed.
package connect
