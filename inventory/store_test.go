package inventory_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/inventory"
)

// apply calls the store as the inbox does.
func (f *fixture) apply(e event) ([]inventory.Movement, error) {
	var done []inventory.Movement
	err := pgx.BeginFunc(f.Context(), f.pool, func(tx pgx.Tx) (err error) {
		if _, err = tx.Exec(f.Context(), `INSERT INTO inbox VALUES ('inventory', $1, inbox_day($1), 'orders', 0, 0)`, e.ID); err == nil {
			var all [][]inventory.Movement
			if all, err = f.store.Apply(f.Context(), tx, e.Event); err == nil {
				done = all[0]
			}
		}
		return err
	})
	return done, err
}

func (f *fixture) mustApply(e event) []inventory.Movement {
	f.Helper()
	done, err := f.apply(e)
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

func TestPaidOrderIsServedWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	start := map[string]int64{"tea": 10, "cup": 1}
	f := storeFixture(t, start)
	order := orderID()
	// The two lines of tea make one quantity, which is in stock; cup is short, and spoon is unknown.
	pay := paid(order, item("tea", 2), item("cup", 2), item("spoon", 1), item("tea", 3))
	done := f.mustApply(pay)
	got := map[string]string{}
	for _, m := range done {
		got[m.SKU] = m.Reason
	}
	if want := map[string]string{"cup": "shortage", "spoon": "shortage"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("moved %v, want %v", got, want)
	}
	f.wantStock(start)

	// Stock that arrives later is not taken by an order that was rejected, and not given back by its cancellation.
	f.setStock(map[string]int64{"cup": 100})
	cancel := cancelled(order, true, pay.Items...)
	f.mustApply(cancel)
	f.wantStock(map[string]int64{"tea": 10, "cup": 100})
	whole := paid(orderID(), item("tea", 2), item("cup", 2), item("tea", 3))
	f.mustApply(whole)
	f.wantStock(map[string]int64{"tea": 5, "cup": 98})
	f.audit(map[string]int64{"tea": 10, "cup": 100}, []event{pay, cancel, whole})

	shortages, err := f.store.Movements(t.Context(), inventory.MovementOptions{Reason: inventory.Shortage, Limit: 10})
	if err != nil || len(shortages) != 2 || *shortages[0].Requested != 2 || *shortages[1].Requested != 1 {
		t.Errorf("shortages %+v, %v", shortages, err)
	}
}

// TestManyEventsAtOnceAreAsOneAfterTheOther: each event of a batch finds the stock that the earlier events have left.
func TestManyEventsAtOnceAreAsOneAfterTheOther(t *testing.T) {
	t.Parallel()
	f := storeFixture(t, map[string]int64{"tea": 3, "cup": 9})
	a, b, c, d := orderID(), orderID(), orderID(), orderID()
	events := []event{
		paid(a, item("tea", 2), item("cup", 1)), paid(b, item("tea", 2)), // one piece is missing for b
		cancelled(a, true, item("tea", 2), item("cup", 1)), cancelled(a, true, item("tea", 2)), // the second cancellation has nothing to give back
		paid(c, item("tea", 3)), cancelled(b, true, item("tea", 2)), cancelled(orderID(), false, item("tea", 1)), paid(d, item("cup", 9)),
	}
	var all []inventory.Event
	for _, e := range events {
		all = append(all, e.Event)
	}
	var done [][]inventory.Movement
	if err := pgx.BeginFunc(t.Context(), f.pool, func(tx pgx.Tx) (err error) {
		done, err = f.store.Apply(t.Context(), tx, all...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, movements := range done {
		line := ""
		for _, m := range movements {
			line += fmt.Sprintf("%s %s %d ", m.Reason, m.SKU, m.Change)
		}
		got = append(got, strings.TrimSpace(line))
	}
	want := []string{"sold cup -1 sold tea -2", "shortage tea 0", "returned cup 1 returned tea 2", "", "sold tea -3", "", "", "sold cup -9"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	f.wantStock(map[string]int64{"tea": 0, "cup": 0})
	f.wantAnswersMatchMovements()
}

func TestLastPieceIsSold(t *testing.T) {
	t.Parallel()
	f := storeFixture(t, map[string]int64{"tea": 3})
	f.mustApply(paid(orderID(), item("tea", 3)))
	f.wantStock(map[string]int64{"tea": 0})
}

func TestCancellationGivesBackOnlyWhatWasTaken(t *testing.T) {
	t.Parallel()
	f := storeFixture(t, map[string]int64{"tea": 10})
	never, unpaid, twice := orderID(), orderID(), orderID()
	pay, first, again := paid(twice, item("tea", 4)), cancelled(twice, true, item("tea", 4)), cancelled(twice, true, item("tea", 4))
	for _, e := range []event{
		cancelled(unpaid, false, item("tea", 2)), // nothing was paid
		pay, first, again,                        // a second cancellation with another id
	} {
		f.mustApply(e)
	}
	_, err := f.apply(cancelled(never, true, item("tea", 2))) // its payment never arrived
	if err == nil || !strings.Contains(err.Error(), never+" does not exist here") {
		t.Errorf("the cancellation of an unknown order: %v", err)
	}
	f.wantStock(map[string]int64{"tea": 10})
}

func TestOrdersOfTheSameSKUsNeitherDeadlockNorOversell(t *testing.T) {
	cdctest.Long(t, "writes under load")
	t.Parallel()
	skus := []string{"a", "b", "c", "d", "e"}
	start := map[string]int64{}
	for _, sku := range skus {
		start[sku] = 150 // less than the orders need
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
				if _, err := f.apply(events[i]); err != nil {
					return err // a deadlock is an error
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
