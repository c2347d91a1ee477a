package inbox_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
)

func gapPolicy(p inbox.GapPolicy) func(*inbox.Config) { return func(cfg *inbox.Config) { cfg.Gap = p } }

// deleteRecords moves the start of a partition's log.
func (f *fixture) deleteRecords(partition int32, before int64) {
	f.Helper()
	offsets := kadm.Offsets{}
	offsets.AddOffset(f.topic, partition, before, -1)
	deleted, err := kadm.NewClient(f.client).DeleteRecords(f.Context(), offsets)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		f.Fatal(err)
	}
}

// moveGroup commits an offset for a group that has no members.
func (f *fixture) moveGroup(partition int32, at int64) {
	f.Helper()
	offsets := kadm.Offsets{}
	offsets.AddOffset(f.topic, partition, at, -1)
	if err := kadm.NewClient(f.client).CommitAllOffsets(f.Context(), f.group, offsets); err != nil {
		f.Fatal(err)
	}
}

// remake deletes the topic and creates it again.
func (f *fixture) remake(partitions int) {
	f.Helper()
	if _, err := kadm.NewClient(f.client).DeleteTopic(f.Context(), f.topic); err != nil {
		f.Fatal(err)
	}
	f.client.PurgeTopicsFromClient(f.topic)
	eventually(f, func() error {
		topics, err := kadm.NewClient(f.client).ListTopics(f.Context())
		if err == nil && topics.Has(f.topic) {
			err = errors.New("the topic is still there")
		}
		return err
	})
	cdctest.CreateTopic(f, f.brokers, f.topic, partitions)
}

func (r *running) says(t testing.TB, text string) {
	t.Helper()
	eventually(t, func() error {
		if !strings.Contains(r.log.String(), text) {
			return fmt.Errorf("nothing says %q", text)
		}
		return nil
	})
}

func (r *running) unready(t testing.TB, text string) {
	t.Helper()
	eventually(t, func() error {
		if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), text) {
			return fmt.Errorf("ready says %w, want %q", err, text)
		}
		return nil
	})
}

// TestRecordsGoneBeforeTheyWereApplied: the log loses records while the consumer is away. The consumer logs, counts and
// records the gap. It halts until an operator decides, or continues.
func TestRecordsGoneBeforeTheyWereApplied(t *testing.T) {
	const why = "the 3 records at offsets 1 to 3 are gone from the topic and were never applied"
	for _, c := range []struct {
		name   string
		gap    inbox.GapPolicy
		decide func(f *fixture, row int64) error
		after  string // status of the recorded gap
	}{
		{"continues", inbox.GoOn, nil, "parked"},
		{"given up", "", func(f *fixture, row int64) error {
			done, err := f.operator().Drop(f.Context(), inbox.DropOptions{IDs: []int64{row}})
			if err == nil {
				err = done[0].Err
			}
			return err
		}, "dropped"},
		{"passed", inbox.Halt, func(f *fixture, _ int64) error {
			return f.operator().Pass(f.Context(), 0, 1, inbox.Skip)
		}, "parked"},
		{"rebuilt", inbox.Halt, func(f *fixture, _ int64) error {
			_, err := f.rebuild(f.Context(), true, nothing, quiet)
			return err
		}, "dropped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 2)
			ids := newIDs(7)
			f.send(0, "a", ids[0])
			r := f.start(gapPolicy(c.gap))
			f.waitCommitted(f.group, map[int32]int64{0: 1})
			r.stop()
			f.send(0, "a", ids[1:6]...)
			f.deleteRecords(0, 4)
			r = f.start(gapPolicy(c.gap))
			f.send(1, "b", ids[6]) // this partition continues in each case
			f.waitEffects("b", ids[6])
			row := f.parked(1)[""]
			parked, err := f.operator().Show(t.Context(), row)
			if err != nil || parked.Reason != why || parked.Offset != 1 || parked.EndOffset != 4 {
				t.Errorf("recorded: %+v (%v)", parked, err)
			}
			after := ids[4:6]
			if c.decide != nil {
				r.unready(t, "partition 0: "+why)
				r.stop() // the halt survives a restart
				r = f.start(gapPolicy(c.gap))
				r.unready(t, "partition 0: "+why)
				f.waitEffects("a", ids[0])
				blocked, err := f.operator().Blocked(t.Context())
				if err != nil || len(blocked) != 1 || blocked[0].Offset != 1 || blocked[0].Reason != why || !blocked[0].Gap {
					t.Errorf("blocked: %+v (%v)", blocked, err)
				}
				done, err := f.operator().Redrive(t.Context(), inbox.RedriveOptions{IDs: []int64{row}})
				if got := did(t, done, err); !strings.Contains(got, "these records are gone from the topic") {
					t.Errorf("redrive: %s", got)
				}
				if err := c.decide(f, row); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, func() error {
				if got := f.effects(""); !slices.Contains(got, after[0]) || !slices.Contains(got, after[1]) {
					return fmt.Errorf("applied %v, want %v too", got, after)
				}
				return r.Ready(t.Context())
			})
			f.waitCommitted(f.group, map[int32]int64{0: 6, 1: 1})
			if got := scan[string](f, `SELECT string_agg(status, ' ') FROM inbox_parked`); got != c.after {
				t.Errorf("the gap is %s, want %s", got, c.after)
			}
			if n := r.count(t, "test_records_gone_total"); n != 3 {
				t.Errorf("%v records counted", n)
			}
			if n := strings.Count(r.log.String(), why); n != 1 {
				t.Errorf("logged %d times", n)
			}
			r.stop()
			r = f.start(gapPolicy(c.gap)) // the next consumer does not see the gap again
			f.send(0, "a", ids[6])
			f.waitCommitted(f.group, map[int32]int64{0: 7, 1: 1})
			if n := r.count(t, "test_records_gone_total"); n != 0 {
				t.Errorf("%v records counted again", n)
			}
		})
	}
}

