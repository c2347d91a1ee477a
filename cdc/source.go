package cdc

import (
	"context"
	"time"
)

// Source is where rows come from.
type Source interface {
	// Preflight checks over SQL what a session needs of the server and reports everything that is wrong together, as a
	// Halt. It returns the OID of the outbox table, which Connect needs; 0 where there is none, as Facts
	// say, too.
	Preflight(ctx context.Context) (table uint32, err error)
	// Connect opens the replication connection for the inserts into the table, and identifies the server behind it.
	Connect(ctx context.Context, table uint32) (Stream, Identity, error)
	// Facts reads over SQL, now, what Reconcile compares with the state record, and of the Identity the timeline.
	Facts(ctx context.Context) (Facts, error)
}

// Identity is the server's answer to IDENTIFY_SYSTEM, and which of its processes it is that will own the slot.
type Identity struct {
	PID      uint32
	SystemID string
	Timeline int32
	// History is how the timelines before it ended, where there were any and the server still knows.
	History []PastTimeline
	// Window is how many bytes the server may send ahead of a reader that rests; 0: the kernel makes it larger and
	// smaller.
	Window int
	// Wire says over what the connection runs, as its round trip and its receive buffer, for the log.
	Wire string
	// Timeout is the connection's wal_sender_timeout: a relay that is silent for so long is taken for gone. 0: the
	// server waits for ever.
	Timeout time.Duration
}

// PastTimeline is a timeline that the server has left, and where.
type PastTimeline struct {
	Timeline int32
	End      LSN
}

// Stream is one replication connection. One goroutine at a time uses it, but for Interrupt.
type Stream interface {
	// Start begins streaming at 0/0 and owns the slot from then on. ErrSlotInUse says that somebody else does.
	Start(ctx context.Context) error
	// Fill waits until the deadline for bytes and takes one gulp of them. It returns 0 and no error when there were
	// none.
	Fill(deadline time.Time) (int, error)
	// Rest lets the time pass and the socket fill. What comes meanwhile does not wake the process, where the system can
	// do that.
	Rest(d time.Duration)
	// Waiting is how many bytes the next Fill would find, as far as that is known.
	Waiting() int
	// OpenWindow lets the server send more than a gulp ahead, from now on.
	OpenWindow()
	// Next decodes the next whole message of the gulp into m, or reports false when there is none left. The slices in m
	// are valid until the next Fill.
	Next(m *Message) (bool, error)
	// Status tells the server that everything up to confirmed is durable; ping asks for an answer. Zero confirms
	// nothing.
	Status(confirmed LSN, ping bool) error
	// Interrupt makes the present or the next Fill return at once. Any goroutine may call it.
	Interrupt()
	Close() error
}

// MessageKind says which fields of a Message count.
type MessageKind uint8

// The kinds of messages. Other is everything a publication carries besides inserts into the outbox.
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

// Sink is where records go.
type Sink interface {
	// Peek reads the state record without owning anything. It serves for an early look only.
	Peek(ctx context.Context) (*State, error)
	// Open makes a new client. Never before the slot is owned: a fencing client would fence its rightful owner.
	Open(ctx context.Context) (Publisher, error)
}

// Publisher is one session's client.
type Publisher interface {
	// State reads the newest state record; nil when there is none.
	State(ctx context.Context) (*State, error)
	// Notes returns what is worth a word of the topics, beside the record of the former session.
	Notes(former *State) []string
	// Check refuses with a RejectedError what can never be published, before anything is produced.
	Check(ctx context.Context, r *Record) error
	// DeadLetters hands over the records of the dead letter topic from an offset on to where the topic ends now, in
	// order and committed only, and returns where to go on. headers are nil in a tombstone.
	DeadLetters(ctx context.Context, from int64, each func(key string, headers []Header)) (next int64, err error)
	// Publish returns when every record and the state record, if given, are durable, and sets each record's place.
	// After an error, a prefix per partition is. It is a RejectedError when Kafka will not take a record, although Check let
	// it through; whether it is that very one is certain only of a window of one.
	Publish(ctx context.Context, records []Record, st *State) error
	// CountFrom counts the rows of this pipeline in Kafka whose commit begins at lsn or behind it; more when atLeast.
	CountFrom(ctx context.Context, lsn LSN) (rows int, atLeast bool, err error)
	Close()
}

// Route turns a row into a record, or says with a RejectedError why it cannot. The record's slices stay valid until the
// router's next window.
type Route interface {
	NextWindow()
	Route(row *Row, rec *Record) error
}
