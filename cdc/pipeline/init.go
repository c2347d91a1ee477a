package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/postgres"
)

// InitOptions are the options of Init.
type InitOptions struct {
	AdminURL       string // URL of an administrator, in the database of source.url
	PartitionByDay bool   // create the table, if it does not exist, with a partition for each day
	NewServer      bool   // prepare a server that replaces the one in the state record; slot and state record are left to Adopt
	DryRun         bool
	Progress       Progress
}

// Init prepares PostgreSQL and Kafka for the pipeline: it creates the role, table, publication, topics, slot and first state
// record. It does not change those that exist. It returns its steps; a dry run returns the steps that it would take.
func (p *Pipeline) Init(ctx context.Context, o InitOptions) ([]Step, error) {
	s, err := p.open(ctx, o.AdminURL, o.DryRun, o.Progress)
	if err != nil {
		return nil, err
	}
	defer s.close(ctx)
	s.newServer = o.NewServer
	if other := p.source.OtherDatabase(o.AdminURL); other != "" {
		s.step("%s", other)
	}
	if _, err := s.pg.SameServer(ctx, false); err != nil {
		return s.steps, err
	}
	for tries := 3; ; tries-- {
		err = p.prepare(ctx, s, o.PartitionByDay)
		if tries == 1 || !errors.Is(err, postgres.ErrMadeMeanwhile) {
			break
		}
		s.step("another init has created the same things at this moment: check again")
	}
	if err == nil && !o.DryRun {
		var warning string
		if warning, err = s.pg.SameServer(ctx, true); warning != "" {
			s.step("warning: %s", warning)
		}
	}
	for _, plan := range s.kafka.Topics() {
		if err == nil {
			err = s.topic(ctx, plan)
		}
	}
	if err == nil && len(p.patterns) > 0 {
		what := "create each before its first row, which would halt the relay: "
		if p.cfg.Kafka.CreateTopics {
			what = "the relay creates each before its first row (kafka.create_topics), like this: "
		}
		one := strings.NewReplacer("{event_type}", "EVENT_TYPE", "{aggregate_type}", "AGGREGATE_TYPE").Replace(p.patterns[0])
		s.step("topics %s: their names depend on the types in the rows (kafka.rename may list these): %s%s", strings.Join(p.patterns, ", "), what, p.sink.CreateCommand(one))
	}
	if err == nil {
		err = p.kind.begin(ctx, s)
	}
	if err == nil {
		err = s.advise(ctx)
	}
	return s.steps, err
}

// prepare creates role, table and publication, and grants the rights.
func (p *Pipeline) prepare(ctx context.Context, s *setup, byDay bool) error {
	steps, err := p.kind.plan(ctx, s, byDay)
	if err == nil && p.cfg.Cleanup.URL != "" {
		var more []postgres.Step
		more, err = s.pg.PlanCleaner(ctx, p.cfg.Cleanup.URL)
		steps = append(steps, more...)
	}
	if err != nil {
		return err
	}
	return s.do(ctx, steps...)
}

// advise adds a step with the rights that the writers of events still need.
func (s *setup) advise(ctx context.Context) error {
	advice, err := s.pg.Advice(ctx)
	if advice != "" {
		s.step("%s", advice)
	}
	return err
}

// RemoveOptions are the options of Remove.
type RemoveOptions struct {
	AdminURL string // URL of an administrator
	DryRun   bool
	Progress Progress
}

// Remove removes the slot and the state topic, and the publication and the role if no other pipeline uses them. A polled
// pipeline has only the role. The outbox table and its topics stay. The relay must be stopped. Remove returns its steps.
func (p *Pipeline) Remove(ctx context.Context, o RemoveOptions) ([]Step, error) {
	s, err := p.open(ctx, o.AdminURL, o.DryRun, o.Progress)
	if err != nil {
		return nil, err
	}
	defer s.close(ctx)
	steps, err := s.pg.Removal(ctx)
	if err == nil {
		err = p.kind.owned(ctx, s)
	}
	if err == nil { // these steps come first, in one transaction, because PostgreSQL may refuse them
		err = s.do(ctx, steps...)
	}
	if err == nil {
		err = p.kind.end(ctx, s)
	}
	return s.steps, err
}

// setup holds the connections to PostgreSQL and Kafka, opened with an administrator's rights, and the steps taken so far.
type setup struct {
	pg       *postgres.Admin
	kafka    *kafka.Admin
	dryRun   bool
	progress Progress
	steps    []Step

	newServer bool // the state record may belong to another server
}

// open connects to both sides. Unless it is a dry run, it waits until no other init works on the database.
func (p *Pipeline) open(ctx context.Context, adminURL string, dryRun bool, progress Progress) (*setup, error) {
	pg, err := p.source.Admin(ctx, adminURL)
	if err != nil {
		return nil, err
	}
	s := &setup{pg: pg, dryRun: dryRun, progress: progress}
	if s.kafka, err = p.sink.Admin(ctx); err == nil && !dryRun {
		err = pg.Alone(ctx, func() { s.step("waits for another init that works on this database") })
	}
	if err != nil {
		s.close(ctx)
		return nil, err
	}
	return s, nil
}

