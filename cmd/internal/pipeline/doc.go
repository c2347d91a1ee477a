// Package pipeline puts a configuration's source, route and sink together for an operator: to prepare both sides (init), to tell
// how they stand (status), and to decide (skip, adopt, dlq, replay). What relays is cdc/walpost.
package pipeline
