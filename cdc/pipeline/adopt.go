package pipeline

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc"
)

// AdoptOptions is how to accept what is there.
type AdoptOptions struct {
	CreateSlot bool          // make the slot first, where it is missing or lost
	Wait       time.Duration // for transactions that are open: rows that they wrote may be hidden
	DryRun     bool
	Decided    func(Adoption) // hears what Adopt accepts before it acts; may be nil
	Progress   Progress
}

// Adoption is what Adopt accepted, or would accept in a dry run.
type Adoption struct {
	Accepts []string
	// Gap are the commits of which rows may be missing in Kafka. Replay is the command that publishes what the table
	// still holds of them.
	Gap    cdc.Range
	Replay string
	// Open are transactions whose rows may be missing, too. ReplayOpen is what to run once they have ended.
	Open       []cdc.Transaction
	ReplayOpen string
}

// Adopt accepts slot, publication, table and timeline as they are: it writes a state record that knows them, and moves
// the slot where that is needed. It runs with the relay's own rights. It returns what it accepted, after an error too.
func (p *Pipeline) Adopt(ctx context.Context, o AdoptOptions) (Adoption, error) {
	d, err := p.kind.decide(ctx, decideOptions{o.Wait, o.DryRun, o.Progress})
	if err != nil {
		return Adoption{}, err
	}
	defer d.close(ctx)
	if err := d.stateTopic(ctx); err != nil {
		return Adoption{}, err
	}
	if err := d.read(ctx); err != nil {
		return Adoption{}, err
	}
	if o.CreateSlot {
		if err := d.createSlot(ctx); err != nil {
			return Adoption{}, err
		}
	}
	a, err := cdc.Adopt(p.cfg.Pipeline, d.State, d.Facts)
	if err != nil {
		return Adoption{}, err
	}
	var done Adoption
	if !a.Gap.IsZero() {
		// What an open transaction has written may be hidden although it commits behind the gap.
		if done.Open, err = d.writers(ctx); err != nil {
			return done, err
		}
		if a, err = cdc.Adopt(p.cfg.Pipeline, d.State, d.Facts); err != nil {
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
	done.Accepts, done.Gap, done.Replay = a.Accepts, a.Gap, a.Replay
	what := strings.Join(a.Accepts, "; ")
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
	if err := d.write(ctx, a.State, "adopt", what, a.Gap.From, a.Gap.To); err != nil {
		return done, err
	}
	if a.Advance != 0 {
		return done, d.advance(ctx, a.Advance)
	}
	return done, nil
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

// createSlot makes the slot where it is missing or lost. A slot that can still be read is not thrown away, and none is
// made for an adoption that would be refused afterwards.
func (d *decision) createSlot(ctx context.Context) error {
	slot := d.Facts.Slot
	if !slot.Lost() {
		return fmt.Errorf("slot %q exists and can be read: run this without --create-slot", slot.Name)
	}
	lost := slot.Exists
	d.Facts.Slot = cdc.SlotFacts{Name: slot.Name, Exists: true, ConfirmedFlush: d.Facts.WALEnd, WALStatus: "reserved"}
	if _, err := cdc.Adopt(d.cfg.Pipeline, d.State, d.Facts); err != nil {
		return err
	}
	if lost {
		d.progress.step("slot %s: drop it, its WAL is lost", slot.Name)
		if !d.dryRun {
			if err := d.pg.DropSlot(ctx); err != nil {
				return err
			}
		}
	}
	s := setup{pg: d.pg, dryRun: d.dryRun, progress: d.progress}
	if err := s.createSlot(ctx, slot.Name); err != nil || d.dryRun {
		return err
	}
	return d.again(ctx, d.source)
}
