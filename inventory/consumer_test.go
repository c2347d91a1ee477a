package inventory_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

var plenty = map[string]int64{"tea": 100_000, "cup": 100_000, "pot": 100_000}

func skusOf(stock map[string]int64) []string { return slices.Sorted(maps.Keys(stock)) }

func TestEveryEventTwiceAndToTwoConsumersAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.setStock(plenty)
	events := orders(150, skusOf(plenty)...)
	for _, e := range events {
		f.produce(e, e)
	}
	f.produce(events...) // all of them a second time
	// Two groups, so that both consumers get every record at about the same time.
	one, two := cdctest.Name(t, "one"), cdctest.Name(t, "two")
	a, b := f.start(one), f.start(two)
	f.waitCommitted(one, int64(3*len(events)))
	f.waitCommitted(two, int64(3*len(events)))
	f.audit(plenty, events)

	applied := a.count(t, "inventory_events_applied_total") + b.count(t, "inventory_events_applied_total")
	duplicates := a.count(t, "inventory_events_duplicate_total") + b.count(t, "inventory_events_duplicate_total")
	if int(applied) != len(events) || int(duplicates) != 5*len(events) {
		t.Errorf("%v applied and %v duplicates counted of %d events in 6 copies", applied, duplicates, len(events))
	}
}

func TestThreeConsumersJoinAndLeaveUnderLoad(t *testing.T) {
	cdctest.Long(t, "consumes under load")
	t.Parallel()
	f := newFixture(t, 6)
	f.setStock(plenty)
	group := cdctest.Name(t, "inventory")

	// The load lasts until the last consumer has started and stopped.
	stop := make(chan struct{})
	var events []event
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			some := orders(6, skusOf(plenty)...)
			for _, e := range some {
				f.client.Produce(context.Background(), e.record(f.topic), nil)
			}
			events = append(events, some...)
		}
	})
	owned := func(consumers ...*running) {
		t.Helper()
		cdctest.Eventually(t, time.Minute, func() error {
			for i, c := range consumers {
				if n := c.count(t, "inventory_consumer_partitions"); int(n) != 6/len(consumers) {
					return fmt.Errorf("consumer %d of %d has %v of 6 partitions", i, len(consumers), n)
				}
			}
			return nil
		})
		f.waitApplied(f.applied() + 50)
	}
	a := f.start(group)
	owned(a)
	b, c := f.start(group), f.start(group)
	owned(a, b, c)
	a.stop()
	f.waitApplied(f.applied() + 100)
	d := f.start(group)
	owned(b, c, d)
	b.stop()
	c.stop()
	owned(d)
	close(stop)
	load.Wait()
	if err := f.client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.waitApplied(len(events))
	f.waitCommitted(group, int64(len(events)))
	f.audit(plenty, events)

	var duplicates float64
	for _, r := range []*running{a, b, c, d} {
		duplicates += r.count(t, "inventory_events_duplicate_total")
	}
	if duplicates > 0 {
		t.Errorf("%v duplicates, though every consumer left in good order", duplicates)
	}
}

func TestPartitionIsNotGivenAwayWithAnEventInHand(t *testing.T) {
	cdctest.Long(t, "waits for a rebalance")
	t.Parallel()
	f := newFixture(t, 2)
	f.setStock(plenty)
	events := orders(30, skusOf(plenty)...)
	f.produce(events...)
	unlock := f.lockStock()
	group := cdctest.Name(t, "inventory")
	a := f.start(group)
	f.waitBlocked()
	b := f.start(group)
	cdctest.Eventually(t, 30*time.Second, func() error {
		if b.count(t, "inventory_consumer_partitions") == 0 {
			return errors.New("the second consumer has no partition")
		}
		return nil
	})
	unlock()
	f.waitCommitted(group, int64(len(events)))
	f.audit(plenty, events)
	if n := a.count(t, "inventory_events_duplicate_total") + b.count(t, "inventory_events_duplicate_total"); n > 0 {
		t.Errorf("%v events were in two hands", n)
	}
}