// TestRecordsGoneUnderARunningConsumer: the consumer retries an event while the log after it is deleted.
func TestRecordsGoneUnderARunningConsumer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ids := newIDs(5)
	f.fail(ids[0], errors.New("not now"))
	f.send(0, "a", ids[0])
	r := f.start(gapPolicy(inbox.GoOn))
	eventually(t, func() error { // longer than patience: the partition is paused and fetches nothing more
		if f.tries(ids[0]) < 8 {
			return errors.New("not tried often enough")
		}
		return nil
	})
	f.send(0, "a", ids[1:4]...)
	f.deleteRecords(0, 3)
	f.fail(ids[0], nil)
	f.waitCommitted(f.group, map[int32]int64{0: 4})
	r.says(t, "gone from the topic")
	f.send(0, "a", ids[4])
	f.waitCommitted(f.group, map[int32]int64{0: 5})
	// The consumer may already have fetched one of the two.
	if n := len(f.effects("a")) + int(r.count(t, "test_records_gone_total")); n != 5 {
		t.Errorf("%d applied or missed, want 5", n)
	}
}

// TestOffsetMovedByHand: after the group's offset was moved, the consumer resumes at the inbox's offset.
func TestOffsetMovedByHand(t *testing.T) {
	for _, c := range []struct {
		name, says string
		move       func(*fixture)
		skipped    int
	}{
		{"to the end", "past records that were not applied", func(f *fixture) { f.moveGroup(0, 4) }, 0},
		{"to the start", "lower than the inbox", func(f *fixture) { f.moveGroup(0, 0) }, 2},
		{"past the end", "past records that were not applied", func(f *fixture) { f.moveGroup(0, 99) }, 0},
		{"away, as by expiry", "has no offset in Kafka", func(f *fixture) {
			if _, err := kadm.NewClient(f.client).DeleteGroup(f.Context(), f.group); err != nil {
				f.Fatal(err)
			}
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1)
			ids := newIDs(4)
			f.send(0, "a", ids[:2]...)
			f.start().stopAfter(f, 2)
			f.send(0, "a", ids[2:]...)
			c.move(f)
			r := f.start()
			f.waitEffects("a", ids...)
			f.waitCommitted(f.group, map[int32]int64{0: 4})
			r.says(t, c.says)
			if n := r.count(t, "test_events_duplicate_total"); int(n) != c.skipped {
				t.Errorf("%v skipped, want %d", n, c.skipped)
			}
			if n := r.count(t, "test_records_gone_total"); n != 0 {
				t.Errorf("%v missed", n)
			}
		})
	}
}

