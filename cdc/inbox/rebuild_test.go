package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/inbox"
)

// rebuild empties the effects and rebuilds them. It calls locked as soon as no other transaction can write them.
func (f *fixture) rebuild(ctx context.Context, partial bool, locked func(), progress func(done, of int64)) (done inbox.Rebuilt, err error) {
	cfg := f.config()
	cfg.Batch, cfg.Types = 7, []string{"Thing"}
	o := inbox.NewOperator(cfg, "ada")
	err = pgx.BeginFunc(ctx, f.pool, func(tx pgx.Tx) error {
		held, err := o.LockGroup(ctx, tx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `LOCK TABLE effects IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM effects`); err != nil {
			return err
		}
		locked()
		done, err = held.Rebuild(ctx, inbox.RebuildOptions{Partial: partial, Progress: progress})
		return err
	})
	return done, err
}

func quiet(int64, int64) {}

func nothing() {}

// consumerWaits waits until a transaction waits for a lock.
func (f *fixture) consumerWaits() {
	f.Helper()
	eventually(f, func() error {
		if n := scan[int](f, `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`); n == 0 {
			return errors.New("no session waits")
		}
		return nil
	})
}

// TestRebuildAppliesTheWholeTopicOnceAndTheConsumerGoesOn: a rebuild applies events that the inbox knew, events that it
// never saw, and copies, while a consumer runs. Parked events stay parked.
func TestRebuildAppliesTheWholeTopicOnceAndTheConsumerGoesOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	old, ids := uuid.Must(uuid.FromBytes([]byte("\x01\x70\x00\x00\x00\x00\x70\x00\x80\x00\x00\x00\x00\x00\x00\x01"))).String(), newIDs(20)
	poison := ids[3]
	f.fail(poison, inbox.Permanent(errors.New("broken")))
	f.send(0, "a", ids[0], ids[1], ids[0])
	f.send(0, "p", poison, ids[4]) // ids[4] waits for it
	f.send(1, "b", ids[5:10]...)
	f.send(1, "b", old)
	f.produce(record(1, "b", "Other", ids[10]))
	consume := func() *running {
		return f.start(policy(inbox.ParkKey), func(cfg *inbox.Config) { cfg.Types, cfg.Ignore = []string{"Thing"}, []string{"Other"} })
	}
	r := consume()
	f.waitCommitted(f.group, map[int32]int64{0: 5, 1: 7})
	f.exec(`UPDATE effects SET key = 'wrong'; INSERT INTO effects VALUES (DEFAULT, 'extra', 'wrong', 0)`)
	f.exec(`DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE inbox DETACH PARTITION inbox_before;
		CREATE TABLE inbox_today PARTITION OF inbox FOR VALUES FROM (%s) TO (%s);
		INSERT INTO inbox_today SELECT * FROM inbox_before WHERE event_day >= %1$s;
		DROP TABLE inbox_before', min(event_day), (SELECT max(event_day) FROM inbox) + 1) FROM inbox WHERE event_day > 20000); END $$`) // the day of one event is forgotten
	check := func(key string, want ...string) {
		t.Helper()
		if got := f.effects(key); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("effects of %q: %v, want %v", key, got, want)
		}
	}
	done, err := f.rebuild(t.Context(), false, func() {
		f.send(0, "a", ids[15])
		f.consumerWaits() // it waits to apply this event, which the rebuild reads too
	}, quiet)
	if want := (inbox.Rebuilt{Applied: 9, Duplicates: 1, Excluded: 2, Others: 1}); err != nil || done != want {
		t.Errorf("rebuilt %+v (%v), want %+v", done, err, want)
	}
	check("a", ids[0], ids[1], ids[15])
	check("b", append(ids[5:10:10], old)...)
	check("p")
	check("wrong")

	if strings.Contains(r.log.String(), "deadlock") {
		t.Error("the consumer and the rebuild waited for each other")
	}

	// An event that the consumer has not seen is applied by the rebuild, and is a duplicate for the consumer
	// afterwards. The consumer applies the later ones.
	r.stop()
	f.send(0, "a", ids[11])
	f.send(0, "p", ids[12])
	f.fail(ids[13], inbox.Permanent(errors.New("broken")))
	f.send(1, "b", ids[13])
	done, err = f.rebuild(t.Context(), false, nothing, quiet)
	if want := (inbox.Rebuilt{Applied: 10, Duplicates: 1, Excluded: 3, Rejected: 1, Others: 1}); err != nil || done != want {
		t.Errorf("rebuilt %+v (%v), want %+v", done, err, want)
	}
	check("a", ids[0], ids[1], ids[15], ids[11])
	consume()
	f.send(1, "b", ids[14])
	f.waitCommitted(f.group, map[int32]int64{0: 8, 1: 9})
	check("a", ids[0], ids[1], ids[15], ids[11])
	f.fail(poison, nil)
	if _, err := f.operator().Redrive(t.Context(), inbox.RedriveOptions{IDs: []int64{f.parked(5)[poison]}}); err != nil {
		t.Fatal(err)
	}
	check("p", poison, ids[4], ids[12])

	// A dropped event stays dropped, although it could be applied now.
	f.fail(ids[13], nil)
	set := f.parked(2)
	if _, err := f.operator().Drop(t.Context(), inbox.DropOptions{IDs: []int64{set[ids[13]]}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.operator().Redrive(t.Context(), inbox.RedriveOptions{IDs: []int64{set[ids[14]]}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.rebuild(t.Context(), false, nothing, quiet); err != nil {
		t.Fatal(err)
	}
	check("b", append(ids[5:10:10], old, ids[14])...)
	if got := scan[string](f, `SELECT what FROM inbox_decisions WHERE command = 'rebuild' ORDER BY id DESC LIMIT 1`); !strings.Contains(got, "Applied:14 Duplicates:1 Excluded:1 Rejected:0 Others:1 Cut:false") {
		t.Errorf("recorded: %s", got)
	}
}

// TestRebuildHoldsTheConsumerAndLeavesNothingWhenItIsKilled: the server ends the rebuild's session in the middle.
func TestRebuildHoldsTheConsumerAndLeavesNothingWhenItIsKilled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ids := newIDs(30)
	f.send(0, "a", ids[:20]...)
	f.start()
	f.waitCommitted(f.group, map[int32]int64{0: 20})
	before := scan[string](f, `SELECT string_agg(e::text, ',' ORDER BY n) FROM effects e`)
	_, err := f.rebuild(t.Context(), false, nothing, func(done, of int64) {
		if done == 0 || done > of {
			t.Errorf("progress: %d of %d", done, of)
		}
		f.send(0, "a", ids[20:]...)
		f.consumerWaits()
		if got := scan[string](f, `SELECT string_agg(e::text, ',' ORDER BY n) FROM effects e`); got != before {
			t.Errorf("while it runs, others see %s", got)
		}
		f.exec(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'effects'::regclass AND mode = 'ShareRowExclusiveLock'`)
	})
	if err == nil {
		t.Error("no error")
	}
	f.waitEffects("a", ids...)
	if n := scan[int](f, `SELECT count(*)::int FROM inbox_decisions`); n != 0 {
		t.Errorf("%d decisions recorded", n)
	}
}

func TestRebuildRefusesATopicThatHasLostItsBeginning(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	ids := newIDs(6)
	f.send(0, "a", ids[:3]...)
	f.send(1, "b", ids[3:]...)
	offsets := kadm.Offsets{}
	offsets.AddOffset(f.topic, 1, 2, -1)
	if _, err := kadm.NewClient(f.client).DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	if _, err := f.rebuild(t.Context(), false, nothing, quiet); !errors.Is(err, inbox.ErrCut) || !strings.Contains(err.Error(), "partition 1 begins at offset 2") {
		t.Errorf("got %v", err)
	}
	done, err := f.rebuild(t.Context(), true, nothing, quiet)
	if err != nil || done.Applied != 4 || !done.Cut {
		t.Errorf("partial: %+v (%v)", done, err)
	}
}

// TestRebuildReadsCommittedTransactionsOnly: it reads only committed transactions, and ends at a transaction marker.
func TestRebuildReadsCommittedTransactionsOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	client, err := kgo.NewClient(kgo.SeedBrokers(f.brokers...), kgo.TransactionalID(f.group), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ids := newIDs(2)
	for i, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		r := record(0, "a", "Thing", ids[i])
		r.Topic = f.topic
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := client.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if done, err := f.rebuild(ctx, false, nothing, quiet); err != nil || done.Applied != 1 || fmt.Sprint(f.effects("a")) != fmt.Sprint(ids[:1]) {
		t.Errorf("%+v (%v), effects %v", done, err, f.effects("a"))
	}
}
