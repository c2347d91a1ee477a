package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

// Status is how a pipeline stands, as slot and state record tell it; no relay has to run for it.
type Status struct {
	Pipeline string `json:"pipeline"`
	Slot     struct {
		Name           string `json:"name"`
		Exists         bool   `json:"exists"`
		Active         bool   `json:"active"`
		ConfirmedFlush string `json:"confirmed_flush_lsn"`
		RestartLSN     string `json:"restart_lsn"`
		WALStatus      string `json:"wal_status"`
	} `json:"slot"`
	WALEnd        string           `json:"wal_end_lsn"`
	LagBytes      int64            `json:"lag_bytes"`
	LagSeconds    *float64         `json:"lag_seconds"` // for how long what is not confirmed has waited; null when that is not known
	RetainedBytes int64            `json:"retained_wal_bytes"`
	State         *cdc.State       `json:"state"`
	Decisions     []cdc.Decision   `json:"decisions"`                         // of operators, oldest first
	DeadLetters   *int             `json:"unresolved_dead_letters,omitempty"` // where rows are put aside
	Backlog       *polling.Backlog `json:"backlog,omitempty"`                 // of a polled table, which has no slot
	Notes         []string         `json:"notes,omitempty"`                   // what halts nothing and is worth a word
	Blocked       []string         `json:"blocked"`                           // what keeps rows from flowing, each with what to do

	polled bool
}

// ReadStatus asks PostgreSQL and Kafka, with the relay's own rights. What cannot be asked is in Blocked.
func ReadStatus(ctx context.Context, cfg config.Config, opts ...kgo.Opt) Status {
	st := Status{Pipeline: cfg.Pipeline, Blocked: []string{}, Decisions: []cdc.Decision{}}
	blocked := func(err error) bool {
		if err != nil {
			st.Blocked = append(st.Blocked, err.Error())
		}
		return err != nil
	}
	if st.polled = cfg.Source.Kind == config.KindPolling; st.polled {
		b, err := polling.NewWatch(cfg.Pipeline, cfg.Source).Backlog(ctx)
		if blocked(err) {
			return st
		}
		st.Backlog = &b
		if b.Horizon != nil {
			blocked(errors.New(b.Horizon.String()))
		}
		if b.Pending > 0 {
			switch pid, err := postgres.NewSource(cfg.Pipeline, cfg.Source).Poller(ctx); {
			case blocked(err):
			case pid == 0:
				blocked(fmt.Errorf("%d rows wait and no relay polls %s: start `walpost relay`; if one is up, its log and /readyz say why it does not poll", b.Pending, cfg.Source.Table))
			}
		}
		if b.Failed > 0 {
			blocked(fmt.Errorf("%d rows have failed and hold %d keys back: `walpost dlq list` says why", b.Failed, b.HeldKeys))
		}
		return st
	}
	source := postgres.NewSource(cfg.Pipeline, cfg.Source)
	sink := kafka.NewSink(cfg, route.Topics(cfg.Kafka), opts...)
	st.Slot.Name = cfg.Source.Slot
	if decisions, err := sink.Decisions(ctx); err == nil { // if not, Peek says why
		st.Decisions = append(st.Decisions, decisions...)
	}
	if cfg.Poison.Policy == config.PolicyDeadLetter {
		if n, err := sink.Unresolved().Count(ctx); !blocked(err) {
			st.DeadLetters = &n
		}
	}
	if _, err := source.Preflight(ctx); blocked(err) {
		state, err := sink.Peek(ctx)
		blocked(err)
		st.State = state
		return st
	}
	var stateErr error
	state, facts, err := standing(ctx, source.Facts, func(ctx context.Context) (state *cdc.State, _ error) {
		state, stateErr = sink.Peek(ctx)
		blocked(stateErr)
		return state, nil // what PostgreSQL says is told without it
	})
	st.State = state
	if stateErr == nil {
		blocked(sink.Ready(ctx))
	}
	if blocked(err) {
		return st
	}
	st.Notes = facts.Notes
	if behind := st.stands(state, &facts); facts.Slot.Active && behind > patience {
		// A record of before a silence says nothing of what has come since: a relay that works writes a new one within a moment.
		moves := false
		state, facts, moves = moved(ctx, source, sink, state, facts)
		st.State = state
		if behind = st.stands(state, &facts); behind > patience && !moves {
			blocked(errors.New(waiting(&facts, behind)))
		}
	}
	slot := facts.Slot
	if away := facts.StandbysAway(); away != "" {
		blocked(errors.New(away))
	}
	blocked(facts.CommitsWait())
	// Only a replication connection tells system id and timeline.
	stream, id, err := source.Connect(ctx, 0)
	if !blocked(err) {
		_ = stream.Close()
		facts.Identity = id
		if stateErr == nil {
			_, err := cdc.Reconcile(cfg.Pipeline, state, facts)
			blocked(err)
			if err == nil && state.Halt != nil && !slot.Active {
				blocked(state.Halt.Halt())
			}
		}
	}
	if slot.Exists && !slot.Active {
		blocked(errors.New("no relay streams from the slot: start `walpost relay`; if one is up, its log and /readyz say why it does not stream"))
	}
	return st
}

const (
	patience = 15 * time.Second // behind for longer, the reason is asked for
	lookFor  = 6 * time.Second  // a session looks at the server every 5 s, and writes down what it sees
)

