package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/postgres"
)

// wal is a pipeline from the WAL: it has a slot and a state record.
type wal struct{ *Pipeline }

func (w wal) relay(observer cdc.Observer) *cdc.Supervisor {
	return cdc.NewRelay(options(&w.cfg), w.source, w.sink, w.router(), observer).Supervisor
}

// options returns the engine's options for the configuration.
func options(cfg *config.Config) cdc.Options {
	o := cdc.Options{
		Pipeline: cfg.Pipeline, ExactlyOnce: cfg.Delivery == config.ExactlyOnce,
		WindowRows: cfg.Window.Rows, WindowBytes: int(cfg.Window.Bytes), Pace: cfg.Window.Pace,
		HoldKey: cfg.Poison.HoldKey, StatusInterval: cfg.Source.StatusInterval, CheckInterval: cfg.Source.CheckInterval,
		QueueTimeout: cfg.QueueTimeout, ShutdownTimeout: cfg.ShutdownTimeout,
	}
	if cfg.Poison.Policy == config.PolicyDeadLetter {
		o.DeadLetters = cfg.DeadLetterTopic()
	}
	return o
}

func (w wal) watched() watched {
	of := watched{slot: w.cfg.Source.Slot, facts: w.source, kafka: w.sink, decisions: w.sink}
	if w.cfg.Poison.Policy == config.PolicyDeadLetter {
		of.letters = w.sink.Unresolved()
	}
	return of
}

const (
	patience = 15 * time.Second // with a lag above this, Status looks for the reason
	lookFor  = 6 * time.Second  // a session looks at the server every 5 s, and writes a state record
)

func (w wal) survey(ctx context.Context, st *Status) {
	st.Slot = &Slot{Name: w.cfg.Source.Slot}
	partitions, away := st.asks(ctx, w.sink)
	var stateErr error
	state := func(ctx context.Context, _ *cdc.Facts) (state *cdc.State, _ error) {
		if stateErr = errNoAnswer; !away {
			state, stateErr = w.sink.Peek(ctx)
			st.blocked(stateErr)
		}
		return state, nil // the facts of PostgreSQL are shown without it
	}
	if !away {
		if decisions, err := w.sink.Decisions(ctx); err == nil { // Peek reports an error
			st.decided(decisions)
		}
		if w.cfg.Poison.Policy == config.PolicyDeadLetter {
			if n, err := w.sink.Unresolved().Count(ctx); !st.blocked(err) {
				st.puts(n)
			}
		}
	}
	if _, err := w.source.Preflight(ctx); st.blocked(err) {
		record, _ := state(ctx, nil)
		st.records(record)
		return
	}
	seen, err := read(ctx, w.source, state)
	st.records(seen.State)
	if st.blocked(err) {
		return
	}
	if st.shows(&seen); seen.Facts.Slot.Active && st.late() {
		// A state record that is older than a silence does not show whether later rows wait: a relay that works writes a new
		// record within lookFor.
		moves := w.moves(ctx, &seen)
		switch st.shows(&seen); {
		case !st.late() || moves:
		case away:
			st.blockedBy(w.away())
		case st.LagSeconds != nil:
			st.blockedBy(waiting(&seen.Facts, *st.LagSeconds))
		}
	}
	st.Positions = st.positions(&seen.Facts, 0, 0, func(lsn cdc.LSN) *time.Duration {
		if st.LagSeconds == nil || lsn != seen.Facts.Slot.ConfirmedFlush {
			return nil
		}
		behind := time.Duration(*st.LagSeconds * float64(time.Second))
		return &behind
	})
	st.waits(&seen.Facts)
	st.Notes = append(st.Notes, partitions.Notes(seen.State)...)
	var wal rate
	if state := seen.State; state != nil && state.Checked > 0 {
		wal.saw(state.Checked, state.CheckedAt)
	}
	st.lasts(wal.saw(seen.Facts.WALEnd, seen.Facts.Time), &seen.Facts)
	if !st.blocked(seen.identify(ctx, w.source)) && stateErr == nil {
		_, err := cdc.Reconcile(w.cfg.Pipeline, seen.State, seen.Facts)
		if !st.blocked(err) && seen.State.Halt != nil && !seen.Facts.Slot.Active {
			st.blocked(seen.State.Halt.Halt())
		}
	}
	// A halted relay releases the slot: then the halt alone says what to do.
	if slot := seen.Facts.Slot; slot.Exists && !slot.Active && !st.halts {
		st.blockedBy("no relay streams from the slot: start `walpost relay`; if one runs, its log and /readyz say why it does not stream")
	}
}

