package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
)

func TestEachEventOnceAndInOrderFromTwoGroupsAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	ids := [2][]string{newIDs(300), newIDs(300)}
	for i := range ids[0] {
		for partition := range int32(2) {
			f.produce(record(partition, fmt.Sprint(partition), "Thing", ids[partition][i]))
			if i%3 == 0 {
				f.produce(record(partition, fmt.Sprint(partition), "Thing", strings.ToUpper(ids[partition][i/2])))
			}
		}
	}
	other := cdctest.Name(t, "other")
	one, two := f.start(), f.start(func(cfg *inbox.Config) { cfg.Group = other })
	want := map[int32]int64{0: 400, 1: 400}
	f.waitCommitted(f.group, want)
	f.waitCommitted(other, want)
	for partition := range 2 {
		if got := f.effects(fmt.Sprint(partition)); !slices.Equal(got, ids[partition]) {
			t.Errorf("partition %d: %d effects, want the %d events once each and in order", partition, len(got), len(ids[partition]))
		}
	}
	applied := one.count(t, "test_events_applied_total") + two.count(t, "test_events_applied_total")
	duplicates := one.count(t, "test_events_duplicate_total") + two.count(t, "test_events_duplicate_total")
	if applied != 600 || duplicates != 2*800-600 {
		t.Errorf("%v applied and %v duplicates counted", applied, duplicates)
	}
}

func TestTransientErrorPausesItsPartitionAndNothingElse(t *testing.T) {
	cdctest.Long(t, "waits for pauses to pass")
	t.Parallel()
	f := newFixture(t, 2)
	ids := newIDs(6)
	f.fail(ids[1], errors.New("not now"))
	f.send(0, "a", ids[0], ids[1], ids[2])
	r := f.start()
	f.waitEffects("a", ids[0])
	f.send(1, "b", ids[3])
	f.waitEffects("b", ids[3])

	// For longer than the session timeout the consumer stays in its group and retries.
	admin := kadm.NewClient(f.client)
	before, err := admin.DescribeGroups(t.Context(), f.group)
	if err != nil {
		t.Fatal(err)
	}
	tries, until := f.tries(ids[1]), time.Now().Add(12*time.Second)
	for time.Now().Before(until) {
		id := newID()
		f.send(1, "c", id)
		eventually(t, func() error {
			if !slices.Contains(f.effects("c"), id) {
				return errors.New("the other partition does not go on")
			}
			return nil
		})
	}
	after, err := admin.DescribeGroups(t.Context(), f.group)
	if err != nil || len(before[f.group].Members) != 1 || len(after[f.group].Members) != 1 || before[f.group].Members[0].MemberID != after[f.group].Members[0].MemberID {
		t.Errorf("the group had %+v and has %+v (%v)", before[f.group].Members, after[f.group].Members, err)
	}
	if n := f.tries(ids[1]) - tries; n < 2 || n > 100 {
		t.Errorf("tried %d times in 12 s", n)
	}
	if r.count(t, "test_partitions_retrying") != 1 || r.count(t, "test_retries_total") < 2 {
		t.Error("not counted")
	}
	if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("ready: %v", err)
	}
	f.fail(ids[1], nil)
	f.waitEffects("a", ids[:3]...)
	eventually(t, func() error { return r.Ready(t.Context()) })
	if at := f.committed(f.group)[0]; at > 3 {
		t.Errorf("offset %d", at)
	}
	f.waitCommitted(f.group, map[int32]int64{0: 3, 1: int64(len(f.effects("")) - 3)})
}

