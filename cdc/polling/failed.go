package polling

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// Failed is a row that was rejected at every attempt and waits for an operator's decision.
type Failed struct {
	Position int64
	cdc.DeadLetter
}

// ListFailed reads the failed rows in their order, without payloads and headers.
func (o *Outbox) ListFailed(ctx context.Context) ([]Failed, error) { return o.failed(ctx, "0", "") }

// ReadFailed reads a failed row with payload and headers, unless it is larger than source.max_row_bytes. It returns nil if the row at
// this position is not failed.
func (o *Outbox) ReadFailed(ctx context.Context, position int64) (*Failed, error) {
	all, err := o.failed(ctx, o.maxRow(), fmt.Sprintf(" AND {position} = %d", position))
	if len(all) == 0 {
		return nil, err
	}
	return &all[0], nil
}

// failed reads the failed rows for which the condition and holds; most is the largest row in bytes that is read whole.
func (o *Outbox) failed(ctx context.Context, most, and string) ([]Failed, error) {
	t, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Conn.Close(ctx) }()
	columns, err := t.Row(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := t.Conn.Query(ctx, o.selectRows(columns, most, "{table} WHERE {status} = {failed}"+and,
		"coalesce({last_error}, '') AS reason", "coalesce({processed_at}, 'epoch') AS since"))
	if err != nil {
		return nil, classify(t, "look for failed rows", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f Failed, err error) {
		var it item
		err = it.scan(row, columns, &f.Reason, &f.Time)
		f.Source, f.Position, f.Row = o.pipeline, it.position, it.row
		return f, err
	})
	if err != nil {
		return nil, classify(t, "look for failed rows", err)
	}
	return all, nil
}

// Redrive makes failed rows pending again, as if they had never been tried. The later rows of their keys follow them.
func (o *Outbox) Redrive(ctx context.Context, positions []int64) error {
	return o.resolve(ctx, positions, `UPDATE {table} SET {status} = {pending}, {retry_count} = 0, {last_error} = NULL, {processed_at} = NULL`)
}

// Drop gives failed rows up: it marks them, or deletes them if the relay deletes published rows. Then the relay publishes the
// later rows of their keys.
func (o *Outbox) Drop(ctx context.Context, positions []int64) error {
	if o.cfg.Polling.AfterPublish == config.DeleteRow {
		return o.resolve(ctx, positions, `DELETE FROM {table}`)
	}
	return o.resolve(ctx, positions, `UPDATE {table} SET {status} = {dropped}, {processed_at} = clock_timestamp()`)
}

// resolve runs the statement how for the rows at these positions that are failed.
func (o *Outbox) resolve(ctx context.Context, positions []int64, how string) error {
	t, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = t.Conn.Close(ctx) }()
	if _, err := t.Conn.Exec(ctx, o.sql(how+` WHERE {position} = ANY($1) AND {status} = {failed}`), positions); err != nil {
		return classify(t, "resolve failed rows", err)
	}
	return nil
}