// TestTopicMadeAgain: the topic is created again under a running consumer, or under one that is away, shorter or longer
// than before. The new topic is read from its start, and events that the inbox knows are skipped.
func TestTopicMadeAgain(t *testing.T) {
	for _, c := range []struct {
		name        string
		away        bool
		first, then int // records in the old topic and in the new one
		gone        int // of the new topic, deleted before they are read
	}{
		{"while it runs, shorter", false, 4, 2, 0},
		{"while it runs, longer", false, 2, 5, 0},
		{"while it is away, shorter", true, 4, 2, 0},
		{"while it is away, longer", true, 2, 5, 0},
		{"while it is away, and cut", true, 3, 5, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 2)
			ids := newIDs(c.first + c.then)
			f.send(0, "a", ids[:c.first]...)
			r := f.start()
			f.waitCommitted(f.group, map[int32]int64{0: int64(c.first)})
			if c.away {
				r.stop()
			}
			f.remake(1)
			f.send(0, "a", ids[c.first:]...)
			f.send(0, "a", ids[0])
			if c.gone > 0 {
				f.deleteRecords(0, int64(c.gone))
			}
			if c.away {
				r = f.start(gapPolicy(inbox.GoOn))
			}
			f.waitEffects("a", slices.Delete(ids, c.first, c.first+c.gone)...)
			f.waitCommitted(f.group, map[int32]int64{0: int64(c.then) + 1})
			r.says(t, "the topic was deleted and created again")
			eventually(t, func() error { return r.Ready(t.Context()) })
			if n := r.count(t, "test_records_gone_total"); int(n) != c.gone {
				t.Errorf("%v missed", n)
			}
		})
	}
}

// TestTopicMadeAgainBeforeItWasRead: records that the old topic is known to have held count as missed.
func TestTopicMadeAgainBeforeItWasRead(t *testing.T) {
	for _, then := range []int{3, 1} { // partitions
		t.Run(fmt.Sprint(then), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 3)
			ids := newIDs(7)
			f.fail(ids[1], errors.New("not now"))
			f.fail(ids[4], errors.New("nor this"))
			f.send(0, "a", ids[:3]...)
			f.send(2, "b", ids[3:6]...)
			r := f.start()
			r.unready(t, "not now")
			r.unready(t, "nor this")
			eventually(t, func() error {
				if n := r.count(t, "test_consumer_lag"); n != 4 {
					return fmt.Errorf("lag %v", n)
				}
				return nil
			})
			f.remake(then)
			f.send(0, "a", ids[6])
			f.waitEffects("a", ids[0], ids[6])
			f.waitEffects("b", ids[3])
			eventually(t, func() error {
				if n := r.count(t, "test_records_gone_total"); n != 4 {
					return fmt.Errorf("%v missed", n)
				}
				return nil
			})
			r.says(t, "the 2 records at offsets 1 to 2 are gone")
			f.parked(2)
		})
	}
}

