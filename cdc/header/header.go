// Package header names the headers of the records that the relay makes of rows.
package header

// The names, and in a CloudEvent (binary mode) the same behind CloudEvents, but for CreatedAt, which is Time there.
const (
	ID        = "id"
	Type      = "type"
	LSN       = "lsn" // of the row's COMMIT
	Seq       = "seq" // the row's place in its transaction
	Source    = "source"
	CreatedAt = "created_at"

	CloudEvents = "ce_"
	Time        = "time"

	Replay   = "replay"   // of a row that was published again
	Redriven = "redriven" // of a row that was a dead letter
)
