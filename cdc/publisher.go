package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc/internal/failpoint"
)

const (
	busyAge  = 5 * time.Millisecond // a busy relay publishes its window when it is full or this old
	stallLog = 5 * time.Second      // report it if Kafka has not answered for this long

	minWindowBytes = 64 << 10

	// transactionGap is the time between the end of one Kafka transaction and the beginning of the next: the broker
	// is still writing the first one's markers, and would answer an earlier beginning only after its own retry of 20
	// ms.
	transactionGap = 5 * time.Millisecond
)

// publisher makes windows durable, and writes the state record. From step 7 on it is the only user of the session's
// client.
type publisher struct {
	cfg      *Options
	client   Publisher
	queue    *queue
	shared   *exchange
	observer *Observer
	route    Route
	memory   *memory // suspect and windowBytes

	server       string // system id and timeline of the session's server, for dead letters
	checkpointer *checkpointer
	opened       LSN      // covered of the session's first record
	holds        keyHolds // keys whose rows wait because of a dead letter
	delivered    bool     // at least one window is durable
	failed       bool     // a window or a state record failed; the client must not be used again
}

func newPublisher(s *session, q *queue, sh *exchange, cfg *Options, o *Observer, route Route, m *memory) *publisher {
	return &publisher{
		cfg: cfg, client: s.client, queue: q, shared: sh, observer: o, route: route, memory: m,
		server: fmt.Sprintf("%s/%d", s.state.SystemID, s.state.Timeline), checkpointer: newCheckpointer(s.state, time.Now()), opened: s.state.Covered,
	}
}

