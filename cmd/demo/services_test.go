package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// build builds the three programs.
func build(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.Command("go", "build", "-o", dir, "../orders", "../inventory", "../walpost").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return dir
}

// shop has the three programs as their users run them: one process each, over two databases and a Kafka that the test
// can stop.
type shop struct {
	*testing.T
	bin               string
	env               []string
	topic             string
	orders, inventory string // URLs
	kafkaConfig       devenv.KafkaConfig
	kafka             *devenv.Kafka
	ordersDB, stockDB *pgx.Conn // with the owner's rights
}

func newShop(t *testing.T) *shop {
	t.Helper()
	ports := make([]int, 4)
	for i := range ports {
		var err error
		if ports[i], err = devenv.FreePort(); err != nil {
			t.Fatal(err)
		}
	}
	address := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	ordersURL, stockURL := cdctest.Database(t), cdctest.Database(t)
	slot := cdctest.SlotName(t, "shop")
	as := func(role, url string) string { return cdctest.As(url, role) }
	s := &shop{
		T: t, bin: build(t), topic: slot + ".order",
		orders: "http://" + address(0), inventory: "http://" + address(1),
		kafkaConfig: devenv.KafkaConfig{Ports: ports[3:], DataDir: t.TempDir()},
	}
	s.env = append(os.Environ(),
		"LOG_LEVEL=debug", "LOG_FORMAT=json",
		"ORDERS_DATABASE_URL="+as("orders_service", ordersURL), "ORDERS_ADMIN_DATABASE_URL="+ordersURL, "ORDERS_HTTP="+address(0),
		"INVENTORY_DATABASE_URL="+as("inventory_service", stockURL), "INVENTORY_ADMIN_DATABASE_URL="+stockURL, "INVENTORY_HTTP="+address(1),
		"INVENTORY_KAFKA_BROKERS="+address(3), "INVENTORY_TOPIC="+s.topic,
		"WALPOST_PIPELINE="+slot, "WALPOST_SOURCE_URL="+as("walpost", ordersURL), "WALPOST_ADMIN_URL="+ordersURL, "WALPOST_SOURCE_SLOT="+slot,
		"WALPOST_HTTP="+address(2), "WALPOST_KAFKA_BROKERS="+address(3), "WALPOST_KAFKA_TOPIC="+slot+".{aggregate_type}",
		"WALPOST_KAFKA_AGGREGATE_TYPES=order", "WALPOST_KAFKA_REPLICATION=1",
	)
	s.startKafka()
	t.Cleanup(func() { s.kafka.Close() })
	for _, args := range [][]string{{"orders", "migrate"}, {"inventory", "migrate"}, {"walpost", "init"}} {
		cmd := s.command(args[0], args[1])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	for conn, url := range map[**pgx.Conn]string{&s.ordersDB: ordersURL, &s.stockDB: stockURL} {
		var err error
		if *conn, err = pgx.Connect(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*conn).Close(context.Background()) })
	}
	return s
}

func (s *shop) startKafka() {
	s.Helper()
	var err error
	if s.kafka, err = devenv.StartKafka(s.kafkaConfig); err != nil {
		s.Fatal(err)
	}
}

func (s *shop) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Env = s.env
	return cmd
}

// service is one running program.
type service struct {
	log  cdctest.Log
	stop func() // sends SIGTERM; the program must end without an error
}

func (s *shop) start(program string, args ...string) *service {
	s.Helper()
	cmd, p := s.command(program, args...), &service{}
	cmd.Stderr = &p.log
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	p.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		if err := cmd.Wait(); err != nil {
			s.Errorf("%s ended with %v:\n%s", program, err, p.log.String())
		}
	})
	s.Cleanup(p.stop)
	return p
}

// ask makes a request, decodes a successful answer into answer unless that is nil, and returns the duration.
func (s *shop) ask(method, url, body string, status int, answer any) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(s.Context(), 10*time.Second)
	defer cancel()
	begun := time.Now()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	took := time.Since(begun)
	if err == nil && res.StatusCode != status {
		err = fmt.Errorf("%s %s: %s: %s", method, url, res.Status, text)
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(text, answer)
	}
	return took, err
}

// eventually repeats a request until its answer meets the condition.
func (s *shop) eventually(method, url, body string) {
	s.Helper()
	cdctest.Eventually(s, 30*time.Second, func() error {
		_, err := s.ask(method, url, body, http.StatusOK, nil)
		return err
	})
}

const email = "ada.lovelace@shop.example"

// buy places an order for one TEA-100 and pays it. It returns the duration of placing it.
func (s *shop) buy() (id string, took time.Duration) {
	s.Helper()
	var order struct{ OrderID string }
	took, err := s.ask("POST", s.orders+"/orders",
		`{"buyerId": "buyer-4711", "buyerEmail": "`+email+`", "items": [{"sku": "TEA-100", "quantity": 1, "unitPrice": "19.90"}]}`, http.StatusCreated, &order)
	if err == nil {
		_, err = s.ask("POST", s.orders+"/orders/"+order.OrderID+"/pay", "", http.StatusOK, nil)
	}
	if err != nil {
		s.Fatal(err)
	}
	return order.OrderID, took
}

