package cdc

import (
	"context"
	"time"
)

// Source is the server that rows come from.
type Source interface {
	// Preflight checks over SQL what a session needs from the server and returns all problems together, as a
	// HaltError. It returns the OID of the outbox table, which Connect needs; 0 if there is no table, which Facts
	// then reports too.
	Preflight(ctx context.Context) (table uint32, err error)
	// Connect opens the replication connection for the inserts into the table, and identifies the server at its other
	// end.
	Connect(ctx context.Context, table uint32) (Stream, Identity, error)
	// Facts queries everything that Reconcile compares with the state record. Of Identity it sets only Timeline.
	Facts(ctx context.Context) (Facts, error)
}

// Identity is the server's answer to IDENTIFY_SYSTEM, and the process that will own the slot.
type Identity struct {
	PID      uint32
	SystemID string
	Timeline int32
	// History has the ends of the earlier timelines, if there were any and the server still knows them.
	History []PastTimeline
	// Window is the number of bytes that the server may send ahead of a resting reader; 0: the kernel adjusts it.
	Window int
	// Wire describes the connection for the log, for example its round trip and its receive buffer.
	Wire string
	// Timeout is the connection's wal_sender_timeout: the server closes the connection of a relay that is silent for
	// this long. 0: never.
	Timeout time.Duration
}

// PastTimeline is a timeline that the server has left, and the LSN where it left it.
type PastTimeline struct {
	Timeline int32
	End      LSN
}

// Stream is one replication connection. Only one goroutine at a time may use it, except for Interrupt.
type Stream interface {
	// Start begins streaming at 0/0, and from then on owns the slot. It returns ErrSlotInUse if another process owns
	// it.
	Start(ctx context.Context) error
	// Fill waits until the deadline for bytes and reads one chunk of them. It returns 0 and no error if there were
	// none.
	Fill(deadline time.Time) (int, error)
	// Rest waits for d while the socket fills. Bytes that arrive meanwhile do not wake the process, if the system can
	// do that.
	Rest(d time.Duration)
	// Waiting returns how many bytes the next Fill would find, as far as that is known.
	Waiting() int
	// OpenWindow lets the server send more than one chunk ahead, from now on.
	OpenWindow()
	// Next decodes the next whole message of the chunk into m, or returns false if there is none left. The slices in
	// m are valid until the next Fill.
	Next(m *Message) (bool, error)
	// Status tells the server that everything up to confirmed is durable; ping asks the server for an answer. Zero
	// confirms nothing.
	Status(confirmed LSN, ping bool) error
	// Interrupt makes the present or the next Fill return at once. Any goroutine may call it.
	Interrupt()
	Close() error
}

// MessageKind is the kind of a Message, which decides which of its fields are set.
type MessageKind uint8

// The kinds of messages. Other is everything that a publication carries besides inserts into the outbox.
const (
	Begin MessageKind = iota + 1
	Insert
	Commit
	Keepalive
	Other
)

// Message is one message of the replication stream.
type Message struct {
	Kind MessageKind
	// LSN is Begin's CommitLSN, Commit's EndLSN, Keepalive's WALEnd.
	LSN LSN
	// ReplyRequested belongs to Keepalive.
	ReplyRequested bool
	// Row holds the columns of an Insert; of a Begin, XID and CommitTime.
	Row Row
}

// Sink is the Kafka that records go to.
type Sink interface {
	// Peek reads the state record and owns nothing. It is only for an early look.
	Peek(ctx context.Context) (*State, error)
	// Open returns a new client. Call it only after the session owns the slot: a fencing client would fence the
	// slot's rightful owner.
	Open(ctx context.Context) (Publisher, error)
}

// Publisher is one session's client.
type Publisher interface {
	// State returns the newest state record; nil if there is none.
	State(ctx context.Context) (*State, error)
	// Notes returns what an operator should know about the topics, compared with the state record of the earlier
	// session.
	Notes(former *State) []string
	// Check returns a RejectedError for a record that can never be published, before anything is produced.
	Check(ctx context.Context, r *Record) error
	// DeadLetters calls each for every committed record of the dead letter topic, from the offset up to the topic's
	// present end, in order, and returns the offset to continue from. headers are nil in a tombstone.
	DeadLetters(ctx context.Context, from int64, each func(key string, headers []Header)) (next int64, err error)
	// Publish returns when every record and the state record, if given, are durable, and sets the partition and
	// offset of each record. After an error, a prefix per partition is durable. The error is a RejectedError if Kafka
	// rejects a record although Check had accepted it; only for a window of one record it is certain that it is this
	// record.
	Publish(ctx context.Context, records []Record, st *State) error
	// CountFrom counts the rows of this pipeline in Kafka whose commit begins at or after lsn; there are more if
	// atLeast.
	CountFrom(ctx context.Context, lsn LSN) (rows int, atLeast bool, err error)
	Close()
}

// Route turns a row into a record, or returns a RejectedError with the reason why it cannot. The record's slices stay
// valid until the router's next window.
type Route interface {
	NextWindow()
	Route(row *Row, rec *Record) error
}