// asks asks Kafka for the topics, and reports whether it is away. If it is, the caller asks it nothing more, because each
// question would last until its timeout.
func (s *Status) asks(ctx context.Context, sink *kafka.Sink) (partitions kafka.Partitions, away bool) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	partitions, err := sink.Ready(ctx)
	return partitions, s.blocked(err) && !errors.As(err, new(*cdc.HaltError))
}

// shows fills in the facts of a survey.
func (s *Status) shows(seen *survey) {
	s.records(seen.State)
	s.stands(&seen.Facts)
	if !seen.Facts.Slot.Exists {
		return
	}
	var current time.Time
	if seen.State != nil {
		if current = seen.State.Current(); current.IsZero() {
			current = seen.State.Time
		}
	}
	behind, known := cdc.Behind(seen.Facts.Slot.ConfirmedFlush, seen.Facts.WALEnd, current, seen.Facts.Time)
	s.lags(behind, known)
}

// late reports whether rows have waited for longer than patience, or an unknown time.
func (s *Status) late() bool {
	return s.LagSeconds == nil || *s.LagSeconds > patience.Seconds()
}

// moves waits until the record or the slot has moved, for lookFor at most. It reports whether one has moved, and updates seen.
// Without a record it watches the slot alone.
func (w wal) moves(ctx context.Context, seen *survey) bool {
	for end := time.Now().Add(lookFor); time.Now().Before(end); {
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
		record := w.unfenced
		if seen.State == nil {
			record = func(context.Context, *cdc.Facts) (*cdc.State, error) { return nil, nil }
		}
		now, err := read(ctx, w.source, record)
		if err != nil || (now.State == nil) != (seen.State == nil) {
			return false // keep the facts that were read before
		}
		if now.Facts.Slot.ConfirmedFlush != seen.Facts.Slot.ConfirmedFlush || now.State != nil && now.State.Current().After(seen.State.Current()) {
			*seen = now
			return true
		}
	}
	return false
}

// waiting returns the reason why a connected relay confirms nothing.
func waiting(f *cdc.Facts, seconds float64) string {
	if standbys := f.StandbysBehind(f.WALEnd); standbys != "" && f.StandbysAway() == "" {
		return standbys
	}
	return fmt.Sprintf("a relay is connected, but has confirmed nothing that was written in the last %.0f s: its walsender is %s; the relay's log and /readyz say what it waits for", seconds, &f.Walsender)
}

func (w wal) gap(ctx context.Context) error {
	seen, err := readAll(ctx, w.source, w.unfenced)
	if err != nil {
		return err
	}
	if _, err := cdc.Reconcile(w.cfg.Pipeline, seen.State, seen.Facts); err != nil {
		return fmt.Errorf("nothing was deleted, because a replay may need rows of the table: %w", err)
	}
	decisions, err := w.sink.Decisions(ctx)
	if err != nil {
		return err
	}
	if gaps := cdc.Gaps(decisions); len(gaps) > 0 {
		return fmt.Errorf("nothing was deleted, because rows committed in %s may be missing in Kafka: run %s; if you know that none is missing, add --none-missing", gaps[0].Range, gaps[0].Run)
	}
	return nil
}

func (wal) marks() *postgres.Marks { return nil }

func (w wal) delivered(ctx context.Context) (time.Time, error) {
	st, err := w.sink.Peek(ctx)
	var halt *cdc.HaltError
	switch {
	case errors.As(err, &halt), err == nil && st == nil: // a damaged state topic has no commit time
		return time.Time{}, nil
	case err != nil:
		return time.Time{}, err
	}
	return st.LastCommitTime, nil
}

func (w wal) note(ctx context.Context, d *cdc.Decision) error {
	admin, err := w.sink.Admin(ctx)
	if err != nil {
		return err
	}
	defer admin.Close()
	return admin.WriteDecision(ctx, d)
}

func (wal) reader(key, url string) (string, string) { return key, url }

func (w wal) trace(ctx context.Context, t *Trace, rows []postgres.TableRow, end cdc.LSN) error {
	seen, err := readAll(ctx, w.source, w.unfenced)
	if err != nil {
		return err
	}
	t.delivered(&seen, rows, end)
	// The dead letter topic is read before the outbox's topics: an event that is redriven meanwhile is then seen twice, and
	// not missed.
	entries, err := w.sink.Entries(ctx)
	if err != nil {
		return err
	}
	for i := range entries {
		if d := entries[i].Letter; d != nil && t.about(string(d.Row.ID), string(d.Row.AggregateID)) {
			letter := deadLetter(&entries[i])
			t.event(string(d.Row.ID), string(d.Row.AggregateID), string(d.Row.EventType)).DeadLetter = &letter
		}
	}
	return nil
}
