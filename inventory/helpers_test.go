package inventory_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
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
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/inventory"
	"github.com/walpost/walpost/sql"
)

func TestMain(m *testing.M) { cdctest.Main(m) }

// migrateURL creates the inventory's schema and returns a pool with the service's rights.
func migrateURL(t testing.TB, admin string) *pgxpool.Pool {
	t.Helper()
	service, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	service.User = url.UserPassword("inventory_service", cdctest.Canary)
	cdctest.AlterRoles(t, func() error { return sql.Migrate(t.Context(), sql.Inventory, admin, service.String(), io.Discard) })
	pool, err := pgxpool.New(t.Context(), service.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	return migrateURL(t, cdctest.Database(t))
}

// An event is an event to produce, with the effect that the audit expects.
type event struct {
	inventory.Event
	value []byte
}

func paid(orderID string, items ...inventory.Item) event {
	return newEvent(inventory.OrderPaid, orderID, false, items)
}

func cancelled(orderID string, wasPaid bool, items ...inventory.Item) event {
	return newEvent(inventory.OrderCancelled, orderID, wasPaid, items)
}

func newEvent(eventType, orderID string, wasPaid bool, items []inventory.Item) event {
	e := event{Event: inventory.Event{
		ID: uuid.Must(uuid.NewV7()).String(), Type: eventType, OrderID: orderID, OrderNumber: "100001", WasPaid: wasPaid, Items: items,
	}}
	e.value = body(e.Event, nil)
	return e
}

// body returns the event as the order service writes it, with the fields of change replaced; nil removes a field.
func body(e inventory.Event, change map[string]any) []byte {
	items := []any{}
	for _, item := range e.Items {
		items = append(items, map[string]any{"sku": item.SKU, "quantity": item.Quantity, "unitPrice": "19.90"})
	}
	fields := map[string]any{
		"eventId": e.ID, "eventType": e.Type, "schemaVersion": 1, "occurredAt": "2026-01-02T03:06:05.120000Z",
		"orderId": e.OrderID, "orderNumber": e.OrderNumber, "buyerId": "buyer-7", "buyerEmail": "ada@shop.example",
		"items": items, "totalAmount": "44.80", "currency": "EUR",
	}
	if e.Type == inventory.OrderCancelled {
		fields["wasPaid"] = e.WasPaid
	}
	maps.Copy(fields, change)
	maps.DeleteFunc(fields, func(_ string, v any) bool { return v == nil })
	value, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return value
}

func (e event) record(topic string) *kgo.Record {
	return &kgo.Record{
		Topic: topic, Key: []byte(e.OrderID), Value: e.value,
		Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(e.ID)}, {Key: "type", Value: []byte(e.Type)}},
	}
}

func item(sku string, quantity int64) inventory.Item {
	return inventory.Item{SKU: sku, Quantity: quantity}
}

func orderID() string { return uuid.Must(uuid.NewV7()).String() }

// A fixture is a topic and a database, for one or more consumers.
type fixture struct {
	*testing.T
	pool    *pgxpool.Pool
	store   *inventory.Store
	brokers []string
	topic   string
	client  *kgo.Client
}

func newFixture(t *testing.T, partitions int) *fixture {
	t.Helper()
	return newFixtureOn(t, database(t), cdctest.Kafka(t), partitions)
}

