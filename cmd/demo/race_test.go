package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/inventory"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/saga"
	"github.com/walpost/walpost/sql"
)

// race has both services' databases. The test itself decides when each event arrives at the other side.
type race struct {
	*testing.T
	orders, stock           *pgxpool.Pool // with the services' rights
	ordersOwner, stockOwner *pgxpool.Pool
	store                   *inventory.Store
}

func newRace(t *testing.T) *race {
	t.Helper()
	r := &race{T: t}
	for which, pools := range map[sql.Database][2]**pgxpool.Pool{sql.Orders: {&r.orders, &r.ordersOwner}, sql.Inventory: {&r.stock, &r.stockOwner}} {
		admin := cdctest.Database(t)
		service := cdctest.As(admin, string(which)+"_service")
		if err := sql.Migrate(t.Context(), which, admin, service, io.Discard); err != nil {
			t.Fatal(err)
		}
		for i, url := range []string{service, admin} {
			var err error
			if *pools[i], err = pgxpool.New(t.Context(), url); err != nil {
				t.Fatal(err)
			}
			t.Cleanup((*pools[i]).Close)
		}
	}
	r.store = inventory.NewStore(r.stock)
	return r
}

// a row of an outbox.
type told struct {
	id, eventType string
	payload       []byte
}

// rows returns the outbox rows of an order, in the order of the commits: here one session writes after the other.
func (r *race) rows(outbox *pgxpool.Pool, order uuid.UUID) []told {
	r.Helper()
	rows, _ := outbox.Query(r.Context(), `SELECT id::text, event_type, payload::text::bytea FROM outbox WHERE aggregate_id = $1 ORDER BY created_at`, order.String())
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e told, err error) { return e, row.Scan(&e.id, &e.eventType, &e.payload) })
	if err != nil {
		r.Fatal(err)
	}
	return found
}

// marked does the inbox's work: it applies the event in the transaction of its mark, and does nothing for a copy.
func marked(e told, effect func(context.Context, pgx.Tx) error) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `INSERT INTO inbox VALUES ('race', $1, inbox_day($1), 't', 0, 0) ON CONFLICT DO NOTHING`, e.id)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		return effect(ctx, tx)
	}
}

// twice delivers an event and a copy of it.
func (r *race) twice(pool *pgxpool.Pool, e told, effect func(context.Context, pgx.Tx) error) {
	r.Helper()
	for range 2 {
		if err := pgx.BeginFunc(r.Context(), pool, func(tx pgx.Tx) error { return marked(e, effect)(r.Context(), tx) }); err != nil {
			r.Fatalf("%s: %v", e.eventType, err)
		}
	}
}

func (r *race) toStock(e told) {
	r.Helper()
	if e.eventType != inventory.OrderPaid && e.eventType != inventory.OrderCancelled {
		return
	}
	ev, err := inventory.Decode(e.eventType, e.id, e.payload)
	if err != nil {
		r.Fatal(err)
	}
	r.twice(r.stock, e, func(ctx context.Context, tx pgx.Tx) error {
		_, err := r.store.Apply(ctx, tx, ev)
		return err
	})
}

func (r *race) toOrders(e told) {
	r.Helper()
	ev, err := saga.Decode(e.eventType, e.id, e.payload)
	if err != nil {
		r.Fatal(err)
	}
	r.twice(r.orders, e, func(ctx context.Context, tx pgx.Tx) error {
		_, err := saga.Apply(ctx, tx, ev)
		return err
	})
}

// paid places and pays an order for two pieces of a new SKU with this stock.
func (r *race) paid(available int64) (order uuid.UUID, sku string) {
	r.Helper()
	sku = uuid.NewString()
	_, err := r.store.Set(r.Context(), sku, available)
	if err == nil {
		err = r.orders.QueryRow(r.Context(), `SELECT pay_order(create_order('b', 'a@b.example', jsonb_build_array(jsonb_build_object('sku', $1::text, 'quantity', 2, 'unitPrice', '0.35'))))`, sku).Scan(&order)
	}
	if err != nil {
		r.Fatal(err)
	}
	return order, sku
}

