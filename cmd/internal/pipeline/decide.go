package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

// decision is an operator's command over a pipeline whose relay is halted or stopped: it reads state and server the way a
// session's start does, in the same order, and writes down what it did.
type decision struct {
	cfg    config.Config
	source *postgres.Source
	pg     *postgres.Admin
	kafka  *kafka.Admin
	pub    cdc.Publisher // nil in a dry run
	out    io.Writer
	wait   time.Duration // for transactions that are open across the decision
	dryRun bool

	state *cdc.State
	facts cdc.Facts
}

// decide opens both sides with the relay's own rights and reads what is to be decided on.
func decide(ctx context.Context, cfg config.Config, wait time.Duration, dryRun bool, out io.Writer, opts []kgo.Opt) (*decision, error) {
	if cfg.Source.Kind == config.KindPolling {
		return nil, errors.New("source.kind: polling has neither slot nor state record, and nothing to adopt or to step over: `walpost status` says what waits, and `walpost dlq redrive` or `walpost dlq drop` decides about failed rows")
	}
	d := &decision{cfg: cfg, source: postgres.NewSource(cfg.Pipeline, cfg.Source), out: out, wait: wait, dryRun: dryRun}
	if _, err := d.source.Preflight(ctx); err != nil {
		return nil, err
	}
	var err error
	if d.pg, err = d.source.Operator(ctx); err != nil {
		return nil, err
	}
	if d.kafka, err = kafka.NewSink(cfg, route.Topics(cfg.Kafka), opts...).Admin(ctx); err != nil {
		d.close(ctx)
		return nil, err
	}
	return d, nil
}

// read takes the facts, opens the sink, and takes state and facts again: what is decided on was read after fencing.
func (d *decision) read(ctx context.Context) (err error) {
	if err := d.look(ctx); err != nil {
		return err
	}
	if d.facts.Slot.Active {
		return errors.New("the slot is being read: stop the relay, and run this again")
	}
	if d.dryRun {
		if d.state, err = d.kafka.State(ctx); err != nil {
			return err
		}
		return d.look(ctx)
	}
	if d.pub, err = d.kafka.Decide(ctx); err != nil {
		return err
	}
	if d.state, err = d.pub.State(ctx); err != nil {
		return err
	}
	return d.look(ctx)
}

func (d *decision) look(ctx context.Context) (err error) {
	stream, id, err := d.source.Connect(ctx, 0)
	if err != nil {
		return err
	}
	_ = stream.Close()
	if d.facts, err = d.source.Facts(ctx); err != nil {
		return err
	}
	d.facts.Identity = id
	return nil
}

func (d *decision) close(ctx context.Context) {
	d.pg.Close(ctx)
	if d.pub != nil {
		d.pub.Close()
	}
	if d.kafka != nil {
		d.kafka.Close()
	}
}

func (d *decision) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// write makes the state record durable, and the decision that led to it.
func (d *decision) write(ctx context.Context, st *cdc.State, command, what string, from, to fmt.Stringer) error {
	if err := d.pub.Publish(ctx, nil, st); err != nil {
		return fmt.Errorf("write the state record: %w", err)
	}
	d.say("state record in %s: covered = %s", d.cfg.StateTopic(), st.Covered)
	return d.note(ctx, command, what, from.String(), to.String())
}

func (d *decision) note(ctx context.Context, command, what, from, to string) error {
	return d.kafka.WriteDecision(ctx, &cdc.Decision{Time: time.Now().UTC(), Command: command, By: operator(), What: what, From: from, To: to})
}

// movable returns an error while PostgreSQL would not move the slot: from 17 on it first waits for the standbys of
// synchronized_standby_slots.
func (d *decision) movable() error {
	if away := d.facts.StandbysAway(); away != "" {
		return fmt.Errorf("nothing was changed: the slot cannot be moved now: %s; then run this again", away)
	}
	return nil
}

// freeWithin is how long a look at the slot that was broken off may hold it: PostgreSQL ends it when it next asks for interrupts.
const freeWithin = 10 * time.Second

// advance moves the slot, which is free or was a moment ago.
func (d *decision) advance(ctx context.Context, to cdc.LSN) error {
	d.say("slot %s: move it to %s (PostgreSQL reads the WAL up to there, and may wait for its standbys)", d.cfg.Source.Slot, to)
	err := d.pg.Advance(ctx, to)
	for deadline := time.Now().Add(freeWithin); errors.Is(err, cdc.ErrSlotInUse) && time.Now().Before(deadline) && ctx.Err() == nil; {
		time.Sleep(drainEvery)
		err = d.pg.Advance(ctx, to)
	}
	if err != nil && ctx.Err() == nil && d.look(ctx) == nil {
		if behind := d.facts.StandbysBehind(to); behind != "" {
			return fmt.Errorf("the state record is written, the slot is not moved: %s; then run this again (%w)", behind, err)
		}
	}
	if errors.Is(err, cdc.ErrSlotInUse) {
		return fmt.Errorf("the state record is written, the slot is not moved: a relay took it meanwhile: stop the relay, and run this again: %w", err)
	}
	if err != nil {
		return fmt.Errorf("the state record is written, the slot is not moved: run this again: %w", err)
	}
	d.say("slot %s: moved to %s", d.cfg.Source.Slot, to)
	return nil
}

// writers waits until every transaction has ended that has written something and is open now: rows that it wrote while rows were hidden
// come with its commit or never, and can be replayed only after it. Then it looks at the server again. It returns those that are still
// open after d.wait, the oldest first. A dry run does not wait.
func (d *decision) writers(ctx context.Context) (open []cdc.Transaction, err error) {
	var first map[string]cdc.Transaction
	for deadline, told := time.Now().Add(d.wait), (time.Time{}); ; {
		now, err := d.pg.Writers(ctx)
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = now
		}
		open = open[:0]
		for xid := range first {
			if t, still := now[xid]; still {
				open = append(open, t)
			}
		}
		slices.SortFunc(open, func(a, b cdc.Transaction) int {
			return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.PID, b.PID))
		})
		switch {
		case d.dryRun:
			return open, nil
		case len(open) == 0, time.Now().After(deadline):
			return open, d.look(ctx)
		}
		if time.Since(told) > replayEvery {
			told = time.Now()
			d.say("waits for %s: rows that it wrote may be hidden, and are seen once it has ended (%s)", open[0], open[0].End())
		}
		select {
		case <-time.After(drainEvery):
		case <-ctx.Done():
			return nil, fmt.Errorf("nothing was changed: %w", context.Cause(ctx))
		}
	}
}

// stillOpen names transactions that were open across the decision, and what to run once they have ended.
func (d *decision) stillOpen(open []cdc.Transaction) {
	if len(open) == 0 {
		return
	}
	for _, t := range open {
		d.say("still open: %s: rows that it wrote before now may be missing, too (%s)", t, t.End())
	}
	d.say("once they have ended, run %s", cdc.ReplayUntilNow(d.state, &d.facts))
}

const goOn = "start the relay; one that is halted goes on by itself within 30 s"

// operator names who decides, as far as the system knows.
func operator() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, _ := os.Hostname()
	return name + "@" + host
}
