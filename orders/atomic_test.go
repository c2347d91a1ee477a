package orders_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/orders"
)

// refuse adds a CHECK to the outbox that rejects the first event of one buyer and the second event of another, as a
// CHECK that a future event violates would.
func (s *shop) refuse() {
	s.t.Helper()
	_, err := s.owner.Exec(s.t.Context(), `ALTER TABLE outbox ADD CONSTRAINT outbox_test CHECK (payload->>'buyerId' <> 'refused'
		AND NOT (payload->>'buyerId' = 'refused-later' AND event_type <> 'OrderCreated'))`)
	if err != nil {
		s.t.Fatal(err)
	}
}

func goodOf(buyer string) string { return strings.Replace(good, "buyer-7", buyer, 1) }

func TestAnOrderWhoseEventIsRefusedFailsWhole(t *testing.T) {
	s := open(t)
	s.refuse()
	later := decode[orders.Order](t, s.do(201, "POST", "/orders", goodOf("refused-later")).body)
	path := "/orders/" + later.ID.String()
	before := s.fingerprint()
	for _, c := range []struct{ path, body string }{{"/orders", goodOf("refused")}, {path + "/pay", ""}, {path + "/cancel", ""}} {
		got := s.do(500, "POST", c.path, c.body, "Idempotency-Key", "k")
		if strings.Contains(got.body, "outbox") || strings.Contains(got.body, "SQLSTATE") {
			t.Errorf("the client sees the operator's details: %s", got.body)
		}
		if s.fingerprint() != before {
			t.Fatalf("POST %s has changed the database", c.path)
		}
	}
	for _, statement := range []string{
		`SELECT create_order('refused', 'a@b.example', '[{"sku": "A", "quantity": 1, "unitPrice": "1"}]')`,
		`SELECT pay_order('` + later.ID.String() + `')`, `SELECT cancel_order('` + later.ID.String() + `')`,
	} {
		_, err := s.owner.Exec(t.Context(), statement)
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.ConstraintName != "outbox_test" || s.fingerprint() != before {
			t.Errorf("%s: %v", statement, err)
		}
	}
	s.mustBeWhole()
}

func TestALostConnectionLosesNeitherHalf(t *testing.T) {
	for where, orderIsThere := range map[cut][]int{before: {0}, during: {0, 1}, after: {1}} {
		t.Run(where.String()+" COMMIT", func(t *testing.T) {
			var once sync.Once
			var p *cutter
			s := openThrough(t, func(url string) string {
				var through string
				p, through = startProxy(t, url, func() (c cut) {
					once.Do(func() { c = where })
					return c
				})
				return through
			})
			s.do(503, "POST", "/orders", good, "Idempotency-Key", "k")
			if hits := p.counts(); hits[where] != 1 {
				t.Fatalf("the cut did not happen: %v", hits)
			}
			// A backend that got its COMMIT may still be executing it.
			cdctest.Eventually(t, 30*time.Second, func() error {
				if n := scan[int](s, `SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'orders' AND datname = current_database() AND xact_start IS NOT NULL`); n > 0 {
					return fmt.Errorf("%d transactions are open", n)
				}
				return nil
			})
			n := scan[int](s, `SELECT count(*)::int FROM orders`)
			if n != orderIsThere[0] && n != orderIsThere[len(orderIsThere)-1] {
				t.Errorf("%d orders, want one of %v", n, orderIsThere)
			}
			s.mustBeWhole()
			first := s.do(201, "POST", "/orders", good, "Idempotency-Key", "k")
			again := s.do(201, "POST", "/orders", good, "Idempotency-Key", "k")
			if first.body != again.body {
				t.Errorf("two answers:\n%s\n%s", first.body, again.body)
			}
			if got := scan[uuid.UUID](s, `SELECT id FROM orders`); got != decode[orders.Order](t, first.body).ID {
				t.Errorf("the order is %s, the answer %s", got, first.body)
			}
			s.mustBeWhole()
		})
	}
}

