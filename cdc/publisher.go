package cdc

import (
	"context"
	"errors"
	"time"

	"github.com/walpost/walpost/cdc/internal/failpoint"
)

const (
	busyAge  = 5 * time.Millisecond // a busy relay's window goes when it is full or this old
	stallLog = 5 * time.Second      // Kafka has not answered for this long: say so

	minWindowBytes = 64 << 10

	// transactionGap passes between the end of one Kafka transaction and the beginning of the next: the broker is still
	// writing the first one's markers, and would answer an earlier one only after its own retry of 20 ms.
	transactionGap = 5 * time.Millisecond
)

// publish takes windows and makes them durable, until the reader has stopped and nothing is left.
func (s *session) publish(ctx context.Context, pub Publisher, p *progress) error {
	empty := newWindow(s.cfg.WindowRows, s.windowBytes)
	records := make([]Record, s.cfg.WindowRows)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var taken time.Time
	draining := false
	drain := s.drain
	for {
		now := time.Now()
		w, wait := (*Window)(nil), s.rest(p, now)
		if wait <= 0 || draining {
			w, wait = s.queue.take(empty, now, taken, s.cfg.Pace, busyAge, draining)
		}
		if w != nil {
			taken = now
			if err := s.deliver(ctx, pub, p, w, records); err != nil {
				return err
			}
			w.reset()
			empty = w
			continue
		}
		due, stateWait := p.due(now)
		if due || (draining && p.moved()) {
			if err := s.write(ctx, pub, p, nil); err != nil {
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
		case <-s.queue.wake:
		case <-s.refresh:
			if s.stale(p) {
				if err := s.write(ctx, pub, p, nil); err != nil {
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

// rest is how long to let Kafka finish the last transaction.
func (s *session) rest(p *progress, now time.Time) time.Duration {
	if !s.cfg.ExactlyOnce {
		return 0
	}
	return p.wrote.Add(transactionGap).Sub(now)
}

// deliver makes one window durable. A row that can never be published goes to the dead letter topic in the same window, or
// ends it: then what stands before that row is published, nothing behind it is.
func (s *session) deliver(ctx context.Context, pub Publisher, p *progress, w *Window, records []Record) error {
	rows, covered := w.Rows, w.covered
	var refused error
	s.route.NextWindow()
	if s.cfg.HoldKey && len(rows) > 0 {
		if err := s.held.begin(ctx, pub); err != nil {
			return err
		}
	}
	for i := range w.Rows {
		if err := s.prepare(ctx, pub, &w.Rows[i], &records[i]); err != nil {
			refused, rows, covered = err, w.Rows[:i], w.Rows[i].prior
			break
		}
	}
	p.askedFor = p.askedFor || w.asked
	records = records[:len(rows)]
	for len(rows) > 0 && rows[0].Compare(s.doubt.until) <= 0 {
		if p.moved() {
			if err := s.write(ctx, pub, p, nil); err != nil {
				return err
			}
		}
		if err := s.publishRows(ctx, pub, p, rows[:1], records[:1], 0, w.since); err != nil {
			return err
		}
		rows, records = rows[1:], records[1:]
	}
	if err := s.publishRows(ctx, pub, p, rows, records, covered, w.since); err != nil {
		return err
	}
	if refused != nil && p.moved() {
		if err := s.write(ctx, pub, p, nil); err != nil {
			return err
		}
	}
	return refused
}

// publishRows makes rows durable, if there are any, and counts them and what is covered with them as done.
func (s *session) publishRows(ctx context.Context, pub Publisher, p *progress, rows []Row, records []Record, covered LSN, since time.Time) error {
	once := s.cfg.ExactlyOnce
	if once { // the record tells of the very rows it goes with
		p.done(rows, covered, time.Now())
	}
	if len(rows) > 0 {
		err := s.write(ctx, pub, p, records)
		if refused := (*Refused)(nil); errors.As(err, &refused) {
			return s.refusedByKafka(refused, records)
		}
		if err != nil {
			s.shrink()
			return err
		}
		s.delivered = true
		s.at.published.Add(int64(len(records)))
		s.observer.published(records, time.Since(since))
		for i := range records {
			if records[i].Refused != nil {
				s.observer.deadLettered(&records[i])
			}
		}
	}
	if !once {
		p.done(rows, covered, time.Now())
	}
	return nil
}

// shrink halves the windows of the next session when this one could not even make its first durable: on a slow wire a
// window may take longer than its transaction may last, and would fail for ever.
func (s *session) shrink() {
	if !s.delivered {
		s.windowBytes = max(s.windowBytes/2, minWindowBytes)
	}
}

// write publishes records, with the state record where one is due: exactly once, that is always.
func (s *session) write(ctx context.Context, pub Publisher, p *progress, records []Record) error {
	var st *State
	now := time.Now()
	if due, _ := p.due(now); due || records == nil || s.cfg.ExactlyOnce {
		st = s.record(p, now)
	}
	stall := time.AfterFunc(stallLog, func() {
		s.at.stuck.Store(true)
		s.observer.stalled(true, time.Since(now))
	})
	err := pub.Publish(ctx, records, st)
	if !stall.Stop() {
		s.at.stuck.Store(false)
		s.observer.stalled(false, time.Since(now))
	}
	if err != nil {
		s.failed = true
		return err
	}
	if st != nil {
		if err := failpoint.Hit("after_commit_before_ack"); err != nil {
			return err
		}
		p.written(st, time.Now())
		s.confirmed.Store(uint64(st.Covered))
		s.place.Store(&place{st.Covered, st.Last()})
		s.observer.covered(st)
	}
	return nil
}
