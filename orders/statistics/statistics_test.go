package statistics_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/saga"
	"github.com/walpost/walpost/orders/statistics"
	"github.com/walpost/walpost/sql"
)

func TestMain(m *testing.M) { cdctest.Main(m) }

// A shop is an orders database and a topic of its events.
type shop struct {
	*testing.T
	owner, pool *pgxpool.Pool // pool has the service's rights
	store       *orders.Store
	brokers     []string
	topic       string
	group       string
	client      *kgo.Client
	published   map[uuid.UUID]bool
}

func open(t *testing.T) *shop {
	t.Helper()
	admin := cdctest.Database(t)
	service := cdctest.As(admin, "orders_service")
	cdctest.AlterRoles(t, func() error { return sql.Migrate(t.Context(), sql.Orders, admin, service, io.Discard) })
	s := &shop{T: t, brokers: cdctest.Kafka(t), published: map[uuid.UUID]bool{}}
	var err error
	for pool, url := range map[**pgxpool.Pool]string{&s.pool: service, &s.owner: admin} {
		if *pool, err = pgxpool.New(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*pool).Close)
	}
	if s.store, err = orders.Open(t.Context(), cdctest.PoolConfig(t, service)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.store.Close)
	if s.client, err = kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.MetadataMinAge(100*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	s.newTopic()
	return s
}

func (s *shop) newTopic() {
	s.Helper()
	s.topic, s.group = cdctest.Name(s, "orders"), cdctest.Name(s, "statistics")
	cdctest.CreateTopic(s, s.brokers, s.topic, 3)
}

// place places and pays an order and gives the rest of its life one of four forms.
func (s *shop) place(i int) error {
	ctx := s.Context()
	var id uuid.UUID
	items := fmt.Sprintf(`[{"sku": "TEA-%d", "quantity": %d, "unitPrice": "19.9"}, {"sku": "CUP.white", "quantity": 1, "unitPrice": "%d"}]`, i%5, 1+i%3, i%4)
	if err := s.pool.QueryRow(ctx, `SELECT create_order('b', 'a@b.example', $1, $2)`, items, []string{"EUR", "USD"}[i/7%2]).Scan(&id); err != nil {
		return err
	}
	if i%8 == 7 {
		_, err := s.pool.Exec(ctx, `SELECT cancel_order($1)`, id) // never paid
		return err
	}
	if _, err := s.pool.Exec(ctx, `SELECT pay_order($1)`, id); err != nil {
		return err
	}
	answer := saga.Event{ID: uuid.Must(uuid.NewV7()), Type: saga.StockReserved, OrderID: id, Detail: saga.Detail{CausedBy: uuid.New(), Items: []saga.Item{{SKU: "CUP.white", Quantity: 1}}}}
	switch i % 4 {
	case 1:
		_, err := s.pool.Exec(ctx, `SELECT cancel_order($1)`, id)
		return err
	case 2:
		answer.Type, answer.Detail.Items, answer.Detail.Short = saga.StockRejected, nil, []orders.Short{{SKU: "CUP.white", Requested: 1}}
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		_, err := saga.Apply(ctx, tx, answer)
		return err
	})
}

func (s *shop) places(n int) {
	s.Helper()
	for i := range n {
		if err := s.place(i); err != nil {
			s.Fatal(err)
		}
	}
}

// publish puts the new rows of the outbox on the topic, as a relay would, with changes: payments move to one of three
// days (in the order too), every second OrderPaid is written in the other version, and every third event is published
// twice.
func (s *shop) publish() {
	s.Helper()
	rows, _ := s.owner.Query(s.Context(), `SELECT o.id, o.aggregate_id, o.event_type, o.payload::text, number FROM outbox o JOIN orders ON orders.id::text = aggregate_id
		WHERE aggregate_type = 'order' ORDER BY o.payload->>'occurredAt'`)
	type row struct {
		ID                   uuid.UUID
		Order, Type, Payload string
		Number               int
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		s.Fatal(err)
	}
	var records []*kgo.Record
	for _, r := range all {
		if s.published[r.ID] {
			continue
		}
		s.published[r.ID] = true
		value := []byte(r.Payload)
		if r.Type == "OrderPaid" {
			var at time.Time
			if err := s.owner.QueryRow(s.Context(), `UPDATE orders SET paid_at = paid_at - make_interval(days => $2) WHERE id = $1 RETURNING paid_at`,
				r.Order, r.Number%3).Scan(&at); err != nil {
				s.Fatal(err)
			}
			value = s.rewrite(value, at, 1+r.Number%2)
		}
		records = append(records, record(r.ID.String(), r.Order, r.Type, value))
		if r.Number%3 == 0 {
			records = append(records, record(r.ID.String(), r.Order, r.Type, value))
		}
	}
	s.produce(records...)
}

