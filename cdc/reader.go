package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc/internal/failpoint"
)

const (
	replyEvery = 10 * time.Millisecond // a server that wants to stop asks for a status thousands of times a second
	pingAfter  = 10 * time.Second      // of silence: ask the server for an answer
	deadAfter  = 60 * time.Second      // of silence: a huge commit answers a ping only every wal_sender_timeout/2
)

// reader reads rows from the replication connection into the queue, and tells the server which LSN is confirmed.
// While it runs it is the connection's only user.
type reader struct {
	stream       Stream
	queue        *queue
	shared       *exchange
	observer     *Observer
	pid          uint32        // of the walsender
	interval     time.Duration // between two status updates
	queueTimeout time.Duration

	tracker *tracker
	pacer   pacer
	msg     Message
	waits   bool // msg is a row that did not fit into the window
	// the stream has passed everything delivered by earlier sessions: the state record's covered may be confirmed
	settled bool

	lastStatus  time.Time
	lastSent    LSN
	replyWanted bool      // the server has asked for a status since the last status update
	heard       time.Time // when bytes last came
	pinged      time.Time
	fullSince   time.Time
}

func newReader(s *session, q *queue, sh *exchange, cfg *Options, o *Observer) *reader {
	return &reader{
		stream: s.stream, queue: q, shared: sh, observer: o, pid: s.id.PID, interval: s.interval, queueTimeout: cfg.QueueTimeout,
		tracker: newTracker(s.state, s.facts.Slot.ConfirmedFlush),
		pacer:   pacer{pace: cfg.Pace, window: s.id.Window},
		heard:   time.Now(),
	}
}