func TestOffsetIsCommittedAfterTheTransaction(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.setStock(map[string]int64{"tea": 5})
	f.produce(paid(orderID(), item("tea", 1)))
	unlock := f.lockStock()
	group := cdctest.Name(t, "inventory")
	f.start(group)
	f.waitBlocked()
	if at := f.committed(group); len(at) > 0 {
		t.Errorf("offset %v is committed and the event is not applied", at)
	}
	unlock()
	f.waitCommitted(group, 1)
	f.wantStock(map[string]int64{"tea": 4})
}

// lockStock keeps all other sessions from changing the stock.
func (f *fixture) lockStock() (unlock func()) {
	f.Helper()
	tx, err := f.pool.Begin(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	if _, err := tx.Exec(f.Context(), `SELECT FROM stock FOR UPDATE`); err != nil {
		f.Fatal(err)
	}
	unlock = sync.OnceFunc(func() { _ = tx.Rollback(context.Background()) })
	f.Cleanup(unlock)
	return unlock
}

// waitBlocked waits until a session waits for a lock.
func (f *fixture) waitBlocked() {
	f.Helper()
	cdctest.Eventually(f, 30*time.Second, func() error {
		var waiting int
		if err := f.pool.QueryRow(f.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting); err != nil {
			return err
		}
		if waiting == 0 {
			return errors.New("no session waits for a lock")
		}
		return nil
	})
}

func TestStopFinishesTheEventInHandAndLeavesTheGroup(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.setStock(map[string]int64{"tea": 500})
	for range 200 {
		f.produce(paid(orderID(), item("tea", 1)))
	}
	unlock := f.lockStock()
	group := cdctest.Name(t, "inventory")
	first := f.start(group)
	f.waitBlocked()
	stopped := make(chan struct{})
	go func() {
		first.stop()
		close(stopped)
	}()
	unlock()
	<-stopped
	applied := f.applied()
	if applied == 0 || f.committed(group)[0] != int64(applied) {
		t.Errorf("%d events applied, offset %d committed", applied, f.committed(group)[0])
	}
	// The next consumer need not wait for a session timeout, and sees no event twice.
	begun := time.Now()
	second := f.start(group)
	f.waitCommitted(group, 200)
	if took := time.Since(begun); took > cdctest.Patience(8*time.Second) {
		t.Errorf("the next consumer needed %v", took)
	}
	if n := second.count(t, "inventory_events_duplicate_total"); n > 0 {
		t.Errorf("%v duplicates", n)
	}
	f.wantStock(map[string]int64{"tea": 300})
}

func TestMalformedEventsStopNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.setStock(map[string]int64{"tea": 10})
	good := func() *kgo.Record { return paid(orderID(), item("tea", 1)).record(f.topic) }
	bad := paid(orderID(), item("tea", -5))
	full := paid(orderID(), item("tea", 1))
	noID := good()
	noID.Headers = noID.Headers[1:]
	odd := good()
	odd.Headers[0].Value = []byte("a\x00b\xff")
	records := []*kgo.Record{
		good(),
		{Topic: f.topic, Value: []byte("secret")},
		bad.record(f.topic),
		noID,
		odd,
		{Topic: f.topic, Value: nil, Headers: full.record(f.topic).Headers},
		{Topic: f.topic, Value: []byte("secret"), Headers: []kgo.RecordHeader{{Key: "type", Value: []byte("OrderCreated")}}},
		good(),
	}
	f.produceRecords(records...)
	group := cdctest.Name(t, "inventory")
	r := f.start(group)
	f.waitCommitted(group, int64(len(records)))
	f.wantStock(map[string]int64{"tea": 8})

	rows, err := f.pool.Query(t.Context(), `SELECT format('%s %s', kafka_offset, reason) FROM inbox_parked
		WHERE topic = $1 AND partition = 0 AND consumer = 'inventory' ORDER BY kafka_offset`, f.topic)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	want := []string{
		"1 header id is missing",
		"2 items[0].quantity is not between 1 and 1000000000",
		"3 header id is missing",
		"4 header id is not UTF-8 text, so the inbox cannot compare it: write an id as text, a UUID as its 36 characters",
		"5 the value is empty",
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q (%v)", got, want, err)
	}
	if r.count(t, "inventory_events_parked_total") != 5 || r.count(t, "inventory_events_skipped_total") != 1 {
		t.Error("not counted")
	}

	// When they are delivered again, they are not recorded again.
	again := cdctest.Name(t, "again")
	r = f.start(again)
	f.waitCommitted(again, int64(len(records)))
	var n int
	if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM inbox_parked`).Scan(&n); err != nil || n != 5 {
		t.Errorf("%d are recorded now (%v)", n, err)
	}
	if log := r.log.String(); strings.Contains(log, "secret") || strings.Contains(log, "ada@shop.example") {
		t.Error("a payload is in the log")
	}
}

func TestWhatPostgreSQLRefusesIsMalformedToo(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.setStock(map[string]int64{"tea": 10})
	if _, err := f.owner().Exec(t.Context(), `ALTER TABLE stock_movements ADD CONSTRAINT never_3 CHECK (change <> -3)`); err != nil {
		t.Fatal(err)
	}
	refused := paid(orderID(), item("tea", 3))
	f.produce(refused, paid(orderID(), item("tea", 1)))
	group := cdctest.Name(t, "inventory")
	f.start(group)
	f.waitCommitted(group, 2)
	f.wantStock(map[string]int64{"tea": 9})
	f.wantAnswersMatchMovements() // although the transaction with both events has failed
	var id, reason string
	if err := f.pool.QueryRow(t.Context(), `SELECT event_id, reason FROM inbox_parked`).Scan(&id, &reason); err != nil ||
		id != refused.ID || reason != "PostgreSQL refuses it: SQLSTATE 23514 never_3" {
		t.Errorf("recorded %s: %s (%v)", id, reason, err)
	}
}

func TestDatabaseAwayAndBack(t *testing.T) {
	cdctest.Long(t, "starts and stops a server")
	t.Parallel()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "inventory"); err != nil {
		t.Fatal(err)
	}
	f := newFixtureOn(t, migrateURL(t, server.URL("inventory")), cdctest.Kafka(t), 3)
	f.setStock(plenty)
	events := orders(100, skusOf(plenty)...)
	group := cdctest.Name(t, "inventory")
	r := f.start(group)
	f.produce(events[:40]...)
	f.waitApplied(40)
	f.waitReady(r, "")

	if err := server.Stop(t.Context(), "immediate"); err != nil {
		t.Fatal(err)
	}
	f.produce(events[40:]...)
	f.waitReady(r, "database")
	// Another consumer joins meanwhile: the consumer that cannot work does not delay the group.
	second := f.start(group)
	cdctest.Eventually(t, 30*time.Second, func() error {
		if second.count(t, "inventory_consumer_partitions") == 0 || r.count(t, "inventory_consumer_partitions") == 3 {
			return errors.New("no rebalance")
		}
		return nil
	})
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.waitCommitted(group, int64(len(events)))
	f.audit(plenty, events)
	f.waitReady(r, "")
	log := r.log.String()
	if n, m := strings.Count(log, `"message":"failing, retrying`), strings.Count(log, `"message":"recovered"`); n != 1 || m != 1 {
		t.Errorf("%d beginnings and %d ends of trouble in the log, want one each", n, m)
	}
}