func (s *setup) close(ctx context.Context) {
	s.pg.Close(ctx)
	if s.kafka != nil {
		s.kafka.Close()
	}
}

// add adds a step and reports it as begun.
func (s *setup) add(step Step) {
	s.steps = append(s.steps, step)
	if s.progress != nil {
		s.progress(step)
	}
}

// step adds a step without SQL.
func (s *setup) step(what string, args ...any) { s.add(Step{What: fmt.Sprintf(what, args...)}) }

// do runs the steps in one transaction, unless this is a dry run.
func (s *setup) do(ctx context.Context, steps ...postgres.Step) error {
	for _, step := range steps {
		s.add(Step{What: step.What, SQL: step.SQL})
	}
	if s.dryRun {
		return nil
	}
	return s.pg.Do(ctx, steps...)
}

// topic creates a topic, or compares an existing one with the plan.
func (s *setup) topic(ctx context.Context, plan kafka.TopicPlan) error {
	missing, drift, err := s.kafka.Missing(ctx, plan)
	switch {
	case err != nil:
		return err
	case !missing && len(drift) == 0:
		s.step("topic %s: exists, as configured", plan.Name)
		return nil
	case !missing:
		s.step("topic %s: exists, but it has %s; not changed", plan.Name, strings.Join(drift, ", "))
		return nil
	}
	s.step("topic %s: create it with %s", plan.Name, plan)
	if s.dryRun {
		return nil
	}
	return create(ctx, s.kafka, plan, s.step)
}

// create creates a topic, and reports a step if Kafka refused its settings.
func create(ctx context.Context, admin *kafka.Admin, plan kafka.TopicPlan, step func(string, ...any)) error {
	refused, err := admin.Create(ctx, plan)
	if err == nil && refused != "" {
		step("topic %s: created with the service's settings in place of %s, which it refused (%s): the topic grows larger before it is compacted; nothing else differs",
			plan.Name, strings.Join(slices.Sorted(maps.Keys(plan.Tuning)), " and "), refused)
	}
	return err
}

// state reads the state record.
func (s *setup) state(ctx context.Context, _ *cdc.Facts) (*cdc.State, error) {
	return s.kafka.State(ctx)
}

// createSlot creates the slot.
func (s *setup) createSlot(ctx context.Context, name string) error {
	s.add(Step{
		What: fmt.Sprintf("slot %s: create it (PostgreSQL waits until the open transactions have ended)", name),
		SQL:  []string{s.pg.CreateSlotSQL()},
	})
	if s.dryRun {
		return nil
	}
	return s.pg.CreateSlot(ctx)
}

func (w wal) plan(ctx context.Context, s *setup, byDay bool) ([]postgres.Step, error) {
	steps, err := s.pg.Plan(ctx, postgres.PlanOptions{ByDay: byDay, Delete: w.cfg.Cleanup.Every > 0 && w.cfg.Cleanup.URL == ""})
	if err != nil {
		return nil, err
	}
	return steps, w.vacant(ctx, s)
}

// vacant returns an error if the slot or the state record belongs to another pipeline. It is called before the first
// change, so a refused init changes nothing.
func (w wal) vacant(ctx context.Context, s *setup) error {
	seen, err := readAll(ctx, s.pg, s.state)
	name := w.cfg.Source.Slot
	switch {
	case err != nil:
		return err
	case seen.State == nil && seen.Facts.Slot.Exists:
		return fmt.Errorf("slot %q exists, and pipeline %q has no state record, so it is not known which of its rows were delivered. The slot belongs to another pipeline, or the state topic is gone: choose another source.slot; or, if the slot was created for this pipeline and nothing else reads it, `walpost adopt` continues from its position, and loses nothing", name, w.cfg.Pipeline)
	case seen.State != nil && seen.State.Phase == cdc.PhaseBeginning:
		_, err := cdc.Reconcile(w.cfg.Pipeline, seen.State, seen.Facts)
		return err
	case s.newServer:
		return cdc.NewServer(w.cfg.Pipeline, seen.State, &seen.Facts)
	case seen.State != nil && seen.State.Phase != cdc.PhaseCreating:
		err := cdc.Foreign(w.cfg.Pipeline, seen.State, &seen.Facts)
		if err != nil && cdc.NewServer(w.cfg.Pipeline, seen.State, &seen.Facts) == nil {
			err = fmt.Errorf("%w; if this server replaces it and has no role or publication yet, `walpost init --new-server` creates them first", err)
		}
		return err
	}
	return nil
}

