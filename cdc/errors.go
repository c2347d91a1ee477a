package cdc

import (
	"errors"
	"fmt"
)

// ErrSlotInUse is returned when another process holds the replication slot (SQLSTATE 55006): stand by and try again.
var ErrSlotInUse = errors.New("the replication slot is in use by another process")

// errQueueFull ends a session whose queue has been full for too long: Kafka is away, and an open replication connection
// that confirms nothing keeps PostgreSQL from stopping.
var errQueueFull = errors.New("kafka has not taken a window for too long: the replication connection was given back and will be opened again when kafka answers; the slot keeps the WAL meanwhile")

// Halt is a condition that no retry mends. Its text is what an operator reads: what was found, what it means, what to run.
type Halt struct {
	Found string // what was found
	Means string // what it means, what is at risk
	Run   string // what to do
}

func (h *Halt) Error() string { return fmt.Sprintf("%s: %s; %s", h.Found, h.Means, h.Run) }

// RowHalt is the Halt for a row that can never be published as it is.
func RowHalt(r *Row, reason string) *Halt {
	return &Halt{
		Found: fmt.Sprintf("outbox row %q at %s/%d cannot be published: %s", r.ID, r.Commit, r.Ordinal, reason),
		Means: "nothing behind it is published before this is decided, and nothing is lost",
		Run:   "mend what refuses it (the topic's limit, kafka.aggregate_types, the writer's check) and the relay goes on by itself",
	}
}
