package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/sql"
)

// consumed is an orders database, a topic of stock events, and the command that consumes the topic into the database.
type consumed struct {
	*testing.T
	admin  string // URL
	env    map[string]string
	conn   *pgx.Conn
	client *kgo.Client
	topic  string
}

func newConsumed(t *testing.T) *consumed {
	t.Helper()
	admin, url := databases(t)
	if err := sql.Migrate(t.Context(), sql.Orders, admin, url, io.Discard); err != nil {
		t.Fatal(err)
	}
	c := &consumed{T: t, admin: admin, topic: cdctest.Name(t, "stock")}
	brokers := cdctest.Kafka(t)
	cdctest.CreateTopic(t, brokers, c.topic, 1)
	c.env = map[string]string{
		"ORDERS_DATABASE_URL": url, "ORDERS_KAFKA_BROKERS": strings.Join(brokers, ","), "ORDERS_STOCK_TOPIC": c.topic,
		"ORDERS_GROUP_PREFIX": c.topic + ".", "ORDERS_CONSUME_HTTP": "127.0.0.1:0", "LOG_LEVEL": "debug",
	}
	var err error
	if c.conn, err = pgx.Connect(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.conn.Close(context.Background()) })
	if c.client, err = kgo.NewClient(kgo.SeedBrokers(brokers...)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.Close)
	return c
}

// start consumes groups in this process until stop.
func (c *consumed) start(groups ...string) (log *cdctest.Log, stop func()) {
	return c.run(append([]string{"consume"}, groups...)...)
}

// run runs a command until stop.
func (c *consumed) run(args ...string) (log *cdctest.Log, stop func()) {
	log = &cdctest.Log{}
	ctx, cancel := context.WithCancelCause(context.Background())
	done, env := make(chan error, 1), getenv(maps.Clone(c.env))
	go func() { done <- watched(ctx, args, env, io.Discard, log) }()
	stop = sync.OnceFunc(func() {
		cancel(errors.New("terminated"))
		if err := <-done; err != nil {
			c.Errorf("%s: %v\n%s", args[0], err, log)
		}
	})
	c.Cleanup(stop)
	return log, stop
}

func (c *consumed) command(args ...string) (string, error) {
	var out bytes.Buffer
	err := watched(c.Context(), args, getenv(c.env), &out, io.Discard)
	return out.String(), err
}

func (c *consumed) paid() (id uuid.UUID) {
	c.Helper()
	if err := c.conn.QueryRow(c.Context(), `SELECT pay_order(create_order('b', 'ada@shop.example', '[{"sku": "tea", "quantity": 2, "unitPrice": "19.90"}]'))`).Scan(&id); err != nil {
		c.Fatal(err)
	}
	return id
}

// produce sends an event of this order and type, with its body's part.
func (c *consumed) produce(order uuid.UUID, eventType, part string) {
	c.Helper()
	id := uuid.Must(uuid.NewV7())
	c.send(order, eventType, id, fmt.Sprintf(`{"eventId": %q, "eventType": %q, "orderId": %q, "causedBy": %q, %s}`, id, eventType, order, uuid.New(), part))
}

func (c *consumed) send(order uuid.UUID, eventType string, id uuid.UUID, value string) {
	c.Helper()
	if err := c.client.ProduceSync(c.Context(), &kgo.Record{
		Topic: c.topic, Key: []byte(order.String()), Value: []byte(value),
		Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(id.String())}, {Key: "type", Value: []byte(eventType)}},
	}).FirstErr(); err != nil {
		c.Fatal(err)
	}
}

func (c *consumed) becomes(id uuid.UUID, status string) {
	c.Helper()
	cdctest.Eventually(c, time.Minute, func() error {
		var is string
		err := c.conn.QueryRow(c.Context(), `SELECT status FROM orders WHERE id = $1`, id).Scan(&is)
		if err == nil && is != status {
			err = fmt.Errorf("order %s is %s, wanted %s", id, is, status)
		}
		return err
	})
}

const (
	reserved = `"schemaVersion": 1, "items": [{"sku": "tea", "quantity": 2}]`
	rejected = `"schemaVersion": 1, "short": [{"sku": "tea", "requested": 2, "available": 1}]`
)

