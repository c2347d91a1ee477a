package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/sql"
)

// working is the whole service. The function work uses each part once.
type working struct {
	*consumed
	catalog   string // the administrator's URL of the inventory database
	nowhere   string // a topic without events
	receivers *receivers
	base      string // the address of orders serve
	serving   *cdctest.Log
	consuming *cdctest.Log // the log of orders consume; nil while it does not run
	stop      func()
	answered  []uuid.UUID // orders with an answer of the stock
}

func newWorking(t *testing.T) *working {
	t.Helper()
	w := &working{receivers: startReceivers(t), catalog: cdctest.Database(t)}
	as := func(role string) string { return cdctest.As(w.catalog, role) }
	cdctest.AlterRoles(t, func() error {
		w.consumed = newConsumed(t)
		return errors.Join(sql.Migrate(t.Context(), sql.Inventory, w.catalog, as("inventory_service"), io.Discard),
			sql.GrantReader(t.Context(), w.catalog, as("inventory_service"), as("inventory_reader"), io.Discard))
	})
	w.withOrderEvents()
	w.nowhere = cdctest.Name(t, "nowhere")
	cdctest.CreateTopic(t, strings.Split(w.env["ORDERS_KAFKA_BROKERS"], ","), w.nowhere, 1)
	maps.Copy(w.env, map[string]string{
		"LOG_LEVEL": "info", "ORDERS_CATALOG_URL": as("inventory_reader"), "ORDERS_SMTP_URL": w.receivers.smtpURL, "ORDERS_WEBHOOK_URL": w.receivers.hookURL,
		"ORDERS_MAIL_RATE": "0", "ORDERS_MAIL_BACKOFF": "30ms", "ORDERS_HTTP": "127.0.0.1:0",
	})
	log, _ := w.run("serve")
	w.serving = log
	address := regexp.MustCompile(`"address":"([^"]+)".*"message":"serving HTTP"`)
	cdctest.Eventually(t, 20*time.Second, func() error {
		found := address.FindStringSubmatch(log.String())
		if found == nil {
			return fmt.Errorf("it does not serve: %s", log)
		}
		w.base = "http://" + found[1]
		return nil
	})
	return w
}

// http makes a request. The error is the log's sentence about it.
func (w *working) http(method, path, body, key string) (answer string, err error) {
	w.Helper()
	from := len(w.serving.String())
	status, answer := send(method, w.base+path, body, key)
	if status >= 500 {
		return answer, cmp.Or(cdctest.Denied(w.serving, from), fmt.Errorf("%s %s: %d %s", method, path, status, answer))
	}
	if status != http.StatusOK && status != http.StatusCreated {
		w.Errorf("%s %s: %d %s", method, path, status, answer)
	}
	return answer, nil
}

// place places an order, and makes the changes that the paths name.
func (w *working) place(paths ...string) (id uuid.UUID, err error) {
	const body = `{"buyerId": "b", "buyerEmail": "ada@shop.example", "items": [{"sku": "tea", "quantity": 2, "unitPrice": "19.90"}]}`
	key := uuid.NewString()
	for range 2 { // the second answer is the stored one
		answer, err := w.http("POST", "/orders", body, key)
		if err != nil {
			return id, err
		}
		var order struct{ OrderID uuid.UUID }
		if err := json.Unmarshal([]byte(answer), &order); err != nil {
			return id, err
		}
		id = order.OrderID
	}
	return id, w.change(id, paths...)
}

func (w *working) change(id uuid.UUID, paths ...string) error {
	for _, path := range paths {
		if _, err := w.http("POST", "/orders/"+id.String()+path, "", ""); err != nil {
			return err
		}
	}
	return nil
}

func (w *working) number(query string, args ...any) (n int) {
	w.Helper()
	if err := w.conn.QueryRow(w.Context(), query, args...).Scan(&n); err != nil {
		w.Fatal(err)
	}
	return n
}

