package cdctest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
)

// Eventually calls cond until it returns nil. It fails the test with cond's last error if that takes longer than
// Patience(within). It must run on the test's goroutine. A cond that may block needs a timeout.
func Eventually(t testing.TB, within time.Duration, cond func() error) {
	t.Helper()
	within = Patience(within)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := cond()
		if err == nil {
			return
		}
		if !sleep(ctx, pause) {
			t.Fatalf("not within %v: %v", within, err)
		}
	}
}

// sleep pauses, and reports false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func isObjectInUse(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == pgerrcode.ObjectInUse || pg.Code == pgerrcode.UndefinedObject) // in use again, or dropped already
}
