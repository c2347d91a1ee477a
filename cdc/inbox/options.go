package inbox

import "time"

// ListOptions say which parked events List returns.
type ListOptions struct {
	All   bool  // the redriven and dropped too
	After int64 // only those with a higher id
	Limit int   // how many at most
}

// RedriveOptions say which parked events Redrive applies, and how.
type RedriveOptions struct {
	IDs    []int64
	All    bool // every parked event, in place of IDs
	Force  bool // also where this breaks the order of a key
	DryRun bool // do it in one transaction and roll that back
}

// DropOptions say which parked events Drop gives up.
type DropOptions struct {
	IDs    []int64
	All    bool // every parked event, in place of IDs
	DryRun bool // do it in one transaction and roll that back
}

// ReplayOptions say from where Replay gives a group its events once more.
type ReplayOptions struct {
	From       time.Time // what Kafka got from this time on; zero: Offset counts
	Offset     int64     // of each partition
	Partitions []int32   // only these; empty: all
	DryRun     bool      // move nothing
}

// RebuildOptions say what Rebuild accepts and whom it keeps informed.
type RebuildOptions struct {
	Partial  bool                 // a topic that has lost its beginning too
	Progress func(done, of int64) // optional; gets how many records of how many have been read
}