// relayNew puts the new rows of the outbox on the topic. No other session writes between the reading and the deleting.
func (w *working) relayNew() {
	w.Helper()
	if _, err := w.conn.Exec(w.Context(), `BEGIN; LOCK TABLE outbox IN EXCLUSIVE MODE`); err != nil {
		w.Fatal(err)
	}
	w.relay(w.env["ORDERS_TOPIC"])
	if _, err := w.conn.Exec(w.Context(), `DELETE FROM outbox; COMMIT`); err != nil {
		w.Fatal(err)
	}
}

// until waits for cond. It returns an error if the consumers' log reports a missing right.
func (w *working) until(cond func() error) (denied error) {
	w.Helper()
	cdctest.Eventually(w, 20*time.Second, func() error {
		if denied = cdctest.Denied(w.consuming, 0); denied != nil {
			return nil
		}
		if err := cond(); err != nil {
			return fmt.Errorf("%w, and the log says nothing of rights: %s", err, w.consuming)
		}
		return nil
	})
	return denied
}

// caughtUp returns a condition: all events on the topics are applied, and all notifications are sent.
func (w *working) caughtUp() func() error {
	w.Helper()
	ends, err := kadm.NewClient(w.client).ListEndOffsets(w.Context(), w.topic, w.env["ORDERS_TOPIC"])
	if err != nil {
		w.Fatal(err)
	}
	return func() error {
		for _, g := range groups {
			end, _ := ends.Lookup(g.topic(kafka{Topic: w.env["ORDERS_TOPIC"], StockTopic: w.topic}), 0)
			if n := w.number(`SELECT coalesce(max(next_offset), 0) FROM inbox_partitions WHERE consumer_group = $1`, w.env["ORDERS_GROUP_PREFIX"]+g.name); int64(n) < end.Offset {
				return fmt.Errorf("group %s is at %d of %d", g.name, n, end.Offset)
			}
		}
		if n := w.number(`SELECT count(*) FROM notifications WHERE status <> 'SENT'`); n > 0 {
			return fmt.Errorf("%d notifications are not sent", n)
		}
		return nil
	}
}

func (w *working) commands(all ...string) error {
	for _, line := range all {
		if out, err := w.command(strings.Fields(line)...); err != nil {
			if !strings.HasSuffix(err.Error(), "this program's command migrate gives it all that it needs") {
				w.Errorf("orders %s does not say what to do: %v", line, err)
			}
			return fmt.Errorf("orders %s: %s%w", line, out, err)
		}
	}
	return nil
}

// work uses the whole service: orders from beginning to end, mails and webhooks, statistics, and the operators'
// commands.
func (w *working) work() error {
	if status, answer := send("GET", w.base+"/readyz", "", ""); status != http.StatusOK {
		return errors.New(answer)
	}
	var ids [3]uuid.UUID
	for i := range ids {
		var err error
		if ids[i], err = w.place("/pay"); err != nil {
			return err
		}
	}
	confirmed, out, poisoned := ids[0], ids[1], ids[2]
	dropped, err := w.place("/cancel")
	if err != nil {
		return err
	}
	for _, r := range []struct{ method, path, body string }{
		{"PUT", "/customers/b/notifications", `{"format": "text"}`},
		{"GET", "/customers/b/notifications", ""},
		{"GET", "/orders", ""},
		{"GET", "/orders/" + dropped.String() + "/history", ""},
		{"GET", "/orders/" + dropped.String() + "/mails", ""},
		{"GET", "/statistics", ""},
	} {
		if _, err := w.http(r.method, r.path, r.body, ""); err != nil {
			return err
		}
	}

	w.consuming, w.stop = w.start()
	w.relayNew()
	w.answered = append(w.answered, confirmed, out, poisoned)
	w.produce(confirmed, "StockReserved", reserved)
	w.produce(out, "StockRejected", rejected)
	w.send(poisoned, "StockReserved", uuid.Must(uuid.NewV7()), `{"`)
	w.produce(poisoned, "StockReserved", reserved)
	if err := w.until(w.caughtUp()); err != nil {
		return err
	}
	w.relayNew()
	if err := w.until(w.caughtUp()); err != nil {
		return err
	}
	if err := w.change(confirmed, "/ship", "/complete"); err != nil {
		return err
	}

	held := w.number(`SELECT max(id) FROM inbox_parked WHERE status = 'parked' AND event_type = 'StockReserved'`)
	if err := w.commands("parked list", fmt.Sprintf("parked drop --group orders %d", held-1), fmt.Sprintf("parked redrive --group orders %d", held), "parked decisions --group orders",
		"mail list", "webhook retry"); err != nil {
		return err
	}
	// From a topic that has lost its first events, and from the whole one.
	topic := w.env["ORDERS_TOPIC"]
	w.env["ORDERS_TOPIC"] = w.nowhere
	err = w.commands("statistics rebuild --partial")
	w.env["ORDERS_TOPIC"] = topic
	if err != nil {
		return err
	}
	return w.commands("statistics rebuild", "statistics show")
}