// waitReady waits until the consumer is ready, and fails with the reason if it is not.
func (f *fixture) waitReady(r *running, whatFor string) {
	f.Helper()
	cdctest.Eventually(f, 30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(f.Context(), 2*time.Second)
		defer cancel()
		err := r.Ready(ctx)
		switch {
		case whatFor == "":
			return err
		case err == nil || !strings.Contains(err.Error(), whatFor):
			return fmt.Errorf("not unready for the %s: %w", whatFor, err)
		}
		return nil
	})
}

func TestKafkaAwayAndBack(t *testing.T) {
	cdctest.Long(t, "waits for sessions to end")
	t.Parallel()
	dir, port := t.TempDir(), freePort(t)
	start := func() *devenv.Kafka {
		t.Helper()
		kafka, err := devenv.StartKafka(devenv.KafkaConfig{DataDir: dir, Ports: []int{port}})
		if err != nil {
			t.Fatal(err)
		}
		return kafka
	}
	kafka := start()
	f := newFixtureOn(t, database(t), kafka.Brokers(), 3)
	f.setStock(plenty)
	events := orders(60, skusOf(plenty)...)
	group := cdctest.Name(t, "inventory")
	r := f.start(group)
	f.produce(events[:40]...)
	f.waitApplied(40)
	f.waitReady(r, "")

	kafka.Close()
	f.waitReady(r, "Kafka at "+f.brokers[0])
	f.wantStock(map[string]int64{}) // reads still work
	kafka = start()
	defer kafka.Close()
	defer r.stop()
	f.produce(events[40:]...)
	f.waitApplied(len(events))
	f.waitReady(r, "")
	f.audit(plenty, events)
}

