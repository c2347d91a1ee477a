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
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

// setup is both sides of a pipeline, opened with an administrator's rights.
type setup struct {
	cfg    config.Config
	pg     *postgres.Admin
	kafka  *kafka.Admin
	out    io.Writer
	dryRun bool
}

func open(ctx context.Context, cfg config.Config, adminURL string, dryRun bool, out io.Writer, opts []kgo.Opt) (*setup, error) {
	pg, err := postgres.NewSource(cfg.Pipeline, cfg.Source).Admin(ctx, adminURL)
	if err != nil {
		return nil, err
	}
	k, err := kafka.NewSink(cfg, route.Topics(cfg.Kafka), opts...).Admin(ctx)
	if err != nil {
		pg.Close(ctx)
		return nil, err
	}
	return &setup{cfg: cfg, pg: pg, kafka: k, out: out, dryRun: dryRun}, nil
}

func (s *setup) close(ctx context.Context) {
	s.pg.Close(ctx)
	s.kafka.Close()
}

func (s *setup) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// do runs the steps together unless this is a dry run, and shows their SQL either way.
func (s *setup) do(ctx context.Context, steps ...postgres.Step) error {
	for _, step := range steps {
		s.say("%s", step.What)
		for _, sql := range step.SQL {
			s.say("    %s;", sql)
		}
	}
	if s.dryRun {
		return nil
	}
	return s.pg.Do(ctx, steps...)
}

// Init prepares PostgreSQL and Kafka for the pipeline: role, table, publication, topics, slot, first state record. What is
// there already is left and said. A dry run changes nothing.
// byDay makes a table that is not there a partitioned one.
func Init(ctx context.Context, cfg config.Config, adminURL string, byDay, dryRun bool, out io.Writer, opts ...kgo.Opt) error {
	s, err := open(ctx, cfg, adminURL, dryRun, out, opts)
	if err != nil {
		return err
	}
	defer s.close(ctx)
	plan := func(ctx context.Context) ([]postgres.Step, error) {
		return s.pg.Plan(ctx, postgres.Wanted{ByDay: byDay, Delete: cfg.Cleanup.Every > 0 && cfg.Cleanup.URL == ""})
	}
	if cfg.Source.Kind == config.KindPolling {
		if byDay {
			return errors.New("--partition-by-day is for source.kind: wal: a polled table stays small with `walpost cleanup` or source.polling.after_publish: delete, or you make it as a partitioned one and `walpost init` adds what polling needs")
		}
		plan = s.pg.PlanPolled
	}
	steps, err := plan(ctx)
	if err != nil {
		return err
	}
	if cfg.Source.Kind == config.KindWAL {
		if err := s.vacant(ctx); err != nil {
			return err
		}
	}
	if err := s.do(ctx, steps...); err != nil {
		return err
	}
	for _, plan := range s.kafka.Topics() {
		if err := s.topic(ctx, plan); err != nil {
			return err
		}
	}
	if cfg.Source.Kind == config.KindPolling {
		return nil
	}
	return s.slot(ctx)
}

// vacant returns an error if slot or state record belong to something else. It is asked before anything is made, so that what is refused
// leaves nothing behind.
func (s *setup) vacant(ctx context.Context) error {
	st, facts, err := standing(ctx, s.pg.Facts, s.kafka.State)
	name := s.cfg.Source.Slot
	switch {
	case err != nil:
		return err
	case st == nil && facts.Slot.Exists:
		return fmt.Errorf("slot %q exists, and pipeline %q has no state record: nobody knows what was delivered from it: `walpost adopt` goes on from where it stands; or choose another source.slot, or drop it (SELECT pg_drop_replication_slot('%s')) and run `walpost init` again", name, s.cfg.Pipeline, name)
	case st != nil && st.Phase != cdc.PhaseCreating:
		return cdc.Foreign(s.cfg.Pipeline, st, &facts)
	}
	return nil
}

func (s *setup) topic(ctx context.Context, plan kafka.TopicPlan) error {
	missing, drift, err := s.kafka.Missing(ctx, plan)
	switch {
	case err != nil:
		return err
	case !missing && len(drift) == 0:
		s.say("topic %s: there, as configured", plan.Name)
		return nil
	case !missing:
		s.say("topic %s: there, but it has %s; left as it is", plan.Name, strings.Join(drift, ", "))
		return nil
	}
	s.say("topic %s: create it with %s", plan.Name, plan)
	if s.dryRun {
		return nil
	}
	return s.kafka.Create(ctx, plan)
}

