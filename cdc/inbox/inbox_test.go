package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
)

const table = `CREATE TABLE inbox (
	consumer text NOT NULL, event_id text NOT NULL, topic text NOT NULL, partition integer NOT NULL,
	kafka_offset bigint NOT NULL, processed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (consumer, event_id))`

func TestMain(m *testing.M) { cdctest.Main(m) }

func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), cdctest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := pool.Exec(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	return pool
}

func begin(t *testing.T, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func once(t *testing.T, tx pgx.Tx, consumer, id string) bool {
	t.Helper()
	first, err := inbox.Once(t.Context(), tx, consumer, inbox.Message{EventID: id, Topic: "t", Partition: 1, Offset: 2})
	if err != nil {
		t.Fatal(err)
	}
	return first
}

func TestOncePerConsumerAndEvent(t *testing.T) {
	pool := database(t)
	for _, step := range []struct {
		consumer, id string
		first        bool
	}{
		{"mail", "e1", true},
		{"mail", "e1", false},
		{"mail", "e2", true},
		{"stock", "e1", true},
		{"stock", "e1", false},
	} {
		tx := begin(t, pool)
		if got := once(t, tx, step.consumer, step.id); got != step.first {
			t.Errorf("%s of %s: first = %t", step.id, step.consumer, got)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSameTransactionSeesItsOwnMark(t *testing.T) {
	tx := begin(t, database(t))
	if !once(t, tx, "mail", "e1") || once(t, tx, "mail", "e1") {
		t.Error("the second call in one transaction must be a duplicate")
	}
}

func TestConcurrentDuplicateWaitsForTheFirst(t *testing.T) {
	for _, c := range []struct {
		name       string
		end        func(pgx.Tx, context.Context) error
		wantSecond bool
	}{
		{"and is a duplicate when it commits", pgx.Tx.Commit, false},
		{"and is the first when it rolls back", pgx.Tx.Rollback, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			pool := database(t)
			one, two := begin(t, pool), begin(t, pool)
			if !once(t, one, "mail", "e1") {
				t.Fatal("not the first")
			}
			type result struct {
				first bool
				err   error
			}
			second := make(chan result, 1)
			go func() {
				first, err := inbox.Once(t.Context(), two, "mail", inbox.Message{EventID: "e1"})
				second <- result{first, err}
			}()
			cdctest.Eventually(t, 10*time.Second, func() error {
				select {
				case r := <-second:
					t.Fatalf("did not wait: %+v", r)
				default:
				}
				return blocked(t, pool)
			})
			if err := c.end(one, t.Context()); err != nil {
				t.Fatal(err)
			}
			if r := <-second; r.err != nil || r.first != c.wantSecond {
				t.Errorf("the second got first = %t, %v", r.first, r.err)
			}
		})
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	pool := database(t)
	one, two := begin(t, pool), begin(t, pool)
	once(t, one, "mail", "e1")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := inbox.Once(ctx, two, "mail", inbox.Message{EventID: "e1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// blocked is nil when a backend of this database waits for a lock.
func blocked(t *testing.T, pool *pgxpool.Pool) error {
	var waiting int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting); err != nil {
		t.Fatal(err)
	}
	if waiting == 0 {
		return fmt.Errorf("nobody waits")
	}
	return nil
}
