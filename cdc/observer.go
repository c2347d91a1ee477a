package cdc

import (
	"reflect"
	"time"
)

// Role is what a relay is doing, in one word.
type Role string

// The roles. Streaming is the only ready one but Standby, which is ready to take over.
const (
	Starting  Role = "starting"
	Standby   Role = "standby"
	Streaming Role = "streaming"
	Retrying  Role = "retrying"
	Halted    Role = "halted"
	Stopped   Role = "stopped"
)

// Roles are all of them.
var Roles = []Role{Starting, Standby, Streaming, Retrying, Halted, Stopped}

// Observer is told facts; logging and metrics subscribe. Functions that are nil are not called. They are called on the
// relay's goroutines and must not block.
type Observer struct {
	// Role is called at each change; err says why, where there is a reason.
	Role func(role Role, err error)
	// Connected is called when the replication connection is there, with what it runs over.
	Connected func(wire string)
	// Noted is called when a session begins, with what halts nothing and is worth a word.
	Noted func(notes []string)
	// Received counts what a gulp held: rows to deliver, rows that were durable already, other messages, bytes.
	Received func(rows, dropped, others, bytes int)
	// Published is called when a window is durable, dead letters included, with the time since its first row came.
	Published func(records []Record, took time.Duration)
	// DeadLettered is called for each record of a durable window that is a dead letter, and for each row of a polled table that fails.
	DeadLettered func(r *Record)
	// Covered is called when a state record is durable.
	Covered func(st *State)
	// Confirmed is called when an LSN was sent to the server.
	Confirmed func(lsn LSN)
	// Stalled is called when Kafka has not taken a window for a while, and again with false when it has.
	Stalled func(stalled bool, since time.Duration)
	// Phantoms is called when a failover was found to have taken back rows that are published.
	Phantoms func(p *Phantoms)
	// Stuck is called when rows may be waiting and nothing moves, with the cause, and with nil when that is over.
	Stuck func(s *StallError)
	// CommitsWait is called when commits of the whole server have begun to wait for this relay, and with nil when they do not any more.
	CommitsWait func(err error)
	// Current is called at each look at the server, with its time up to which all that was written is delivered; zero when none is known.
	Current func(at time.Time)
	// Hurried is called when wal_sender_timeout is so short that status updates are sent more often than source.status_interval says.
	Hurried func(timeout, interval time.Duration)
	// Watching is called when publication and table cannot be looked at, and with nil when they can again.
	Watching func(err error)
}

// Tee returns an observer that tells several, in order. Each of its functions can be called.
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
		if len(hear) == 1 { // what is told at each read costs nothing more
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
