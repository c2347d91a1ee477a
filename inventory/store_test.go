package inventory_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/inventory"
)

func (f *fixture) apply(e event) inventory.Applied {
	f.Helper()
	done, err := f.store.Apply(f.Context(), e.Event, inbox.Message{Topic: "orders"})
	if err != nil {
		f.Fatal(err)
	}
	return done
}

func storeFixture(t *testing.T, stock map[string]int64) *fixture {
	t.Helper()
	pool := database(t)
	f := &fixture{T: t, pool: pool, store: inventory.NewStore(pool)}
	f.setStock(stock)
	return f
}

func (f *fixture) wantStock(want map[string]int64) {
	f.Helper()
	for sku, available := range want {
		if got, err := f.store.Get(f.Context(), sku); err != nil || got.Available != available {
			f.Errorf("%s: %d in stock, want %d (%v)", sku, got.Available, available, err)
		}
	}
}

func TestPaidOrderTakesWhatIsThereAndRecordsTheRest(t *testing.T) {
	f := storeFixture(t, map[string]int64{"tea": 10, "cup": 1})
	order := orderID()
	// tea twice is one quantity; cup is short, and spoon is unknown
	pay := paid(order, item("tea", 2), item("cup", 2), item("spoon", 1), item("tea", 3))
	done := f.apply(pay)
	got := map[string]string{}
	for _, m := range done.Movements {
		got[m.SKU] = m.Reason
	}
	if want := map[string]string{"tea": "sold", "cup": "shortage", "spoon": "shortage"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("moved %v, want %v", got, want)
	}
	f.wantStock(map[string]int64{"tea": 5, "cup": 1})

	// What comes into stock later is not taken by an order that was short.
	f.setStock(map[string]int64{"cup": 100})
	cancel := cancelled(order, true, pay.Items...)
	f.apply(cancel)
	f.wantStock(map[string]int64{"tea": 10, "cup": 100})
	f.audit(map[string]int64{"tea": 10, "cup": 100}, []event{pay, cancel})

	shortages, err := f.store.Movements(t.Context(), "", inventory.Shortage, 0, 10)
	if err != nil || len(shortages) != 2 || *shortages[0].Requested != 2 || *shortages[1].Requested != 1 {
		t.Errorf("shortages %+v, %v", shortages, err)
	}
}

func TestLastPieceIsSold(t *testing.T) {
	f := storeFixture(t, map[string]int64{"tea": 3})
	f.apply(paid(orderID(), item("tea", 3)))
	f.wantStock(map[string]int64{"tea": 0})
}

func TestCancellationGivesBackOnlyWhatWasTaken(t *testing.T) {
	f := storeFixture(t, map[string]int64{"tea": 10})
	never, unpaid, twice := orderID(), orderID(), orderID()
	pay, first, again := paid(twice, item("tea", 4)), cancelled(twice, true, item("tea", 4)), cancelled(twice, true, item("tea", 4))
	events := []event{
		cancelled(never, true, item("tea", 2)),   // its payment never came
		cancelled(unpaid, false, item("tea", 2)), // nothing was paid
		pay, first, again,                        // a second cancellation with an id of its own
	}
	for _, e := range events {
		if done := f.apply(e); done.Duplicate {
			t.Errorf("%s is no duplicate", e.Type)
		}
	}
	f.wantStock(map[string]int64{"tea": 10})
}

func TestSameEventFromManySidesIsAppliedOnce(t *testing.T) {
	f := storeFixture(t, map[string]int64{"tea": 1000})
	var events []event
	for range 20 {
		events = append(events, paid(orderID(), item("tea", 1)))
	}
	var mu sync.Mutex
	first := map[string]int{}
	var group errgroup.Group
	for range 4 {
		group.Go(func() error {
			for _, e := range events {
				done, err := f.store.Apply(t.Context(), e.Event, inbox.Message{Topic: "orders"})
				if err != nil {
					return err
				}
				if !done.Duplicate {
					mu.Lock()
					first[e.ID]++
					mu.Unlock()
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for id, n := range first {
		if n != 1 {
			t.Errorf("event %s applied %d times", id, n)
		}
	}
	f.audit(map[string]int64{"tea": 1000}, events)
}

func TestOrdersOfTheSameSKUsNeitherDeadlockNorOversell(t *testing.T) {
	skus := []string{"a", "b", "c", "d", "e"}
	start := map[string]int64{}
	for _, sku := range skus {
		start[sku] = 150 // less than is wanted
	}
	f := storeFixture(t, start)
	var events []event
	for range 200 {
		var items []inventory.Item
		for _, i := range rand.Perm(len(skus)) {
			items = append(items, item(skus[i], 1))
		}
		events = append(events, paid(orderID(), items...))
	}
	var group errgroup.Group
	for worker := range 4 {
		group.Go(func() error {
			for i := worker; i < len(events); i += 4 {
				if _, err := f.store.Apply(t.Context(), events[i].Event, inbox.Message{Topic: "orders"}); err != nil {
					return err // a deadlock is one
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	f.audit(start, events)
	for _, sku := range skus {
		f.wantStock(map[string]int64{sku: 0})
	}
}
