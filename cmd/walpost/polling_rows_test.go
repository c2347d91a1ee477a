package main

import (
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// between puts a proxy between the relay and PostgreSQL.
func (s *stage) between(pass func(cdctest.Frame) cdctest.Verdict) *cdctest.Proxy {
	s.t.Helper()
	u, err := url.Parse(s.env["WALPOST_SOURCE_URL"])
	if err != nil {
		s.t.Fatal(err)
	}
	proxy := cdctest.StartProxy(s.t, u.Host, pass)
	s.env["WALPOST_SOURCE_URL"] = proxy.URL(s.t, s.env["WALPOST_SOURCE_URL"])
	return proxy
}

// sent counts the rows' bytes that come from PostgreSQL.
type sent struct{ all, largest atomic.Int64 }

func (n *sent) pass(f cdctest.Frame) cdctest.Verdict {
	if f.FromServer && f.Type == 'D' {
		size := int64(len(f.Bytes))
		n.all.Add(size)
		for l := n.largest.Load(); size > l && !n.largest.CompareAndSwap(l, size); l = n.largest.Load() {
		}
	}
	return cdctest.Pass
}

// TestPolledRowTooLarge has rows whose payload, headers or key are larger than source.max_row_bytes. They are never read, and hold
// their keys like any row that is refused.
func TestPolledRowTooLarge(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_SOURCE_MAX_ROW_BYTES"] = "1MiB"
	s.env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "2"
	s.must("init")
	s.exec(`ALTER TABLE outbox DROP CONSTRAINT outbox_payload_check1, DROP CONSTRAINT outbox_headers_check1, DROP CONSTRAINT outbox_aggregate_id_check`)
	var wire sent
	s.between(wire.pass)
	conn := s.connect()
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	large := func(key, payload, headers string) {
		t.Helper()
		run1(t, conn, fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES (gen_random_uuid(), 'order', %s, '2', %s, %s)`, key, payload, headers))
	}
	const much = `jsonb_build_object('text', repeat('y', 1100000))`
	row(t, conn, "a", "1")
	large(`'a'`, much, `'{}'`)
	row(t, conn, "a", "3")
	large(`'b'`, `'{}'`, `jsonb_build_object('h', repeat('y', 1100000))`)
	row(t, conn, "b", "3")
	large(`(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 40000) i)`, `'{}'`, `'{}'`)
	large(`'c'`, `jsonb_build_object('text', repeat('y', 1000000))`, `'{}'`)
	s.start()
	cdctest.Eventually(t, 20*time.Second, func() error {
		if b := s.backlog(); b.Failed != 3 || b.Pending != 2 {
			return fmt.Errorf("failed and pending: %d and %d, want 3 and 2", b.Failed, b.Pending)
		}
		return nil
	})
	records := cdctest.ReadAll(t, s.brokers, s.topic)
	if got := fmt.Sprint(types(records, "a"), types(records, "b"), types(records, "c"), len(records)); got != "[1] [] [2] 2" {
		t.Errorf("got %s", got)
	}
	list := s.must("dlq", "list")
	if n := strings.Count(list, "bytes, source.max_row_bytes is 1MiB"); n != 3 {
		t.Errorf("dlq list:\n%s", list)
	}
	first := s.query(`SELECT id::text FROM outbox WHERE status = 'FAILED' ORDER BY position LIMIT 1`)
	if shown := s.must("dlq", "show", first); !strings.Contains(shown, `"payload": null`) {
		t.Errorf("dlq show:\n%.1000s", shown)
	}
	if n := wire.largest.Load(); n > 1<<20 {
		t.Errorf("PostgreSQL sent a row of %d bytes", n)
	}
	// A row that is small enough is shown whole, and no other is read for it.
	s.exec(`UPDATE outbox SET payload = '{"now": "small"}' WHERE id::text = $1`, first)
	wire.all.Store(0)
	if shown := s.must("dlq", "show", first); !strings.Contains(shown, `small`) {
		t.Errorf("dlq show:\n%.1000s", shown)
	}
	if n := wire.all.Load(); n > 100_000 {
		t.Errorf("showing a row took %d bytes", n)
	}
	s.must("dlq", "redrive", first)
	cdctest.Eventually(t, 20*time.Second, func() error {
		if got := fmt.Sprint(types(cdctest.ReadAll(t, s.brokers, s.topic), "a")); got != "[1 2 3]" {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
}

// TestPollingReadsWhatItPublishes: of rows that fill windows by their bytes, little is sent twice.
func TestPollingReadsWhatItPublishes(t *testing.T) {
	t.Parallel()
	s := polled(t)
	s.env["WALPOST_WINDOW_BYTES"] = "64KiB"
	s.must("init")
	var wire sent
	s.between(wire.pass)
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', jsonb_build_object('text', repeat('y', 10000)) FROM generate_series(1, 300) i`)
	s.start()
	s.drained()
	if got, rows := wire.all.Load(), int64(300*10_100); got > 2*rows {
		t.Errorf("PostgreSQL sent %d bytes for %d", got, rows)
	}
}
