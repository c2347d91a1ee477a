package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc"
)

// AdoptOptions is how to accept what is there.
type AdoptOptions struct {
	NewServer  bool          // another PostgreSQL takes the place of the one that the record is of
	LeftBehind bool          // with NewServer: rows may be neither in Kafka nor in the slot
	AdminURL   string        // with NewServer: PostgreSQL, as somebody who may read the outbox; empty: rows are not looked for
	CreateSlot bool          // make the slot first, where it is missing or lost
	Wait       time.Duration // for transactions that are open: rows that they wrote may be hidden
	DryRun     bool
	Decided    func(Adoption) // hears what Adopt accepts before it acts; may be nil
	Progress   Progress
}

// Adoption is what Adopt accepted, or would accept in a dry run.
type Adoption struct {
	Accepts []string
	Looked  []string // at a new server: what was looked at, and what could not be
	// Gap are the commits of which rows may be missing in Kafka. Replay is the command that publishes what the table
	// still holds of them.
	Gap    cdc.Range
	Replay string
	// Open are transactions whose rows may be missing, too. ReplayOpen is what to run once they have ended.
	Open       []cdc.Transaction
	ReplayOpen string
}

// Adopt accepts slot, publication, table and timeline as they are, and a new server where it is told to: it writes a state record that
// knows them, and moves the slot where that is needed. It runs with the relay's own rights. It returns what it accepted, after an error
// too. What it refuses it refuses before it changes anything.
func (p *Pipeline) Adopt(ctx context.Context, o AdoptOptions) (done Adoption, err error) {
	d, err := p.kind.decide(ctx, decideOptions{o.Wait, o.DryRun, o.Progress})
	if err != nil {
		return done, err
	}
	defer d.close(ctx)
	if err := d.look(ctx); err != nil {
		return done, err
	}
	if err := d.adoptable(o); err != nil {
		return done, err
	}
	var looked []string
	if o.NewServer {
		if looked, err = d.drained(ctx, o); err != nil {
			return done, err
		}
	}
	if err := d.stateTopic(ctx); err != nil {
		return done, err
	}
	if err := d.read(ctx); err != nil {
		return done, err
	}
	written := false
	if o.CreateSlot {
		if err := d.createSlot(ctx); err != nil {
			return done, err
		}
		defer func() {
			if err != nil && !written && !o.DryRun {
				err = errors.Join(err, d.takeBack(ctx))
			}
		}()
	}
	a, err := cdc.Adopt(p.cfg.Pipeline, d.State, d.Facts, o.NewServer)
	if err != nil {
		return done, err
	}
	if !a.Gap.IsZero() && !o.NewServer {
		// What an open transaction has written may be hidden although it commits behind the gap.
		if done.Open, err = d.writers(ctx); err != nil {
			return done, err
		}
		if a, err = cdc.Adopt(p.cfg.Pipeline, d.State, d.Facts, false); err != nil {
			return done, err
		}
	}
	if a.Advance != 0 && len(done.Open) > 0 && !o.DryRun {
		t := done.Open[0]
		return done, fmt.Errorf("nothing was changed: %s was open before the publication was made, and PostgreSQL could not decode it: end it (%s), and run `walpost adopt` again", t, t.End())
	}
	if a.Advance != 0 {
		if err := d.movable(); err != nil {
			return done, err
		}
	}
	done.Accepts, done.Looked, done.Gap, done.Replay = a.Accepts, looked, a.Gap, a.Replay
	what := strings.Join(slices.Concat(a.Accepts, looked), "; ")
	if !a.Gap.IsZero() {
		what += fmt.Sprintf("; rows committed in %s may be missing", a.Gap)
		done.ReplayOpen = cdc.ReplayUntilNow(d.State, &d.Facts)
	}
	if o.Decided != nil {
		o.Decided(done)
	}
	if o.DryRun {
		return done, nil
	}
	written = true // or it may be
	if err := d.write(ctx, a.State, "adopt", what, a.Gap.From, a.Gap.To); err != nil {
		return done, err
	}
	if a.Advance != 0 {
		return done, d.advance(ctx, a.Advance)
	}
	return done, nil
}

// look reads both sides, and fences nobody.
func (d *decision) look(ctx context.Context) (err error) {
	d.survey, err = readAll(ctx, d.source, func(ctx context.Context, _ *cdc.Facts) (*cdc.State, error) { return d.kafka.State(ctx) })
	return err
}

// adoptable returns the error of an adoption that would be refused.
func (d *decision) adoptable(o AdoptOptions) error {
	f := d.Facts
	if d.State != nil && d.State.SystemID != f.SystemID && !o.NewServer {
		return cdc.Foreign(d.cfg.Pipeline, d.State, &f)
	}
	if o.CreateSlot {
		if !f.Slot.Lost() {
			return fmt.Errorf("slot %q exists and can be read: run this without --create-slot", f.Slot.Name)
		}
		f.Slot = madeSlot(&f)
	}
	_, err := cdc.Adopt(d.cfg.Pipeline, d.State, f, o.NewServer)
	return err
}

// madeSlot is the slot as it will be when it is made.
func madeSlot(f *cdc.Facts) cdc.SlotFacts {
	return cdc.SlotFacts{Name: f.Slot.Name, Exists: true, ConfirmedFlush: f.WALEnd, WALStatus: "reserved"}
}

// stateTopic makes the state topic where it is gone: a pipeline without a record is one that can be adopted.
func (d *decision) stateTopic(ctx context.Context) error {
	plan := d.kafka.Topics()[0]
	missing, _, err := d.kafka.Missing(ctx, plan)
	if err != nil || !missing {
		return err
	}
	d.progress.step("topic %s: create it with %s", plan.Name, plan)
	if d.dryRun {
		return nil
	}
	return create(ctx, d.kafka, plan, d.progress.step)
}

// createSlot makes the slot, which is missing or lost.
func (d *decision) createSlot(ctx context.Context) error {
	slot := d.Facts.Slot
	if slot.Exists {
		d.progress.step("slot %s: drop it, its WAL is lost", slot.Name)
		if !d.dryRun {
			if err := d.pg.DropSlot(ctx); err != nil {
				return err
			}
		}
	}
	s := setup{pg: d.pg, dryRun: d.dryRun, progress: d.progress}
	if err := s.createSlot(ctx, slot.Name); err != nil {
		return err
	}
	if d.dryRun {
		d.Facts.Slot = madeSlot(&d.Facts)
		return nil
	}
	return d.again(ctx, d.source)
}

// takeBack drops the slot that was made for an adoption that failed: nobody would read it, and it would keep WAL.
func (d *decision) takeBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freeWithin)
	defer cancel()
	d.progress.step("slot %s: drop it again", d.cfg.Source.Slot)
	return d.pg.DropSlot(ctx)
}