func record(id, key, eventType string, value []byte) *kgo.Record {
	return &kgo.Record{
		Key: []byte(key), Value: value, Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(id)}, {Key: "type", Value: []byte(eventType)}},
	}
}

func (s *shop) produce(records ...*kgo.Record) {
	s.Helper()
	for _, r := range records {
		r.Topic = s.topic
	}
	if err := s.client.ProduceSync(s.Context(), records...).FirstErr(); err != nil {
		s.Fatal(err)
	}
}

// rewrite returns an OrderPaid with another time and version, and with an unknown field.
func (s *shop) rewrite(value []byte, at time.Time, version int) []byte {
	s.Helper()
	var fields map[string]any
	if err := json.Unmarshal(value, &fields); err != nil {
		s.Fatal(err)
	}
	fields["occurredAt"], fields["giftWrap"] = at.UTC().Format("2006-01-02T15:04:05.000000Z"), map[string]any{"ribbon": true}
	if payment, isNew := fields["payment"].(map[string]any); version == 1 && isNew {
		fields["totalAmount"], fields["currency"] = payment["amount"], payment["currency"]
		delete(fields, "payment")
	} else if version == 2 && !isNew {
		fields["payment"] = map[string]any{"id": uuid.New(), "amount": fields["totalAmount"], "currency": fields["currency"]}
		delete(fields, "totalAmount")
		delete(fields, "currency")
	}
	fields["schemaVersion"] = version
	changed, err := json.Marshal(fields)
	if err != nil {
		s.Fatal(err)
	}
	return changed
}

func (s *shop) config() inbox.Config {
	cfg := statistics.Inbox()
	cfg.Brokers, cfg.Topic, cfg.Group, cfg.Consumer, cfg.Pool, cfg.Policy, cfg.Batch = s.brokers, s.topic, s.group, statistics.Group, s.pool, inbox.ParkKey, 20
	cfg.Metrics = inbox.NewMetrics(prometheus.NewRegistry(), "test")
	return cfg
}

func (s *shop) consume() (stop func()) {
	s.Helper()
	cfg := s.config()
	cfg.Log = zerolog.New(zerolog.NewTestWriter(s)).Level(zerolog.WarnLevel)
	consumer, err := inbox.New(cfg)
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- consumer.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.Errorf("consumer: %v", err)
		}
	})
	s.Cleanup(stop)
	return stop
}

func (s *shop) rebuild(ctx context.Context, partial bool, progress func(done, of int64)) (inbox.Rebuilt, error) {
	return statistics.Rebuild(ctx, s.config(), "ada", inbox.RebuildOptions{Partial: partial, Progress: progress})
}

func quiet(int64, int64) {}

func scan[T any](s *shop, query string, args ...any) T {
	s.Helper()
	rows, _ := s.owner.Query(s.Context(), query, args...)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		s.Fatalf("%s: %v", query, err)
	}
	return value
}

// difference counts the rows that differ between a count over the orders and the statistics.
const difference = `
	WITH want AS (
		SELECT (paid_at AT TIME ZONE 'UTC')::date, sku, currency::text, count(*), sum(quantity), sum(quantity * unit_price),
			count(*) FILTER (WHERE back), coalesce(sum(quantity) FILTER (WHERE back), 0), coalesce(sum(quantity * unit_price) FILTER (WHERE back), 0)
		FROM (SELECT *, status IN ('rejected', 'cancelled') AS back FROM orders) AS o JOIN order_lines ON order_id = o.id WHERE paid_at IS NOT NULL GROUP BY 1, 2, 3)
	SELECT count(*)::int FROM ((TABLE want EXCEPT ALL TABLE statistics) UNION ALL (TABLE statistics EXCEPT ALL TABLE want)) AS d`

func (s *shop) mustEqual() {
	s.Helper()
	if n := scan[int](s, difference); n != 0 {
		s.Errorf("%d rows differ from a count over the orders", n)
	}
	if n := scan[int](s, `SELECT count(*)::int FROM inbox_parked`); n != 0 {
		s.Errorf("%d events parked, such as: %s", n, scan[string](s, `SELECT min(reason) FROM inbox_parked`))
	}
}

func (s *shop) waitEqual() {
	s.Helper()
	cdctest.Eventually(s, time.Minute, func() error {
		if n := scan[int](s, difference); n != 0 {
			return fmt.Errorf("%d rows differ from a count over the orders", n)
		}
		return nil
	})
	s.mustEqual()
}

// kill ends the session of a rebuild, as the death of its process would.
func (s *shop) kill() {
	s.Helper()
	if n := scan[int](s, `SELECT count(pg_terminate_backend(pid))::int FROM pg_locks WHERE relation = 'statistics'::regclass AND mode = 'ShareRowExclusiveLock'`); n != 1 {
		s.Errorf("%d rebuilds killed", n)
	}
}

