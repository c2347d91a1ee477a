package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc/internal/failpoint"
)

const (
	replyEvery = 10 * time.Millisecond // a server that wants to stop asks thousands of times a second
	pingAfter  = 10 * time.Second      // of silence: ask for a sign of life
	deadAfter  = 60 * time.Second      // of silence: a huge commit answers a ping only every wal_sender_timeout/2
)

// reader takes rows off the replication connection into the queue, and tells the server what is confirmed. While it
// runs it is the connection's only user.
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
	waits   bool // msg is a row for which the window had no room
	settled bool // the stream has passed what was delivered before: the state record's covered may be confirmed

	lastStatus  time.Time
	lastSent    LSN
	replyWanted bool      // the server has asked since the last status update
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

// run takes rows until ctx ends, and then returns nil, or until the stream fails or the queue has been full for too
// long.
func (r *reader) run(ctx context.Context) error {
	tick := time.NewTicker(r.interval)
	defer tick.Stop()
	if err := r.answer(true); err != nil {
		return err
	}
	// What came with the answer to START_REPLICATION: if it ends with the server's error, nothing comes behind it.
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
			err = r.gulp()
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
		return fmt.Errorf("the server has sent nothing for %s, not even an answer: connection given up", silent.Round(time.Second))
	}
	ping := silent > pingAfter && !r.waits
	if ping && !r.pinged.After(r.heard) {
		r.pinged = t
	}
	r.replyWanted, r.lastStatus, r.lastSent = false, t, confirmed
	return r.send(confirmed, ping)
}

// status tells the server what may be confirmed.
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

// gulp lets the socket fill, takes what is there and decodes it.
func (r *reader) gulp() error {
	if wait := r.pacer.rest(time.Now()); wait > 0 {
		r.stream.Rest(wait)
	}
	deadline := r.lastStatus.Add(r.interval)
	if r.replyWanted {
		deadline = r.lastStatus.Add(replyEvery)
	}
	if soon := time.Now().Add(time.Millisecond); deadline.Before(soon) { // it passed while the reader rested
		deadline = soon
	}
	n, err := r.stream.Fill(deadline)
	if err != nil && n == 0 {
		return r.wedged(err)
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
	r.pacer.took(n, more, messages, rows, now)
	if r.pacer.cramped() {
		r.stream.OpenWindow()
		r.pacer.opened()
	}
	return nil
}

// waitForRoom waits until the publisher has taken the full window, but never longer than the next status update.
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

// decode moves what was read into the queue, as far as there is room, and counts its rows and all its messages.
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
	r.observer.Received(rows, dropped, others, bytes)
	r.shared.motion.moves(r.tracker.seen, rows+dropped+others, bytes)
	if err == nil && !r.settled && r.tracker.caughtUp() {
		r.settled = true
		r.shared.confirmed.CompareAndSwap(0, uint64(r.tracker.covered)) // the publisher may have more already
		err = r.answer(true)
	}
	return rows, messages, r.wedged(err)
}

// stillBusy says that a server that has been silent for long is at work for this session, as the last look has it:
// through a huge transaction it reads a ping only every half wal_sender_timeout.
func (r *reader) stillBusy() bool {
	last := r.shared.looked.Load()
	return last != nil && time.Since(last.at) < 2*(lookEvery+lookWithin) && last.facts.Slot.ActivePID == r.pid && last.facts.Walsender.busy()
}

// wedged makes a change that can never be taken a HaltError that names the way past it.
func (r *reader) wedged(err error) error {
	var w *UndecodableError
	if !errors.As(err, &w) {
		return err
	}
	halt := &HaltError{
		Found: w.Found,
		Means: "everything behind it waits in the slot, nothing is lost",
		Run:   "`walpost skip --to next` looks for the one transaction that cannot be decoded, and gives it up; its rows can be written to the outbox again",
	}
	if r.tracker.open {
		tx := r.tracker.tx
		halt.Found = fmt.Sprintf("%s; it is in transaction %d, committed at %s", w.Found, tx.XID, tx.Commit)
		halt.Means = "the transaction cannot be delivered whole, and everything behind it waits in the slot; nothing is lost"
		halt.Run = giveUp(tx.Commit)
	}
	if w.Fix != "" {
		halt.Run = w.Fix + "; or " + halt.Run
	}
	return halt
}
