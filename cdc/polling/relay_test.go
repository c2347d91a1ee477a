package polling_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/polling"
)

// broker rejects on Flush each window with an event named bad, as Kafka would. To use the delivery after that is an error.
type broker struct {
	mu     sync.Mutex
	came   []string
	tried  []time.Time // when the bad one was alone
	within int         // how often it was not
	opened func()
	misuse error
}

func (b *broker) Open(context.Context) (polling.Delivery, error) {
	b.opened()
	return &way{broker: b}, nil
}

type way struct {
	*broker
	records []cdc.Record
	spent   bool
}

func (w *way) Take(_ context.Context, row *cdc.Row) error {
	w.records = append(w.records, cdc.Record{Row: row})
	return nil
}

func (w *way) Flush(context.Context) ([]cdc.Record, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spent {
		w.misuse = errors.New("a delivery was used after its error")
	}
	records := w.records
	w.records = nil
	var events []string
	for _, r := range records {
		if string(r.Row.EventType) == "bad" {
			if w.spent = true; len(records) == 1 {
				w.tried = append(w.tried, time.Now())
			} else {
				w.within++
			}
			return nil, cdc.Reject(r.Row, cdc.ByKafka, "", "not this one")
		}
		events = append(events, string(r.Row.AggregateID)+string(r.Row.EventType))
	}
	w.came = append(w.came, events...)
	return records, nil
}

func (w *way) Close() {}

// TestRefusedOnFlush has a row that only the target rejects, after it has the whole window.
func TestRefusedOnFlush(t *testing.T) {
	cdctest.Long(t, "waits for attempts")
	t.Parallel()
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.Kind, cfg.Source.URL = "p", config.KindPolling, cdctest.Database(t)
	p := &cfg.Source.Polling
	p.Interval, p.Backoff, p.Attempts = 20*time.Millisecond, 700*time.Millisecond, 3
	conn := outboxOf(t, cfg)
	for _, e := range []string{"a1", "b1", "bbad", "a2", "b3", "c1"} {
		if _, err := conn.Exec(t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', $1, $2, '{}')`, e[:1], e[1:]); err != nil {
			t.Fatal(err)
		}
	}
	// The second session begins with rows that are not settled yet.
	opened, held := 0, make(chan struct{})
	b := &broker{opened: func() {
		if opened++; opened == 2 {
			if _, err := conn.Exec(t.Context(), "BEGIN; SELECT pg_current_xact_id()"); err != nil {
				t.Error(err)
			}
			time.AfterFunc(10*p.Interval, func() {
				_, _ = conn.Exec(context.Background(), "COMMIT")
				close(held)
			})
		}
	}}
	relay := polling.New(cfg, b, cdc.Observer{}, zerolog.Nop())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	watch := polling.NewOutbox("p", cfg.Source, zerolog.Nop())
	cdctest.Eventually(t, 30*time.Second, func() error {
		if b, err := watch.Backlog(t.Context()); err != nil || b.Failed != 1 || b.Pending != 1 {
			return fmt.Errorf("%+v, %w: want the bad one to have failed and b3 to wait", b, err)
		}
		return nil
	})
	<-held
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := strings.Join(b.came, " "); got != "a1 b1 a2 c1" || b.misuse != nil {
		t.Errorf("came %s, %v", got, b.misuse)
	}
	if b.within != 1 {
		t.Errorf("it was looked for %d times", b.within)
	}
	if len(b.tried) != 3 || !slices.IsSortedFunc(b.tried, time.Time.Compare) {
		t.Fatalf("tried alone at %v, want three times", b.tried)
	}
	if first, second := b.tried[1].Sub(b.tried[0]), b.tried[2].Sub(b.tried[1]); first < p.Backoff || second < 2*p.Backoff {
		t.Errorf("tried again after %s and %s: the backoff is %s and doubles", first, second, p.Backoff)
	}
}

