package polling_test

import (
	"context"
	"errors"
	"fmt"
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

// inbox records the calls of a handler, and decides its answers.
type inbox struct {
	mu     sync.Mutex
	calls  []string
	never  []time.Time // when c1 was called
	answer func(event string, call int) error
}

func (i *inbox) handle(_ context.Context, row *cdc.Row) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	event := string(row.AggregateID) + string(row.EventType)
	n := 1
	for _, c := range i.calls {
		if c == event {
			n++
		}
	}
	i.calls = append(i.calls, event)
	if event == "c1" {
		i.never = append(i.never, time.Now())
	}
	return i.answer(event, n)
}

func (i *inbox) called() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return strings.Join(i.calls, " ")
}

// TestHandler has rows that the handler accepts at once, later, or never, and a time when it accepts none.
func TestHandler(t *testing.T) {
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.Kind, cfg.Source.URL = "p", config.KindPolling, cdctest.Database(t)
	p := &cfg.Source.Polling
	p.Interval, p.Backoff, p.Attempts = 20*time.Millisecond, 300*time.Millisecond, 3
	conn, err := pgx.Connect(t.Context(), cfg.Source.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range polling.DDL(cfg.Source) {
		exec(sql)
	}
	for _, e := range []string{"x0", "a1", "b1", "c1", "c2", "a2"} {
		exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', '` + e[:1] + `', '` + e[1:] + `', '{}')`)
	}
	exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'invoice', 'c', '3', '{}')`) // another order's
	in := &inbox{answer: func(event string, call int) error {
		switch {
		case event == "x0" && call <= 4:
			return fmt.Errorf("the mail server: %w", polling.ErrAway)
		case event == "b1" && call <= 2:
			return errors.New("not now")
		case event == "c1":
			return errors.New("never")
		}
		return nil
	}}
	relay := polling.New(cfg, polling.To(in.handle), cdc.Observer{}, zerolog.Nop())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	table := polling.NewOutbox("p", cfg.Source, zerolog.Nop())
	cdctest.Eventually(t, 30*time.Second, func() error {
		if b, err := table.Backlog(t.Context()); err != nil || b.Failed != 1 || b.Pending != 1 {
			return fmt.Errorf("%+v, %w: want c1 to have failed and c2 to wait", b, err)
		}
		return nil
	})
	list, err := table.ListFailed(t.Context())
	if err != nil || len(list) != 1 || string(list[0].Row.AggregateID) != "c" || list[0].Row.Payload != nil || list[0].Row.Headers != nil {
		t.Fatalf("%+v, %v: want c1 without payload and headers", list, err)
	}
	if row, err := table.ReadFailed(t.Context(), list[0].Position); err != nil || row == nil || row.Row.Payload == nil || row.Row.Headers == nil {
		t.Errorf("%+v, %v: want c1 whole", row, err)
	}
	if got := in.called(); !strings.HasPrefix(got, "x0 x0 x0 x0 x0 a1 b1 c1 a2 ") || strings.Count(got, "b1") != 3 || strings.Count(got, "c1") != 3 || strings.Contains(got, "c2") {
		t.Errorf("the handler was called for %s", got)
	}
	if at := in.never; len(at) == 3 && (at[1].Sub(at[0]) < p.Backoff || at[2].Sub(at[1]) < 2*p.Backoff) {
		t.Errorf("c1 was called at %v: the backoff is %s and doubles", at, p.Backoff)
	}
	var recorded string
	err = conn.QueryRow(t.Context(), `SELECT string_agg(concat_ws(' ', aggregate_id || event_type, status, retry_count, last_error), ', ' ORDER BY position) FROM outbox`).Scan(&recorded)
	if want := "x0 SENT 0, a1 SENT 0, b1 SENT 2 not now, c1 FAILED 3 never, c2 PENDING 0, a2 SENT 0, c3 SENT 0"; err != nil || recorded != want {
		t.Errorf("recorded is %s, %v; want %s", recorded, err, want)
	}
}
