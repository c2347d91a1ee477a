package polling

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/postgres"
)

// Failed is a row that was refused so often that it waits for somebody's decision.
type Failed struct {
	Position int64
	cdc.DeadLetter
}

// ListFailed reads the failed rows in their order.
func ListFailed(ctx context.Context, pipeline string, cfg cdc.SourceConfig) (all []Failed, err error) {
	conn, _, columns, err := postgres.NewSource(pipeline, cfg).OpenPolled(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	c := cfg.Polling.Columns
	rows, err := conn.Query(ctx, fmt.Sprintf(`SELECT %[1]s, coalesce(%[2]s, ''), coalesce(%[3]s, 'epoch'), %[4]s FROM %[5]s WHERE %[6]s = %[7]s ORDER BY %[1]s`,
		id(c.Position), id(c.LastError), id(c.ProcessedAt), strings.Join(columns, ", "), quoted(&cfg), id(c.Status), literal(cfg.Polling.Words.Failed)))
	if err != nil {
		return nil, said("look for failed rows", err)
	}
	all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (f Failed, err error) {
		f.Source = pipeline
		r := &f.Row
		return f, row.Scan(&f.Position, &f.Reason, &f.Time, &r.ID, &r.AggregateType, &r.AggregateID, &r.EventType, &r.Payload, &r.Headers, &r.CreatedAt)
	})
	if err != nil {
		return nil, said("look for failed rows", err)
	}
	return all, nil
}

// Redrive makes failed rows pending again, as if they had never been tried. What waits behind them follows.
func Redrive(ctx context.Context, pipeline string, cfg cdc.SourceConfig, positions []int64) error {
	c := cfg.Polling.Columns
	return resolve(ctx, pipeline, cfg, positions, fmt.Sprintf(`UPDATE %s SET %s = %s, %s = 0, %s = NULL, %s = NULL`,
		quoted(&cfg), id(c.Status), literal(cfg.Polling.Words.Pending), id(c.RetryCount), id(c.LastError), id(c.ProcessedAt)))
}

// Drop gives failed rows up: they are marked, or deleted where published ones are. What waits behind them is published.
func Drop(ctx context.Context, pipeline string, cfg cdc.SourceConfig, positions []int64) error {
	c := cfg.Polling.Columns
	if cfg.Polling.AfterPublish == cdc.DeleteRow {
		return resolve(ctx, pipeline, cfg, positions, "DELETE FROM "+quoted(&cfg))
	}
	return resolve(ctx, pipeline, cfg, positions, fmt.Sprintf(`UPDATE %s SET %s = %s, %s = clock_timestamp()`,
		quoted(&cfg), id(c.Status), literal(cfg.Polling.Words.Dropped), id(c.ProcessedAt)))
}

func resolve(ctx context.Context, pipeline string, cfg cdc.SourceConfig, positions []int64, sql string) error {
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