// begin creates the slot and the first state record. Before the slot it writes a record with the phase `creating`. If the next
// run finds this record, it drops the slot, which no relay has read yet, and begins again.
func (w wal) begin(ctx context.Context, s *setup) error {
	name := w.cfg.Source.Slot
	seen, err := readAll(ctx, s.pg, s.state)
	if err != nil {
		return err
	}
	st, facts := seen.State, &seen.Facts
	if s.newServer {
		how := ""
		if facts.Slot.Lost() {
			how = " --create-slot"
		}
		s.step("slot and state record: `walpost adopt --new-server%s` accepts this server in place of the one in the record; before that, stop the writers and let the relay deliver all rows of the old one", how)
		return nil
	}
	if st != nil && st.Phase != cdc.PhaseCreating {
		if _, err := cdc.Reconcile(w.cfg.Pipeline, st, seen.Facts); err != nil {
			return err
		}
		s.step("slot %s: exists, and the state record covers %s", name, st.Covered)
		s.warn(facts)
		return nil
	}
	if s.dryRun {
		err := s.createSlot(ctx, name)
		s.step("state record in %s: write the first one, covered = the slot's confirmed_flush_lsn", w.cfg.StateTopic())
		return err
	}
	first := cdc.State{
		Version: cdc.StateVersion, Pipeline: w.cfg.Pipeline, Slot: name, SystemID: facts.SystemID, Timeline: facts.Timeline,
		Configured: facts.Configured, Instance: "init", Phase: cdc.PhaseCreating, Time: time.Now().UTC(),
	}
	if st != nil {
		s.step("slot %s: an earlier init did not finish, begin again", name)
		first.Epoch = st.Epoch
		if err := s.pg.DropSlot(ctx); err != nil {
			return err
		}
	}
	if err := s.kafka.WriteState(ctx, &first); err != nil {
		return err
	}
	if err := s.createSlot(ctx, name); err != nil {
		return err
	}
	if err := seen.again(ctx, s.pg); err != nil {
		return err
	}
	first.Epoch++
	first.Phase, first.Covered, first.Fingerprint, first.Time = "", facts.Slot.ConfirmedFlush, facts.Fingerprint, time.Now().UTC()
	first.Skipped, first.Checked, first.CheckedAt = first.Covered, facts.WALEnd, facts.Time
	if err := s.kafka.WriteState(ctx, &first); err != nil {
		return err
	}
	s.step("state record in %s: written, covered = %s", w.cfg.StateTopic(), first.Covered)
	rows, err := s.pg.RowsBefore(ctx)
	switch {
	case errors.Is(err, postgres.ErrUnseen):
		s.step("rows that were in %s before the slot was created will not be published from it; their number is unknown: %v", w.cfg.Source.Table, err)
		return nil
	case err != nil:
		return err
	case rows > 0:
		s.step("%d rows were in %s before the slot was created: they will not be published from it", rows, w.cfg.Source.Table)
	}
	s.warn(facts)
	return nil
}

// warn adds a warning for each setting of the server that will make rows or commits wait, or lose the slot.
func (s *setup) warn(f *cdc.Facts) {
	if away := f.StandbysAway(); away != "" {
		s.step("warning: %s", away)
	}
	if found, run := patroni(f); found != "" {
		s.step("warning: %s: %s", found, run)
	}
	if err := f.CommitsWait(); err != nil {
		s.step("warning: while the relay runs, %s", err)
	}
}

// owned returns an error if the slot or the state record belongs to another pipeline, so that a wrong name in the
// configuration removes nothing.
func (w wal) owned(ctx context.Context, s *setup) error {
	seen, err := readAll(ctx, s.pg, s.state)
	slot := w.cfg.Source.Slot
	var halt *cdc.HaltError
	switch {
	case errors.As(err, &halt), err == nil && seen.State == nil && !seen.Facts.Slot.Exists: // a damaged state topic may be removed
		return nil
	case err != nil:
		return err
	case seen.Facts.Slot.Active:
		return fmt.Errorf("a relay reads slot %q: stop it first", slot)
	case seen.State == nil:
		return fmt.Errorf("slot %q exists, and pipeline %q has no state record: the slot may belong to another pipeline: find out what reads it, and drop it yourself (SELECT pg_drop_replication_slot('%s'))", slot, w.cfg.Pipeline, slot)
	case seen.State.Phase == cdc.PhaseCreating:
		return nil
	}
	return cdc.Foreign(w.cfg.Pipeline, seen.State, &seen.Facts)
}

func (w wal) end(ctx context.Context, s *setup) error {
	s.step("slot %s: drop it, with the WAL that it keeps", w.cfg.Source.Slot)
	if !s.dryRun {
		if err := s.pg.DropSlot(ctx); err != nil {
			return err
		}
	}
	s.step("topic %s: delete it", w.cfg.StateTopic())
	if s.dryRun {
		return nil
	}
	return s.kafka.Delete(ctx, w.cfg.StateTopic())
}
