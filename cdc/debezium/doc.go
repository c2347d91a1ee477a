// Package debezium makes a pipeline a drop-in for Debezium's Outbox Event Router: it writes the records that the router
// would write, byte for byte, reads the router's options and a connector's configuration, and takes over where a
// connector stands.
//
// Options are the router's, under their own names. A Router is the engine's route that follows them. Import turns the
// configuration of a connector, or of Debezium Server, into one of walpost, and reports the effect of each option.
package debezium