// waitUntilIdle waits until no work is left, and stops the consumers.
func (w *working) waitUntilIdle() {
	w.Helper()
	if w.consuming == nil {
		return
	}
	for again := true; again; again = w.number(`SELECT count(*) FROM outbox`) > 0 { // events that the stock's answers have caused meanwhile
		w.relayNew()
		cdctest.Eventually(w, 20*time.Second, w.caughtUp())
	}
	w.stop()
	w.consuming = nil
}

// mails uses names and pictures of products as the service does.
func (w *working) mails() error {
	id, err := w.place("/pay")
	if err != nil {
		return err
	}
	w.consuming, w.stop = w.start("orders", "mail")
	w.produce(id, "StockReserved", reserved)
	w.becomes(id, "confirmed")
	w.relayNew()
	return w.until(func() error {
		if n := w.number(`SELECT count(*) FROM notifications WHERE order_id = $1 AND channel = 'mail' AND status = 'SENT'`, id); n == 0 {
			return errors.New("the mail is not sent")
		}
		return nil
	})
}

// mailed waits until all mails are sent.
func (w *working) mailed() {
	w.Helper()
	cdctest.Eventually(w, 20*time.Second, func() error {
		if n := w.number(`SELECT count(*) FROM outbox o WHERE event_type = 'OrderConfirmed'`) + w.number(`SELECT count(*) FROM notifications WHERE channel = 'mail' AND status <> 'SENT'`); n > 0 {
			return fmt.Errorf("%d mails are not sent", n)
		}
		return nil
	})
	w.stop()
	w.consuming = nil
}

// TestLeastRights revokes the rights of sql/orders/rights.sql and sql/inventory/reader.sql one by one, and checks at
// the end that nothing is lost.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	w := newWorking(t)
	cdctest.LeastRights(t, w.admin, "orders_service", w.work, w.waitUntilIdle)
	cdctest.LeastRights(t, w.catalog, "inventory_reader", w.mails, w.mailed)

	w.consuming, w.stop = w.start()
	if _, err := w.conn.Exec(t.Context(), `UPDATE inbox_parked SET status = 'dropped', resolved_at = now() WHERE value = '{"' AND status = 'parked'`); err != nil {
		t.Fatal(err)
	}
	if err := w.commands("parked redrive --group orders --all"); err != nil {
		t.Error(err)
	}
	w.waitUntilIdle()
	if n := w.number(`SELECT count(*) FROM orders WHERE id = ANY($1) AND status IN ('created', 'paid')`, w.answered); n > 0 || len(w.answered) < 50 {
		t.Errorf("%d of %d orders have not received the stock's answer", n, len(w.answered))
	}
	if n := w.number(`SELECT count(*) FROM order_history h WHERE what IN ('OrderConfirmed', 'OrderRejected', 'OrderShipped')
		AND 2 <> (SELECT count(*) FROM notifications n WHERE n.event_id = h.event_id AND status = 'SENT')`); n > 0 {
		t.Errorf("for %d events a mail or webhook was not sent", n)
	}
	w.receivers.mu.Lock()
	defer w.receivers.mu.Unlock()
	for what, came := range map[string]map[string]int{"mail": w.receivers.mails, "webhook": w.receivers.hooks} {
		for id, n := range came {
			if n != 1 {
				t.Errorf("%s %s came %d times", what, id, n)
			}
		}
	}
	if err := w.commands("statistics rebuild"); err != nil {
		t.Error(err)
	}
}