// run takes windows and makes them durable, until the reader has stopped and nothing is left.
func (p *publisher) run(ctx context.Context, drain <-chan struct{}) error {
	empty := newWindow(p.cfg.WindowRows, p.memory.windowBytes)
	records := make([]Record, p.cfg.WindowRows)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var taken time.Time
	draining := false
	for {
		now := time.Now()
		w, wait := (*Window)(nil), p.rest(now)
		if wait <= 0 || draining {
			w, wait = p.queue.take(empty, now, taken, p.cfg.Pace, busyAge, draining)
		}
		if w != nil {
			taken = now
			if err := p.deliver(ctx, w, records); err != nil {
				return err
			}
			w.reset()
			empty = w
			continue
		}
		due, stateWait := p.checkpointer.due(now)
		if due || (draining && p.checkpointer.moved()) {
			if err := p.write(ctx, nil); err != nil {
				return err
			}
			continue
		}
		if draining {
			return nil
		}
		if stateWait > 0 && (wait == 0 || stateWait < wait) {
			wait = stateWait
		}
		if wait == 0 {
			wait = time.Hour
		}
		timer.Reset(wait)
		select {
		case <-p.queue.wake:
		case <-p.shared.refresh:
			if p.stale() {
				if err := p.write(ctx, nil); err != nil {
					return err
				}
			}
		case <-timer.C:
		case <-drain:
			draining, drain = true, nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// rest returns how long to wait until Kafka has finished the last transaction.
func (p *publisher) rest(now time.Time) time.Duration {
	if !p.cfg.ExactlyOnce {
		return 0
	}
	return p.checkpointer.wrote.Add(transactionGap).Sub(now)
}

// deliver makes one window durable. A row that can never be published goes to the dead letter topic in the same
// window, or ends the window: then the rows before it are published, and no later row is.
func (p *publisher) deliver(ctx context.Context, w *Window, records []Record) error {
	rows, covered := w.Rows, w.covered
	var rejected error
	p.route.NextWindow()
	if p.cfg.HoldKey && len(rows) > 0 {
		if err := p.holds.begin(ctx, p.client); err != nil {
			return err
		}
	}
	for i := range w.Rows {
		if err := p.prepare(ctx, &w.Rows[i], &records[i]); err != nil {
			rejected, rows, covered = err, w.Rows[:i], w.Rows[i].prior
			break
		}
	}
	p.checkpointer.askedFor = p.checkpointer.askedFor || w.asked
	records = records[:len(rows)]
	for len(rows) > 0 && rows[0].Compare(p.memory.suspect.until) <= 0 {
		if p.checkpointer.moved() {
			if err := p.write(ctx, nil); err != nil {
				return err
			}
		}
		if err := p.publishRows(ctx, rows[:1], records[:1], 0, w.since); err != nil {
			return err
		}
		rows, records = rows[1:], records[1:]
	}
	if err := p.publishRows(ctx, rows, records, covered, w.since); err != nil {
		return err
	}
	if rejected != nil && p.checkpointer.moved() {
		if err := p.write(ctx, nil); err != nil {
			return err
		}
	}
	return rejected
}

// publishRows makes rows durable, if there are any, and then counts them, and covered with them, as done.
func (p *publisher) publishRows(ctx context.Context, rows []Row, records []Record, covered LSN, since time.Time) error {
	once := p.cfg.ExactlyOnce
	if once { // the record covers the rows of the same transaction
		p.checkpointer.done(rows, covered, time.Now())
	}
	if len(rows) > 0 {
		err := p.write(ctx, records)
		if rejected := (*RejectedError)(nil); errors.As(err, &rejected) {
			return p.rejectedByKafka(rejected, records)
		}
		if err != nil {
			p.shrink()
			return err
		}
		p.delivered, p.memory.windowBytes = true, p.cfg.WindowBytes
		p.shared.motion.published.Add(int64(len(records)))
		p.observer.Published(records, time.Since(since))
		for i := range records {
			if records[i].Rejected != nil {
				p.observer.DeadLettered(&records[i])
			}
		}
	}
	if !once {
		p.checkpointer.done(rows, covered, time.Now())
	}
	return nil
}

// shrink halves the windows of the next session if this session made no window durable. On a slow wire a window can
// take longer than its transaction may last; without this it would fail every time.
func (p *publisher) shrink() {
	if !p.delivered {
		p.memory.windowBytes = max(p.memory.windowBytes/2, minWindowBytes)
	}
}

// write publishes records, and the state record if one is due. In exactly-once one is always due.
func (p *publisher) write(ctx context.Context, records []Record) error {
	var st *State
	now := time.Now()
	if due, _ := p.checkpointer.due(now); due || records == nil || p.cfg.ExactlyOnce {
		st = p.record(now)
	}
	stall := time.AfterFunc(stallLog, func() {
		p.shared.motion.stuck.Store(true)
		p.observer.Stalled(true, time.Since(now))
	})
	err := p.client.Publish(ctx, records, st)
	if !stall.Stop() {
		p.shared.motion.stuck.Store(false)
		p.observer.Stalled(false, time.Since(now))
	}
	if err != nil {
		p.failed = true
		return err
	}
	if st != nil {
		if err := failpoint.Hit("after_commit_before_ack"); err != nil {
			return err
		}
		p.checkpointer.written(st, time.Now())
		// otherwise the reader confirms it, after the stream has passed what was delivered earlier
		if st.Covered > p.opened {
			p.shared.confirmed.Store(uint64(st.Covered))
		}
		p.shared.place.Store(&place{st.Covered, st.Last()})
		p.observer.Covered(st)
	}
	return nil
}

// record returns the state record for everything that is durable now.
func (p *publisher) record(now time.Time) *State {
	st := p.checkpointer.record(now)
	if last := p.shared.looked.Load(); last != nil {
		st.Checked, st.CheckedAt, st.Open = last.facts.WALEnd, last.facts.Time, last.open
	}
	if at := p.shared.lag.Current(st.Covered); !at.IsZero() {
		// otherwise the last session's value stays right: its position was current then, and nothing was delivered
		// since
		st.CurrentAt = at
	}
	return st
}

// stale reports whether the state record should be written again only for its time: the position is current as of a
// later time than the record says.
func (p *publisher) stale() bool {
	durable := &p.checkpointer.durable
	return p.shared.lag.Current(durable.Covered).Sub(durable.CurrentAt) > 2*lookEvery
}

// writeHalt writes the halt that ended the session into its state record, for `walpost status`, and for later
// sessions if it is latched. It writes nothing if the client has failed. If Kafka does not take the record, nothing
// is lost: the cause is still visible in the slot, the server and the fingerprint, and the next session finds it
// again.
func (p *publisher) writeHalt(ctx context.Context, halt *HaltError) error {
	if p.failed {
		return nil
	}
	st := p.record(time.Now())
	st.Halt = halt.record(st.Time)
	if err := p.client.Publish(ctx, nil, st); err != nil {
		return fmt.Errorf("write a halt into the state record: %w", err)
	}
	p.observer.Covered(st)
	return nil
}
