package cdc

import (
	"errors"
	"fmt"
	"time"
)

// ErrSlotInUse is returned when another process holds the replication slot (SQLSTATE 55006). The relay stands by and
// tries again.
var ErrSlotInUse = errors.New("the replication slot is in use by another process")

// ErrTableInUse is returned when another process polls the outbox table. The relay stands by and tries again.
var ErrTableInUse = errors.New("the outbox table is polled by another process")

// ErrUndelivered is wrapped by the error of a session that was stopped and could not deliver everything that it had
// received.
var ErrUndelivered = errors.New("not all that was received is delivered")

// errFormerSession is returned when the server still holds the slot for an ended session of this relay, and no other
// process has it.
var errFormerSession = errors.New("the slot is still held by this relay's former session")

// errQueueFull ends a session whose queue has been full for too long. Kafka is away, and an open replication
// connection that confirms nothing keeps PostgreSQL from stopping.
var errQueueFull = errors.New("kafka has not taken a window for too long: the relay closed the replication connection and opens it again when Kafka answers; the slot keeps the WAL meanwhile")

// HaltError is a condition that no retry fixes. Operators read its text: what was found, what that means, what to
// run.
type HaltError struct {
	Found string // what was found
	Means string // the consequence, and what is at risk
	Run   string // the command or action that ends the halt

	// Risk is the range of commits whose rows may be missing in Kafka; zero if there are none.
	Risk Range
	// Latch is true if rows may be hidden from now on and nothing else would show it. The halt is written into the
	// state record, and only an operator's command ends it.
	Latch bool
	// History is true if the server's history is not the one in the state record: the record's positions mean nothing
	// there.
	History bool
}

func (h *HaltError) Error() string {
	if h.Risk.IsZero() {
		return fmt.Sprintf("%s: %s; %s", h.Found, h.Means, h.Run)
	}
	return fmt.Sprintf("%s: %s, LSN range %s; %s", h.Found, h.Means, h.Risk, h.Run)
}

// Parts returns the parts of the text, each with its name, for output that shows them on separate lines.
func (h *HaltError) Parts() [][2]string {
	means := h.Means
	if !h.Risk.IsZero() {
		means += ", LSN range " + h.Risk.String()
	}
	return [][2]string{{"found", h.Found}, {"means", means}, {"run", h.Run}}
}

// record returns the halt in the form in which the state record keeps it.
func (h *HaltError) record(at time.Time) *HaltRecord {
	return &HaltRecord{Found: h.Found, Means: h.Means, Run: h.Run, Risk: h.Risk, History: h.History, Latched: h.Latch, At: at.UTC()}
}

// Halt returns the recorded halt as an error.
func (r *HaltRecord) Halt() *HaltError {
	return &HaltError{Found: r.Found, Means: r.Means, Run: r.Run, Risk: r.Risk, History: r.History, Latch: r.Latched}
}

// UndecodableError is a Source's error for a change that can never be decoded and would come again at every attempt.
// The engine knows the transaction of the change, and turns the error into a [HaltError] that names the command to
// step over it.
type UndecodableError struct {
	Found string // what was found
	Fix   string // the action that fixes it; empty if there is none
}

func (w *UndecodableError) Error() string { return w.Found }

// Class is the reason for which a row was rejected, in one word: a metric's label.
type Class string

// The classes. ByKafka: only the broker could find the cause. ForOrder: the row is held because an earlier row of its
// key is a dead letter. ByHandler: a handler in the process did not take the row.
const (
	BadType      Class = "type"
	BadTopic     Class = "topic"
	BadID        Class = "id"
	BadKey       Class = "key"
	BadPayload   Class = "payload"
	BadHeaders   Class = "headers"
	BadPartition Class = "partition"
	TooLarge     Class = "size"
	ByKafka      Class = "kafka"
	ForOrder     Class = "held"
	ByHandler    Class = "handler"
)

// Classes lists the classes that dead letters can have.
var Classes = []Class{BadType, BadTopic, BadID, BadKey, BadPayload, BadHeaders, BadPartition, TooLarge, ByKafka, ForOrder}

// RejectedError is the error for a row that can never be published as it is. The engine turns it into a [HaltError]
// or a [DeadLetter]. It is valid as long as its row.
type RejectedError struct {
	Row    *Row
	Class  Class
	Topic  string // the row's topic; empty if it is not known
	Reason string // for people; never payload or key

	heldFor string // key of the dead letter that a row ForOrder waits for
}

// Reject returns a RejectedError.
func Reject(row *Row, class Class, topic, format string, args ...any) error {
	return &RejectedError{Row: row, Class: class, Topic: topic, Reason: fmt.Sprintf(format, args...)}
}

func (r *RejectedError) Error() string {
	return fmt.Sprintf("outbox row %q at %s/%d cannot be published: %s", cut(r.Row.ID), r.Row.Commit, r.Row.Ordinal, r.Reason)
}

func (r *RejectedError) halt() *HaltError {
	return &HaltError{
		Found: r.Error(),
		Means: "no later row is published until you decide; nothing is lost",
		Run: "fix the cause: raise the topic's limit, and the relay resumes by itself, or correct the configuration (kafka.aggregate_types or kafka.rename, for example) and restart it; " +
			"or set poison.policy: dead_letter and restart it, which moves such rows to the dead letter topic; or " + giveUp(r.Row.Commit),
	}
}

// giveUp returns the command that steps over the transaction whose commit record begins at commit, and over no other.
// A commit record is longer than eight bytes, and PostgreSQL sends a transaction if and only if its commit record
// begins at or after the slot's position.
func giveUp(commit LSN) string {
	return fmt.Sprintf("`walpost skip --to %s` gives up for good the rows of this one transaction that were not delivered; %s", commit+8, othersStay)
}

// othersStay ends the sentence about a skip of one transaction.
const othersStay = "its delivered rows stay in Kafka, and you can write the others to the outbox again"
