package pipeline

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/postgres"
)

// BeginOptions are the options of Begin.
type BeginOptions struct {
	AdminURL string // URL of an administrator, in the database of source.url
	// At is where to begin. Nil prepares the role, its rights and the topics, and begins nothing: publication and slot
	// need not exist yet. It writes a state record with the phase `beginning`, with which no relay starts.
	At       *cdc.Start
	Why      string // how At was found, for the decision that is written down
	DryRun   bool
	Progress Progress
}

// Begin lets the pipeline begin at a position on an existing slot that another program has read. It prepares what
// `walpost init` prepares, except table, publication and slot, which must exist, and writes the first state record. It
// changes nothing if the pipeline has begun.
func (p *Pipeline) Begin(ctx context.Context, o BeginOptions) error {
	w, ok := p.kind.(wal)
	if !ok {
		return errors.New("source.kind: a polled pipeline has no slot to begin on: write source.kind: wal")
	}
	s, err := p.open(ctx, o.AdminURL, o.DryRun, o.Progress)
	if err != nil {
		return err
	}
	defer s.close(ctx)
	seen, err := readAll(ctx, s.pg, s.state)
	if err != nil {
		return err
	}
	begun := func() (*cdc.State, error) {
		if o.At == nil && (seen.State == nil || seen.State.Phase == cdc.PhaseBeginning) {
			return nil, nil
		}
		at := cdc.Start{}
		if o.At != nil {
			at = *o.At
		}
		facts := seen.Facts
		if o.DryRun { // its reader is stopped before the real run, which refuses it
			facts.Slot.Active = false
		}
		return cdc.BeginAt(p.cfg.Pipeline, seen.State, facts, at)
	}
	if _, err := begun(); err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	if _, err := s.pg.SameServer(ctx, false); err != nil {
		return err
	}
	table, err := s.pg.Table(ctx)
	if err != nil {
		return err
	}
	if table.OID == 0 {
		return table.Unfit(table.Missing...)
	}
	steps, err := s.pg.Plan(ctx, postgres.PlanOptions{Delete: p.cfg.Cleanup.Every > 0 && p.cfg.Cleanup.URL == "", Unpublished: o.At == nil})
	if err != nil {
		return err
	}
	if err := s.do(ctx, steps...); err != nil {
		return err
	}
	for _, plan := range s.kafka.Topics() {
		if err := s.topic(ctx, plan); err != nil {
			return err
		}
	}
	if o.At == nil {
		if seen.State != nil || o.DryRun {
			return nil
		}
		s.step("state record in %s: write that a take-over is under way, so that no relay starts before its end", w.cfg.StateTopic())
		f := &seen.Facts
		return s.kafka.WriteState(ctx, &cdc.State{
			Version: cdc.StateVersion, Pipeline: p.cfg.Pipeline, Slot: f.Slot.Name, SystemID: f.SystemID, Timeline: f.Timeline,
			Configured: f.Configured, Instance: "begin", Phase: cdc.PhaseBeginning, Time: time.Now().UTC(),
		})
	}
	if o.DryRun {
		s.step("state record in %s: write the first one, covered = %s", w.cfg.StateTopic(), o.At.Covered)
		return nil
	}
	if err := seen.again(ctx, s.pg); err != nil {
		return err
	}
	first, err := begun()
	if err != nil {
		return err
	}
	first.Time = time.Now().UTC()
	if err := s.kafka.WriteState(ctx, first); err != nil {
		return err
	}
	s.step("state record in %s: written, covered = %s", w.cfg.StateTopic(), first.Covered)
	s.warn(&seen.Facts)
	return p.note(ctx, cdc.Decision{Command: "take-over", What: o.Why, To: o.At.Covered.String()})
}

// LeaveOptions are the options of Leave.
type LeaveOptions struct {
	// Look looks for rows in Kafka that the slot keeps after a position: the relay may have published some after its last
	// state record. The pattern matches their topics. Nil: nobody looks.
	Look     func(ctx context.Context, after cdc.Start, topics *regexp.Regexp) (Left, error)
	Repeat   bool // leave although rows that are in Kafka come again, or nobody knows whether they do
	DryRun   bool
	Decided  func(Left) // is called with the result before Leave changes anything; may be nil
	Progress Progress
}

