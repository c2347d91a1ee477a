// Package identity proves the identity of this process to Kafka and PostgreSQL, and checks the identity of their
// servers.
//
// Certificates, keys, authorities, passwords and tokens come from files and commands. The package reads them again for
// each new connection, so a rotation needs no restart. If one cannot be read again, it uses the last good one, and logs
// the fault of the new one.
package identity
