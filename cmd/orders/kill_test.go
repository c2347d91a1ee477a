package main

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/sql"
)

// startProcess starts the service in a separate process and returns it with its base URL.
func startProcess(t *testing.T, databaseURL string, env ...string) (*exec.Cmd, string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "serve")
	cmd.Env = append(append(os.Environ(), env...), "ORDERS_TEST_MAIN=1", "ORDERS_DATABASE_URL="+databaseURL, "ORDERS_HTTP=127.0.0.1:0", "LOG_FORMAT=json", "LOG_LEVEL=info")
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	log := newLogReader(r)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = r.Close()
	})
	line := log.must(t, "serving HTTP")
	go func() {
		for range log.lines {
		}
	}()
	return cmd, "http://" + line["address"].(string)
}

// kill -9 under load: afterwards every order state has exactly its event and every event its order state, and each
// repeated POST gets the answer that the first one got or would have got.
func TestKillNineTearsNothing(t *testing.T) {
	cdctest.Long(t, "kills under load")
	kills := 5
	if cdctest.LongForm() {
		kills = 30
	}
	admin, service := databases(t)
	if err := sql.Migrate(t.Context(), sql.Orders, admin, service, io.Discard); err != nil {
		t.Fatal(err)
	}
	owner, err := pgxpool.New(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()

	process, url := startProcess(t, service)
	var base atomic.Value
	base.Store(url)
	ctx, stop := context.WithCancel(t.Context())
	type exchange struct {
		path, body, key, answer string
		status                  int
	}
	var (
		mu        sync.Mutex
		exchanges []exchange
		inFlight  atomic.Int64 // requests in progress
		lost      atomic.Int64 // requests without an answer because of a kill, and without an effect
		unheard   atomic.Int64 // requests without an answer because of a kill, but with an effect
	)
	post := func(path, body string) (answer string, ok bool) {
		e := exchange{path: path, body: body, key: uuid.NewString()}
		for {
			inFlight.Add(1)
			e.status, e.answer = send("POST", base.Load().(string)+path, body, e.key)
			inFlight.Add(-1)
			switch e.status {
			case 200, 201:
				mu.Lock()
				exchanges = append(exchanges, e)
				mu.Unlock()
				return e.answer, true
			case 0:
				if strings.Contains(e.answer, "connection refused") { // the next process is still starting
					time.Sleep(10 * time.Millisecond)
					continue
				}
				var done bool
				if err := owner.QueryRow(context.WithoutCancel(ctx), `SELECT EXISTS (SELECT FROM idempotency_keys WHERE key = $1)`, e.key).Scan(&done); err != nil {
					t.Error(err)
					return "", false
				}
				if done {
					unheard.Add(1)
				} else {
					lost.Add(1)
				}
			default:
				t.Errorf("%s: %d %s", path, e.status, e.answer)
				return "", false
			}
		}
	}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				answer, ok := post("/orders", good)
				var order struct{ OrderID string }
				if !ok || json.Unmarshal([]byte(answer), &order) != nil {
					return
				}
				for _, step := range [][]string{{"/pay"}, {"/pay", "/cancel"}, {"/cancel"}}[i%3] {
					if _, ok := post("/orders/"+order.OrderID+step, ""); !ok {
						return
					}
				}
			}
		})
	}
	hits := 0
	for range kills {
		time.Sleep(time.Duration(100+rand.IntN(300)) * time.Millisecond) // so that it dies at a random point
		if inFlight.Load() > 0 {
			hits++
		}
		if err := process.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = process.Wait()
		process, url = startProcess(t, service)
		base.Store(url)
	}
	stop()
	wg.Wait()
	t.Logf("%d kills, %d with requests at work; %d POSTs answered; answers lost, the effect with them %d, without it %d", kills, hits, len(exchanges), lost.Load(), unheard.Load())
	if hits == 0 || lost.Load()+unheard.Load() == 0 {
		t.Error("no kill hit a request")
	}

	var torn int
	err = owner.QueryRow(t.Context(), `
		WITH expected AS (
			SELECT id::text AS order_id, 'OrderCreated' AS event_type FROM orders
			UNION ALL SELECT id::text, 'OrderPaid' FROM orders WHERE paid_at IS NOT NULL
			UNION ALL SELECT id::text, 'OrderCancelled' FROM orders WHERE cancelled_at IS NOT NULL
		), written AS (SELECT aggregate_id AS order_id, event_type FROM outbox)
		SELECT count(*) FROM ((SELECT * FROM expected EXCEPT ALL SELECT * FROM written) UNION ALL (SELECT * FROM written EXCEPT ALL SELECT * FROM expected)) AS difference`).Scan(&torn)
	if err != nil || torn != 0 {
		t.Errorf("%d order states without their event or events without their state (%v)", torn, err)
	}
	placed := 0
	for _, e := range exchanges {
		if e.path == "/orders" {
			placed++
		}
		if status, answer := send("POST", url+e.path, e.body, e.key); status != e.status || answer != e.answer {
			t.Errorf("first %d %s, again %d %s", e.status, e.answer, status, answer)
		}
	}
	var orders int
	if err := owner.QueryRow(t.Context(), `SELECT count(*) FROM orders`).Scan(&orders); err != nil || orders != placed {
		t.Errorf("%d orders for %d answers (%v)", orders, placed, err)
	}
}