// TestPartitionsAdded: partitions are added while the consumer runs and while it is away. They are read from their
// beginning.
func TestPartitionsAdded(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ids := newIDs(5)
	f.send(0, "a", ids[0])
	r := f.start()
	f.waitEffects("a", ids[0])
	add := func(n int) {
		t.Helper()
		added, err := kadm.NewClient(f.client).UpdatePartitions(t.Context(), n, f.topic)
		if err == nil {
			err = added.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
		id := map[int]string{2: ids[1], 3: newID()}[n]
		eventually(t, func() error {
			f.client.ForceMetadataRefresh()
			return f.client.ProduceSync(t.Context(), func() *kgo.Record {
				rec := record(int32(n-1), "b", "Thing", id)
				rec.Topic = f.topic
				return rec
			}()).FirstErr()
		})
	}
	f.fail(ids[2], errors.New("not now"))
	f.send(0, "b", ids[2])
	r.unready(t, "not now")
	add(2)
	f.waitEffects("b", ids[1]) // the order of a key does not hold when the key changes its partition
	r.says(t, "partitions were added to the topic")
	f.fail(ids[2], nil)
	f.waitEffects("b", ids[1], ids[2])
	f.waitCommitted(f.group, map[int32]int64{0: 2, 1: 1})
	r.stop()
	add(3)
	f.send(2, "b", ids[3], ids[4])
	f.deleteRecords(2, 2)
	r = f.start()
	r.says(t, "the 2 records at offsets 0 to 1 are gone")
	r.stop()
}

// TestWhatIsNotAGap: ignored records, transaction markers, and rows of an earlier release make no gap.
func TestWhatIsNotAGap(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ids := newIDs(8)
	ignoring := func(cfg *inbox.Config) { cfg.Types, cfg.Ignore = []string{"Thing"}, []string{"Known"} }
	f.send(0, "a", ids[0])
	first := f.start(ignoring)
	f.waitCommitted(f.group, map[int32]int64{0: 1})
	f.produce(record(0, "a", "Known", ids[1]), record(0, "a", "Known", ids[2]))
	first.stopAfter(f, 3)
	f.deleteRecords(0, 3)

	writer, err := kgo.NewClient(kgo.SeedBrokers(f.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID(cdctest.Name(t, "writer")))
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	for i, commit := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit, kgo.TryAbort} {
		if err := writer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		r := record(0, "a", "Thing", ids[3+i])
		r.Topic = f.topic
		if err := writer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := writer.EndTransaction(t.Context(), commit); err != nil {
			t.Fatal(err)
		}
	}
	r := f.start(ignoring)
	f.waitEffects("a", ids[0], ids[4])
	r.stopAfter(f, 9)
	f.deleteRecords(0, 9)

	f.exec(`UPDATE inbox_partitions SET topic_id = NULL, next_offset = 5`) // as the earlier release left it, with ignored records after it
	f.send(0, "a", ids[6])
	r = f.start(ignoring)
	f.waitEffects("a", ids[0], ids[4], ids[6])
	if n := scan[int](f, `SELECT count(*)::int FROM inbox_parked`); n != 0 || r.count(t, "test_records_gone_total") != 0 {
		t.Errorf("%d gaps are recorded", n)
	}
	if next := scan[int64](f, `SELECT next_offset FROM inbox_partitions`); next != 10 {
		t.Errorf("the inbox is at %d", next)
	}
}

// TestNewGroupOnAnOldTopicMissesNothing: records deleted before the group existed are no gap; later ones are.
func TestNewGroupOnAnOldTopicMissesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	ids := newIDs(6)
	f.send(0, "a", ids[:4]...)
	f.deleteRecords(0, 2)
	r := f.start()
	f.waitCommitted(f.group, map[int32]int64{0: 4})
	r.stop()
	if n := scan[int](f, `SELECT count(*)::int FROM inbox_parked`); n != 0 {
		t.Errorf("%d gaps are recorded", n)
	}
	f.send(1, "b", ids[4:]...) // nothing of this partition was read yet
	f.deleteRecords(1, 1)
	f.start().unready(t, "partition 1: the record at offset 0 is gone from the topic and was never applied")
}

// TestGroupThatComesBackAfterLong: the group's offsets have expired, the topic has lost records, and the inbox has
// forgotten the applied events. Nothing is applied twice, and the missing records are reported.
func TestGroupThatComesBackAfterLong(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	ids := newIDs(3)
	old := func() string {
		ms := time.Now().AddDate(0, 0, -40).UnixMilli()
		return fmt.Sprintf("%08x-%04x-7%s", ms>>16, ms&0xffff, newID()[15:])
	}
	before := []string{old(), old()}
	f.send(0, "a", before...)
	f.start().stopAfter(f, 2)
	f.exec(`DROP TABLE inbox_before; DO $$ BEGIN EXECUTE format('CREATE TABLE inbox_today PARTITION OF inbox FOR VALUES FROM (%s) TO (%s)',
		(now() AT TIME ZONE 'UTC')::date - date '1970-01-01', (now() AT TIME ZONE 'UTC')::date - date '1970-01-01' + 1); END $$`)
	if _, err := kadm.NewClient(f.client).DeleteGroup(t.Context(), f.group); err != nil {
		t.Fatal(err)
	}
	f.send(0, "a", ids...)
	// The applied records are still in the topic, but they are not even read again.
	r := f.start(gapPolicy(inbox.GoOn), policy(inbox.Skip))
	f.waitEffects("a", append(before, ids...)...)
	r.stop()
	if n := scan[int](f, `SELECT count(*)::int FROM inbox_parked`); n != 0 {
		t.Errorf("%d events are parked", n)
	}
	if _, err := kadm.NewClient(f.client).DeleteGroup(t.Context(), f.group); err != nil {
		t.Fatal(err)
	}
	more := newIDs(2)
	f.send(0, "a", more...)
	f.deleteRecords(0, 6)
	f.start(gapPolicy(inbox.GoOn), policy(inbox.Skip)).says(t, "the record at offset 5 is gone")
	f.waitEffects("a", append(append(before, ids...), more[1])...)
}
