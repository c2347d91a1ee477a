// Package devenv starts a real PostgreSQL and an in-process Kafka on loopback, for tests and for the demo.
//
// PostgreSQL is the one installed on the machine or, where there is none of the wanted major, a fetched one. It runs
// in a temporary folder of its own on a free port, trusts every local connection and is gone after Close. Where the
// system allows it (Linux) it also ends when the process that started it is killed. Never use it for data you want
// to keep: fsync is off.
package devenv
