// Package faults has the fault table: what happens to rows under each fault, in relays that run as people run them. It
// holds tests alone.
package faults