// run reads rows until ctx ends, and then returns nil, or until the stream fails or the queue has been full for too
// long.
func (r *reader) run(ctx context.Context) error {
	tick := time.NewTicker(r.interval)
	defer tick.Stop()
	if err := r.answer(true); err != nil {
		return err
	}
	// Decode what came with the answer to START_REPLICATION: if that ends with the server's error, nothing follows.
	if _, _, err := r.decode(0); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := r.answer(false); err != nil {
			return err
		}
		var err error
		if r.waits {
			err = r.waitForRoom(ctx, tick.C)
		} else {
			err = r.read()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// answer sends a status update when it is due: every interval, and soon after the server asked.
func (r *reader) answer(now bool) error {
	t := time.Now()
	since := t.Sub(r.lastStatus)
	confirmed := LSN(r.shared.confirmed.Load())
	moved := confirmed != r.lastSent
	if !now && since < r.interval && (!r.replyWanted || (since < replyEvery && !moved)) {
		return nil
	}
	silent := t.Sub(r.heard)
	if silent > deadAfter && r.pinged.After(r.heard) && !r.waits && !r.stillBusy() {
		return fmt.Errorf("the server has sent nothing for %s, not even an answer to a ping: the relay closes the connection and connects again", silent.Round(time.Second))
	}
	ping := silent > pingAfter && !r.waits
	if ping && !r.pinged.After(r.heard) {
		r.pinged = t
	}
	r.replyWanted, r.lastStatus, r.lastSent = false, t, confirmed
	return r.send(confirmed, ping)
}

// status sends the LSN that may be confirmed to the server.
func (r *reader) status() error { return r.send(LSN(r.shared.confirmed.Load()), false) }

func (r *reader) send(confirmed LSN, ping bool) error {
	if err := r.stream.Status(confirmed, ping); err != nil {
		return err
	}
	r.observer.Confirmed(confirmed)
	if confirmed > 0 {
		return failpoint.Hit("after_ack")
	}
	return nil
}

// read lets the socket fill, reads once and decodes what it read.
func (r *reader) read() error {
	if wait := r.pacer.rest(time.Now()); wait > 0 {
		r.stream.Rest(wait)
	}
	deadline := r.lastStatus.Add(r.interval)
	if r.replyWanted {
		deadline = r.lastStatus.Add(replyEvery)
	}
	if soon := time.Now().Add(time.Millisecond); deadline.Before(soon) { // the deadline passed while the reader rested
		deadline = soon
	}
	n, err := r.stream.Fill(deadline)
	if err != nil && n == 0 {
		return r.undecodable(err)
	}
	now := time.Now()
	var more, rows, messages int
	if r.pacer.busy {
		more = r.stream.Waiting()
	}
	if n > 0 {
		r.heard = now
		if rows, messages, err = r.decode(n); err != nil {
			return err
		}
	}
	if rows > 0 {
		if err := failpoint.Hit("after_decode"); err != nil {
			return err
		}
	}
	r.pacer.observe(n, more, messages, rows, now)
	if r.pacer.cramped() {
		r.stream.OpenWindow()
		r.pacer.opened()
	}
	return nil
}

// waitForRoom waits until the publisher has taken the full window, but never longer than until the next status update
// is due.
func (r *reader) waitForRoom(ctx context.Context, tick <-chan time.Time) error {
	if r.fullSince.IsZero() {
		r.fullSince = time.Now()
	}
	select {
	case <-r.queue.room:
		r.fullSince = time.Time{}
		r.heard = time.Now()
		r.pacer.heldUp()
		_, _, err := r.decode(0)
		return err
	case <-tick:
		if time.Since(r.fullSince) >= r.queueTimeout {
			return errQueueFull
		}
	case <-ctx.Done():
	}
	return nil
}

// decode moves the messages that were read into the queue as far as there is room, and counts rows and messages.
func (r *reader) decode(bytes int) (rows, messages int, err error) {
	var dropped, others int
	_, err = r.queue.fill(r.pacer.busy, func(w *Window) (bool, error) {
		for {
			if r.waits {
				if !w.add(&r.msg.Row) {
					return false, nil
				}
				r.waits = false
				rows++
			}
			ok, err := r.stream.Next(&r.msg)
			if err != nil || !ok {
				return true, err
			}
			messages++
			switch m := &r.msg; m.Kind {
			case Insert:
				deliver, err := r.tracker.row(&m.Row)
				if err != nil {
					return true, err
				}
				if r.waits = deliver; !deliver {
					dropped++
				}
			case Begin:
				if err := r.tracker.begin(m); err != nil {
					return true, err
				}
			case Commit:
				if w.covered, err = r.tracker.commit(m); err != nil {
					return true, err
				}
			case Keepalive:
				if w.covered, err = r.tracker.keepalive(m); err != nil {
					return true, err
				}
				if m.ReplyRequested {
					r.replyWanted, w.asked = true, true
				}
			default:
				others++
			}
		}
	})
	r.observer.Received(r.tracker.seen, rows, dropped, others, bytes)
	r.shared.motion.moves(r.tracker.seen, rows+dropped+others, bytes)
	if err == nil && !r.settled && r.tracker.caughtUp() {
		r.settled = true
		r.shared.confirmed.CompareAndSwap(0, uint64(r.tracker.covered)) // the publisher may have raised it already
		err = r.answer(true)
	}
	return rows, messages, r.undecodable(err)
}

// stillBusy reports whether a server that has been silent for long works for this session, by the last look: during a
// huge transaction a server reads a ping only every half wal_sender_timeout.
func (r *reader) stillBusy() bool {
	last := r.shared.looked.Load()
	return last != nil && time.Since(last.at) < 2*(lookEvery+lookWithin) && last.facts.Slot.ActivePID == r.pid && last.facts.Walsender.busy()
}

// undecodable turns an UndecodableError into a HaltError whose Run gives up the transaction, and returns any other error
// unchanged.
func (r *reader) undecodable(err error) error {
	var w *UndecodableError
	if !errors.As(err, &w) {
		return err
	}
	halt := &HaltError{
		Found: w.Found,
		Means: "every later row waits in the slot; nothing is lost",
		Run:   "`walpost skip --to next` finds the one transaction that cannot be decoded, and gives up for good its rows that were not delivered; " + othersStay,
	}
	if r.tracker.open {
		tx := r.tracker.tx
		halt.Found = fmt.Sprintf("%s; it is in transaction %d, committed at %s", w.Found, tx.XID, tx.Commit)
		halt.Means = "the transaction cannot be delivered whole, and every later row waits in the slot; nothing is lost"
		halt.Run = giveUp(tx.Commit)
	}
	if w.Fix != "" {
		halt.Run = w.Fix + "; or " + halt.Run
	}
	return halt
}
