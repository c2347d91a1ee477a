// Package faults has the fault table: what happens to rows under each fault, in relays that run as in production. It
// only has tests.
package faults