func newFixtureOn(t *testing.T, pool *pgxpool.Pool, brokers []string, partitions int) *fixture {
	t.Helper()
	f := &fixture{T: t, pool: pool, store: inventory.NewStore(pool), brokers: brokers, topic: cdctest.Name(t, "orders")}
	if partitions > 0 {
		cdctest.CreateTopic(t, brokers, f.topic, partitions)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	f.client = client
	return f
}

func (f *fixture) produce(events ...event) {
	f.Helper()
	records := make([]*kgo.Record, len(events))
	for i, e := range events {
		records[i] = e.record(f.topic)
	}
	f.produceRecords(records...)
}

func (f *fixture) produceRecords(records ...*kgo.Record) {
	f.Helper()
	if err := f.client.ProduceSync(f.Context(), records...).FirstErr(); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) setStock(stock map[string]int64) {
	f.Helper()
	for sku, available := range stock {
		if _, err := f.store.Set(f.Context(), sku, available); err != nil {
			f.Fatal(err)
		}
	}
}

// A running is a running consumer.
type running struct {
	*inbox.Consumer
	reg  *prometheus.Registry
	log  *cdctest.Log
	stop func() // stops and waits; a second call does nothing
}

func (f *fixture) config(group string) inventory.ConsumerConfig {
	return inventory.ConsumerConfig{
		Brokers: f.brokers, Topic: f.topic, Group: group, Store: f.store, Metrics: inventory.NewMetrics(prometheus.NewRegistry()), Policy: inbox.ParkKey,
	}
}

func (f *fixture) start(group string) *running {
	f.Helper()
	r := &running{reg: prometheus.NewRegistry(), log: &cdctest.Log{}}
	cfg := f.config(group)
	cfg.Metrics, cfg.Log = inventory.NewMetrics(r.reg), zerolog.New(r.log).Level(zerolog.DebugLevel)
	consumer, err := inbox.New(cfg.Inbox())
	if err != nil {
		f.Fatal(err)
	}
	r.Consumer = consumer
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- consumer.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.Errorf("consumer: %v", err)
		}
	})
	f.Cleanup(func() {
		r.stop()
		for line := range strings.Lines(r.log.String()) {
			if f.Failed() && !strings.Contains(line, `"debug"`) {
				f.Log(strings.TrimSpace(line))
			}
		}
	})
	return r
}

// count returns a metric's value, summed over its labels.
func (r *running) count(t *testing.T, name string) float64 {
	t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func (f *fixture) applied() int {
	f.Helper()
	var n int
	if err := f.pool.QueryRow(f.Context(), `SELECT count(*) FROM inbox`).Scan(&n); err != nil {
		f.Fatal(err)
	}
	return n
}

func (f *fixture) waitApplied(n int) {
	f.Helper()
	cdctest.Eventually(f, time.Minute, func() error {
		if got := f.applied(); got < n {
			return fmt.Errorf("%d of %d events applied", got, n)
		}
		return nil
	})
}

// committed returns the group's offset in each partition that has one.
func (f *fixture) committed(group string) map[int32]int64 {
	f.Helper()
	offsets, err := kadm.NewClient(f.client).FetchOffsets(f.Context(), group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		f.Fatal(err)
	}
	committed := map[int32]int64{}
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.Err == nil && o.At >= 0 {
			committed[o.Partition] = o.At
		}
	})
	return committed
}

// waitCommitted waits until the group has committed n records.
func (f *fixture) waitCommitted(group string, n int64) {
	f.Helper()
	cdctest.Eventually(f, time.Minute, func() error {
		var sum int64
		for _, at := range f.committed(group) {
			sum += at
		}
		if sum != n {
			return fmt.Errorf("%d of %d records committed", sum, n)
		}
		return nil
	})
}