func TestPermanentErrorByPolicy(t *testing.T) {
	broken := inbox.Permanent(errors.New("quantity is missing"))
	for _, c := range []struct {
		policy       inbox.Policy
		a, b         []int // the effects of two keys of the same partition, by index
		parked, held int
	}{
		{inbox.Block, []int{0}, nil, 0, 0},
		{inbox.ParkKey, []int{0}, []int{4, 5}, 1, 2},
		{inbox.Skip, []int{0, 2, 3}, []int{4, 5}, 1, 0},
	} {
		t.Run(string(c.policy), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 2)
			ids := newIDs(7)
			f.fail(ids[1], broken)
			f.send(0, "a", ids[0], ids[1])
			f.send(0, "b", ids[4])
			f.send(0, "a", ids[2])
			f.send(0, "b", ids[5])
			f.send(0, "a", ids[3])
			f.send(1, "c", ids[6])
			r := f.start(policy(c.policy))
			pick := func(indexes []int) (picked []string) {
				for _, i := range indexes {
					picked = append(picked, ids[i])
				}
				return picked
			}
			f.waitEffects("c", ids[6])
			f.waitEffects("a", pick(c.a)...)
			f.waitEffects("b", pick(c.b)...)
			want := map[int32]int64{0: 6, 1: 1}
			if c.policy == inbox.Block {
				want[0] = 1
			}
			f.waitCommitted(f.group, want)
			if parked, held := r.count(t, "test_events_parked_total"), r.count(t, "test_events_held_total"); int(parked) != c.parked || int(held) != c.held {
				t.Errorf("%v parked and %v held counted", parked, held)
			}
			if n := scan[int](f, `SELECT count(*) FROM inbox_parked`); n != c.parked+c.held {
				t.Errorf("%d rows are parked", n)
			}
			if c.parked > 0 {
				got := scan[string](f, `SELECT concat_ws(' ', topic = $1, partition, kafka_offset, event_id, event_type, convert_from(key, 'UTF8'),
					convert_from(value, 'UTF8'), reason) FROM inbox_parked ORDER BY id LIMIT 1`, f.topic)
				if want := fmt.Sprintf("t 0 1 %s Thing a %s quantity is missing", ids[1], ids[1]); got != want {
					t.Errorf("parked %q, want %q", got, want)
				}
				eventually(t, func() error {
					if n, age := r.count(t, "test_parked_events"), r.count(t, "test_oldest_parked_seconds"); int(n) != c.parked+c.held || age <= 0 {
						return fmt.Errorf("gauges say %v parked, the oldest for %v s", n, age)
					}
					return nil
				})
				return
			}

			// The partition is blocked, and Ready shows it, until the event can be applied.
			err := r.Ready(t.Context())
			if n := r.count(t, "test_partitions_blocked"); n != 1 || err == nil || !strings.Contains(err.Error(), "partition 0, offset 1: quantity is missing") {
				t.Errorf("%v blocked, ready: %v", n, err)
			}
			if got := scan[string](f, `SELECT concat_ws(' ', blocked_offset, blocked_event, blocked_reason) FROM inbox_partitions WHERE partition = 0`); got != "1 "+ids[1]+" quantity is missing" {
				t.Errorf("recorded %q", got)
			}
			f.fail(ids[1], nil)
			f.waitEffects("a", ids[:4]...)
			f.waitEffects("b", ids[4:6]...)
			eventually(t, func() error { return r.Ready(t.Context()) })
			if n := scan[int](f, `SELECT count(blocked_offset) FROM inbox_partitions`); n != 0 {
				t.Error("it is still recorded as blocked")
			}
		})
	}
}

func TestOneBadEventOfABatchIsFoundAndTheOthersAreApplied(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ids := newIDs(400)
	f.fail(ids[123], inbox.Permanent(errors.New("broken")))
	var records []*kgo.Record
	for _, id := range ids {
		records = append(records, record(0, "key of "+id, "Thing", id))
	}
	noID := record(0, "k", "Thing", "")
	noID.Headers = nil
	records = append(records, noID, record(0, "k", "Thing", strings.Repeat("x", 256)))
	f.produce(records...)
	f.start(policy(inbox.Skip))
	f.waitCommitted(f.group, map[int32]int64{0: 402})
	if got, want := f.effects(""), slices.Delete(slices.Clone(ids), 123, 124); !slices.Equal(got, want) {
		t.Errorf("%d effects, want the other %d in order", len(got), len(want))
	}
	got := scan[string](f, `SELECT string_agg(kafka_offset || ' ' || reason, ', ' ORDER BY id) FROM inbox_parked`)
	if got != "123 broken, 400 header id is missing, 401 header id is longer than 255 bytes" {
		t.Errorf("parked: %s", got)
	}
	if n := scan[int](f, `SELECT count(DISTINCT xmin::text) FROM effects`); n > 401 || f.tries(ids[0]) > 2 {
		t.Errorf("%d transactions, the first event tried %d times", n, f.tries(ids[0]))
	}
}

func TestUnknownTypesAreRecordedAndStandInNobodysWay(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ids := newIDs(5)
	f.produce(record(0, "a", "Thing", ids[0]), record(0, "a", "Known", ids[1]), record(0, "a", "Novelty", ids[2]), record(0, "a", "", ids[3]), record(0, "b", "Thing", ids[4]))
	r := f.start(policy(inbox.Skip), func(cfg *inbox.Config) { cfg.Types, cfg.Ignore = []string{"Thing"}, []string{"Known"} })
	f.waitCommitted(f.group, map[int32]int64{0: 5})
	f.waitEffects("", ids[0], ids[4])
	got := scan[string](f, `SELECT string_agg(event_id || ' ' || reason, ', ' ORDER BY id) FROM inbox_parked`)
	if want := ids[2] + " unknown type Novelty, " + ids[3] + " header type is missing"; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
	if n := r.count(t, "test_events_skipped_total"); n != 1 {
		t.Errorf("%v skipped", n)
	}
	cfg := f.config()
	cfg.Types = []string{"Thing"}
	events, err := inbox.NewOperator(cfg, "ada").Redrive(t.Context(), inbox.RedriveOptions{All: true, Force: true})
	if got := did(t, events, err); strings.Count(got, "is still unknown to this program") != 2 || f.tries(ids[2]) > 0 {
		t.Errorf("redriven: %s", got)
	}
}