func (r *race) change(order uuid.UUID, change func(context.Context, pgx.Tx, uuid.UUID) (orders.Change, error)) error {
	return pgx.BeginFunc(r.Context(), r.orders, func(tx pgx.Tx) error {
		_, err := change(r.Context(), tx, order)
		return err
	})
}

var changes = map[string]func(context.Context, pgx.Tx, uuid.UUID) (orders.Change, error){
	"cancel": orders.Cancel,
	"ship": func(ctx context.Context, tx pgx.Tx, id uuid.UUID) (orders.Change, error) {
		return orders.Ship(ctx, tx, id, "")
	},
}

// run plays one order with the changes that people request. choose selects the next of the possible steps, until none
// is left.
func (r *race) run(order uuid.UUID, asked []string, choose func(of int) int) (played []string) {
	r.Helper()
	var heardByStock, heardByOrders int
	for {
		type step struct {
			name string
			do   func()
		}
		var can []step
		ofOrders, ofStock := r.rows(r.ordersOwner, order), r.rows(r.stockOwner, order)
		if heardByStock < len(ofOrders) {
			can = append(can, step{"stock hears " + ofOrders[heardByStock].eventType, func() { r.toStock(ofOrders[heardByStock]); heardByStock++ }})
			if !slices.Contains([]string{inventory.OrderPaid, inventory.OrderCancelled}, ofOrders[heardByStock].eventType) {
				can[0].do() // it moves no stock, so its time does not matter
				continue
			}
		}
		if heardByOrders < len(ofStock) {
			can = append(can, step{"order hears " + ofStock[heardByOrders].eventType, func() { r.toOrders(ofStock[heardByOrders]); heardByOrders++ }})
		}
		for i, name := range asked {
			can = append(can, step{name, func() {
				asked = slices.Delete(slices.Clone(asked), i, i+1)
				if err := r.change(order, changes[name]); err != nil && !errors.As(err, new(*orders.StateError)) {
					r.Fatal(err)
				}
			}})
		}
		if len(can) == 0 {
			return played
		}
		next := can[choose(len(can))]
		played = append(played, next.name)
		next.do()
	}
}

// check checks that the end is legal: money, stock and events must be those of the state.
func (r *race) check(order uuid.UUID, sku string, start int64, played []string) (status string) {
	r.Helper()
	var balance, due string
	var available int64
	if err := r.ordersOwner.QueryRow(r.Context(), `SELECT status, balance::text, due::text FROM order_balances WHERE order_id = $1`, order).Scan(&status, &balance, &due); err != nil {
		r.Fatal(err)
	}
	if err := r.stockOwner.QueryRow(r.Context(), `SELECT available FROM stock WHERE sku = $1 AND available = (SELECT sum(change) FROM stock_movements WHERE sku = $1)`, sku).Scan(&available); err != nil {
		r.Fatal(err)
	}
	var heard []string
	for _, e := range r.rows(r.stockOwner, order) {
		heard = append(heard, e.eventType)
	}
	legal := map[string]struct {
		taken int64
		due   string
		heard []string
	}{
		"confirmed StockReserved":               {2, "0.70", []string{"StockReserved"}},
		"shipped StockReserved":                 {2, "0.70", []string{"StockReserved"}},
		"rejected StockRejected":                {0, "0.00", []string{"StockRejected"}},
		"cancelled StockReserved StockReleased": {0, "0.00", []string{"StockReserved", "StockReleased"}},
		"cancelled StockRejected":               {0, "0.00", []string{"StockRejected"}},
	}
	want, ok := legal[status+" "+strings.Join(heard, " ")]
	if !ok || available != start-want.taken || balance != want.due || due != want.due || ok && (start >= 2) != (heard[0] == "StockReserved") {
		r.Errorf("%s: order %s, stock %d of %d, balance %s of %s, the stock answered %v", strings.Join(played, ", "), status, available, start, balance, due, heard)
	}
	var history int
	if err := r.ordersOwner.QueryRow(r.Context(), `SELECT count(*) FROM order_history WHERE order_id = $1 AND what = ANY($2)`, order, heard).Scan(&history); err != nil || history != len(heard) {
		r.Errorf("%s: %d of %v in the order's history (%v)", strings.Join(played, ", "), history, heard, err)
	}
	return status
}

