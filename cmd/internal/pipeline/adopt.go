package pipeline

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// Adopt accepts slot, publication, table and timeline as they are, and says what it leaves behind. With createSlot it first
// makes the slot, where it is missing or lost. It runs with the relay's own rights.
func Adopt(ctx context.Context, cfg config.Config, createSlot bool, wait time.Duration, dryRun bool, out io.Writer, opts ...kgo.Opt) error {
	d, err := decide(ctx, cfg, wait, dryRun, out, opts)
	if err != nil {
		return err
	}
	defer d.close(ctx)
	if err := d.stateTopic(ctx); err != nil {
		return err
	}
	if err := d.read(ctx); err != nil {
		return err
	}
	if createSlot {
		if err := d.createSlot(ctx); err != nil {
			return err
		}
	}
	a, err := cdc.Adopt(cfg.Pipeline, d.state, d.facts)
	if err != nil {
		return err
	}
	var open []cdc.Transaction
	if !a.Gap.IsZero() {
		// What an open transaction has written may be hidden although it commits behind the gap.
		if open, err = d.writers(ctx); err != nil {
			return err
		}
		if a, err = cdc.Adopt(cfg.Pipeline, d.state, d.facts); err != nil {
			return err
		}
	}
	if a.Advance != 0 && len(open) > 0 && !dryRun {
		t := open[0]
		return fmt.Errorf("nothing was changed: %s was open before the publication was made, and PostgreSQL could not decode it: end it (%s), and run `walpost adopt` again", t, t.End())
	}
	if a.Advance != 0 {
		if err := d.movable(); err != nil {
			return err
		}
	}
	for _, line := range a.Accepts {
		d.say("adopt %s", line)
	}
	what := strings.Join(a.Accepts, "; ")
	if !a.Gap.IsZero() {
		d.say("left behind: rows committed in %s may be missing in Kafka; %s publishes what the table still holds of them", a.Gap, a.Replay)
		what += fmt.Sprintf("; rows committed in %s may be missing", a.Gap)
		d.stillOpen(open)
	}
	if dryRun {
		d.say("nothing was changed (--dry-run)")
		return nil
	}
	if err := d.write(ctx, a.State, "adopt", what, a.Gap.From, a.Gap.To); err != nil {
		return err
	}
	if a.Advance != 0 {
		if err := d.advance(ctx, a.Advance); err != nil {
			return err
		}
	}
	d.say("done: %s", goOn)
	return nil
}

// stateTopic makes the state topic where it is gone: a pipeline without a record is one that can be adopted.
func (d *decision) stateTopic(ctx context.Context) error {
	plan := d.kafka.Topics()[0]
	missing, _, err := d.kafka.Missing(ctx, plan)
	if err != nil || !missing {
		return err
	}
	d.say("topic %s: create it with %s", plan.Name, plan)
	if d.dryRun {
		return nil
	}
	return d.kafka.Create(ctx, plan)
}

// createSlot makes the slot where it is missing or lost. A slot that can still be read is not thrown away, and none is made for an
// adoption that would be refused afterwards.
func (d *decision) createSlot(ctx context.Context) error {
	slot := d.facts.Slot
	lost := slot.WALStatus == "lost" || slot.Invalidation != ""
	if slot.Exists && !lost {
		return fmt.Errorf("slot %q exists and can be read: run this without --create-slot", slot.Name)
	}
	d.facts.Slot = cdc.SlotFacts{Name: slot.Name, Exists: true, ConfirmedFlush: d.facts.WALEnd, WALStatus: "reserved"}
	if _, err := cdc.Adopt(d.cfg.Pipeline, d.state, d.facts); err != nil {
		return err
	}
	if lost {
		d.say("slot %s: drop it, its WAL is lost", slot.Name)
	}
	d.say("slot %s: create it (PostgreSQL waits for the transactions that are running)\n    %s;", slot.Name, d.pg.CreateSlotSQL())
	if d.dryRun {
		return nil
	}
	if lost {
		if err := d.pg.DropSlot(ctx); err != nil {
			return err
		}
	}
	if err := d.pg.CreateSlot(ctx); err != nil {
		return err
	}
	return d.look(ctx)
}