// Both or neither, under load over HTTP and from SQL at once: every fifth COMMIT loses its connection, and some events
// are rejected.
func TestBothOrNeitherUnderLoad(t *testing.T) {
	cdctest.Long(t, "writes under load")
	perWorker := 60
	if cdctest.LongForm() {
		perWorker = 600
	}
	var p *cutter
	var through string
	s := openThrough(t, func(url string) string {
		p, through = startProxy(t, url, func() cut {
			if rand.IntN(5) == 0 {
				return before + cut(rand.IntN(3))
			}
			return none
		})
		return through
	})
	s.refuse()

	type exchange struct {
		path, body, key string
		first           reply
	}
	var mu sync.Mutex
	var exchanges []exchange
	var refused int
	// post repeats a request with one key until it gets a final answer.
	post := func(path, body string) (reply, error) {
		e := exchange{path: path, body: body, key: uuid.NewString()}
		for range 100 {
			got, err := s.send("POST", path, body, "Idempotency-Key", e.key)
			if err != nil {
				return reply{}, err
			}
			switch got.status {
			case 200, 201:
				e.first = got
				mu.Lock()
				exchanges = append(exchanges, e)
				mu.Unlock()
				return got, nil
			case 500:
				mu.Lock()
				refused++
				mu.Unlock()
				return got, nil
			case 503:
			default:
				return reply{}, fmt.Errorf("%s: %d %s", path, got.status, got.body)
			}
		}
		return reply{}, fmt.Errorf("%s: never answered", path)
	}
	overHTTP := func() error {
		for i := range perWorker {
			buyer := []string{"b-1", "b-2", "b-3", "refused", "refused-later"}[rand.IntN(5)]
			placed, err := post("/orders", goodOf(buyer))
			if err != nil {
				return err
			}
			if placed.status == 500 {
				continue
			}
			path := "/orders/" + decode[orders.Order](t, placed.body).ID.String()
			for _, step := range [][]string{{}, {"/pay"}, {"/pay", "/cancel"}, {"/cancel"}}[i%4] {
				if got, err := post(path+step, ""); err != nil {
					return err
				} else if (got.status == 500) != (buyer == "refused-later") {
					return fmt.Errorf("%s of %s: %d", step, buyer, got.status)
				}
			}
		}
		return nil
	}
	fromSQL := func(ctx context.Context) error {
		for i := range perWorker {
			conn, err := pgx.Connect(ctx, through)
			if err != nil {
				return err
			}
			var id uuid.UUID
			buyer := []string{"b-1", "refused", "refused-later"}[rand.IntN(3)]
			_ = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, `SELECT create_order($1, 'a@b.example', '[{"sku": "A", "quantity": 1, "unitPrice": "1"}]')`, buyer).Scan(&id)
			})
			// The outcome of this change is unknown; the next change may find no order, or no connection.
			for _, step := range [][]string{{}, {"pay"}, {"pay", "cancel"}, {"cancel"}}[i%4] {
				_ = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, `SELECT `+step+`_order($1)`, id)
					return err
				})
			}
			_ = conn.Close(ctx)
		}
		return nil
	}

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for _, work := range []func() error{overHTTP, overHTTP, overHTTP, func() error { return fromSQL(ctx) }} {
		wg.Go(func() {
			if err := work(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for where, n := range p.counts() {
		if cut(where) != none && n == 0 {
			t.Errorf("no connection was cut %s COMMIT", cut(where))
		}
	}
	if refused == 0 {
		t.Error("no event was refused")
	}
	s.mustBeWhole()

	// From here on without the proxy: the repeated POST must get the answer of the first one.
	s.serve(s.serviceURL)
	placed := 0
	for _, e := range exchanges {
		got := s.do(e.first.status, "POST", e.path, e.body, "Idempotency-Key", e.key)
		if got.body != e.first.body {
			t.Errorf("first %s, again %s", e.first.body, got.body)
		}
		if e.path == "/orders" {
			placed++
		}
	}
	if n := scan[int](s, `SELECT count(*)::int FROM orders WHERE buyer_email = 'ada@shop.example'`); n != placed {
		t.Errorf("%d orders for %d answers", n, placed)
	}
	s.mustBeWhole()
	t.Logf("%d POSTs answered, %d refused, cuts %v, %d orders, %d events", len(exchanges), refused, p.counts(),
		scan[int](s, `SELECT count(*)::int FROM orders`), scan[int](s, `SELECT count(*)::int FROM outbox`))
}