// TestStatisticsEqualACountOverTheOrders runs under load, with duplicates and both versions of OrderPaid, with a
// rebuild that is killed and one that is not, and a consumer that is stopped and started.
func TestStatisticsEqualACountOverTheOrders(t *testing.T) {
	t.Parallel()
	s := open(t)
	stop := s.consume()
	s.places(40)
	s.publish()

	var load sync.WaitGroup
	for k := range 2 {
		load.Go(func() {
			for i := range 60 {
				if err := s.place(i + k); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	kill := sync.OnceFunc(s.kill)
	for round := range 3 {
		s.publish()
		if _, err := s.rebuild(t.Context(), false, func(int64, int64) {
			if round == 0 {
				kill()
			}
		}); (err != nil) != (round == 0) {
			t.Errorf("round %d: %v", round, err)
		}
		if round == 1 {
			stop()
			s.consume()
		}
	}
	load.Wait()
	s.publish()
	s.waitEqual()
	if days := scan[int](s, `SELECT count(DISTINCT day)::int FROM statistics`); days < 3 {
		t.Errorf("only %d days", days)
	}
	// The rebuild replaces the old counts and does not add to them, so a wrong count is gone.
	if _, err := s.owner.Exec(t.Context(), `UPDATE statistics SET orders = 7; INSERT INTO statistics VALUES ('2020-01-01', 'X', 'EUR', 1, 1, 1, 1, 1, 1)`); err != nil {
		t.Fatal(err)
	}
	done, err := s.rebuild(t.Context(), false, quiet)
	if err != nil || done.Rejected+done.Excluded > 0 || done.Duplicates == 0 {
		t.Errorf("rebuilt: %+v (%v)", done, err)
	}
	s.mustEqual()
}

// TestRebuildNeedsNoConsumer: a rebuild counts events that the group has never read, and the group then finds
// duplicates.
func TestRebuildNeedsNoConsumer(t *testing.T) {
	t.Parallel()
	s := open(t)
	if _, err := s.rebuild(t.Context(), false, quiet); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	s.places(16)
	s.publish()
	if _, err := s.rebuild(t.Context(), false, quiet); err != nil {
		t.Error(err)
	}
	s.mustEqual()
	s.consume()
	s.places(8)
	s.publish()
	s.waitEqual()
}

func TestATopicWithoutItsBeginningIsRefusedUnlessPartial(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.places(24)
	s.publish()
	if _, err := s.rebuild(t.Context(), false, quiet); err != nil {
		t.Fatal(err)
	}
	from, to, err := orders.ParseDays("", "")
	if err != nil {
		t.Fatal(err)
	}
	since := func() string {
		t.Helper()
		found, err := s.store.Statistics(t.Context(), from, to)
		if err != nil {
			t.Fatal(err)
		}
		if found.Since == nil {
			return ""
		}
		return *found.Since
	}
	whole := scan[int](s, `SELECT sum(orders)::int FROM statistics`)
	all := func() string {
		t.Helper()
		return scan[string](s, `SELECT md5(string_agg(s::text, ' ' ORDER BY day, sku, currency)) FROM statistics s`)
	}
	refuse := func(want string) {
		t.Helper()
		before := all()
		if _, err := s.rebuild(t.Context(), false, quiet); !errors.Is(err, inbox.ErrCut) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if all() != before || since() != "" {
			t.Errorf("something has changed; since %q", since())
		}
	}

	// Kafka has deleted the first events. A cancellation of an order that was paid in them is not counted, also later.
	ends, err := kadm.NewClient(s.client).ListEndOffsets(t.Context(), s.topic)
	if err != nil {
		t.Fatal(err)
	}
	half := kadm.Offsets{}
	ends.Each(func(l kadm.ListedOffset) { half.AddOffset(s.topic, l.Partition, l.Offset/2, -1) })
	if _, err := kadm.NewClient(s.client).DeleteRecords(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	refuse("begins at offset")
	done, err := s.rebuild(t.Context(), true, quiet)
	if n := scan[int](s, `SELECT sum(orders)::int FROM statistics`); err != nil || n == 0 || n >= whole || done.Rejected != 0 || !done.Cut {
		t.Errorf("partial: %+v (%v), %d of %d orders' lines", done, err, n, whole)
	}
	if want := scan[string](s, `SELECT min(day)::text FROM statistics`); since() != want {
		t.Errorf("since %s, want %s", since(), want)
	}
	var before uuid.UUID
	if err := s.owner.QueryRow(t.Context(), `SELECT id FROM orders WHERE status = 'confirmed' AND id NOT IN (SELECT order_id FROM statistics_orders) LIMIT 1`).Scan(&before); err != nil {
		t.Fatal(err)
	}
	s.consume()
	if _, err := s.owner.Exec(t.Context(), `SELECT cancel_order($1)`, before); err != nil {
		t.Fatal(err)
	}
	applied := scan[int](s, `SELECT count(*)::int FROM inbox`)
	s.publish()
	cdctest.Eventually(t, 30*time.Second, func() error {
		if n := scan[int](s, `SELECT count(*)::int FROM inbox`); n <= applied {
			return errors.New("not applied yet")
		}
		return nil
	})
	if n := scan[int](s, `SELECT count(*)::int FROM inbox_parked`); n != 0 {
		t.Errorf("%d events parked", n)
	}

	// On a complete topic the rebuild is complete again, and --partial makes no false statement.
	s.newTopic()
	clear(s.published)
	if _, err := s.owner.Exec(t.Context(), `UPDATE orders SET paid_at = paid_at + make_interval(days => (number % 3)::int)`); err != nil {
		t.Fatal(err)
	}
	s.publish()
	if done, err := s.rebuild(t.Context(), true, quiet); err != nil || done.Cut || since() != "" {
		t.Errorf("a whole topic, with --partial: %+v (%v), since %q", done, err, since())
	}
	s.mustEqual()

	// A topic that was deleted and created again begins at offset 0 but lacks the first order.
	s.newTopic()
	s.places(1)
	s.publish()
	refuse("order 100001, paid at ")
	if done, err := s.rebuild(t.Context(), true, quiet); err != nil || !done.Cut || since() == "" {
		t.Errorf("partial: %+v (%v), since %q", done, err, since())
	}
}

func TestWhatCannotBeCountedIsPermanent(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.places(2) // the second is cancelled
	s.publish()
	s.consume()
	s.waitEqual()
	paid, order := func(change func(map[string]any)) []byte {
		fields := map[string]any{
			"schemaVersion": 2, "orderId": uuid.New(), "occurredAt": "2026-01-02T23:59:59.999999Z", "wasPaid": true, "currency": "EUR",
			"payment": map[string]any{"currency": "EUR"}, "items": []any{map[string]any{"sku": "tea", "quantity": 1, "unitPrice": "1.00"}},
		}
		change(fields)
		value, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}, scan[uuid.UUID](s, `SELECT id FROM orders WHERE status = 'cancelled'`)
	set := func(field string, v any) func(map[string]any) { return func(f map[string]any) { f[field] = v } }
	line := func(field string, v any) func(map[string]any) {
		return func(f map[string]any) { f["items"].([]any)[0].(map[string]any)[field] = v }
	}
	v1 := func(f map[string]any) { f["schemaVersion"] = 1 }
	for _, c := range []struct {
		eventType, want string
		change          func(map[string]any)
	}{
		{"OrderPaid", "schemaVersion is 3 and not 1 to 2", set("schemaVersion", 3)},
		{"OrderCancelled", "schemaVersion is 2 and not 1", set("schemaVersion", 2)},
		{"OrderPaid", "the currency is not", set("payment", nil)},
		{"OrderPaid", "orderId is missing", set("orderId", nil)},
		{"OrderPaid", "not the JSON of an event", set("orderId", "17")},
		{"OrderPaid", "occurredAt is missing", set("occurredAt", nil)},
		{"OrderPaid", "items are missing", set("items", nil)},
		{"OrderPaid", "items[0].sku is not", line("sku", "a\x00")},
		{"OrderPaid", "items[0].quantity is not", line("quantity", 0)},
		{"OrderPaid", "items[0].unitPrice is missing", line("unitPrice", nil)},
		{"OrderPaid", "was counted already, from another OrderPaid", set("orderId", order)},
		{"OrderCancelled", "wasPaid is missing", func(f map[string]any) { v1(f); f["wasPaid"] = nil }},
		{"OrderCancelled", "was never counted as paid", v1},
		{"OrderRejected", "or is returned already", func(f map[string]any) { v1(f); f["orderId"] = order }},
		{"OrderGiftWrapped", "unknown type OrderGiftWrapped", v1},
	} {
		id := uuid.Must(uuid.NewV7()).String()
		s.produce(record(id, id, c.eventType, paid(c.change)))
		var reason string
		cdctest.Eventually(t, 30*time.Second, func() error {
			return s.owner.QueryRow(t.Context(), `SELECT reason FROM inbox_parked WHERE event_id = $1`, id).Scan(&reason)
		})
		if !strings.Contains(reason, c.want) {
			t.Errorf("%s: parked because %s, want %s", c.eventType, reason, c.want)
		}
	}
	if n := scan[int](s, difference); n != 0 {
		t.Errorf("%d rows differ from a count over the orders", n)
	}
	done, err := s.rebuild(t.Context(), false, quiet)
	if err != nil || done.Excluded != 14 || scan[int](s, difference) != 0 {
		t.Errorf("rebuilt: %+v (%v)", done, err)
	}
}
