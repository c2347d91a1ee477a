package statistics

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/inbox"
)

// Rebuild empties the statistics and counts the whole topic again, in one transaction. Until it commits, others see the
// old statistics; if it fails or its process is killed, the old ones stay. The group's consumers may run: they wait
// meanwhile, and resume afterwards. cfg is Inbox's result with its missing fields set. by names the operator in the
// recorded decision. If the topic has lost its first records, the error is inbox.ErrCut, unless opts allow that.
func Rebuild(ctx context.Context, cfg inbox.Config, by string, opts inbox.RebuildOptions) (inbox.Rebuilt, error) {
	operator := inbox.NewOperator(cfg, by)
	var done inbox.Rebuilt
	err := pgx.BeginFunc(ctx, cfg.Pool, func(tx pgx.Tx) error {
		// A frozen rebuild must not lock its group without limit.
		if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = '60s'`); err != nil {
			return fmt.Errorf("begin the rebuild: %w", err)
		}
		held, err := operator.LockGroup(ctx, tx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
			LOCK TABLE statistics, statistics_orders, statistics_since IN SHARE ROW EXCLUSIVE MODE;
			DELETE FROM statistics; DELETE FROM statistics_orders; DELETE FROM statistics_since`); err != nil {
			return fmt.Errorf("empty the statistics: %w", err)
		}
		if opts.Partial {
			if _, err := tx.Exec(ctx, `INSERT INTO statistics_since VALUES ('-infinity')`); err != nil {
				return fmt.Errorf("record that the beginning is missing: %w", err)
			}
		}
		if done, err = held.Rebuild(ctx, opts); err != nil {
			return err
		}
		err = reachesBack(ctx, tx)
		done.Cut = done.Cut || errors.Is(err, inbox.ErrCut)
		switch {
		case err != nil && !(done.Cut && opts.Partial):
			return err
		case !done.Cut:
			_, err = tx.Exec(ctx, `DELETE FROM statistics_since`)
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE statistics_since SET since = (SELECT coalesce(min(paid_on), (now() AT TIME ZONE 'UTC')::date) FROM statistics_orders)`); err != nil {
			return fmt.Errorf("record where the statistics begin: %w", err)
		}
		return nil
	})
	return done, err
}

// reachesBack checks that the first paid order was counted. A topic that was deleted and created again begins at offset
// 0, but without that order.
func reachesBack(ctx context.Context, tx pgx.Tx) error {
	var number int64
	var paidAt time.Time
	var counted bool
	err := tx.QueryRow(ctx, `SELECT number, paid_at, EXISTS (SELECT FROM statistics_orders WHERE order_id = id) FROM orders
		WHERE paid_at IS NOT NULL ORDER BY number LIMIT 1`).Scan(&number, &paidAt, &counted)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look for the first paid order: %w", err)
	case !counted:
		return fmt.Errorf("%w: order %d, paid at %s, was paid first, but its %s is missing from the topic or cannot be counted",
			inbox.ErrCut, number, paidAt.UTC().Format(time.RFC3339), paid)
	}
	return nil
}