// audit compares the database with the produced events; each is listed once, even if it was produced twice. If the
// order of events of different orders decides which order is served, audit accepts the database's result and checks
// that it adds up.
func (f *fixture) audit(start map[string]int64, events []event) {
	f.Helper()
	type line struct {
		orderID, eventID, sku string
	}
	type entry struct {
		id, change, requested int64
	}
	sold, returned, short := map[line]entry{}, map[line]entry{}, map[line]entry{}
	rows, err := f.pool.Query(f.Context(), `SELECT id, sku, reason, change, coalesce(requested, 0), order_id::text, event_id::text
		FROM stock_movements WHERE reason <> 'set'`)
	if err != nil {
		f.Fatal(err)
	}
	var e entry
	var l line
	var reason string
	if _, err := pgx.ForEachRow(rows, []any{&e.id, &l.sku, &reason, &e.change, &e.requested, &l.orderID, &l.eventID}, func() error {
		map[string]map[line]entry{"sold": sold, "returned": returned, "shortage": short}[reason][l] = e
		return nil
	}); err != nil {
		f.Fatal(err)
	}

	available := maps.Clone(start)
	paidBy := map[string]string{} // order to its OrderPaid
	for _, ev := range events {
		want := map[string]int64{}
		for _, i := range ev.Items {
			want[i.SKU] += i.Quantity
		}
		rejected := false
		for sku := range want {
			_, isShort := short[line{ev.OrderID, ev.ID, sku}]
			rejected = rejected || isShort
		}
		for sku, quantity := range want {
			switch {
			case ev.Type == inventory.OrderPaid:
				paidBy[ev.OrderID] = ev.ID
				at := line{ev.OrderID, ev.ID, sku}
				s, isSold := sold[at]
				m, isShort := short[at]
				if isSold == rejected || isSold && s.change != -quantity || isShort && m.requested != quantity {
					f.Errorf("order %s wants %d of %s: sold %+v, short %+v", ev.OrderID, quantity, sku, s, m)
				}
				available[sku] += s.change
				delete(sold, at)
				delete(short, at)
				sold[line{"done", ev.ID, sku}] = s
			case ev.WasPaid:
				s := sold[line{"done", paidBy[ev.OrderID], sku}]
				at := line{ev.OrderID, ev.ID, sku}
				r, isReturned := returned[at]
				if r.change != -s.change || isReturned && r.id < s.id {
					f.Errorf("cancelled order %s of %s: sold %+v, returned %+v", ev.OrderID, sku, s, r)
				}
				available[sku] += r.change
				delete(returned, at)
			}
		}
	}
	for l := range sold {
		if l.orderID != "done" {
			f.Errorf("sold without an event: %+v", l)
		}
	}
	if len(returned)+len(short) > 0 {
		f.Errorf("movements without an event: returned %v, short %v", returned, short)
	}

	for sku := range start {
		want := available[sku]
		stock, err := f.store.Get(f.Context(), sku)
		if err != nil {
			f.Fatal(err)
		}
		if stock.Available != want {
			f.Errorf("%s: %d in stock, want start − paid + given back = %d", sku, stock.Available, want)
		}
	}
	var torn int
	if err := f.pool.QueryRow(f.Context(), `SELECT count(*) FROM stock JOIN
		(SELECT sku, sum(change) AS change FROM stock_movements GROUP BY sku) AS moved USING (sku)
		WHERE available <> change`).Scan(&torn); err != nil || torn > 0 {
		f.Errorf("%d SKUs whose movements do not add up to the stock: %v", torn, err)
	}
	if got := f.applied(); got != len(events) {
		f.Errorf("%d events in the inbox, %d produced", got, len(events))
	}
	f.wantAnswersMatchMovements()
}

// wantAnswersMatchMovements checks that movements and answers in the outbox agree: the same pieces, of the same order, for the
// same event.
func (f *fixture) wantAnswersMatchMovements() {
	f.Helper()
	var torn int
	if err := f.owner().QueryRow(f.Context(), `
		WITH moved AS (
			SELECT order_id::text, event_id::text, CASE reason WHEN 'sold' THEN 'StockReserved' WHEN 'shortage' THEN 'StockRejected' ELSE 'StockReleased' END AS what,
				sku, coalesce(requested, abs(change)) AS n
			FROM stock_movements WHERE reason <> 'set'
		), told AS (
			SELECT aggregate_id, payload->>'causedBy', event_type, line->>'sku', coalesce(line->>'requested', line->>'quantity')::bigint
			FROM outbox, jsonb_array_elements(coalesce(payload->'short', payload->'items')) AS line
			WHERE aggregate_type = 'stock' AND id::text = payload->>'eventId' AND event_type = payload->>'eventType' AND aggregate_id = payload->>'orderId'
		)
		SELECT count(*) FROM ((TABLE moved EXCEPT ALL TABLE told) UNION ALL (TABLE told EXCEPT ALL TABLE moved)) AS torn`).Scan(&torn); err != nil || torn > 0 {
		f.Errorf("%d movements without an answer, or answers without a movement: %v", torn, err)
	}
}

// owner returns a pool with all rights in the database.
func (f *fixture) owner() *pgxpool.Pool {
	f.Helper()
	config := f.pool.Config().Copy()
	config.ConnConfig.User, config.ConnConfig.Password = "postgres", ""
	pool, err := pgxpool.NewWithConfig(f.Context(), config)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(pool.Close)
	return pool
}

// orders returns the events of n orders of up to three of the SKUs, each paid, and every third cancelled after that.
func orders(n int, skus ...string) []event {
	var events []event
	for i := range n {
		id := orderID()
		var items []inventory.Item
		for k := range 1 + i%3 {
			items = append(items, item(skus[(i+k*(1+i%2))%len(skus)], int64(1+(i+k)%4)))
		}
		events = append(events, paid(id, items...))
		if i%3 == 0 {
			events = append(events, cancelled(id, true, items...))
		}
	}
	return events
}
