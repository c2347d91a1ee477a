package orders_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/sql"
)

func TestMain(m *testing.M) { cdctest.Main(m) }

// shop is the service over HTTP on a separate database.
type shop struct {
	t          *testing.T
	base       string // the service's URL
	serviceURL string // of the database, for the service's role
	owner      *pgxpool.Pool
	registry   *prometheus.Registry
	client     *http.Client
}

func open(t *testing.T) *shop { return openThrough(t, func(url string) string { return url }) }

// openThrough makes the service connect to another URL than the database's own: a proxy's.
func openThrough(t *testing.T, way func(string) string) *shop {
	t.Helper()
	admin := cdctest.Database(t)
	s := &shop{t: t, serviceURL: cdctest.As(admin, "orders_service")}
	if err := sql.Migrate(t.Context(), sql.Orders, admin, s.serviceURL, io.Discard); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.owner, err = pgxpool.New(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.owner.Close)
	s.serve(way(s.serviceURL))
	return s
}

// serve starts the service, also again: a new service knows only what is in the database.
func (s *shop) serve(databaseURL string) {
	store, err := orders.Open(context.Background(), cdctest.PoolConfig(s.t, databaseURL))
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	s.registry = prometheus.NewRegistry()
	orders.Routes(mux, store, s.registry, zerolog.Nop())
	server := httptest.NewServer(mux)
	s.base, s.client = server.URL, server.Client()
	s.client.Timeout = 20 * time.Second
	s.t.Cleanup(func() {
		server.Close()
		store.Close()
	})
}

type reply struct {
	status int
	header http.Header
	body   string
}

// send makes a request and does not fail the test, for tests in which a request may fail. Headers are name and value in
// turn.
func (s *shop) send(method, path, body string, headers ...string) (reply, error) {
	req, err := http.NewRequest(method, s.base+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := s.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(text)}, err
}

// do makes a request that must be answered with a status.
func (s *shop) do(want int, method, path, body string, headers ...string) reply {
	s.t.Helper()
	got, err := s.send(method, path, body, headers...)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	if got.status != want {
		s.t.Fatalf("%s %s: %d %s, want %d", method, path, got.status, got.body, want)
	}
	return got
}

const good = `{"buyerId": "buyer-7", "buyerEmail": "ada@shop.example", "items": [
	{"sku": "TEA-100", "quantity": 2, "unitPrice": "19.90"}, {"sku": "CUP.white", "quantity": 1, "unitPrice": "5"}]}`

// place places an order and returns its id.
func (s *shop) place() uuid.UUID {
	s.t.Helper()
	return decode[orders.Order](s.t, s.do(201, "POST", "/orders", good).body).ID
}

// confirm confirms a paid order, and reject rejects one, as after the stock's answer.
func (s *shop) confirm(id uuid.UUID) {
	s.t.Helper()
	s.hear(id, "StockReserved", orders.Confirm)
}

func (s *shop) reject(id uuid.UUID) {
	s.t.Helper()
	s.hear(id, "StockRejected", func(ctx context.Context, tx pgx.Tx, o orders.Order) (orders.Change, error) {
		return orders.Reject(ctx, tx, o, []orders.Short{{SKU: "TEA-100", Requested: 2, Available: 1}})
	})
}

func (s *shop) hear(id uuid.UUID, what string, change func(context.Context, pgx.Tx, orders.Order) (orders.Change, error)) {
	s.t.Helper()
	if err := pgx.BeginFunc(s.t.Context(), s.owner, func(tx pgx.Tx) error {
		o, err := orders.Receive(s.t.Context(), tx, id, what, uuid.Must(uuid.NewV7()), struct{}{})
		if err == nil {
			_, err = change(s.t.Context(), tx, o)
		}
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

func scan[T any](s *shop, query string, args ...any) T {
	s.t.Helper()
	rows, _ := s.owner.Query(s.t.Context(), query, args...)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return v
}

// fingerprint returns a value that changes with every change of a row or table.
func (s *shop) fingerprint() string {
	s.t.Helper()
	return scan[string](s, `SELECT md5(string_agg(line, ',' ORDER BY line)) FROM (
		SELECT o::text FROM orders o UNION ALL SELECT l::text FROM order_lines l UNION ALL
		SELECT p::text FROM payments p UNION ALL SELECT h::text FROM order_history h UNION ALL
		SELECT x::text FROM outbox x UNION ALL SELECT k::text FROM idempotency_keys k UNION ALL SELECT 'empty') AS all_rows (line)`)
}

// torn counts the orders that do not have exactly the events, the history and the payments of their state, and events,
// history lines and payments without an order in that state.
const torn = `
	WITH changes AS (
		SELECT o.id::text AS order_id, change.* FROM orders o CROSS JOIN LATERAL (VALUES
			('OrderCreated', created_at, NULL), ('OrderPaid', paid_at, 'charge'), ('OrderConfirmed', confirmed_at, NULL),
			('OrderRejected', rejected_at, 'refund'), ('OrderShipped', shipped_at, NULL), ('OrderCompleted', completed_at, NULL),
			('OrderCancelled', cancelled_at, CASE WHEN paid_at IS NOT NULL THEN 'refund' END)) AS change (event_type, at, payment)
		WHERE change.at IS NOT NULL
	), told AS (
		SELECT id, aggregate_id AS order_id, event_type, (payload->>'occurredAt')::timestamptz AS at FROM outbox
	), pairs (expected, found) AS (VALUES
		((SELECT array_agg((order_id, event_type, at)::text ORDER BY order_id, event_type) FROM changes),
		 (SELECT array_agg((order_id, event_type, at)::text ORDER BY order_id, event_type) FROM told)),
		((SELECT array_agg((order_id, event_type, at, id)::text ORDER BY order_id, event_type) FROM told),
		 (SELECT array_agg((order_id::text, what, at, event_id)::text ORDER BY order_id::text, what) FROM order_history WHERE what LIKE 'Order%')),
		((SELECT array_agg((order_id, payment, at, id, total, currency)::text ORDER BY order_id, payment)
		  FROM changes JOIN told USING (order_id, event_type, at) JOIN (SELECT id::text AS order_id, total, currency FROM orders) AS o USING (order_id) WHERE payment IS NOT NULL),
		 (SELECT array_agg((order_id::text, kind, at, event_id, amount, currency)::text ORDER BY order_id::text, kind) FROM payments))
	)
	SELECT count(*)::int FROM pairs WHERE expected IS DISTINCT FROM found`

func (s *shop) mustBeWhole() {
	s.t.Helper()
	if n := scan[int](s, torn); n != 0 {
		s.t.Errorf("%d of events, history and payments are not those of the orders' states", n)
	}
	if n := scan[int](s, `SELECT count(*)::int FROM order_balances WHERE balance <> due`); n != 0 {
		s.t.Errorf("%d orders whose payments do not add up", n)
	}
	if n := scan[int](s, `SELECT count(*)::int FROM idempotency_keys WHERE answer IS NULL OR NOT EXISTS (SELECT FROM orders WHERE id = order_id)`); n != 0 {
		s.t.Errorf("%d idempotency keys without the answer of their effect", n)
	}
}

// compact makes JSON comparable: keys sorted, no spaces.
func compact(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(decode[any](t, text)); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}
