package inbox

import "time"

// ListOptions select the parked events that List returns.
type ListOptions struct {
	All   bool  // also those that were redriven or dropped
	After int64 // only events with a higher id
	Limit int   // the most events to return
}

// RedriveOptions select the parked events that Redrive applies.
type RedriveOptions struct {
	IDs    []int64
	All    bool // every parked event; IDs is ignored
	Force  bool // also events whose redrive breaks the order of a key
	DryRun bool // do everything in one transaction and roll it back
}

// DropOptions select the parked events that Drop gives up.
type DropOptions struct {
	IDs    []int64
	All    bool // every parked event; IDs is ignored
	DryRun bool // do everything in one transaction and roll it back
}

// ReplayOptions set where the group starts to read again.
type ReplayOptions struct {
	From       time.Time // records with this timestamp or later; zero: Offset is used
	Offset     int64     // the offset in each partition
	Partitions []int32   // only these; empty: all
	DryRun     bool      // only compute the plan
}

// RebuildOptions set what Rebuild accepts and where it reports progress.
type RebuildOptions struct {
	Partial  bool                 // also accept a topic that has lost its first records
	Progress func(done, of int64) // optional; called with the records read so far and the total
}
