package polling

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/config"
)

// RowStatus has the columns of the table that tell a row's status.
type RowStatus struct {
	Position    int64     `json:"position"`
	Status      string    `json:"status"`
	ProcessedAt time.Time `json:"processed_at,omitzero"`
	RetryCount  int       `json:"retry_count"`
	LastError   string    `json:"last_error,omitempty"`
	Behind      string    `json:"behind,omitempty"` // id of the rejected row of its key that it waits for
}

// RowStatuses returns the statuses of the rows with these ids, by id.
func (o *Outbox) RowStatuses(ctx context.Context, ids []string) (map[string]RowStatus, error) {
	t, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Conn.Close(ctx) }()
	var typ string
	if err := t.Conn.QueryRow(ctx, `SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = $1 AND attname = $2`, t.OID, o.cfg.Columns.ID).Scan(&typ); err != nil {
		return nil, classify(t, "look at the table", err)
	}
	// An id of type bytea is written as its hex digits.
	called, value := func(id string) string { return id + "::text" }, `asked::`+typ
	if typ == "bytea" {
		called, value = func(id string) string { return "encode(" + id + ", 'hex')" }, `decode(asked, 'hex')`
	}
	behind := `coalesce((SELECT ` + called("f.{id}") + ` FROM {table} f WHERE {holds} AND {same} ORDER BY f.{position} DESC LIMIT 1), '')`
	if o.cfg.Polling.Order == config.OrderNone {
		behind = `''`
	}
	rows, err := t.Conn.Query(ctx, o.sql(`
		SELECT `+called("{id}")+`, {position}, {status}, coalesce({processed_at}, '0001-01-01 00:00+00'), {retry_count}, coalesce({last_error}, ''), `+behind+`
		FROM {table} o WHERE {id} = ANY(ARRAY(SELECT `+value+` FROM unnest($1::text[]) asked))`), ids)
	if err != nil {
		return nil, classify(t, "look for rows", err)
	}
	all := map[string]RowStatus{}
	var id string
	var s RowStatus
	_, err = pgx.ForEachRow(rows, []any{&id, &s.Position, &s.Status, &s.ProcessedAt, &s.RetryCount, &s.LastError, &s.Behind}, func() error { all[id] = s; return nil })
	if err != nil {
		return nil, classify(t, "look for rows", err)
	}
	return all, nil
}
