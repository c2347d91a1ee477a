package cdc

import (
	"context"
	"time"

	"github.com/walpost/walpost/cdc/internal/failpoint"
)

const (
	busyAge  = 5 * time.Millisecond // a busy relay's window goes when it is full or this old
	stallLog = 5 * time.Second      // Kafka has not answered for this long: say so
)

// publish takes windows and makes them durable, until the reader has stopped and nothing is left.
func (s *session) publish(ctx context.Context, pub Publisher, p *progress) error {
	empty := newWindow(s.cfg.Window.Rows, int(s.cfg.Window.Bytes))
	records := make([]Record, s.cfg.Window.Rows)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var taken time.Time
	draining := false
	drain := s.drain
	for {
		now := time.Now()
		w, wait := s.queue.take(empty, now, taken, s.cfg.Window.Pace, busyAge, draining)
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
		case <-timer.C:
		case <-drain:
			draining, drain = true, nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deliver makes one window durable. A row that can never be published ends it: what stands before that row is published,
// nothing behind it is.
func (s *session) deliver(ctx context.Context, pub Publisher, p *progress, w *Window, records []Record) error {
	rows, covered := w.Rows, w.covered
	var refused error
	s.route.NextWindow()
	for i := range w.Rows {
		rec := &records[i]
		err := s.route.Route(&w.Rows[i], rec)
		if err == nil {
			err = pub.Check(ctx, rec)
		}
		if err != nil {
			refused, rows, covered = err, w.Rows[:i], w.Rows[i].prior
			break
		}
	}
	if len(rows) > 0 {
		if err := s.write(ctx, pub, p, records[:len(rows)]); err != nil {
			return err
		}
		now := time.Now()
		s.observer.published(records[:len(rows)], now.Sub(w.since))
		p.rowsDone(rows, now)
	}
	p.covers(covered)
	p.askedFor = p.askedFor || w.asked
	if refused != nil && p.moved() {
		if err := s.write(ctx, pub, p, nil); err != nil {
			return err
		}
	}
	return refused
}

// write publishes records, with the state record where one is due. The record claims only what was durable before.
func (s *session) write(ctx context.Context, pub Publisher, p *progress, records []Record) error {
	var st *State
	now := time.Now()
	if due, _ := p.due(now); due || records == nil {
		st = p.record(now)
	}
	stall := time.AfterFunc(stallLog, func() { s.observer.stalled(true, time.Since(now)) })
	err := pub.Publish(ctx, records, st)
	if !stall.Stop() {
		s.observer.stalled(false, time.Since(now))
	}
	if err != nil {
		return err
	}
	if st != nil {
		if err := failpoint.Hit("after_commit_before_ack"); err != nil {
			return err
		}
		p.written(st, time.Now())
		s.confirmed.Store(uint64(st.Covered))
		s.observer.covered(st)
	}
	return nil
}