// TestBadAnswersAreParkedByNameAndStopNobodyElse sends every kind of wrong event, with good events between and after
// them.
func TestBadAnswersAreParkedByNameAndStopNobodyElse(t *testing.T) {
	c := newConsumed(t)
	first, poisoned, last, created, out := c.paid(), c.paid(), c.paid(), uuid.Nil, c.paid()
	if err := c.conn.QueryRow(t.Context(), `SELECT create_order('b', 'a@b.example', '[{"sku": "tea", "quantity": 2, "unitPrice": "19.90"}]')`).Scan(&created); err != nil {
		t.Fatal(err)
	}
	c.produce(first, "StockReserved", reserved)
	nobody := uuid.New()
	c.produce(nobody, "StockReserved", reserved)
	c.send(poisoned, "StockReserved", uuid.Must(uuid.NewV7()), `{"secret`)
	c.produce(poisoned, "StockReserved", reserved)
	c.produce(uuid.New(), "StockMelted", reserved)
	c.produce(uuid.New(), "StockReserved", strings.Replace(reserved, "1", "7", 1))
	c.produce(uuid.New(), "StockReserved", rejected)
	c.produce(uuid.New(), "StockRejected", strings.Replace(rejected, `"available": 1`, `"available": -1`, 1))
	c.produce(uuid.New(), "StockReserved", `"schemaVersion": 1, "items": "secret"`)
	c.produce(created, "StockReserved", reserved)
	c.produce(out, "StockRejected", rejected)
	c.produce(last, "StockReserved", reserved)
	log, stop := c.start("orders")
	c.becomes(last, "confirmed")
	c.becomes(first, "confirmed")
	c.becomes(out, "rejected")
	c.becomes(poisoned, "paid")
	c.becomes(created, "created")

	list, err := c.command("parked", "list")
	for _, want := range []string{
		`^group orders\n`, `StockReserved +` + nobody.String() + ` .*order ` + nobody.String() + ` does not exist here`, `not JSON, at byte 8`,
		`an earlier event of its key is parked`, `unknown type StockMelted`, `schemaVersion is 7 and not 1`, `short is missing in StockRejected, or present in another type`,
		`short\[0\] has no valid sku with less available`, `items is a string of the wrong kind`, created.String() + ` .* is created and cannot become confirmed`,
	} {
		if err != nil || !regexp.MustCompile(want).MatchString(list) {
			t.Errorf("no %q in the list (%v):\n%s", want, err, list)
		}
	}
	if n := strings.Count(list, "\n"); n != 2*len(groups)+9 {
		t.Errorf("%d lines:\n%s", n, list)
	}
	if text := log.String(); strings.Contains(text, "secret") || strings.Contains(text, "ada@") || !strings.Contains(text, `"message":"order rejected"`) {
		t.Errorf("the log:\n%s", text)
	}

	// The operator drops the poisoned event; then the events that waited for it are applied.
	id := regexp.MustCompile(`(?m)^(\d+) .* not JSON`).FindStringSubmatch(list)[1]
	behind := regexp.MustCompile(`(?m)^(\d+) .* an earlier event`).FindStringSubmatch(list)[1]
	if got, err := c.command("parked", "drop", "--group", "orders", id); err != nil || !strings.Contains(got, "dropped ") {
		t.Errorf("drop: %s (%v)", got, err)
	}
	if got, err := c.command("parked", "redrive", "--group", "orders", behind); err != nil || !strings.Contains(got, "applied ") {
		t.Errorf("redrive: %s (%v)", got, err)
	}
	c.becomes(poisoned, "confirmed")
	for _, wrong := range [][]string{{"parked", "drop", "1"}, {"parked", "drop", "1", "--group", "nobody"}, {"replay", "--offset", "0"}} {
		if _, err := c.command(wrong...); err == nil || !strings.Contains(err.Error(), "orders") {
			t.Errorf("%v: %v", wrong, err)
		}
	}
	if _, err := c.command("replay", "--group", "orders", "--offset", "0"); err == nil || !strings.Contains(err.Error(), "stop the consumers") {
		t.Errorf("replay under a running consumer: %v", err)
	}
	stop()
	if got, err := c.command("replay", "--group", "orders", "--offset", "0", "--dry-run"); err != nil || !strings.Contains(got, "0 events would be new, 5 the inbox will skip") {
		t.Errorf("replay: %s (%v)", got, err)
	}
	// Everything is sent once more: nothing happens twice.
	if got, err := c.command("replay", "--group", "orders", "--offset", "0"); err != nil {
		t.Errorf("replay: %s (%v)", got, err)
	}
	c.start("orders")
	again := c.paid()
	c.produce(again, "StockReserved", reserved)
	c.becomes(again, "confirmed")
	var events, unbalanced int
	if err := c.conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM outbox WHERE event_type IN ('OrderConfirmed', 'OrderRejected')),
		(SELECT count(*) FROM order_balances WHERE balance <> due)`).Scan(&events, &unbalanced); err != nil || events != 5 || unbalanced != 0 {
		t.Errorf("%d events of 5 orders, %d out of balance (%v)", events, unbalanced, err)
	}
}

func TestConsumeNamesEveryMistakeAtOnce(t *testing.T) {
	c := &consumed{T: t, env: map[string]string{"LOG_LEVEL": "loud"}}
	_, err := c.command("consume", "orders", "payments")
	for _, want := range []string{`no group "payments": name some of orders`, "ORDERS_DATABASE_URL", "ORDERS_KAFKA_BROKERS", "--log-level"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
	stranger := httptest.NewTLSServer(nil)
	stranger.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer stranger.Close()
	c.env = map[string]string{"ORDERS_DATABASE_URL": "postgres://orders_service:secret@127.0.0.1:1/orders", "ORDERS_KAFKA_BROKERS": stranger.Listener.Addr().String(), "ORDERS_KAFKA_TLS": "true"}
	if _, err := c.command("replay", "--group", "statistics", "--offset", "0"); err == nil || !strings.Contains(err.Error(), "name the file with its certificate in --kafka-tls-ca-file (ORDERS_KAFKA_TLS_CA_FILE)") {
		t.Errorf("a Kafka with an unknown certificate: %v", err)
	}
}
