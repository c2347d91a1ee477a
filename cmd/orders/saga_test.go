package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// A shop has all programs as a team would run them, each in a separate process.
type shop struct {
	*testing.T
	name              string // a prefix for names that tests share
	folder            string // of the programs
	orders, inventory *pgxpool.Pool
	client            *kgo.Client
	receivers         *receivers
	env               map[string]string
	programs          []*program
}

// A program is a process that the test kills and starts again.
type program struct {
	name    string
	args    []string
	address string // its HTTP address
	group   string // its consumer group, if it has one
	cmd     *exec.Cmd
	log     cdctest.Log
	kills   int
}

func openShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{T: t, name: cdctest.Name(t, "shop"), folder: t.TempDir(), receivers: startReceivers(t)}
	build := exec.Command("go", "build", "-o", s.folder, "../walpost", "../orders", "../inventory")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	brokers, slot := cdctest.Kafka(t), strings.ReplaceAll(s.name, "-", "_")
	as := func(admin, user string) string {
		u, err := url.Parse(admin)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(user, cdctest.Canary)
		return u.String()
	}
	ordersAdmin, inventoryAdmin := cdctest.Database(t), cdctest.Database(t)
	config := filepath.Join(s.folder, "walpost.yaml")
	text := fmt.Sprintf(`kafka: {brokers: ["%s"], topic: "%s.{aggregate_type}", replication: 1}
pipelines:
- {pipeline: %[2]s-orders, source: {slot: %[3]s_orders}, kafka: {aggregate_types: [order]}}
- {pipeline: %[2]s-stock, source: {slot: %[3]s_stock}, kafka: {aggregate_types: [stock]}}
`, strings.Join(brokers, `", "`), s.name, slot)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	prefix := "WALPOST_" + strings.ToUpper(slot)
	s.env = map[string]string{
		"WALPOST_CONFIG":              config,
		prefix + "_ORDERS_SOURCE_URL": as(ordersAdmin, "relay_"+slot), prefix + "_ORDERS_ADMIN_URL": ordersAdmin,
		prefix + "_STOCK_SOURCE_URL": as(inventoryAdmin, "relay_"+slot), prefix + "_STOCK_ADMIN_URL": inventoryAdmin,
		"ORDERS_DATABASE_URL": as(ordersAdmin, "orders_service"), "ORDERS_ADMIN_DATABASE_URL": ordersAdmin,
		"ORDERS_KAFKA_BROKERS": strings.Join(brokers, ","), "ORDERS_TOPIC": s.name + ".order", "ORDERS_STOCK_TOPIC": s.name + ".stock", "ORDERS_GROUP_PREFIX": s.name + ".",
		"INVENTORY_DATABASE_URL": as(inventoryAdmin, "inventory_service"), "INVENTORY_ADMIN_DATABASE_URL": inventoryAdmin,
		"INVENTORY_KAFKA_BROKERS": strings.Join(brokers, ","), "INVENTORY_TOPIC": s.name + ".order", "INVENTORY_GROUP": s.name + ".inventory",
		"INVENTORY_READER_DATABASE_URL": as(inventoryAdmin, "inventory_reader"), "ORDERS_CATALOG_URL": as(inventoryAdmin, "inventory_reader"),
		"ORDERS_SMTP_URL": s.receivers.smtpURL, "ORDERS_MAIL_FROM": "shop@shop.example", "ORDERS_MAIL_RATE": "0",
		"ORDERS_WEBHOOK_URL": s.receivers.hookURL, "ORDERS_WEBHOOK_SECRET": "of sixteen bytes: " + cdctest.Canary,
		"LOG_FORMAT": "json",
	}
	for _, command := range []string{"orders migrate", "inventory migrate", "walpost init"} {
		words := strings.Fields(command)
		cmd := s.command(words[0], words[1:]...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	for pool, url := range map[**pgxpool.Pool]string{&s.orders: ordersAdmin, &s.inventory: inventoryAdmin} {
		var err error
		if *pool, err = pgxpool.New(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*pool).Close)
	}
	var err error
	if s.client, err = kgo.NewClient(kgo.SeedBrokers(brokers...)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	s.add("relay", "WALPOST_HTTP", "", "walpost", "relay")
	s.add("serve", "ORDERS_HTTP", "", "orders", "serve")
	s.add("inventory", "INVENTORY_HTTP", s.env["INVENTORY_GROUP"], "inventory", "serve")
	for _, g := range groupNames() {
		s.add(g, "ORDERS_CONSUME_HTTP", s.name+"."+g, "orders", "consume", g)
	}
	for _, p := range s.programs {
		s.ready(p)
	}
	return s
}

func (s *shop) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.folder, name), args...)
	cmd.Env = os.Environ()
	for k, v := range s.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return cmd
}