// TestOwnerOfAnOldEpochIsFenced: a process that lost the partition in the database applies nothing, and claims it again
// only as a member of the group.
func TestOwnerOfAnOldEpochIsFenced(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	id := newID()
	f.fail(id, errors.New("not now"))
	r := f.start()
	f.send(0, "a", id)
	eventually(t, func() error {
		if f.tries(id) == 0 {
			return errors.New("not tried yet")
		}
		return nil
	})

	// This does what a successor would do; then the group forgets this process.
	tx, err := f.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `UPDATE inbox_partitions SET epoch = epoch + 1`); err != nil {
		t.Fatal(err)
	}
	f.kick()
	f.fail(id, nil)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.waitEffects("a", id)
	described, err := kadm.NewClient(f.client).DescribeGroups(t.Context(), f.group)
	if err != nil || len(described[f.group].Members) != 1 {
		t.Errorf("applied by who is no member: the group has %+v (%v)", described[f.group].Members, err)
	}
	if n := r.count(t, "test_fenced_total"); n != 1 {
		t.Errorf("fenced %v times", n)
	}
	if epoch := scan[int64](f, `SELECT epoch FROM inbox_partitions`); epoch != 3 {
		t.Errorf("epoch %d, want 3: assigned, taken by the successor, taken back", epoch)
	}
}

// kick removes all members from the group.
func (f *fixture) kick() {
	f.Helper()
	described, err := kadm.NewClient(f.client).DescribeGroups(f.Context(), f.group)
	if err != nil {
		f.Fatal(err)
	}
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group = f.group
	for _, member := range described[f.group].Members {
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = member.MemberID
		leave.Members = append(leave.Members, m)
	}
	if _, err := leave.RequestWith(f.Context(), f.client); err != nil {
		f.Fatal(err)
	}
}

func TestWrongConfigurationIsReportedWhole(t *testing.T) {
	t.Parallel()
	_, err := inbox.New(inbox.Config{Policy: "perhaps", Batch: -1, Retention: time.Hour})
	for _, want := range []string{"Brokers", "Topic", "Group", "Pool", "Handle", `"perhaps"`, "-1", "1h"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in: %v", want, err)
		}
	}
}

func TestBatchesAreHandledAtOnceAndSingleEventsAlone(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ids := newIDs(50)
	f.send(0, "a", ids...)
	f.fail(ids[30], inbox.Permanent(errors.New("broken")))
	f.start(policy(inbox.Skip), func(cfg *inbox.Config) {
		cfg.Batch = 20
		cfg.HandleBatch = func(ctx context.Context, tx pgx.Tx, events []inbox.Event) error {
			if len(events) < 2 || len(events) > 20 {
				t.Errorf("a batch of %d", len(events))
			}
			for _, ev := range events {
				if err := f.handle(ctx, tx, ev); err != nil {
					return err
				}
			}
			return nil
		}
	}).stopAfter(f, 50)
	if got, want := f.effects(""), slices.Delete(slices.Clone(ids), 30, 31); !slices.Equal(got, want) {
		t.Errorf("%d effects, want the other %d in order", len(got), len(want))
	}
}

// stopAfter stops the consumer after n records of partition 0 are committed.
func (r *running) stopAfter(f *fixture, n int64) {
	f.Helper()
	f.waitCommitted(f.group, map[int32]int64{0: n})
	r.stop()
}

// TestOneGroupsTroubleIsNotAnothers runs two groups on one topic. In turn one of them is stopped, halts at a poisoned
// event, or hangs in the database.
func TestOneGroupsTroubleIsNotAnothers(t *testing.T) {
	cdctest.Long(t, "waits for retries")
	t.Parallel()
	f := newFixture(t, 1)
	f.exec(`CREATE TABLE others (n bigint GENERATED ALWAYS AS IDENTITY, event_id text)`)
	ids := newIDs(9)
	other := f.start(func(cfg *inbox.Config) {
		cfg.Group, cfg.Consumer = f.group+"-other", "other"
		cfg.Handle = func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
			_, err := tx.Exec(ctx, `INSERT INTO others (event_id) VALUES ($1)`, ev.ID)
			return err
		}
	})
	continues := func(until int) {
		t.Helper()
		eventually(t, func() error {
			if n := scan[int](f, `SELECT count(*)::int FROM others`); n != until {
				return fmt.Errorf("the other group has applied %d of %d", n, until)
			}
			return other.Ready(t.Context())
		})
	}
	r := f.start(policy(inbox.Block))
	f.send(0, "k", ids[0])
	f.waitEffects("", ids[:1]...)

	r.stop()
	f.send(0, "k", ids[1:3]...)
	continues(3)

	f.fail(ids[2], inbox.Permanent(errors.New("poison")))
	r = f.start(policy(inbox.Block))
	eventually(t, func() error {
		if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "poison") {
			return fmt.Errorf("not blocked: %w", err)
		}
		return nil
	})
	f.send(0, "k", ids[3:6]...)
	continues(6)
	f.waitEffects("", ids[:2]...)

	f.fail(ids[2], nil)
	f.waitEffects("", ids[:6]...)
	tx, err := f.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE effects`); err != nil {
		t.Fatal(err)
	}
	f.send(0, "k", ids[6:]...)
	continues(9)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.waitEffects("", ids...)
}
