package polling

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/postgres"
)

// Failed is a row that was refused so often that it waits for somebody's decision.
type Failed struct {
	Position int64
	cdc.DeadLetter
}

// ListFailed reads the failed rows in their order, without payloads and headers.
func ListFailed(ctx context.Context, pipeline string, cfg config.Source) ([]Failed, error) {
	return failed(ctx, pipeline, cfg, "0", "")
}

// ReadFailed reads a failed row whole, unless it is larger than source.max_row_bytes; nil is one that has not failed, or no more.
func ReadFailed(ctx context.Context, pipeline string, cfg config.Source, position int64) (*Failed, error) {
	all, err := failed(ctx, pipeline, cfg, strconv.FormatInt(int64(cfg.MaxRowBytes), 10), fmt.Sprintf(" AND %s = %d", id(cfg.Polling.Columns.Position), position))
	if len(all) == 0 {
		return nil, err
	}
	return &all[0], nil
}

func failed(ctx context.Context, pipeline string, cfg config.Source, most, and string) ([]Failed, error) {
	conn, _, columns, err := postgres.NewSource(pipeline, cfg).OpenPolled(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	c := cfg.Polling.Columns
	rows, err := conn.Query(ctx, within(&cfg, columns, most, fmt.Sprintf(`%s WHERE %s = %s%s`, quoted(&cfg), id(c.Status), literal(cfg.Polling.Words.Failed), and),
		"coalesce("+id(c.LastError)+", '') AS reason", "coalesce("+id(c.ProcessedAt)+", 'epoch') AS since"))
	if err != nil {
		return nil, said("look for failed rows", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f Failed, err error) {
		var it item
		err = it.scan(row, &f.Reason, &f.Time)
		f.Source, f.Position, f.Row = pipeline, it.position, it.row
		return f, err
	})
	if err != nil {
		return nil, said("look for failed rows", err)
	}
	return all, nil
}

// Redrive makes failed rows pending again, as if they had never been tried. What waits behind them follows.
func Redrive(ctx context.Context, pipeline string, cfg config.Source, positions []int64) error {
	c := cfg.Polling.Columns
	return resolve(ctx, pipeline, cfg, positions, fmt.Sprintf(`UPDATE %s SET %s = %s, %s = 0, %s = NULL, %s = NULL`,
		quoted(&cfg), id(c.Status), literal(cfg.Polling.Words.Pending), id(c.RetryCount), id(c.LastError), id(c.ProcessedAt)))
}

// Drop gives failed rows up: they are marked, or deleted where published ones are. What waits behind them is published.
func Drop(ctx context.Context, pipeline string, cfg config.Source, positions []int64) error {
	c := cfg.Polling.Columns
	if cfg.Polling.AfterPublish == config.DeleteRow {
		return resolve(ctx, pipeline, cfg, positions, "DELETE FROM "+quoted(&cfg))
	}
	return resolve(ctx, pipeline, cfg, positions, fmt.Sprintf(`UPDATE %s SET %s = %s, %s = clock_timestamp()`,
		quoted(&cfg), id(c.Status), literal(cfg.Polling.Words.Dropped), id(c.ProcessedAt)))
}

func resolve(ctx context.Context, pipeline string, cfg config.Source, positions []int64, sql string) error {
	conn, _, _, err := postgres.NewSource(pipeline, cfg).OpenPolled(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	c := cfg.Polling.Columns
	_, err = conn.Exec(ctx, fmt.Sprintf(`%s WHERE %s = ANY($1) AND %s = %s`, sql, id(c.Position), id(c.Status), literal(cfg.Polling.Words.Failed)), positions)
	if err != nil {
		return said("resolve failed rows", err)
	}
	return nil
}