// waitStock waits until the stock of TEA-100 is as wanted.
func (s *shop) waitStock(want int64) {
	s.Helper()
	cdctest.Eventually(s, 30*time.Second, func() error {
		var available, events int64
		err := s.stockDB.QueryRow(s.Context(), `SELECT available, (SELECT count(*) FROM inbox) FROM stock WHERE sku = 'TEA-100'`).Scan(&available, &events)
		if err == nil && available != want {
			err = fmt.Errorf("stock is %d, wanted %d; %d events were applied", available, want, events)
		}
		return err
	})
}

// TestOneEventThroughThreeLogs finds an event by its id in the logs of all three processes.
func TestOneEventThroughThreeLogs(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	t.Parallel()
	s := newShop(t)
	logs := map[string]*service{"orders": s.start("orders"), "walpost": s.start("walpost", "relay"), "inventory": s.start("inventory")}
	s.eventually("GET", s.orders+"/readyz", "")
	s.eventually("PUT", s.inventory+"/stock/TEA-100", `{"available": 10}`)
	order, _ := s.buy()
	s.waitStock(9)

	for _, eventType := range []string{"OrderCreated", "OrderPaid"} {
		var event string
		if err := s.ordersDB.QueryRow(t.Context(), `SELECT id::text FROM outbox WHERE aggregate_id = $1 AND event_type = $2`, order, eventType).Scan(&event); err != nil {
			t.Fatal(err)
		}
		// The record itself has its position.
		want := map[string]any{"event_id": event, "order_id": order, "type": eventType, "topic": s.topic}
		for _, record := range cdctest.Consume(t, s.kafka.Brokers(), s.topic, 20*time.Second, cdctest.AtLeast(2)) {
			if header(record, "id") == event {
				want["partition"], want["offset"], want["lsn"] = float64(record.Partition), float64(record.Offset), header(record, "lsn")
			}
		}
		for service, fields := range map[string][]string{
			"orders":    {"event_id", "order_id", "type"},
			"walpost":   {"event_id", "lsn", "topic", "partition", "offset"},
			"inventory": {"event_id", "order_id", "type", "topic", "partition", "offset"},
		} {
			if eventType == "OrderCreated" && service == "inventory" {
				fields = slices.DeleteFunc(fields, func(name string) bool { return name == "order_id" }) // inventory passes over it without decoding it
			}
			var lines []map[string]any
			cdctest.Eventually(t, 30*time.Second, func() error {
				if lines = grep(t, logs[service].log.String(), event); len(lines) == 0 {
					return fmt.Errorf("%s %s is not in the log of %s:\n%s", eventType, event, service, logs[service].log.String())
				}
				return nil
			})
			if len(lines) != 1 || lines[0]["service"] != service {
				t.Errorf("in the log of %s there is, of one event: %v", service, lines)
			}
			for _, name := range fields {
				if lines[0][name] == nil || lines[0][name] != want[name] {
					t.Errorf("%s of %s: %s is %v and should be %v: %v", service, eventType, name, lines[0][name], want[name], lines[0])
				}
			}
		}
	}
	for service, p := range logs {
		for _, secret := range []string{email, "buyer-4711", "19.90", "unitPrice"} {
			if strings.Contains(p.log.String(), secret) {
				t.Errorf("%q is in the log of %s:\n%s", secret, service, p.log.String())
			}
		}
	}
}

func grep(t *testing.T, log, text string) (found []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log) {
		if strings.Contains(line, text) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			found = append(found, fields)
		}
	}
	return found
}

// TestOrdersWaitForNobody stops everything after the outbox, and compares how long an order takes.
func TestOrdersWaitForNobody(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	const start, orders = 1000, 60
	s := newShop(t)
	brokers := s.kafka.Brokers()
	s.start("orders")
	relay, stock := s.start("walpost", "relay"), s.start("inventory")
	s.eventually("GET", s.orders+"/readyz", "")
	s.eventually("PUT", s.inventory+"/stock/TEA-100", fmt.Sprintf(`{"available": %d}`, start))
	usual := s.median(orders)
	s.waitStock(start - orders)

	stock.stop()
	relay.stop()
	s.kafka.Close()
	down := s.median(orders)
	t.Logf("POST /orders, median of %d: %v with everything up, %v with Kafka, relay and inventory down", orders, usual, down)
	if limit := 3*usual + 10*time.Millisecond; down > limit {
		t.Errorf("with Kafka, relay and inventory down an order takes %v and should take %v at most", down, limit)
	}
	if conn, err := net.Dial("tcp", brokers[0]); err == nil {
		_ = conn.Close()
		t.Error("Kafka was up all the time")
	}

	s.startKafka()
	s.start("walpost", "relay")
	s.start("inventory")
	s.waitStock(start - 2*orders)
	var events, applied int64
	err := errors.Join(
		s.ordersDB.QueryRow(t.Context(), `SELECT count(*) FROM outbox WHERE event_type = 'OrderPaid'`).Scan(&events),
		s.stockDB.QueryRow(t.Context(), `SELECT count(*) FROM inbox`).Scan(&applied))
	if err != nil || events != 2*orders || applied != events {
		t.Errorf("%d orders were paid, %d events applied (%v)", events, applied, err)
	}
}

// median places n orders and returns the median of the durations.
func (s *shop) median(n int) time.Duration {
	s.Helper()
	took := make([]time.Duration, n)
	for i := range took {
		_, took[i] = s.buy()
	}
	slices.Sort(took)
	return took[n/2]
}
