package orders_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/orders"
)

func TestARepeatedPostGetsTheFirstAnswer(t *testing.T) {
	s := open(t)
	placed := s.do(201, "POST", "/orders", good, "Idempotency-Key", "place")
	id := decode[orders.Order](t, placed.body).ID
	path := "/orders/" + id.String()
	paid := s.do(200, "POST", path+"/pay", "", "Idempotency-Key", "pay")
	cancelled := s.do(200, "POST", path+"/cancel", "", "Idempotency-Key", "cancel")
	before := s.fingerprint()

	same := func() {
		t.Helper()
		for _, c := range []struct {
			first            reply
			path, body, name string
		}{{placed, "/orders", good, "place"}, {paid, path + "/pay", "", "pay"}, {cancelled, path + "/cancel", "", "cancel"}} {
			again := s.do(c.first.status, "POST", c.path, c.body, "Idempotency-Key", c.name)
			if again.body != c.first.body || again.header.Get("Location") != c.first.header.Get("Location") || again.header.Get("Content-Type") != c.first.header.Get("Content-Type") {
				t.Errorf("%s: first %v, again %v", c.name, c.first, again)
			}
		}
	}
	same()
	s.serve(s.serviceURL)
	same()

	other := "/orders/0198c0de-0000-7000-8000-000000000001"
	for _, c := range []struct{ path, body, key string }{
		{"/orders", strings.Replace(good, "buyer-7", "buyer-8", 1), "place"},
		{"/orders", good, "pay"},
		{path + "/cancel", "", "pay"},
		{other + "/pay", "", "pay"},
		{path + "/pay", "{}", "pay"},
	} {
		if got := s.do(422, "POST", c.path, c.body, "Idempotency-Key", c.key); !strings.Contains(got.body, "another request") {
			t.Errorf("%s", got.body)
		}
	}
	if s.fingerprint() != before {
		t.Error("a repeated or refused request has changed something")
	}
	if again := s.do(201, "POST", "/orders", good); again.body == placed.body {
		t.Error("without a key the same order is one more")
	}
	s.mustBeWhole()
}

func TestARefusedPostFreesItsKey(t *testing.T) {
	s := open(t)
	s.do(422, "POST", "/orders", strings.Replace(good, ": 2", ": -2", 1), "Idempotency-Key", "k")
	first := s.do(201, "POST", "/orders", good, "Idempotency-Key", "k")
	path := "/orders/" + decode[orders.Order](t, first.body).ID.String()
	s.do(200, "POST", path+"/cancel", "")
	s.do(409, "POST", path+"/pay", "", "Idempotency-Key", "pay")
	if n := scan[int](s, `SELECT count(*)::int FROM idempotency_keys`); n != 1 {
		t.Errorf("%d keys are kept, want 1", n)
	}
}

// The first of two requests waits at the order's row while it has the key; the second must wait for the key.
func TestARepeatedPostWaitsForTheFirst(t *testing.T) {
	for name, c := range map[string]struct {
		release string // the statement that lets the first continue
		first   int
	}{
		"and gets its answer":                    {`SELECT true`, 200},
		"and does the work if the first is lost": {`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orders' AND datname = current_database() AND query LIKE '%FOR NO KEY UPDATE%'`, 503},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			path := "/orders/" + s.place().String() + "/pay"
			hold, err := s.owner.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = hold.Rollback(t.Context()) }()
			if _, err := hold.Exec(t.Context(), `SELECT FROM orders FOR UPDATE`); err != nil {
				t.Fatal(err)
			}
			waiting := func(n int) {
				t.Helper()
				cdctest.Eventually(t, 30*time.Second, func() error {
					if got := scan[int](s, `SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'orders' AND datname = current_database() AND wait_event_type = 'Lock'`); got != n {
						return fmt.Errorf("%d wait, want %d", got, n)
					}
					return nil
				})
			}
			post := func() chan reply {
				answered := make(chan reply, 1)
				go func() {
					got, err := s.send("POST", path, "", "Idempotency-Key", "k")
					if err != nil {
						t.Error(err)
					}
					answered <- got
				}()
				return answered
			}
			first := post()
			waiting(1)
			second := post()
			waiting(2)
			if !scan[bool](s, c.release) {
				t.Fatal("not released")
			}
			if c.first == 200 {
				if err := hold.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			a := <-first
			if c.first != 200 {
				waiting(1)
				if err := hold.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			b := <-second
			if a.status != c.first || b.status != 200 || c.first == 200 && a.body != b.body {
				t.Errorf("first %v, second %v", a, b)
			}
			if c.first == 503 && a.header.Get("Retry-After") == "" {
				t.Error("503 without Retry-After")
			}
			if n := scan[int](s, `SELECT count(*)::int FROM outbox WHERE event_type = 'OrderPaid'`); n != 1 {
				t.Errorf("paid %d times", n)
			}
			s.mustBeWhole()
		})
	}
}