// add starts a program with a free address in the variable.
func (s *shop) add(name, variable, group string, args ...string) {
	s.Helper()
	port, err := devenv.FreePort()
	if err != nil {
		s.Fatal(err)
	}
	p := &program{name: name, address: fmt.Sprintf("127.0.0.1:%d", port), group: group, args: args}
	p.args = append([]string{variable + "=" + p.address}, args...)
	s.programs = append(s.programs, p)
	s.start(p)
	s.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		if s.Failed() {
			s.Logf("the end of the log of %s:\n%s", p.name, p.log.String()[max(0, len(p.log.String())-2000):])
		}
	})
}

func (s *shop) start(p *program) {
	s.Helper()
	p.cmd = s.command(p.args[1], p.args[2:]...)
	p.cmd.Env = append(p.cmd.Env, p.args[0])
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		s.Fatal(err)
	}
}

// kill kills a process, and starts it again.
func (s *shop) kill(p *program) {
	s.Helper()
	p.kills++
	if err := p.cmd.Process.Kill(); err != nil {
		s.Fatal(err)
	}
	_ = p.cmd.Wait()
	if p.group != "" {
		cdctest.Evict(s, s.client, p.group)
	}
	s.start(p)
}

func (s *shop) program(name string) *program {
	for _, p := range s.programs {
		if p.name == name {
			return p
		}
	}
	s.Fatalf("there is no program %s", name)
	return nil
}

// owner returns a pattern for the leases of the running process.
func (p *program) owner() string { return fmt.Sprintf("%%-%d-%%", p.cmd.Process.Pid) }

func (s *shop) ready(p *program) {
	s.Helper()
	cdctest.Eventually(s, time.Minute, func() error {
		status, body := send("GET", "http://"+p.address+"/readyz", "", "")
		if status != http.StatusOK {
			return fmt.Errorf("%s: %d %s", p.name, status, body)
		}
		return nil
	})
}

// post repeats a request of the order service until it is answered, also if a process dies meanwhile.
func (s *shop) post(ctx context.Context, path, body string) (int, string) {
	key := uuid.NewString()
	for {
		status, answer := send("POST", "http://"+s.program("serve").address+path, body, key)
		if status != 0 && status < 500 || ctx.Err() != nil {
			return status, answer
		}
		time.Sleep(10 * time.Millisecond) // it is starting
	}
}

