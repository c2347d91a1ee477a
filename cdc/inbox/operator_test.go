package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
)

func (f *fixture) operator() *inbox.Operator { return inbox.NewOperator(f.config(), "ada") }

// parked waits until n rows are parked, and returns their row ids by event id.
func (f *fixture) parked(n int) map[string]int64 {
	f.Helper()
	rows := map[string]int64{}
	eventually(f, func() error {
		list, err := f.operator().List(f.Context(), inbox.ListOptions{Limit: 100})
		if err != nil || len(list) != n {
			return fmt.Errorf("%d events are parked, want %d (%w)", len(list), n, err)
		}
		for _, p := range list {
			rows[p.EventID] = p.ID
		}
		return nil
	})
	return rows
}

// did returns the results for the events as text.
func did(t *testing.T, events []inbox.Done, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, e := range events {
		word := e.Did
		if e.Err != nil {
			word = "stays: " + e.Err.Error()
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

func TestRedriveAppliesAKeyInOrderOnceAndFreesIt(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ctx, o := t.Context(), f.operator()
	ids := newIDs(5)
	broken := inbox.Permanent(errors.New("broken"))
	f.fail(ids[1], broken)
	r := f.start(policy(inbox.ParkKey))
	f.send(0, "a", ids[:4]...)
	f.send(0, "a", ids[1], ids[0]) // once more
	rows := f.parked(4)            // 1, 2, 3, and the copy of 1
	f.waitEffects("a", ids[0])

	events, err := o.Redrive(ctx, inbox.RedriveOptions{IDs: []int64{rows[ids[2]]}})
	if got := did(t, events, err); !strings.Contains(got, "of the same key comes first: redrive or drop that one") {
		t.Errorf("the second of the key: %s", got)
	}
	events, err = o.Redrive(ctx, inbox.RedriveOptions{All: true})
	if got := did(t, events, err); strings.Count(got, "stays: it still cannot be applied: broken") != 1 || strings.Contains(got, "applied, ") {
		t.Errorf("still broken: %s", got)
	}
	if f.parked(4); len(f.effects("a")) != 1 {
		t.Error("something was applied")
	}

	f.fail(ids[1], nil)
	events, err = o.Redrive(ctx, inbox.RedriveOptions{All: true, DryRun: true})
	if got := did(t, events, err); got != "applied, applied, applied, duplicate" {
		t.Errorf("dry run: %s", got)
	}
	if f.parked(4); len(f.effects("a")) != 1 {
		t.Error("the dry run was none")
	}
	first := slices.Min([]int64{rows[ids[2]], rows[ids[3]]}) - 1 // the row of event 1; rows has only the row of its copy
	events, err = o.Redrive(ctx, inbox.RedriveOptions{IDs: []int64{first}})
	if got := did(t, events, err); got != "applied, applied, applied, duplicate" {
		t.Errorf("redrive: %s", got)
	}
	f.waitEffects("a", ids[:4]...)
	f.parked(0)

	// The key is free, and the redriven events are in the inbox.
	f.send(0, "a", ids[2], ids[4])
	f.waitEffects("a", ids[:5]...)
	f.parked(0)
	if n := r.count(t, "test_events_duplicate_total"); n != 2 {
		t.Errorf("%v duplicates: the copy that came while the key was parked, and the one after", n)
	}
	decisions, err := o.Decisions(ctx, 100)
	if err != nil || len(decisions) != 4 || decisions[0].By != "ada" || !strings.Contains(decisions[3].What, ids[1]+" at "+f.topic+"/0/1): applied") {
		t.Errorf("decisions: %+v (%v)", decisions, err)
	}
	events, err = o.Redrive(ctx, inbox.RedriveOptions{IDs: []int64{first}})
	if got := did(t, events, err); got != "stays: it is redriven already" {
		t.Errorf("once more: %s", got)
	}
}

func TestRedriveOfASkippedEventRefusesToBreakTheOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ctx, o := t.Context(), f.operator()
	ids := newIDs(4)
	f.fail(ids[0], inbox.Permanent(errors.New("broken")))
	f.fail(ids[2], inbox.Permanent(errors.New("broken")))
	f.send(0, "a", ids[0], ids[1])
	f.send(0, "b", ids[3], ids[2])
	f.start(policy(inbox.Skip))
	rows := f.parked(2)
	f.waitEffects("a", ids[1])
	f.fail(ids[0], nil)
	f.fail(ids[2], nil)
	events, err := o.Redrive(ctx, inbox.RedriveOptions{All: true})
	if got := did(t, events, err); got != "stays: later events of its key were applied already: only --force applies it out of order, applied" {
		t.Errorf("got %s", got)
	}
	events, err = o.Redrive(ctx, inbox.RedriveOptions{IDs: []int64{rows[ids[0]]}, Force: true})
	if got := did(t, events, err); got != "applied" {
		t.Errorf("forced: %s", got)
	}
	f.waitEffects("a", ids[1], ids[0])
	f.waitEffects("b", ids[3], ids[2])
}

func TestDroppedEventIsNeverAppliedAndWhatWaitedIs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ctx, o := t.Context(), f.operator()
	ids := newIDs(3)
	f.fail(ids[0], inbox.Permanent(errors.New("broken")))
	f.send(0, "a", ids[0], ids[1])
	f.start(policy(inbox.ParkKey))
	rows := f.parked(2)
	events, err := o.Drop(ctx, inbox.DropOptions{IDs: []int64{rows[ids[0]]}, DryRun: true})
	if got := did(t, events, err); got != "dropped" {
		t.Errorf("dry run: %s", got)
	}
	f.parked(2)
	events, err = o.Drop(ctx, inbox.DropOptions{IDs: []int64{rows[ids[0]]}})
	if got := did(t, events, err); got != "dropped" {
		t.Errorf("drop: %s", got)
	}
	f.fail(ids[0], nil)
	f.send(0, "a", ids[0]) // once more: it was dropped, and its key is still held
	f.send(0, "a", ids[2])
	f.parked(2)
	events, err = o.Redrive(ctx, inbox.RedriveOptions{All: true})
	if got := did(t, events, err); got != "applied, applied" {
		t.Errorf("redrive: %s", got)
	}
	f.waitEffects("a", ids[1], ids[2])
	if _, err := o.Redrive(ctx, inbox.RedriveOptions{IDs: []int64{4711}}); !errors.Is(err, inbox.ErrUnknown) {
		t.Errorf("an id that is none: %v", err)
	}
}

// TestRedriveMeetsTheConsumer: a key is redriven while its next events arrive. Their order holds, both if the redrive
// and if the consumer is first.
func TestRedriveMeetsTheConsumer(t *testing.T) {
	cdctest.Long(t, "redrives under load")
	t.Parallel()
	f := newFixture(t, 1)
	ids := newIDs(200)
	f.fail(ids[0], inbox.Permanent(errors.New("broken")))
	f.start(policy(inbox.ParkKey), func(cfg *inbox.Config) { cfg.Batch = 3 })
	f.send(0, "a", ids[:50]...)
	f.parked(50)
	f.fail(ids[0], nil)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, id := range ids[50:] {
			r := record(0, "a", "Thing", id)
			r.Topic = f.topic
			f.client.Produce(context.Background(), r, nil)
			time.Sleep(time.Millisecond)
		}
	}()
	cdctest.Eventually(t, time.Minute, func() error {
		events, err := f.operator().Redrive(t.Context(), inbox.RedriveOptions{All: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Err != nil {
				t.Errorf("%s: %v", e.EventID, e.Err)
			}
		}
		if n := len(f.effects("a")); n != len(ids) {
			return fmt.Errorf("%d of %d applied", n, len(ids))
		}
		return nil
	})
	<-sent
	f.waitEffects("a", ids...)
}

func TestBlockedEventIsPassedOver(t *testing.T) {
	cdctest.Long(t, "waits for retries")
	t.Parallel()
	f := newFixture(t, 1)
	o := f.operator()
	ids := newIDs(3)
	f.fail(ids[0], inbox.Permanent(errors.New("broken")))
	f.send(0, "a", ids[0], ids[1])
	f.send(0, "b", ids[2])
	f.start()
	eventually(t, func() error {
		blocked, err := o.Blocked(t.Context())
		if err == nil && (len(blocked) != 1 || blocked[0].EventID != ids[0] || blocked[0].Reason != "broken") {
			err = fmt.Errorf("blocked: %+v", blocked)
		}
		return err
	})
	if err := o.Pass(t.Context(), 0, 1, inbox.Skip); err == nil || !strings.Contains(err.Error(), "does not halt at offset 1") {
		t.Errorf("another offset: %v", err)
	}
	if err := o.Pass(t.Context(), 0, 0, inbox.Block); err == nil {
		t.Error("passed over with block")
	}
	if err := o.Pass(t.Context(), 0, 0, inbox.ParkKey); err != nil {
		t.Error(err)
	}
	f.waitEffects("", ids[2])
	rows := f.parked(2)
	event, err := o.Show(t.Context(), rows[ids[0]])
	if err != nil || string(event.Value) != ids[0] || len(event.Headers) != 2 || event.Reason != "broken" {
		t.Errorf("shown: %+v (%v)", event, err)
	}
}

func TestReplayCountsWhatIsNewAndMovesAnEmptyGroup(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	o := f.operator()
	ids := newIDs(10)
	f.send(0, "a", ids[:3]...)
	for sent := time.Now(); time.Since(sent) < 2*time.Millisecond; { // the timestamps of Kafka are in milliseconds
		time.Sleep(time.Millisecond)
	}
	from := time.Now()
	f.send(0, "a", ids[3:6]...)
	f.send(1, "b", ids[6:9]...)
	if _, err := o.Replay(t.Context(), inbox.ReplayOptions{From: from, DryRun: true}); err == nil || !strings.Contains(err.Error(), "nothing to replay") {
		t.Errorf("before anything was consumed: %v", err)
	}
	r := f.start()
	f.waitCommitted(f.group, map[int32]int64{0: 6, 1: 3})
	f.exec(`DELETE FROM inbox WHERE event_id = ANY($1)`, []string{ids[4], ids[8]}) // as if never applied
	f.exec(`DELETE FROM effects WHERE event_id = ANY($1)`, []string{ids[4], ids[8]})

	check := func(plan []inbox.Rewind, err error, want string) {
		t.Helper()
		var got []string
		for _, p := range plan {
			got = append(got, fmt.Sprintf("%d: %d to %d, %d new, %d skipped", p.Partition, p.From, p.Committed, p.New, p.Duplicates))
		}
		if s := strings.Join(got, "; "); err != nil || s != want {
			t.Errorf("got %q (%v), want %q", s, err, want)
		}
	}
	const both = "0: 3 to 6, 1 new, 2 skipped; 1: 0 to 3, 1 new, 2 skipped"
	plan, err := o.Replay(t.Context(), inbox.ReplayOptions{From: from, DryRun: true})
	check(plan, err, both)
	if _, err := o.Replay(t.Context(), inbox.ReplayOptions{From: from}); !errors.Is(err, inbox.ErrGroupBusy) || !strings.Contains(err.Error(), "stop the consumers") {
		t.Errorf("with a running consumer: %v", err)
	}
	r.stop()
	plan, err = o.Replay(t.Context(), inbox.ReplayOptions{Partitions: []int32{0}, Offset: 99}) // an offset is never moved forward
	check(plan, err, "0: 6 to 6, 0 new, 0 skipped")
	plan, err = o.Replay(t.Context(), inbox.ReplayOptions{From: from})
	check(plan, err, both)
	f.waitCommitted(f.group, map[int32]int64{0: 3, 1: 0})

	r = f.start()
	f.waitCommitted(f.group, map[int32]int64{0: 6, 1: 3})
	if applied, duplicates := r.count(t, "test_events_applied_total"), r.count(t, "test_events_duplicate_total"); applied != 2 || duplicates != 4 {
		t.Errorf("%v applied, %v skipped", applied, duplicates)
	}
	decisions, err := o.Decisions(t.Context(), 1)
	if err != nil || len(decisions) != 1 || decisions[0].Command != "replay" || !strings.HasSuffix(decisions[0].What, "back to 0/3 (from 6) 1/0 (from 3)") {
		t.Errorf("recorded: %+v (%v)", decisions, err)
	}
}

// TestCopyOverADaysBoundaryIsSeen: an event belongs to the day in its id, not to the day of its delivery. An event of a
// forgotten day is not applied again.
func TestCopyOverADaysBoundaryIsSeen(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	now := time.Now()
	at := func(days int) string {
		ms := now.AddDate(0, 0, days).UnixMilli()
		return fmt.Sprintf("%08x-%04x-7%s", ms>>16, ms&0xffff, newID()[15:])
	}
	ids := []string{at(-40), at(-1), at(0), at(1), at(6), "0f0e0d0c-0000-4000-8000-000000000001", "42"}
	tooFar, tooOld := at(30), "01000000-0000-7000-8000-000000000001" // their times are impossible, so they are undated
	dueToday := newID()                                              // applied before its day arrived
	f.exec(`INSERT INTO inbox VALUES ('test', $1, 0, 't', 0, 0)`, dueToday)
	f.send(0, "a", ids...)
	f.send(0, "a", ids...)
	f.send(0, "a", tooFar, tooOld, tooFar, tooOld, dueToday)
	r := f.start(policy(inbox.Skip))
	f.waitCommitted(f.group, map[int32]int64{0: 19})
	ids = append(ids, tooFar, tooOld)
	f.waitEffects("a", ids...)
	if n := scan[int](f, `SELECT count(DISTINCT tableoid) FROM inbox`); n < 3 {
		t.Errorf("the events are in %d partitions: the test shows nothing", n)
	}
	r.stop()

	// The retention passes: the first event's day is dropped with all days before today.
	f.exec(`DROP TABLE inbox_before`)
	f.send(0, "a", ids[0], ids[2])
	f.start(policy(inbox.Skip))
	f.waitCommitted(f.group, map[int32]int64{0: 21})
	f.waitEffects("a", ids...)
	want := []string{"a day that the inbox has forgotten", "a day that the inbox has forgotten"}
	list, err := f.operator().List(t.Context(), inbox.ListOptions{Limit: 10})
	if err != nil || len(list) != 2 {
		t.Fatalf("%d are parked: %v", len(list), err)
	}
	for i, p := range list {
		if !strings.Contains(p.Reason, want[i]) {
			t.Errorf("%s: %s", p.EventID, p.Reason)
		}
	}
}

func TestNothingIsForgottenWhileTheTopicRemembers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		retention time.Duration // of the inbox; the topic's is Kafka's default of 7 days
		dropped   bool
	}{
		{"longer than the topic", 8 * 24 * time.Hour, true},
		{"as long as the topic", 7 * 24 * time.Hour, false},
		{"no limit", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, 1)
			f.exec(`DROP TABLE inbox_before; CREATE TABLE inbox_old PARTITION OF inbox FOR VALUES FROM (2) TO (3);
				DO $$ BEGIN EXECUTE format('CREATE TABLE inbox_between PARTITION OF inbox FOR VALUES FROM (3) TO (%s)',
					(now() AT TIME ZONE 'UTC')::date - date '1970-01-01' + 1); END $$`)
			f.send(0, "a", newID())
			r := f.start(func(cfg *inbox.Config) { cfg.Retention = c.retention })
			f.waitCommitted(f.group, map[int32]int64{0: 1})
			eventually(t, func() error {
				there := scan[bool](f, `SELECT to_regclass('inbox_old') IS NOT NULL`)
				warned := strings.Contains(r.log.String(), "the inbox forgets nothing")
				if there == c.dropped || c.retention > 0 && warned == c.dropped {
					return fmt.Errorf("the old partition exists: %t; warned: %t", there, warned)
				}
				return nil
			})
		})
	}
}
