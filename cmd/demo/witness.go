package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/orders/saga"
)

const (
	orderTopic = "outbox.event.order" // for the aggregate type order
	stockTopic = "outbox.event.stock" // for the aggregate type stock

	letterTopic = "walpost.dlq.orders" // the dead letters of the pipeline orders

	inventorySlot = "walpost_inventory" // both databases are on one server, whose slots need different names
)

// witness buys like a customer, and prints where the events are. It queries the tables, the slot, the topic and the
// consumer group, and prints their answers.
type witness struct {
	out                      io.Writer
	database                 string // URL of the orders database
	orders, relay, inventory string // URLs
	ordersDB, inventoryDB    *pgx.Conn
	ways                     map[string]way // by topic
	kafka                    *kgo.Client
	arrived                  []*kgo.Record   // but not handled yet
	copies                   map[string]int  // how often each event arrived, by id
	letters                  map[string]bool // the events that were dead letters, by id; true: still unresolved
	patience                 time.Duration   // the time limit for each event
}

// way is the way of events from one service to the other.
type way struct {
	from    *pgx.Conn // the database of the outbox
	slot    string
	to, url string // the service that applies them, in the consumer group of its name
	effect  func(ctx context.Context, event string) (string, error)
}

// newWitness returns a witness. urls are those of relay, orders and inventory.
func newWitness(ctx context.Context, pg *devenv.Postgres, brokers []string, urls [3]string, patience time.Duration, out io.Writer) (*witness, error) {
	w := &witness{out: out, patience: patience, copies: map[string]int{}, letters: map[string]bool{}, database: pg.URL("orders"), relay: urls[0], orders: urls[1], inventory: urls[2]}
	var err1, err2, err3 error
	w.ordersDB, err1 = pgx.Connect(ctx, pg.URL("orders"))
	w.inventoryDB, err2 = pgx.Connect(ctx, pg.URL("inventory"))
	w.kafka, err3 = kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(orderTopic, stockTopic, letterTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err := errors.Join(err1, err2, err3); err != nil {
		w.close()
		return nil, err
	}
	w.ways = map[string]way{
		orderTopic: {w.ordersDB, "walpost", "inventory", w.inventory, w.moved},
		stockTopic: {w.inventoryDB, inventorySlot, saga.Group, w.orders, w.heard},
	}
	w.say("Up: PostgreSQL %d, an in-process Kafka, the order service, the relay, the inventory service.", pg.Major())
	w.say("Each event is a row of the table outbox, written in the transaction of the change that it describes. The relay reads the row from")
	w.say("the WAL, publishes it to Kafka, and only then confirms it to its replication slot. Inventory consumes the event and changes the stock.")
	w.say("Inventory answers in the same way, through its own outbox and the relay's second pipeline; orders then confirms or rejects the order.")
	return w, nil
}

func (w *witness) close() {
	for _, conn := range []*pgx.Conn{w.ordersDB, w.inventoryDB} {
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	}
	if w.kafka != nil {
		w.kafka.Close()
	}
}

func (w *witness) say(format string, args ...any) { fmt.Fprintf(w.out, format+"\n", args...) }

// playOrders places and pays a few orders, follows each of their events, and compares the stock with the orders.
func (w *witness) playOrders(ctx context.Context) error {
	w.say("\nThe stock is set")
	for _, counted := range []struct{ sku, body string }{{"TEA-100", `{"available": 10}`}, {"MUG-200", `{"available": 5}`}} {
		if err := w.send(ctx, "PUT", w.inventory+"/stock/"+counted.sku, counted.body, nil); err != nil {
			return err
		}
	}
	before, err := w.stock(ctx)
	if err != nil {
		return err
	}

	w.say("\nAn order is placed over HTTP")
	var first struct {
		ID string `json:"orderId"`
	}
	items := `[{"sku": "TEA-100", "quantity": 2, "unitPrice": "4.50"}, {"sku": "MUG-200", "quantity": 1, "unitPrice": "12.00"}]`
	if err := w.send(ctx, "POST", w.orders+"/orders", `{"buyerId": "ada", "buyerEmail": "ada@shop.example", "items": `+items+`}`, &first); err != nil {
		return err
	}
	if err := w.follow(ctx, orderTopic, first.ID, "OrderCreated"); err != nil {
		return err
	}
	w.say("\nThe order is paid")
	if err := w.send(ctx, "POST", w.orders+"/orders/"+first.ID+"/pay", "", nil); err != nil {
		return err
	}
	if err := w.follow(ctx, orderTopic, first.ID, "OrderPaid"); err != nil {
		return err
	}
	w.say("\nInventory answers, and the order is confirmed")
	if err := w.settle(ctx, first.ID, "StockReserved", "OrderConfirmed"); err != nil {
		return err
	}

	w.say("\nA second order is placed and paid over SQL in one transaction: two events in one commit")
	if _, err := w.buy(ctx, `[{"sku": "TEA-100", "quantity": 3, "unitPrice": "4.50"}]`, "StockReserved", "OrderConfirmed"); err != nil {
		return err
	}
	w.say("\nA third order is placed in the same way")
	third, err := w.buy(ctx, `[{"sku": "MUG-200", "quantity": 2, "unitPrice": "12.00"}]`, "StockReserved", "OrderConfirmed")
	if err != nil {
		return err
	}
	w.say("\nA fourth order asks for more than is in stock: it is rejected and refunded")
	if _, err := w.buy(ctx, `[{"sku": "MUG-200", "quantity": 1, "unitPrice": "12.00"}, {"sku": "TEA-100", "quantity": 6, "unitPrice": "4.50"}]`,
		"StockRejected", "OrderRejected"); err != nil {
		return err
	}
	w.say("\nThe third order is cancelled: its items return to the stock")
	if err := w.send(ctx, "POST", w.orders+"/orders/"+third+"/cancel", "", nil); err != nil {
		return err
	}
	if err := w.follow(ctx, orderTopic, third, "OrderCancelled"); err != nil {
		return err
	}
	if err := w.follow(ctx, stockTopic, third, "StockReleased"); err != nil {
		return err
	}
	return w.compare(ctx, before)
}

// followAll follows every event of the orders that a person places, until ctx ends. If an event does not reach its end in
// time, followAll reports that and continues with the next.
func (w *witness) followAll(ctx context.Context, keys bool) error {
	items := `[{"sku": "TEA-100", "quantity": 1, "unitPrice": "4.50"}]`
	psql, err := devenv.Tool("psql")
	if err != nil {
		psql = "psql"
	}
	w.say("\nOrders are now placed, paid and cancelled, one a second, and the page shows them: %s/", w.relay)
	w.say("Try it yourself: the events of your orders are shown here. Ctrl-C ends the demo and removes everything that it created.\n")
	w.say("  orders     %s/orders", w.orders)
	w.say("  inventory  %s/stock", w.inventory)
	w.say("  relay      %s/status and %[1]s/metrics", w.relay)
	w.say("")
	if err != nil {
		w.say("  (psql is not installed here; any other client of PostgreSQL will do)")
	}
	w.say("  %s '%s' -c \"SELECT pay_order(create_order('you', 'you@shop.example', '%s'))\"", psql, w.database, strings.ReplaceAll(items, `"`, `\"`))
	w.say("  %s '%s' -c 'SELECT * FROM outbox_slot'", psql, w.database)
	w.say(`  curl -s -H 'Content-Type: application/json' -d '{"buyerId": "you", "buyerEmail": "you@shop.example", "items": %s}' %s/orders`, items, w.orders)
	w.say("  curl -s -X POST %s/orders/ORDER_ID/pay", w.orders)
	w.say("  curl -s %s/orders/ORDER_ID/history", w.orders)
	if keys {
		w.say("%s", keysHelp)
	}
	for {
		record, err := w.next(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			continue // a Kafka that is stopped: the client tries again
		}
		limited, cancel := w.limit(ctx)
		if err = w.followOne(limited, record); err != nil && ctx.Err() == nil {
			w.say("  %v", err)
		}
		cancel()
	}
}

// followOne prints where an event is, unless it is one of keepBuying's.
func (w *witness) followOne(ctx context.Context, record *kgo.Record) error {
	var ours bool
	if err := w.ordersDB.QueryRow(ctx, `SELECT count(*) > 0 FROM orders WHERE id::text = $1 AND buyer_id = $2`, string(record.Key), passerBy).Scan(&ours); err != nil {
		return fmt.Errorf("look for an event's order: %w", err)
	}
	if ours {
		return nil
	}
	w.say("")
	if _, err := w.commit(ctx, record.Topic, `id::text = $1`, header(record, "id")); err != nil {
		return err
	}
	return w.delivery(ctx, record)
}

// buy places and pays an order in one SQL transaction, and follows both its events, the stock's answer and the event of
// the outcome.
func (w *witness) buy(ctx context.Context, items, answer, outcome string) (order string, err error) {
	w.say("  SELECT pay_order(create_order('bob', 'bob@shop.example', '%s'))", items)
	err = w.ordersDB.QueryRow(ctx, `SELECT pay_order(create_order('bob', 'bob@shop.example', $1))::text`, items).Scan(&order)
	if err != nil {
		return "", fmt.Errorf("order over SQL: %w", err)
	}
	for _, eventType := range []string{"OrderCreated", "OrderPaid"} {
		if err := w.follow(ctx, orderTopic, order, eventType); err != nil {
			return "", err
		}
	}
	return order, w.settle(ctx, order, answer, outcome)
}

// settle follows the stock's answer to a paid order, and the event of the order's outcome.
func (w *witness) settle(ctx context.Context, order, answer, outcome string) error {
	if err := w.follow(ctx, stockTopic, order, answer); err != nil {
		return err
	}
	return w.follow(ctx, orderTopic, order, outcome)
}

// send makes a request and prints it.
func (w *witness) send(ctx context.Context, method, url, body string, answer any) error {
	status, err := request(ctx, method, url, body, answer)
	if err == nil {
		w.say("  %s: %s", strings.TrimSpace(method+" "+url+" "+body), status)
	}
	return err
}

// request makes a request, which must succeed. It decodes the answer into answer, unless answer is nil.
func request(ctx context.Context, method, url, body string, answer any) (status string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", method, url, err)
	}
	if res.StatusCode/100 != 2 {
		return "", fmt.Errorf("%s %s: %s: %s", method, url, res.Status, bytes.TrimSpace(text))
	}
	if answer == nil {
		return res.Status, nil
	}
	return res.Status, json.Unmarshal(text, answer)
}

