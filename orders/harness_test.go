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

// shop is the service over HTTP on a database of its own.
type shop struct {
	t          *testing.T
	base       string // the service's URL
	serviceURL string // of the database, for the service's role
	owner      *pgxpool.Pool
	registry   *prometheus.Registry
	client     *http.Client
}

func open(t *testing.T) *shop { return openThrough(t, func(url string) string { return url }) }

// openThrough lets the service connect to another URL than the database's own: a proxy's.
func openThrough(t *testing.T, way func(string) string) *shop {
	t.Helper()
	admin := cdctest.Database(t)
	s := &shop{t: t, serviceURL: strings.Replace(admin, "postgres@", "orders_service@", 1)}
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

// serve starts the service, again where it has been started before: what it knew it knows from the database only.
func (s *shop) serve(databaseURL string) {
	store, err := orders.Open(context.Background(), databaseURL)
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

// send makes a request without a test's help, for the tests in which it may fail. Headers are name and value in turn.
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

// do is send that must be answered with a status.
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

// fingerprint changes with every change of a row or table.
func (s *shop) fingerprint() string {
	s.t.Helper()
	return scan[string](s, `SELECT md5(string_agg(line, ',' ORDER BY line)) FROM (
		SELECT o::text FROM orders o UNION ALL SELECT l::text FROM order_lines l UNION ALL
		SELECT x::text FROM outbox x UNION ALL SELECT k::text FROM idempotency_keys k UNION ALL SELECT 'empty') AS all_rows (line)`)
}

// torn counts orders that have not exactly the events of their state, and events without an order in that state.
const torn = `
	WITH expected AS (
		SELECT id::text AS order_id, 'OrderCreated' AS event_type, created_at AS at FROM orders
		UNION ALL SELECT id::text, 'OrderPaid', paid_at FROM orders WHERE paid_at IS NOT NULL
		UNION ALL SELECT id::text, 'OrderCancelled', cancelled_at FROM orders WHERE cancelled_at IS NOT NULL
	), written AS (
		SELECT aggregate_id AS order_id, event_type, (payload->>'occurredAt')::timestamptz AS at FROM outbox
	)
	SELECT count(*)::int FROM (
		(SELECT * FROM expected EXCEPT ALL SELECT * FROM written) UNION ALL (SELECT * FROM written EXCEPT ALL SELECT * FROM expected)) AS difference`

func (s *shop) mustBeWhole() {
	s.t.Helper()
	if n := scan[int](s, torn); n != 0 {
		s.t.Errorf("%d order states without their event or events without their state", n)
	}
	if n := scan[int](s, `SELECT count(*)::int FROM idempotency_keys WHERE answer IS NULL OR NOT EXISTS (SELECT FROM orders WHERE id = order_id)`); n != 0 {
		s.t.Errorf("%d idempotency keys without the answer of their effect", n)
	}
}

// compact makes JSON comparable: keys sorted, no space.
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