// Left says where a pipeline was left.
type Left struct {
	At    cdc.LSN // everything at or below it is in Kafka, and the slot is there
	Again int64   // rows after At that are in Kafka: another reader of the slot gets them once more
	// Unknown says why further rows after At may be in Kafka; empty if Again has them all.
	Unknown string
}

// Leave ends a pipeline whose slot another program goes on with: it moves the slot to the end of the last transaction that is
// in Kafka with everything before it, and deletes the state topic. Slot, publication, table and role stay. The relay must be
// stopped. It runs with the relay's rights.
func (p *Pipeline) Leave(ctx context.Context, o LeaveOptions) (left Left, err error) {
	if _, ok := p.kind.(wal); !ok {
		return left, errors.New("source.kind: a polled pipeline has no slot that another program could go on with")
	}
	d, err := p.kind.decide(ctx, decideOptions{0, o.DryRun, o.Progress})
	if err != nil {
		return left, err
	}
	defer d.close(ctx)
	if err := d.read(ctx); err != nil {
		return left, err
	}
	if slot := d.Facts.Slot; d.State == nil && slot.Exists {
		return left, fmt.Errorf("nothing was changed: pipeline %q has no state record any more, as after it was given back: then nothing is left to do here: start the connector, which goes on where slot %s stands, at %s; if it was not given back, its state topic %s is lost", p.cfg.Pipeline, slot.Name, slot.ConfirmedFlush, p.cfg.StateTopic())
	}
	if d.State, err = cdc.Reconcile(p.cfg.Pipeline, d.State, d.Facts); err != nil {
		return left, fmt.Errorf("nothing was changed: %w", err)
	}
	if err := d.movable(); err != nil {
		return left, err
	}
	last := d.State.Last()
	if o.Look != nil {
		left, err = o.Look(ctx, cdc.Start{Covered: d.State.Covered, Last: last}, p.router().Pattern())
		if err != nil {
			return left, fmt.Errorf("nothing was changed: %w", err)
		}
	} else {
		left.At, left.Unknown = d.State.Covered, "nobody looked for them"
		if last.Ordinal > 0 && last.Commit >= left.At {
			// Rows of one transaction: windows end inside it, and the slot stands before it.
			left.Again = int64(last.Ordinal)
		}
	}
	if !o.Repeat && (left.Again > 0 || left.Unknown != "") {
		what := fmt.Sprintf("%d rows that the slot keeps are in Kafka, in transactions that are not there whole", left.Again)
		if left.Unknown != "" {
			what += fmt.Sprintf(", and perhaps more (%s)", left.Unknown)
		}
		return left, fmt.Errorf("nothing was changed: %s, and the next reader of the slot would publish them again: start the relay, let it catch up, stop it with SIGTERM, and run this again; or add --repeat", what)
	}
	if o.Decided != nil {
		o.Decided(left)
	}
	if o.DryRun {
		return left, nil
	}
	if left.At > d.State.Covered {
		// A slot that is ahead of the record would look like one that somebody advanced, if this run ends before the next step.
		next := *d.State
		next.Covered, next.Epoch, next.Instance, next.Time = left.At, next.Epoch+1, "take-over", time.Now().UTC()
		if err := d.write(ctx, &next, cdc.Decision{Command: "take-over", What: "rows after the state record are in Kafka", From: d.State.Covered.String(), To: left.At.String()}); err != nil {
			return left, err
		}
	}
	if d.Facts.Slot.ConfirmedFlush < left.At {
		if err := d.advance(ctx, left.At); err != nil {
			return left, err
		}
	}
	d.progress.step("topic %s: delete it", p.cfg.StateTopic())
	return left, d.kafka.Delete(ctx, p.cfg.StateTopic())
}
