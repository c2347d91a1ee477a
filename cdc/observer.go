package cdc

import (
	"reflect"
	"time"
)

// Role is the present activity of a relay, in one word.
type Role string

// The roles. A relay is ready while it is Streaming, and in Standby, where it is ready to take over.
const (
	Starting  Role = "starting"
	Standby   Role = "standby"
	Streaming Role = "streaming"
	Retrying  Role = "retrying"
	Halted    Role = "halted"
	Stopped   Role = "stopped"
)

// Roles lists all roles.
var Roles = []Role{Starting, Standby, Streaming, Retrying, Halted, Stopped}

// Observer receives facts from a relay; logging and metrics subscribe to it. Nil functions are not called. The
// functions are called on the relay's goroutines and must not block.
type Observer struct {
	// Role is called at each change; err is the cause, if there is one.
	Role func(role Role, err error)
	// Connected is called when the replication connection is open, with a description of the wire.
	Connected func(wire string)
	// Noted is called when a session begins, with notes that an operator should know and that halt nothing.
	Noted func(notes []string)
	// Received says up to which LSN the stream has been read, and counts what this read held: rows to deliver, rows that
	// were durable already, other messages, bytes. A polled table has no LSN.
	Received func(upto LSN, rows, dropped, others, bytes int)
	// Published is called when a window is durable, dead letters included, with the time since its first row came.
	Published func(records []Record, took time.Duration)
	// DeadLettered is called for each dead letter of a durable window, and for each row of a polled table that fails.
	DeadLettered func(r *Record)
	// Covered is called when a state record is durable.
	Covered func(st *State)
	// Confirmed is called when an LSN was sent to the server.
	Confirmed func(lsn LSN)
	// Stalled is called with true when Kafka has not taken a window for a while, and with false when it has.
	Stalled func(stalled bool, since time.Duration)
	// Phantoms is called when a failover has taken back rows that were published.
	Phantoms func(p *Phantoms)
	// Stuck is called with the cause when rows may be waiting and nothing moves, and with nil when that is over.
	Stuck func(s *StallError)
	// CommitsWait is called when commits of the whole server have begun to wait for this relay, and with nil when
	// they no longer wait.
	CommitsWait func(err error)
	// Looked is called at each look at the server: with the LSN up to which everything is durable in Kafka, the end of the WAL,
	// the server's time at, and its time up to which everything written is delivered; that is zero if it is not known.
	Looked func(covered, end LSN, at, current time.Time)
	// Hurried is called when wal_sender_timeout is so short that status updates are sent more often than
	// source.status_interval says.
	Hurried func(timeout, interval time.Duration)
	// Watching is called when publication and table cannot be checked, and with nil when they can again.
	Watching func(err error)
}

// Tee returns an observer that passes each fact to several observers, in order. All of its functions can be called.
func Tee(observers ...Observer) Observer {
	var all Observer
	tells := reflect.ValueOf(&all).Elem()
	for i := range tells.NumField() {
		var hear []reflect.Value
		for _, o := range observers {
			if f := reflect.ValueOf(o).Field(i); !f.IsNil() {
				hear = append(hear, f)
			}
		}
		if len(hear) == 1 { // no reflection for calls that are made at each read
			tells.Field(i).Set(hear[0])
			continue
		}
		tells.Field(i).Set(reflect.MakeFunc(tells.Field(i).Type(), func(fact []reflect.Value) []reflect.Value {
			for _, f := range hear {
				f.Call(fact)
			}
			return nil
		}))
	}
	return all
}
