package cdc

import "time"

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
	Stuck func(s *Stall)
	// CommitsWait is called when commits of the whole server have begun to wait for this relay, and with nil when they do not any more.
	CommitsWait func(err error)
	// Current is called at each look at the server, with its time up to which all that was written is delivered; zero when none is known.
	Current func(at time.Time)
	// Hurried is called when wal_sender_timeout is so short that status updates are sent more often than source.status_interval says.
	Hurried func(timeout, interval time.Duration)
	// Watching is called when publication and table cannot be looked at, and with nil when they can again.
	Watching func(err error)
}

func (o *Observer) role(r Role, err error) {
	if o.Role != nil {
		o.Role(r, err)
	}
}

func (o *Observer) connected(wire string) {
	if o.Connected != nil {
		o.Connected(wire)
	}
}

func (o *Observer) received(rows, dropped, others, bytes int) {
	if o.Received != nil {
		o.Received(rows, dropped, others, bytes)
	}
}

func (o *Observer) published(records []Record, took time.Duration) {
	if o.Published != nil {
		o.Published(records, took)
	}
}

func (o *Observer) deadLettered(r *Record) {
	if o.DeadLettered != nil {
		o.DeadLettered(r)
	}
}

func (o *Observer) covered(st *State) {
	if o.Covered != nil {
		o.Covered(st)
	}
}

func (o *Observer) confirmed(lsn LSN) {
	if o.Confirmed != nil {
		o.Confirmed(lsn)
	}
}

func (o *Observer) stalled(s bool, since time.Duration) {
	if o.Stalled != nil {
		o.Stalled(s, since)
	}
}

func (o *Observer) phantoms(p *Phantoms) {
	if o.Phantoms != nil {
		o.Phantoms(p)
	}
}

func (o *Observer) stuck(s *Stall) {
	if o.Stuck != nil {
		o.Stuck(s)
	}
}

func (o *Observer) commitsWait(err error) {
	if o.CommitsWait != nil {
		o.CommitsWait(err)
	}
}

func (o *Observer) current(at time.Time) {
	if o.Current != nil {
		o.Current(at)
	}
}

func (o *Observer) hurried(timeout, interval time.Duration) {
	if o.Hurried != nil {
		o.Hurried(timeout, interval)
	}
}

func (o *Observer) watching(err error) {
	if o.Watching != nil {
		o.Watching(err)
	}
}

// Tee tells several observers, in order.
func Tee(observers ...Observer) Observer {
	return Observer{
		Role: func(role Role, err error) {
			for i := range observers {
				observers[i].role(role, err)
			}
		},
		Connected: func(wire string) {
			for i := range observers {
				observers[i].connected(wire)
			}
		},
		Received: func(rows, dropped, others, bytes int) {
			for i := range observers {
				observers[i].received(rows, dropped, others, bytes)
			}
		},
		Published: func(records []Record, took time.Duration) {
			for i := range observers {
				observers[i].published(records, took)
			}
		},
		DeadLettered: func(r *Record) {
			for i := range observers {
				observers[i].deadLettered(r)
			}
		},
		Covered: func(st *State) {
			for i := range observers {
				observers[i].covered(st)
			}
		},
		Confirmed: func(lsn LSN) {
			for i := range observers {
				observers[i].confirmed(lsn)
			}
		},
		Stalled: func(s bool, since time.Duration) {
			for i := range observers {
				observers[i].stalled(s, since)
			}
		},
		Phantoms: func(p *Phantoms) {
			for i := range observers {
				observers[i].phantoms(p)
			}
		},
		Stuck: func(s *Stall) {
			for i := range observers {
				observers[i].stuck(s)
			}
		},
		CommitsWait: func(err error) {
			for i := range observers {
				observers[i].commitsWait(err)
			}
		},
		Current: func(at time.Time) {
			for i := range observers {
				observers[i].current(at)
			}
		},
		Hurried: func(timeout, interval time.Duration) {
			for i := range observers {
				observers[i].hurried(timeout, interval)
			}
		},
		Watching: func(err error) {
			for i := range observers {
				observers[i].watching(err)
			}
		},
	}
}