// follow prints where the event is that a topic has about an order, place after place, until it has had its effect.
func (w *witness) follow(ctx context.Context, topic, order, eventType string) error {
	ctx, cancel := w.limit(ctx)
	defer cancel()
	id, err := w.commit(ctx, topic, `aggregate_id = $1 AND event_type = $2`, order, eventType)
	if err != nil {
		return err
	}
	for {
		for i, record := range w.arrived {
			if header(record, "id") == id {
				w.arrived = slices.Delete(w.arrived, i, i+1)
				return w.delivery(ctx, record)
			}
		}
		if err := w.poll(ctx); err != nil {
			return fmt.Errorf("%s %s is committed but did not arrive from Kafka: %w; the relay says: %s", eventType, id, err, w.ready(ctx, w.relay))
		}
	}
}

func (w *witness) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, w.patience, fmt.Errorf("waited %s for it", w.patience))
}

// commit prints the row of an event in the outbox of a topic's service, as it was committed.
func (w *witness) commit(ctx context.Context, topic, where string, args ...any) (id string, err error) {
	var eventType, order, xid, end string
	// A commit is in the WAL a moment before other sessions see it, so a fast relay can be earlier than this query.
	err = until(ctx, func() error {
		return w.ways[topic].from.QueryRow(ctx, `SELECT id::text, event_type, aggregate_id, xmin::text, pg_current_wal_flush_lsn()::text
			FROM outbox WHERE `+where, args...).Scan(&id, &eventType, &order, &xid, &end)
	})
	if err != nil {
		return "", fmt.Errorf("look for the event in the outbox: %w", err)
	}
	w.say("  %s %s of order %s", eventType, id, order)
	w.say("    outbox     written by transaction %s, committed; the WAL ends at %s now", xid, end)
	return id, nil
}

