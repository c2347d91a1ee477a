// Package header names the headers of the records that the relay makes of rows.
package header

// These are the names. A CloudEvent (binary mode) has the same names with the prefix CloudEvents, except that
// CreatedAt is Time there.
const (
	ID        = "id"
	Type      = "type"
	LSN       = "lsn" // of the row's commit
	Seq       = "seq" // the row's place in its transaction
	Source    = "source"
	CreatedAt = "created_at"

	CloudEvents = "ce_"
	Time        = "time"

	Replay   = "replay"   // set on a row that was published again
	Redriven = "redriven" // set on a row that was a dead letter
)
