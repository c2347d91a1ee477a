// Package devenv starts a real PostgreSQL and an in-process Kafka on loopback, for tests and for the demo.
//
// PostgreSQL is the one installed on the machine, or a fetched one if the wanted major is not installed. It runs in a
// separate temporary folder on a free port, trusts every local connection, and Close removes it. If the system allows
// it (Linux), it also ends when the process that started it is killed. Never use it for data you want to keep: fsync is
// off.
package devenv
