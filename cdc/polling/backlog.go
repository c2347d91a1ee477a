package polling

import (
	"fmt"

	"github.com/walpost/walpost/cdc"
)

// Backlog is what waits in a polled table.
type Backlog struct {
	Pending  int64 `json:"pending"`
	Refused  int64 `json:"refused"` // of those pending: they are tried again
	Failed   int64 `json:"failed"`
	HeldKeys int64 `json:"held_keys"` // keys that wait for a failed row
	// OldestSeconds is for how long the oldest pending row has been there, where the table has created_at.
	OldestSeconds float64 `json:"oldest_pending_seconds"`
	// Horizon is the oldest transaction that may still commit rows before the newest pending one; nil without one.
	Horizon *Horizon `json:"horizon,omitempty"`
}

// Horizon is the open transaction that rows of a polled table wait for. Its Seconds are at least how long rows have been waiting, where
// its own age may not be seen.
type Horizon struct{ cdc.Transaction }

func (h *Horizon) String() string {
	return fmt.Sprintf("rows wait for %s: it may still commit some that come before them: end it (%s)", h.Transaction, h.End())
}
