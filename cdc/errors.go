package cdc

import (
	"errors"
	"fmt"
	"time"
)

// ErrSlotInUse is returned when another process holds the replication slot (SQLSTATE 55006): stand by and try again.
var ErrSlotInUse = errors.New("the replication slot is in use by another process")

// ErrTableInUse is returned when another process polls the outbox table: stand by and try again.
var ErrTableInUse = errors.New("the outbox table is polled by another process")

// ErrUndelivered is wrapped by the error of a session that was stopped and could not deliver everything that it had received.
var ErrUndelivered = errors.New("not all that was received is delivered")

// errFormerSession says that nobody else has the slot: the server holds it for a session of this relay that has ended.
var errFormerSession = errors.New("the slot is still held by this relay's former session")

// errQueueFull ends a session whose queue has been full for too long: Kafka is away, and an open replication connection
// that confirms nothing keeps PostgreSQL from stopping.
var errQueueFull = errors.New("kafka has not taken a window for too long: the replication connection was given back and will be opened again when kafka answers; the slot keeps the WAL meanwhile")

// HaltError is a condition that no retry fixes. Its text is what an operator reads: what was found, what it means, what to run.
type HaltError struct {
	Found string // what was found
	Means string // what it means, what is at risk
	Run   string // what to do

	// Risk is the range of commits whose rows may be missing in Kafka; zero when there are none.
	Risk Range
	// Latch says that rows may be hidden from here on without another trace: the halt is written into the state record and
	// ends only by an operator's command.
	Latch bool
	// History says that the server's history is not the one that the state record tells of: its positions mean nothing there.
	History bool
}

func (h *HaltError) Error() string {
	if h.Risk.IsZero() {
		return fmt.Sprintf("%s: %s; %s", h.Found, h.Means, h.Run)
	}
	return fmt.Sprintf("%s: %s, LSN range %s; %s", h.Found, h.Means, h.Risk, h.Run)
}

// Parts are the parts of the text, each by what it is, for those who show them apart.
func (h *HaltError) Parts() [][2]string {
	means := h.Means
	if !h.Risk.IsZero() {
		means += ", LSN range " + h.Risk.String()
	}
	return [][2]string{{"found", h.Found}, {"means", means}, {"run", h.Run}}
}

// record is the halt as it is written into the state record.
func (h *HaltError) record(at time.Time) *HaltRecord {
	return &HaltRecord{Found: h.Found, Means: h.Means, Run: h.Run, Risk: h.Risk, History: h.History, Latched: h.Latch, At: at.UTC()}
}

// Halt is the halt that was recorded.
func (r *HaltRecord) Halt() *HaltError {
	return &HaltError{Found: r.Found, Means: r.Means, Run: r.Run, Risk: r.Risk, History: r.History, Latch: r.Latched}
}

// UndecodableError is a Source's error for a change that will come again and again and can never be taken. The engine knows which
// transaction it belongs to, and makes it a [HaltError] that names the way past it.
type UndecodableError struct {
	Found string // what was found
	Fix   string // what fixes it, where something does; empty otherwise
}

func (w *UndecodableError) Error() string { return w.Found }

// Class says in one word why a row was refused: a metric's label.
type Class string

// The classes. ByKafka is what only the broker could find, ForOrder a row that is held behind an earlier one of its key,
// ByHandler what a handler in the process did not take.
const (
	BadType    Class = "type"
	BadTopic   Class = "topic"
	BadID      Class = "id"
	BadKey     Class = "key"
	BadPayload Class = "payload"
	BadHeaders Class = "headers"
	TooLarge   Class = "size"
	ByKafka    Class = "kafka"
	ForOrder   Class = "held"
	ByHandler  Class = "handler"
)

// Classes are those that dead letters can have.
var Classes = []Class{BadType, BadTopic, BadID, BadKey, BadPayload, BadHeaders, TooLarge, ByKafka, ForOrder}

// RejectedError says of a row that it can never be published as it is. The engine decides what follows: a [HaltError], or a
// [DeadLetter]. It is good as long as its row.
type RejectedError struct {
	Row    *Row
	Class  Class
	Topic  string // where the row would have gone; empty when that is not known
	Reason string // for people; never payload or key

	heldFor string // key of the dead letter that a row ForOrder waits behind
}

// Reject makes a RejectedError.
func Reject(row *Row, class Class, topic, format string, args ...any) error {
	return &RejectedError{Row: row, Class: class, Topic: topic, Reason: fmt.Sprintf(format, args...)}
}

func (r *RejectedError) Error() string {
	return fmt.Sprintf("outbox row %q at %s/%d cannot be published: %s", cut(r.Row.ID), r.Row.Commit, r.Row.Ordinal, r.Reason)
}

func (r *RejectedError) halt() *HaltError {
	return &HaltError{
		Found: r.Error(),
		Means: "nothing behind it is published before this is decided, and nothing is lost",
		Run: "remove what refuses it (the topic's limit, kafka.aggregate_types, the writer's check) and the relay goes on by itself; " +
			"or set poison.policy: dead_letter, which puts such rows aside; or " + giveUp(r.Row.Commit),
	}
}

// giveUp names the command that steps over the transaction whose commit record begins at commit, and no other. A commit record is
// longer than eight bytes, and PostgreSQL sends a transaction iff its commit record begins at or behind the slot's position.
func giveUp(commit LSN) string {
	return fmt.Sprintf("`walpost skip --to %s` gives up what is left of this one transaction, whose rows can be written to the outbox again", commit+8)
}