// TestCancelShipAndStockInEveryOrder plays every order in which a cancellation, a shipment and the events between the
// two databases can happen, with enough in stock and with too little; every event arrives twice.
func TestCancelShipAndStockInEveryOrder(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	r := newRace(t)
	for _, start := range []int64{2, 1} {
		ends := map[string]int{}
		for _, asked := range [][]string{nil, {"ship"}, {"cancel"}, {"cancel", "ship"}} {
			// A schedule is the list of its choices. The next schedule differs in the last choice that has an
			// alternative left.
			for prefix := []int{}; prefix != nil; {
				var made, outOf []int
				order, sku := r.paid(start)
				played := r.run(order, asked, func(of int) int {
					pick := 0
					if len(made) < len(prefix) {
						pick = prefix[len(made)]
					}
					made, outOf = append(made, pick), append(outOf, of)
					return pick
				})
				ends[r.check(order, sku, start, played)]++
				last := len(made) - 1
				for last >= 0 && made[last] == outOf[last]-1 {
					last--
				}
				prefix = nil
				if last >= 0 {
					prefix = append(made[:last:last], made[last]+1)
				}
			}
		}
		t.Logf("%d in stock: %v", start, ends)
		for _, end := range map[bool][]string{true: {"cancelled", "confirmed", "shipped"}, false: {"cancelled", "rejected"}}[start >= 2] {
			if ends[end] == 0 {
				t.Errorf("no schedule ends %s: %v", end, ends)
			}
		}
	}
}

// TestCancelAndAnswerAtTheSameInstant: one of the two waits for the other's transaction.
func TestCancelAndAnswerAtTheSameInstant(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	r := newRace(t)
	for _, start := range []int64{2, 1} {
		for _, cancelFirst := range []bool{true, false} {
			for _, firstCommits := range []bool{true, false} {
				order, sku := r.paid(start)
				r.toStock(r.rows(r.ordersOwner, order)[1])
				answer := r.rows(r.stockOwner, order)[0]
				ev, err := saga.Decode(answer.eventType, answer.id, answer.payload)
				if err != nil {
					t.Fatal(err)
				}
				cancel := func(ctx context.Context, tx pgx.Tx) error {
					_, err := orders.Cancel(ctx, tx, order)
					return err
				}
				hear := marked(answer, func(ctx context.Context, tx pgx.Tx) error {
					_, err := saga.Apply(ctx, tx, ev)
					return err
				})
				first, second := cancel, hear
				if !cancelFirst {
					first, second = hear, cancel
				}
				tx, err := r.orders.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := first(t.Context(), tx); err != nil {
					t.Fatal(err)
				}
				waiting := make(chan error, 1)
				go func() {
					waiting <- pgx.BeginFunc(context.Background(), r.orders, func(tx pgx.Tx) error { return second(context.Background(), tx) })
				}()
				cdctest.Eventually(t, 30*time.Second, func() error {
					var n int
					err := r.ordersOwner.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n)
					if err == nil && n == 0 {
						err = errors.New("no session waits")
					}
					return err
				})
				end := tx.Rollback
				if firstCommits {
					end = tx.Commit
				}
				if err := end(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := <-waiting; err != nil && !errors.As(err, new(*orders.StateError)) {
					t.Fatal(err)
				}
				played := r.run(order, []string{"cancel"}, func(int) int { return 0 })
				r.check(order, sku, start, append([]string{fmt.Sprintf("cancel first: %t, and commits: %t", cancelFirst, firstCommits)}, played...))
			}
		}
	}
}