// delivery prints where an event is in Kafka, waits until the slot and the consumer group have passed it, and prints
// its effect.
func (w *witness) delivery(ctx context.Context, record *kgo.Record) error {
	lsn, way := header(record, "lsn"), w.ways[record.Topic]
	w.say("    Kafka      topic %s, partition %d, offset %d; its headers: lsn %s (of its COMMIT), seq %s", record.Topic, record.Partition, record.Offset, lsn, header(record, "seq"))
	what := fmt.Sprintf("%s %s, in Kafka at partition %d, offset %d", header(record, "type"), header(record, "id"), record.Partition, record.Offset)

	var confirmed string
	err := until(ctx, func() error {
		var behind bool
		err := way.from.QueryRow(ctx, `SELECT confirmed_flush_lsn::text, confirmed_flush_lsn > $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`,
			way.slot, lsn).Scan(&confirmed, &behind)
		if err == nil && !behind {
			err = fmt.Errorf("its confirmed_flush_lsn is %s", confirmed)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s, is not confirmed to the slot: %w; the relay says: %s", what, err, w.ready(ctx, w.relay))
	}
	w.say("    slot       confirmed_flush_lsn %s: every earlier commit is delivered", confirmed)

	admin := kadm.NewClient(w.kafka)
	var consumed int64
	err = until(ctx, func() error {
		offsets, err := admin.FetchOffsets(ctx, way.to)
		if err != nil {
			return err
		}
		at, ok := offsets.Lookup(record.Topic, record.Partition)
		if consumed = at.At; !ok || consumed <= record.Offset {
			return fmt.Errorf("group %s has not committed it", way.to)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s, is not applied by %s: %w; %[2]s says: %[4]s", what, way.to, err, w.ready(ctx, way.url))
	}
	effect, err := way.effect(ctx, header(record, "id"))
	if err != nil {
		return err
	}
	w.say("    %-9s  group %[1]s is at offset %d: %s", way.to, consumed, effect)
	return nil
}

// moved returns how an event moved the stock. The movements of a SKU add up to its stock.
func (w *witness) moved(ctx context.Context, event string) (string, error) {
	rows, err := w.inventoryDB.Query(ctx, `SELECT format('%s %s → %s (%s)', sku, total - change, total, reason)
		FROM (SELECT *, sum(change) OVER (PARTITION BY sku ORDER BY id) AS total FROM stock_movements) AS movements
		WHERE event_id::text = $1 ORDER BY sku`, event)
	if err != nil {
		return "", fmt.Errorf("look for movements of stock: %w", err)
	}
	moved, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", fmt.Errorf("look for movements of stock: %w", err)
	}
	if len(moved) == 0 {
		return "no stock moved", nil
	}
	return strings.Join(moved, ", "), nil
}

// heard returns the state of an order after it received an event.
func (w *witness) heard(ctx context.Context, event string) (heard string, err error) {
	err = w.ordersDB.QueryRow(ctx, `SELECT format('order %s is %s', number, status) || coalesce(', ' || amount || ' ' || currency || ' are refunded', '')
		FROM order_history JOIN orders ON orders.id = order_history.order_id LEFT JOIN (SELECT order_id, amount FROM payments WHERE kind = 'refund') AS refund USING (order_id)
		WHERE event_id::text = $1`, event).Scan(&heard)
	if err != nil {
		return "", fmt.Errorf("look for the event in its order's history: %w", err)
	}
	return heard, nil
}

// adds returns an error for each item whose stock is not that before minus the items of confirmed orders.
func adds(before, sold, after map[string]int64) error {
	var wrong []error
	for _, sku := range slices.Sorted(maps.Keys(after)) {
		if want := before[sku] - sold[sku]; after[sku] != want {
			wrong = append(wrong, fmt.Errorf("the stock of %s is %d and should be %d: %d before, %d in confirmed orders", sku, after[sku], want, before[sku], sold[sku]))
		}
	}
	return errors.Join(wrong...)
}

// compare checks that the stock is the earlier stock minus the items of confirmed orders.
func (w *witness) compare(ctx context.Context, before map[string]int64) error {
	after, err := w.stock(ctx)
	if err != nil {
		return err
	}
	sold, err := quantities(ctx, w.ordersDB, `SELECT sku, sum(quantity)::bigint FROM order_lines JOIN orders ON id = order_id WHERE status = 'confirmed' GROUP BY sku`)
	if err != nil {
		return err
	}
	w.say("\nstock     before   in confirmed orders   now")
	for _, sku := range slices.Sorted(maps.Keys(before)) {
		w.say("%-9s %6d %21d %5d", sku, before[sku], sold[sku], after[sku])
	}
	if err := adds(before, sold, after); err != nil {
		return err
	}
	w.say("The stock has decreased by exactly the items of the confirmed orders.")
	return nil
}

func (w *witness) stock(ctx context.Context) (map[string]int64, error) {
	return quantities(ctx, w.inventoryDB, `SELECT sku, available FROM stock`)
}

func quantities(ctx context.Context, conn *pgx.Conn, sql string) (map[string]int64, error) {
	rows, _ := conn.Query(ctx, sql)
	found := map[string]int64{}
	var sku string
	var n int64
	_, err := pgx.ForEachRow(rows, []any{&sku, &n}, func() error {
		found[sku] = n
		return nil
	})
	return found, err
}

// next returns the next record of either topic.
func (w *witness) next(ctx context.Context) (*kgo.Record, error) {
	for len(w.arrived) == 0 {
		if err := w.poll(ctx); err != nil {
			return nil, err
		}
	}
	record := w.arrived[0]
	w.arrived = w.arrived[1:]
	return record, nil
}

func (w *witness) poll(ctx context.Context) error {
	fetches := w.kafka.PollFetches(ctx)
	w.arrived = append(w.arrived, w.saw(fetches.Records())...) // also those that came at the moment when ctx ended
	if ctx.Err() != nil {
		return ended(ctx)
	}
	if err := fetches.Err(); err != nil {
		return fmt.Errorf("read topics %s and %s: %w", orderTopic, stockTopic, err)
	}
	return nil
}

func header(record *kgo.Record, key string) string {
	for _, h := range record.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// ready returns a service's answer to GET /readyz.
func (w *witness) ready(ctx context.Context, url string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return string(bytes.TrimSpace(text))
}

// until repeats try until it succeeds or ctx ends.
func until(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, ended(ctx))
		}
	}
}

// ended returns why ctx ended: context.Canceled after a requested stop, and after a deadline its cause.
func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return context.Cause(ctx)
}