// slot makes the slot and the first state record. A record that says `creating` stands while it happens: found by the next
// run, that run drops the slot nobody has read yet, and repeats.
func (s *setup) slot(ctx context.Context) error {
	name := s.cfg.Source.Slot
	if s.dryRun {
		st, err := s.kafka.State(ctx)
		switch {
		case err != nil:
			return err
		case st == nil || st.Phase == cdc.PhaseCreating:
			s.say("slot %s: create it\n    %s;", name, s.pg.CreateSlotSQL())
			s.say("state record in %s: write the first one, covered = the slot's confirmed_flush_lsn", s.cfg.StateTopic())
		default:
			s.say("slot %s: the state record covers %s", name, st.Covered)
		}
		return nil
	}
	st, facts, err := standing(ctx, s.pg.Facts, s.kafka.State)
	if err != nil {
		return err
	}
	switch {
	case st != nil && st.Phase != cdc.PhaseCreating:
		// Only a replication connection tells the history of timelines.
		stream, id, err := postgres.NewSource(s.cfg.Pipeline, s.cfg.Source).Connect(ctx, 0)
		if err != nil {
			return err
		}
		_ = stream.Close()
		facts.Identity = id
		if _, err := cdc.Reconcile(s.cfg.Pipeline, st, facts); err != nil {
			return err
		}
		s.say("slot %s: there, and the state record covers %s", name, st.Covered)
		s.warn(&facts)
		return nil
	}
	first := cdc.State{
		Version: cdc.StateVersion, Pipeline: s.cfg.Pipeline, Slot: name, SystemID: facts.SystemID, Timeline: facts.Timeline,
		Configured: facts.Configured, Instance: "init", Phase: cdc.PhaseCreating, Time: time.Now().UTC(),
	}
	if st != nil {
		s.say("slot %s: an earlier init did not finish, begin again", name)
		first.Epoch = st.Epoch
		if err := s.pg.DropSlot(ctx); err != nil {
			return err
		}
	}
	if err := s.kafka.WriteState(ctx, &first); err != nil {
		return err
	}
	s.say("slot %s: create it (PostgreSQL waits for the transactions that are running)\n    %s;", name, s.pg.CreateSlotSQL())
	if err := s.pg.CreateSlot(ctx); err != nil {
		return err
	}
	if facts, err = s.pg.Facts(ctx); err != nil {
		return err
	}
	first.Epoch++
	first.Phase, first.Covered, first.Fingerprint, first.Time = "", facts.Slot.ConfirmedFlush, facts.Fingerprint, time.Now().UTC()
	first.Skipped, first.Checked, first.CheckedAt = first.Covered, facts.WALEnd, facts.Time
	if err := s.kafka.WriteState(ctx, &first); err != nil {
		return err
	}
	s.say("state record in %s: written, covered = %s", s.cfg.StateTopic(), first.Covered)
	rows, err := s.pg.RowsBefore(ctx)
	if errors.Is(err, postgres.ErrUnseen) {
		s.say("how many rows were in %s before the slot, which does not have them, cannot be told: %v", s.cfg.Source.Table, err)
		return nil
	}
	if err != nil {
		return err
	}
	if rows > 0 {
		s.say("%d rows were in %s before the slot, which does not have them: they will not be published from it", rows, s.cfg.Source.Table)
	}
	s.warn(&facts)
	return nil
}

// warn says what the server's settings will make rows or commits wait for.
func (s *setup) warn(f *cdc.Facts) {
	if away := f.StandbysAway(); away != "" {
		s.say("warning: %s", away)
	}
	if err := f.CommitsWait(); err != nil {
		s.say("warning: while the relay runs, %s", err)
	}
}

// Remove takes slot and state record away, and publication and role where nobody else uses them; of a polled pipeline there is the role
// alone. The outbox table and its topics stay. The relay must be stopped.
func Remove(ctx context.Context, cfg config.Config, adminURL string, dryRun bool, out io.Writer, opts ...kgo.Opt) error {
	s, err := open(ctx, cfg, adminURL, dryRun, out, opts)
	if err != nil {
		return err
	}
	defer s.close(ctx)
	steps, err := s.pg.Removal(ctx)
	if err != nil {
		return err
	}
	wal := cfg.Source.Kind == config.KindWAL
	if wal {
		if err := s.owned(ctx); err != nil {
			return err
		}
	}
	// What may be refused comes first, all of it together.
	if err := s.do(ctx, steps...); err != nil || !wal {
		return err
	}
	s.say("slot %s: drop it, and with it the WAL it keeps", cfg.Source.Slot)
	if !dryRun {
		if err := s.pg.DropSlot(ctx); err != nil {
			return err
		}
	}
	s.say("topic %s: delete it", cfg.StateTopic())
	if dryRun {
		return nil
	}
	return s.kafka.Delete(ctx, cfg.StateTopic())
}

// owned returns an error where slot or state record are another pipeline's, so that a wrong name in the configuration removes nothing.
func (s *setup) owned(ctx context.Context) error {
	st, facts, err := standing(ctx, s.pg.Facts, s.kafka.State)
	var halt *cdc.Halt
	switch {
	case errors.As(err, &halt), err == nil && st == nil && !facts.Slot.Exists: // a spoiled topic is removed, too
		return nil
	case err != nil:
		return err
	case facts.Slot.Active:
		return fmt.Errorf("slot %q is being read: stop the relay first", s.cfg.Source.Slot)
	case st == nil:
		return fmt.Errorf("slot %q exists, and pipeline %q has no state record: it may be another pipeline's: look who reads it, and drop it yourself (SELECT pg_drop_replication_slot('%s'))", s.cfg.Source.Slot, s.cfg.Pipeline, s.cfg.Source.Slot)
	case st.Phase == cdc.PhaseCreating:
		return nil
	}
	return cdc.Foreign(s.cfg.Pipeline, st, &facts)
}