func TestWithoutKafkaItStopsAllTheSame(t *testing.T) {
	t.Parallel()
	f := newFixtureOn(t, database(t), []string{fmt.Sprintf("127.0.0.1:%d", freePort(t))}, 0)
	r := f.start("inventory")
	f.waitReady(r, "about topic")
	begun := time.Now()
	r.stop()
	if took := time.Since(begun); took > cdctest.Patience(8*time.Second) {
		t.Errorf("stopping took %v", took)
	}
}

func TestTopicMadeLate(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.setStock(map[string]int64{"tea": 2})
	r := f.start(cdctest.Name(t, "inventory"))
	f.waitReady(r, f.topic)
	cdctest.CreateTopic(t, f.brokers, f.topic, 3)
	f.produce(paid(orderID(), item("tea", 1)))
	f.waitApplied(1)
	f.waitReady(r, "")
}

func TestTransactionsOfTheRelay(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.setStock(map[string]int64{"tea": 10})
	producer, err := kgo.NewClient(kgo.SeedBrokers(f.brokers...), kgo.TransactionalID(cdctest.Name(t, "relay")))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for _, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit, kgo.TryAbort} {
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := producer.ProduceSync(t.Context(), paid(orderID(), item("tea", 1)).record(f.topic)).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := producer.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	group := cdctest.Name(t, "inventory")
	f.start(group)
	f.waitCommitted(group, 8) // four records and four markers: no lag is left
	f.wantStock(map[string]int64{"tea": 8})
}

func TestLagIsWhatIsNotApplied(t *testing.T) {
	cdctest.Long(t, "waits for measurements")
	t.Parallel()
	f := newFixture(t, 3)
	f.setStock(plenty)
	unlock := f.lockStock()
	events := orders(30, skusOf(plenty)...)
	f.produce(events...)
	r := f.start(cdctest.Name(t, "inventory"))
	lag := func(want int) {
		t.Helper()
		cdctest.Eventually(t, 30*time.Second, func() error {
			if got := r.count(t, "inventory_consumer_lag"); int(got) != want {
				return fmt.Errorf("lag %v, want %d", got, want)
			}
			return nil
		})
	}
	lag(len(events))
	unlock()
	lag(0)
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := devenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestBothVersionsOfOrderPaidTakeTheSame: both versions are mixed on the topic, with unknown fields.
func TestBothVersionsOfOrderPaidTakeTheSame(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	start := map[string]int64{"tea": 100}
	f.setStock(start)
	var events []event
	for i := range 20 {
		ev := paid(orderID(), item("tea", 1+int64(i%3)))
		if i%2 == 1 {
			ev.value = body(ev.Event, map[string]any{
				"schemaVersion": 2, "totalAmount": nil, "currency": nil, "giftWrap": map[string]any{"ribbon": true},
				"payment": map[string]any{"id": orderID(), "amount": "44.80", "currency": "EUR", "method": "card"},
			})
		}
		events = append(events, ev)
	}
	f.produce(events...)
	f.start("both")
	f.waitApplied(len(events))
	f.audit(start, events)
	if stock, err := f.store.Get(t.Context(), "tea"); err != nil || stock.Available != 61 {
		t.Errorf("%d left (%v), want 61", stock.Available, err)
	}
}
