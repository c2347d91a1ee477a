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

// AdoptOptions are the options of Adopt.
type AdoptOptions struct {
	NewServer  bool          // another PostgreSQL server replaces the one in the state record
	LeftBehind bool          // with NewServer: adopt although rows are neither in Kafka nor in the slot
	AdminURL   string        // with NewServer: URL of a role that may read the outbox; empty: Adopt does not look for its rows in Kafka
	CreateSlot bool          // create the slot first, if it is missing or lost
	Wait       time.Duration // how long to wait for open transactions to end: rows that they wrote may be hidden
	DryRun     bool
	Decided    func(Adoption) // is called with the adoption before Adopt changes anything; may be nil
	Progress   Progress
}

// Adoption says what Adopt accepted, or would accept in a dry run.
type Adoption struct {
	Accepts []string
	Looked  []string // with a new server: the results of the look for its rows in Kafka
	// Gap are the commits whose rows may be missing in Kafka. Replay is the command that publishes those of them that are
	// still in the table.
	Gap    cdc.Range
	Replay string
	// Open are transactions whose rows may also be missing. ReplayOpen is the command to run after they have ended.
	Open       []cdc.Transaction
	ReplayOpen string
}

// Adopt accepts the slot, publication, table and timeline as they are now, and with o.NewServer a new server: it writes a state record
// with them, and moves the slot if that is needed. It runs with the relay's rights. It returns what it accepted, also with an error. All
// checks come before the first change, so a refused adoption changes nothing.
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
		// Rows that an open transaction has written may be hidden, although it commits after the gap.
		if done.Open, err = d.writers(ctx); err != nil {
			return done, err
		}
		if a, err = cdc.Adopt(p.cfg.Pipeline, d.State, d.Facts, false); err != nil {
			return done, err
		}
	}
	if a.Advance != 0 && len(done.Open) > 0 && !o.DryRun {
		t := done.Open[0]
		return done, fmt.Errorf("nothing was changed: %s was open before the publication was created, and PostgreSQL could not decode it: end it (%s), and run `walpost adopt` again", t, t.End())
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
	written = true // an error of write does not prove the opposite
	made := cdc.Decision{Command: "adopt", What: what, From: a.Gap.From.String(), To: a.Gap.To.String()}
	if !a.Gap.IsZero() {
		made.Missing = cdc.LeftBehind(d.State, &d.Facts, done.Open)
	}
	if err := d.write(ctx, a.State, made); err != nil {
		return done, err
	}
	if a.Advance != 0 {
		return done, d.advance(ctx, a.Advance)
	}
	return done, nil
}

// look reads both sides and fences no relay.
func (d *decision) look(ctx context.Context) (err error) {
	d.survey, err = readAll(ctx, d.source, func(ctx context.Context, _ *cdc.Facts) (*cdc.State, error) { return d.kafka.State(ctx) })
	return err
}

// adoptable returns an error if the adoption would be refused.
func (d *decision) adoptable(o AdoptOptions) error {
	f := d.Facts
	if d.State != nil && d.State.SystemID != f.SystemID && !o.NewServer {
		return cdc.Foreign(d.cfg.Pipeline, d.State, &f)
	}
	if o.CreateSlot {
		if !f.Slot.Lost() {
			return fmt.Errorf("slot %q exists and is not lost: run this without --create-slot", f.Slot.Name)
		}
		f.Slot = madeSlot(&f)
	}
	_, err := cdc.Adopt(d.cfg.Pipeline, d.State, f, o.NewServer)
	return err
}

// madeSlot returns the slot as it will be after it is created.
func madeSlot(f *cdc.Facts) cdc.SlotFacts {
	return cdc.SlotFacts{Name: f.Slot.Name, Exists: true, ConfirmedFlush: f.WALEnd, WALStatus: "reserved"}
}

// stateTopic creates the state topic if it is gone: a pipeline without a state record can be adopted.
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

// createSlot creates the slot, which is missing or lost.
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
	if err := d.again(ctx, d.source); err != nil {
		return errors.Join(err, d.takeBack(ctx))
	}
	return nil
}

// takeBack drops the slot that was created for an adoption that failed: no relay would read it, and it would keep WAL.
func (d *decision) takeBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freeWithin)
	defer cancel()
	d.progress.step("slot %s: drop it again", d.cfg.Source.Slot)
	return d.pg.DropSlot(ctx)
}
