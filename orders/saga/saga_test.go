package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/saga"
	"github.com/walpost/walpost/sql"
)

func TestMain(m *testing.M) { cdctest.Main(m) }

// shop is an orders database, seen with the service's rights and with its owner's.
type shop struct {
	*testing.T
	pool, owner *pgxpool.Pool
}

func open(t *testing.T) *shop {
	t.Helper()
	admin := cdctest.Database(t)
	service := cdctest.As(admin, "orders_service")
	if err := sql.Migrate(t.Context(), sql.Orders, admin, service, io.Discard); err != nil {
		t.Fatal(err)
	}
	s := &shop{T: t}
	for pool, url := range map[**pgxpool.Pool]string{&s.pool: service, &s.owner: admin} {
		var err error
		if *pool, err = pgxpool.New(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*pool).Close)
	}
	return s
}

// do makes a change of an order, in a transaction.
func (s *shop) do(change func(context.Context, pgx.Tx) error) error {
	return pgx.BeginFunc(s.Context(), s.pool, func(tx pgx.Tx) error { return change(s.Context(), tx) })
}

// paid places and pays an order.
func (s *shop) paid() (id uuid.UUID) {
	s.Helper()
	if err := s.pool.QueryRow(s.Context(), `SELECT pay_order(create_order('b', 'a@b.example', '[{"sku": "tea", "quantity": 2, "unitPrice": "19.90"}]'))`).Scan(&id); err != nil {
		s.Fatal(err)
	}
	return id
}

func (s *shop) cancel(id uuid.UUID) error {
	return s.do(func(ctx context.Context, tx pgx.Tx) error {
		_, err := orders.Cancel(ctx, tx, id)
		return err
	})
}

func (s *shop) apply(ev saga.Event) error {
	return s.do(func(ctx context.Context, tx pgx.Tx) error {
		_, err := saga.Apply(ctx, tx, ev)
		return err
	})
}

func answer(eventType string, order uuid.UUID) saga.Event {
	ev := saga.Event{ID: uuid.Must(uuid.NewV7()), Type: eventType, OrderID: order, Detail: saga.Detail{CausedBy: uuid.Must(uuid.NewV7())}}
	if eventType == saga.StockRejected {
		ev.Detail.Short = []orders.Short{{SKU: "tea", Requested: 2, Available: 1}}
	} else {
		ev.Detail.Items = []saga.Item{{SKU: "tea", Quantity: 2}}
	}
	return ev
}

// story returns an order's state, its history and its payments, in a line.
func (s *shop) story(id uuid.UUID) (story string) {
	s.Helper()
	if err := s.owner.QueryRow(s.Context(), `SELECT concat_ws(': ', status,
			(SELECT string_agg(what, ' ' ORDER BY at, id) FROM order_history WHERE order_id = $1),
			(SELECT string_agg(kind || ' ' || amount, ' ' ORDER BY at) FROM payments WHERE order_id = $1))
		FROM orders WHERE id = $1`, id).Scan(&story); err != nil {
		s.Fatal(err)
	}
	return story
}