// stands fills in where slot and record stand, and returns for how long rows may have waited.
func (s *Status) stands(state *cdc.State, f *cdc.Facts) (behind time.Duration) {
	slot := f.Slot
	s.Slot.Exists, s.Slot.Active, s.Slot.WALStatus = slot.Exists, slot.Active, slot.WALStatus
	s.Slot.ConfirmedFlush, s.Slot.RestartLSN, s.WALEnd = slot.ConfirmedFlush.String(), slot.RestartLSN.String(), f.WALEnd.String()
	if !slot.Exists {
		return 0
	}
	s.LagBytes = max(0, int64(f.WALEnd)-int64(slot.ConfirmedFlush))
	s.RetainedBytes = max(0, int64(f.WALEnd)-int64(slot.RestartLSN))
	var current time.Time
	if state != nil {
		if current = state.Current(); current.IsZero() {
			current = state.Time
		}
	}
	behind, known := cdc.Behind(slot.ConfirmedFlush, f.WALEnd, current, f.Time)
	if s.LagSeconds = nil; known {
		seconds := behind.Seconds()
		s.LagSeconds = &seconds
	}
	return behind
}

// moved waits until the record or the slot has moved, for as long as a relay that works needs for that, and says whether it did.
func moved(ctx context.Context, source *postgres.Source, sink *kafka.Sink, state *cdc.State, f cdc.Facts) (*cdc.State, cdc.Facts, bool) {
	for end := time.Now().Add(lookFor); time.Now().Before(end); {
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return state, f, false
		}
		st, now, err := standing(ctx, source.Facts, sink.Peek)
		if err != nil || st == nil {
			return state, f, false // what was read before holds, and was told
		}
		if now.Slot.ConfirmedFlush != f.Slot.ConfirmedFlush || st.Current().After(state.Current()) {
			return st, now, true
		}
	}
	return state, f, false
}

// waiting says what a relay that is connected waits for.
func waiting(f *cdc.Facts, behind time.Duration) string {
	if standbys := f.StandbysBehind(f.WALEnd); standbys != "" && f.StandbysAway() == "" {
		return standbys
	}
	return fmt.Sprintf("nothing was confirmed of what was written in the last %s, and a relay is connected: its walsender is %s; the relay's log and /readyz say what it waits for", behind.Round(time.Second), &f.Walsender)
}

// standing reads slot and state record while a relay may be moving both: the slot before the record and the WAL's end after
// it, so that the record, which always lies between them, is never seen behind the slot or ahead of the server.
func standing(ctx context.Context, facts func(context.Context) (cdc.Facts, error), state func(context.Context) (*cdc.State, error)) (*cdc.State, cdc.Facts, error) {
	before, err := facts(ctx)
	if err != nil {
		return nil, before, err
	}
	st, err := state(ctx)
	if err != nil {
		return nil, before, err
	}
	after, err := facts(ctx)
	after.Slot.ConfirmedFlush = before.Slot.ConfirmedFlush
	return st, after, err
}

// Write prints the status for people.
func (s Status) Write(w io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("pipeline", "%s", s.Pipeline)
	switch {
	case s.Backlog != nil:
		b := s.Backlog
		oldest, held := "", ""
		if b.Pending > 0 {
			oldest = fmt.Sprintf(", the oldest for %.3g s", b.OldestSeconds)
		}
		if b.Refused > 0 {
			oldest += fmt.Sprintf("; %d were refused and are tried again", b.Refused)
		}
		if b.HeldKeys > 0 {
			held = fmt.Sprintf(", keys held back: %d", b.HeldKeys)
		}
		line("pending", "%d rows%s", b.Pending, oldest)
		line("failed", "%d rows%s", b.Failed, held)
	case s.Slot.Exists:
		active := "not active"
		if s.Slot.Active {
			active = "active"
		}
		line("slot", "%s: %s, confirmed %s, wal_status %s", s.Slot.Name, active, s.Slot.ConfirmedFlush, s.Slot.WALStatus)
		seconds := "an unknown time"
		if s.LagSeconds != nil {
			seconds = fmt.Sprintf("%.3g s", *s.LagSeconds)
		}
		line("lag", "%s and %s behind the end of the WAL at %s", bytes(s.LagBytes), seconds, s.WALEnd)
		line("retained", "%s of WAL is kept for the slot, from %s", bytes(s.RetainedBytes), s.Slot.RestartLSN)
	case s.polled:
		line("pending", "not seen")
	default:
		line("slot", "%s: not seen", s.Slot.Name)
	}
	switch {
	case s.polled:
	case s.State != nil:
		line("state", "covered %s, last row %s/%d, epoch %d by %s, %s", s.State.Covered, s.State.CommitLSN, s.State.Ordinal,
			s.State.Epoch, s.State.Instance, s.State.Time.Format(time.RFC3339))
	default:
		line("state", "no record seen")
	}
	if s.DeadLetters != nil {
		line("poison", "%d unresolved dead letters (`walpost dlq list`)", *s.DeadLetters)
	}
	if s.State != nil && s.State.Phantoms != nil {
		line("phantoms", "%s: %s", s.State.Phantoms.At.Format(time.RFC3339), s.State.Phantoms)
	}
	for _, d := range s.Decisions {
		line("decision", "%s %s by %s: %s", d.Time.Format(time.RFC3339), d.Command, d.By, d.What)
	}
	for _, n := range s.Notes {
		line("note", "%s", n)
	}
	if len(s.Blocked) == 0 {
		line("blocked", "by nothing")
	}
	for _, b := range s.Blocked {
		line("blocked", "%s", strings.ReplaceAll(b, "\n", "; "))
	}
}

func bytes(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