// outboxOf creates the table and connects to its database.
func outboxOf(t *testing.T, cfg config.Config) *pgx.Conn {
	t.Helper()
	conn := connect(t, cfg)
	for _, sql := range polling.DDL(cfg.Source) {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

func connect(t *testing.T, cfg config.Config) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), cfg.Source.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// TestTransactionsThatOverlap: at every time some transaction is open, each for longer than the interval. Rows are settled all the same.
func TestTransactionsThatOverlap(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.Kind, cfg.Source.URL = "p", config.KindPolling, cdctest.Database(t)
	cfg.Source.Polling.Interval = 10 * time.Millisecond
	conns := []*pgx.Conn{outboxOf(t, cfg), connect(t, cfg)}
	run := func(i int, sql string) {
		t.Helper()
		if _, err := conns[i%2].Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	run(0, `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'a', '1', '{}')`)
	in := &inbox{answer: func(string, int) error { return nil }}
	const begin = "BEGIN; SELECT pg_current_xact_id()"
	run(0, begin)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- polling.New(cfg, polling.To(in.handle), cdc.Observer{}, zerolog.Nop()).Run(ctx) }()
	for i := 1; in.called() == ""; i++ {
		run(i, begin)
		time.Sleep(5 * cfg.Source.Polling.Interval)
		if run(i+1, "COMMIT"); i == 100 {
			t.Error("nothing is settled")
			break
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestLockedRows: without an order another relay may have locked rows. This relay does not wait for them.
func TestLockedRows(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.Kind, cfg.Source.URL = "p", config.KindPolling, cdctest.Database(t)
	cfg.Source.Polling.Interval, cfg.Source.Polling.Order = 10*time.Millisecond, config.OrderNone
	conn := outboxOf(t, cfg)
	for _, sql := range []string{
		`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) SELECT gen_random_uuid(), 'order', 'a', i::text, '{}' FROM generate_series(1, 3) i`,
		`BEGIN`,
		`SELECT FROM outbox WHERE event_type = '1' FOR UPDATE`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	in := &inbox{answer: func(string, int) error { return nil }}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- polling.New(cfg, polling.To(in.handle), cdc.Observer{}, zerolog.Nop()).Run(ctx) }()
	called := func(want string) {
		t.Helper()
		cdctest.Eventually(t, 30*time.Second, func() error {
			if got := in.called(); got != want {
				return fmt.Errorf("called for %q, want %q", got, want)
			}
			return nil
		})
	}
	called("a2 a3")
	if _, err := conn.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	called("a2 a3 a1")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestDecidedMeanwhile has rows whose status an operator changes while they are delivered: the relay does not overwrite it.
func TestDecidedMeanwhile(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.Kind, cfg.Source.URL = "p", config.KindPolling, cdctest.Database(t)
	cfg.Source.Polling.Interval = 10 * time.Millisecond
	conn := outboxOf(t, cfg)
	if _, err := conn.Exec(t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', k, '1', '{}' FROM unnest('{a,b,c}'::text[]) k`); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	relay := polling.New(cfg, polling.To(func(ctx context.Context, row *cdc.Row) error {
		key := string(row.AggregateID)
		if key == "c" {
			close(done)
			return nil
		}
		if _, err := conn.Exec(ctx, `UPDATE outbox SET status = 'DROPPED' WHERE aggregate_id = $1`, key); err != nil {
			t.Error(err)
		}
		if key == "b" {
			return errors.New("not this one")
		}
		return nil
	}), cdc.Observer{}, zerolog.Nop())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	<-done
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	var got string
	err := conn.QueryRow(t.Context(), `SELECT string_agg(concat_ws(' ', aggregate_id, status, retry_count), ', ' ORDER BY position) FROM outbox`).Scan(&got)
	if want := "a DROPPED 0, b DROPPED 0, c SENT 0"; err != nil || got != want {
		t.Errorf("recorded is %s, %v; want %s", got, err, want)
	}
}

// TestBacklogCostsTheSameForAnyTable: probes and scrapes call Backlog, so it reads no published row, and counts to a limit.
func TestBacklogCostsTheSameForAnyTable(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.Kind, cfg.Source.URL = "p", config.KindPolling, cdctest.Database(t)
	conn := outboxOf(t, cfg)
	insert := func(status string, rows int) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, status)
			SELECT gen_random_uuid(), 'order', i, 'x', '{}', $1 FROM generate_series(1, $2::int) i`, status, rows); err != nil {
			t.Fatal(err)
		}
	}
	insert("SENT", 20_000)
	insert("PENDING", 3)
	if _, err := conn.Exec(t.Context(), `VACUUM ANALYZE outbox`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `SELECT pg_stat_reset()`); err != nil {
		t.Fatal(err)
	}
	table := polling.NewOutbox("p", cfg.Source, zerolog.Nop())
	b, err := table.Backlog(t.Context())
	if err != nil || b.Pending != 3 {
		t.Fatalf("%+v, %v", b, err)
	}
	var read, scans int64
	cdctest.Eventually(t, 20*time.Second, func() error { // a connection reports its statistics when it ends
		err := conn.QueryRow(t.Context(), `SELECT seq_tup_read, idx_scan FROM pg_stat_user_tables WHERE relname = 'outbox'`).Scan(&read, &scans)
		if err == nil && scans == 0 {
			err = errors.New("the statistics are not there")
		}
		return err
	})
	if read > 0 {
		t.Errorf("%d rows were read one after the other", read)
	}
	insert("PENDING", polling.CountsTo)
	if b, err = table.Backlog(t.Context()); err != nil || b.Pending != polling.CountsTo || polling.Count(b.Pending) != "at least 100000" || polling.Count(3) != "3" {
		t.Errorf("%+v, %v: want it counted to %d", b, err, polling.CountsTo)
	}
}