func TestAPaidOrderIsConfirmedOrRejectedAndRefunded(t *testing.T) {
	s := open(t)
	confirmed, rejected := s.paid(), s.paid()
	// Each of them twice: they count once even if the inbox has lost its rows.
	reserve, reject := answer(saga.StockReserved, confirmed), answer(saga.StockRejected, rejected)
	for _, ev := range []saga.Event{reserve, reject, reserve, reject} {
		if err := s.apply(ev); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[uuid.UUID]string{
		confirmed: "confirmed: OrderCreated OrderPaid StockReserved OrderConfirmed: charge 39.80",
		rejected:  "rejected: OrderCreated OrderPaid StockRejected OrderRejected: charge 39.80 refund 39.80",
	} {
		if got := s.story(id); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	var payload struct {
		Reason      string
		Short       []orders.Short
		TotalAmount string
	}
	var text string
	if err := s.owner.QueryRow(t.Context(), `SELECT payload::text FROM outbox WHERE event_type = 'OrderRejected'`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(text), &payload); err != nil || payload.Reason != "out_of_stock" || len(payload.Short) != 1 ||
		payload.Short[0] != (orders.Short{SKU: "tea", Requested: 2, Available: 1}) || payload.TotalAmount != "39.80" {
		t.Errorf("%s (%v)", text, err)
	}
}

// TestWhatAnAnswerMayFind applies an answer in every state that an order can have by then.
func TestWhatAnAnswerMayFind(t *testing.T) {
	s := open(t)
	const never = "can never be applied"
	for state, want := range map[string]map[string]string{
		"created":   {saga.StockReserved: never, saga.StockRejected: never, saga.StockReleased: never},
		"paid":      {saga.StockReserved: "confirmed", saga.StockRejected: "rejected", saga.StockReleased: never},
		"confirmed": {saga.StockReserved: never, saga.StockRejected: never, saga.StockReleased: never},
		"rejected":  {saga.StockReserved: never, saga.StockRejected: never, saga.StockReleased: never},
		"cancelled": {saga.StockReserved: "cancelled", saga.StockRejected: "cancelled", saga.StockReleased: "cancelled"},
	} {
		for eventType, becomes := range want {
			order := s.in(state)
			before := s.story(order)
			err := s.apply(answer(eventType, order))
			story := s.story(order)
			switch {
			case becomes == never:
				if err == nil || story != before {
					t.Errorf("%s for a %s order: %v, %s", eventType, state, err, story)
				}
			case err != nil || !strings.HasPrefix(story, becomes+": ") || !strings.Contains(story, eventType):
				t.Errorf("%s for a %s order: %v, %s", eventType, state, err, story)
			case becomes == state && strings.Replace(story, " "+eventType, "", 1) != before:
				t.Errorf("%s for a %s order: %s became %s", eventType, state, before, story)
			}
		}
	}
	if err := s.apply(answer(saga.StockReserved, uuid.New())); err == nil || !strings.Contains(err.Error(), "does not exist here") {
		t.Errorf("for an unknown order: %v", err)
	}
}

// TestAnOrderInHandHoldsUpNobodyWhoWritesAboutIt: a mail refers to its order, and a batch of mails to many orders, in
// another sequence.
func TestAnOrderInHandHoldsUpNobodyWhoWritesAboutIt(t *testing.T) {
	s := open(t)
	for name, change := range map[string]func(ctx context.Context, tx pgx.Tx, id uuid.UUID) error{
		"an answer": func(ctx context.Context, tx pgx.Tx, id uuid.UUID) error {
			_, err := saga.Apply(ctx, tx, answer(saga.StockReserved, id))
			return err
		},
		"psql": func(ctx context.Context, tx pgx.Tx, id uuid.UUID) error {
			_, err := tx.Exec(ctx, `SELECT cancel_order($1)`, id)
			return err
		},
	} {
		id := s.paid()
		if err := s.do(func(ctx context.Context, tx pgx.Tx) error {
			if err := change(ctx, tx, id); err != nil {
				return err
			}
			_, err := s.pool.Exec(ctx, `SET lock_timeout = '20s'; INSERT INTO order_history (order_id, what) VALUES ('`+id.String()+`', 'test')`)
			return err
		}); err != nil {
			t.Errorf("%s locks the order, and rows about it cannot be written: %v", name, err)
		}
	}
}

// TestAnAnswerThatIsFasterThanTheCommitWaits: the relay may read an order's commit from the WAL before other sessions
// see it.
func TestAnAnswerThatIsFasterThanTheCommitWaits(t *testing.T) {
	s := open(t)
	for _, commits := range []bool{true, false} {
		tx, err := s.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var id uuid.UUID
		if err := tx.QueryRow(t.Context(), `SELECT pay_order(create_order('b', 'a@b.example', '[{"sku": "tea", "quantity": 2, "unitPrice": "19.90"}]'))`).Scan(&id); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.apply(answer(saga.StockReserved, id)) }()
		cdctest.Eventually(t, 30*time.Second, func() error {
			var waits int
			err := s.owner.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waits)
			if err == nil && waits == 0 {
				err = errors.New("no session waits for the order")
			}
			return err
		})
		if commits {
			err = tx.Commit(t.Context())
		} else {
			err = tx.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := <-done; (err == nil) != commits {
			t.Errorf("the order's transaction commits: %t, the answer: %v", commits, err)
		}
	}
	var number int64 // the first is 100001, the second was rolled back
	_, err := s.pool.Exec(t.Context(), `SELECT create_order('b', 'a@b.example', '[{"sku": "tea", "quantity": 1, "unitPrice": "1"}]')`)
	if err := errors.Join(err, s.owner.QueryRow(t.Context(), `SELECT max(number) FROM orders`).Scan(&number)); err != nil || number != 100003 {
		t.Errorf("the third order is %d: waiting has used up numbers (%v)", number, err)
	}
	var left int
	if err := s.owner.QueryRow(t.Context(), `SELECT count(*) FROM orders WHERE status <> 'confirmed' AND number <> 100003`).Scan(&left); err != nil || left > 0 {
		t.Errorf("%d orders were left by waiting (%v)", left, err)
	}
}

// in returns an order in this state.
func (s *shop) in(state string) (id uuid.UUID) {
	s.Helper()
	var err error
	switch state {
	case "created":
		err = s.pool.QueryRow(s.Context(), `SELECT create_order('b', 'a@b.example', '[{"sku": "tea", "quantity": 2, "unitPrice": "19.90"}]')`).Scan(&id)
	case "paid":
		return s.paid()
	case "confirmed":
		id = s.paid()
		err = s.apply(answer(saga.StockReserved, id))
	case "rejected":
		id = s.paid()
		err = s.apply(answer(saga.StockRejected, id))
	case "cancelled":
		id = s.paid()
		err = s.cancel(id)
	}
	if err != nil {
		s.Fatal(err)
	}
	return id
}

// TestPaymentsAddUpUnderLoad: buyers, the stock and the warehouse change the same orders at once.
func TestPaymentsAddUpUnderLoad(t *testing.T) {
	cdctest.Long(t, "writes under load")
	s := open(t)
	const orderCount, perWorker = 60, 150
	ids := make([]uuid.UUID, orderCount)
	for i := range ids {
		ids[i] = s.paid()
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range perWorker {
				id := ids[rand.IntN(len(ids))]
				var err error
				switch rand.IntN(16) {
				case 0:
					err = s.cancel(id)
				case 1:
					_, err = s.pool.Exec(t.Context(), `SELECT cancel_order($1)`, id)
				case 2, 3, 4:
					_, err = s.pool.Exec(t.Context(), `SELECT ship_order($1)`, id)
				case 5, 6, 7:
					err = s.apply(answer(saga.StockRejected, id))
				default:
					err = s.apply(answer(saga.StockReserved, id))
				}
				// A change that is too late is refused by name; any other error is a fault.
				var server *pgconn.PgError
				if err != nil && !errors.As(err, new(*orders.StateError)) && (!errors.As(err, &server) || server.Code != "55000") {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var wrong, ends int
	if err := s.owner.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE balance <> due), count(DISTINCT status) FROM order_balances`).Scan(&wrong, &ends); err != nil || wrong > 0 || ends < 3 {
		t.Errorf("%d orders are out of balance; they ended in %d states (%v)", wrong, ends, err)
	}
	var torn int
	if err := s.owner.QueryRow(t.Context(), `SELECT count(*) FROM outbox FULL JOIN (SELECT * FROM order_history WHERE what LIKE 'Order%') AS own ON event_id = outbox.id AND what = event_type
		WHERE event_id IS NULL OR outbox.id IS NULL`).Scan(&torn); err != nil || torn > 0 {
		t.Errorf("%d events that are in outbox or history alone (%v)", torn, err)
	}
}