// buy places an order and takes it along one of several ways.
func (s *shop) buy(ctx context.Context, skus []string) error {
	var items []string
	for _, i := range rand.Perm(len(skus))[:1+rand.IntN(3)] {
		items = append(items, fmt.Sprintf(`{"sku": %q, "quantity": %d, "unitPrice": "%d.%02d"}`, skus[i], 1+rand.IntN(4), rand.IntN(50), rand.IntN(100)))
	}
	status, answer := s.post(ctx, "/orders", fmt.Sprintf(`{"buyerId": "buyer-%d", "buyerEmail": "ada@shop.example", "items": [%s]}`, rand.IntN(10), strings.Join(items, ", ")))
	var order struct{ OrderID string }
	if err := json.Unmarshal([]byte(answer), &order); err != nil || status != http.StatusCreated {
		return fmt.Errorf("place: %d %s", status, answer)
	}
	path := "/orders/" + order.OrderID
	if status, answer = s.post(ctx, path+"/pay", ""); status != http.StatusOK {
		return fmt.Errorf("pay: %d %s", status, answer)
	}
	switch rand.IntN(4) {
	case 0: // races the stock's answer
		if status, answer = s.post(ctx, path+"/cancel", ""); status != http.StatusOK && status != http.StatusConflict {
			return fmt.Errorf("cancel: %d %s", status, answer)
		}
	case 1: // too early for a while
		for range 20 {
			if status, answer = s.post(ctx, path+"/ship", ""); status != http.StatusConflict {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if status != http.StatusOK && status != http.StatusConflict {
			return fmt.Errorf("ship: %d %s", status, answer)
		}
	}
	return nil
}

// none runs a query that counts violations, and fails the test if there are any.
func (s *shop) none(pool *pgxpool.Pool, what, query string, args ...any) {
	s.Helper()
	var n int
	if err := pool.QueryRow(s.Context(), query, args...).Scan(&n); err != nil || n != 0 {
		s.Errorf("%d %s (%v)", n, what, err)
	}
}

func (s *shop) number(pool *pgxpool.Pool, query string, args ...any) (n int) {
	s.Helper()
	if err := pool.QueryRow(s.Context(), query, args...).Scan(&n); err != nil {
		s.Fatalf("%s: %v", query, err)
	}
	return n
}

// TestSagaSurvivesKillsOfEveryProcess kills each process in turn, under load, and checks all sums at the end.
func TestSagaSurvivesKillsOfEveryProcess(t *testing.T) {
	cdctest.Long(t, "kills under load")
	rounds := 7
	if cdctest.LongForm() {
		rounds = 50
	}
	s := openShop(t)
	stock := map[string]int{"cup": 1_000_000, "pot": 1_000_000, "tea": 1_000_000, "rare": 10}
	var skus []string
	for sku, available := range stock {
		skus = append(skus, sku)
		if status, body := send("PUT", "http://"+s.program("inventory").address+"/stock/"+sku, fmt.Sprintf(`{"available": %d}`, available), ""); status != http.StatusOK {
			t.Fatal(status, body)
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				if err := s.buy(ctx, skus); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for round := range rounds {
		time.Sleep(time.Duration(200+rand.IntN(400)) * time.Millisecond) // so that it dies at a random point
		s.kill(s.programs[round%len(s.programs)])
	}
	for _, p := range s.programs {
		s.ready(p)
	}
	shown := []string{"confirmed", "rejected", "cancelled", "shipped"}
	cdctest.Eventually(t, time.Minute, func() error { // on a busy machine few orders were placed until here
		for _, status := range shown {
			if s.number(s.orders, `SELECT count(*) FROM orders WHERE status = $1`, status) == 0 {
				return fmt.Errorf("no order is %s", status)
			}
		}
		return nil
	})
	stop()
	load.Wait()

	cdctest.Eventually(t, 2*time.Minute, func() error {
		if n := s.number(s.orders, `SELECT count(*) FROM orders WHERE status = 'paid'`); n > 0 {
			return fmt.Errorf("%d orders are paid and neither confirmed nor rejected", n)
		}
		if n := s.number(s.orders, `SELECT count(*) FROM orders o WHERE paid_at IS NOT NULL AND NOT EXISTS (
			SELECT FROM order_history h WHERE h.order_id = o.id AND what IN ('StockReserved', 'StockRejected'))`); n > 0 {
			return fmt.Errorf("%d paid orders have no answer of the stock", n)
		}
		if n := s.number(s.orders, `SELECT count(*) FROM orders o WHERE status = 'cancelled' AND EXISTS (
			SELECT FROM order_history h WHERE h.order_id = o.id AND what = 'StockReserved') AND NOT EXISTS (
			SELECT FROM order_history h WHERE h.order_id = o.id AND what = 'StockReleased')`); n > 0 {
			return fmt.Errorf("%d cancelled orders wait for their stock to be released", n)
		}
		if n := s.number(s.orders, `SELECT count(*) FROM order_history h WHERE what IN ('OrderConfirmed', 'OrderRejected', 'OrderShipped')
			AND 2 <> (SELECT count(*) FROM notifications n WHERE n.event_id = h.event_id AND status IN ('SENT', 'SUPPRESSED'))`); n > 0 {
			// This ends the leases of killed senders at once.
			if _, err := s.orders.Exec(t.Context(), `UPDATE notifications SET lease_until = now() WHERE lease_owner NOT LIKE $1 AND lease_owner NOT LIKE $2`,
				s.program("mail").owner(), s.program("webhook").owner()); err != nil {
				return err
			}
			return fmt.Errorf("%d events without a sent mail or webhook", n)
		}
		if n := s.number(s.orders, `
			WITH want AS (
				SELECT (paid_at AT TIME ZONE 'UTC')::date, sku, currency::text, count(*), sum(quantity), sum(quantity * unit_price), count(*) FILTER (WHERE back),
					coalesce(sum(quantity) FILTER (WHERE back), 0), coalesce(sum(quantity * unit_price) FILTER (WHERE back), 0)
				FROM (SELECT *, status IN ('rejected', 'cancelled') AS back FROM orders) AS o JOIN order_lines ON order_id = o.id WHERE paid_at IS NOT NULL GROUP BY 1, 2, 3)
			SELECT count(*) FROM ((TABLE want EXCEPT ALL TABLE statistics) UNION ALL (TABLE statistics EXCEPT ALL TABLE want)) AS difference`); n > 0 {
			return fmt.Errorf("%d lines of the statistics are not those of the orders", n)
		}
		return nil
	})

	s.none(s.orders, "orders whose payments do not add up", `SELECT count(*) FROM orders o WHERE
		(SELECT coalesce(sum(CASE kind WHEN 'charge' THEN amount ELSE -amount END), 0) FROM payments p WHERE p.order_id = o.id)
		<> CASE WHEN status IN ('created', 'rejected', 'cancelled') THEN 0 ELSE total END`)
	s.none(s.orders, "events parked", `SELECT count(*) FROM inbox_parked`)
	s.none(s.inventory, "events parked by inventory", `SELECT count(*) FROM inbox_parked`)
	for sku, was := range stock {
		sold := s.number(s.orders, `SELECT coalesce(sum(quantity), 0) FROM order_lines l JOIN orders o ON o.id = l.order_id
			WHERE sku = $1 AND status IN ('confirmed', 'shipped', 'completed')`, sku)
		if left := s.number(s.inventory, `SELECT available FROM stock WHERE sku = $1`, sku); left != was-sold {
			t.Errorf("%s: %d left of %d, and %d sold", sku, left, was, sold)
		}
	}
	rows, _ := s.orders.Query(t.Context(), `SELECT status, count(*) FROM orders GROUP BY status`)
	byStatus := map[string]int{}
	var status string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&status, &n}, func() error {
		byStatus[status] = n
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	again := map[string]int{}
	for channel, took := range map[string]map[string]int{"mail": s.receivers.mails, "webhook": s.receivers.hooks} {
		key := map[string]string{"mail": "order_id || '.' || kind || '@shop.example'", "webhook": "event_id::text"}[channel]
		rows, _ := s.orders.Query(t.Context(), `SELECT `+key+` FROM notifications WHERE status = 'SENT' AND channel = $1`, channel)
		sent, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range sent {
			if took[key] == 0 {
				t.Errorf("%s %s is SENT and did not arrive", channel, key)
			}
			again[channel] += max(0, took[key]-1)
			delete(took, key)
		}
		if len(took) > 0 {
			t.Errorf("%s: %d arrived that are not SENT", channel, len(took))
		}
		// A killed sender may have sent up to four mails without storing the outcome; these may arrive twice.
		if most := 4 * s.program(channel).kills; again[channel] > most {
			t.Errorf("%s: %d arrived again, and its sender was killed %d times", channel, again[channel], s.program(channel).kills)
		}
		s.none(s.orders, channel+"s that arrived again without an attempt of unknown end", `SELECT greatest(0, $2 - (
			SELECT count(*) FROM notification_attempts a JOIN notifications n ON n.id = notification_id WHERE channel = $1 AND outcome IS NULL))`, channel, again[channel])
	}
	t.Logf("%d kills: %v; sent twice: %v", rounds, byStatus, again)
	for _, status := range shown {
		if byStatus[status] == 0 {
			t.Errorf("no order is %s: the load shows less than it should", status)
		}
	}
}
