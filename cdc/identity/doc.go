// Package identity proves to Kafka and PostgreSQL who this process is, and checks that they are who they say.
//
// Certificates, keys, authorities, passwords and tokens come from files and commands, and are read again at each new connection: a
// rotation needs no restart. Where one cannot be read again, the last good one is used, and the log says what is wrong with the new one.
package identity
