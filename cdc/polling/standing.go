package polling

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/postgres"
)

// Standing is what the table says of a row.
type Standing struct {
	Position    int64     `json:"position"`
	Status      string    `json:"status"`
	ProcessedAt time.Time `json:"processed_at,omitzero"`
	RetryCount  int       `json:"retry_count"`
	LastError   string    `json:"last_error,omitempty"`
	Behind      string    `json:"behind,omitempty"` // id of the refused row of its key that it waits for
}

// Standings are those of rows, by their ids.
func Standings(ctx context.Context, pipeline string, cfg config.Source, ids []string) (map[string]Standing, error) {
	conn, oid, _, err := postgres.NewSource(pipeline, cfg).OpenPolled(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	var typ string
	if err := conn.QueryRow(ctx, `SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = $1 AND attname = $2`, oid, cfg.Columns.ID).Scan(&typ); err != nil {
		return nil, said("look at the table", err)
	}
	behind := `coalesce((SELECT f.{id}::text FROM {table} f WHERE {holds} AND {same} ORDER BY f.{position} DESC LIMIT 1), '')`
	if cfg.Polling.Order == config.OrderNone {
		behind = `''`
	}
	rows, err := conn.Query(ctx, words(&cfg).Replace(strings.NewReplacer("{behind}", behind, "{type of id}", typ).Replace(`
		SELECT {id}::text, {position}, {status}, coalesce({processed_at}, '0001-01-01 00:00+00'), {retry_count}, coalesce({last_error}, ''), {behind}
		FROM {table} o WHERE {id} = ANY($1::text[]::{type of id}[])`)), ids)
	if err != nil {
		return nil, said("look for rows", err)
	}
	all := map[string]Standing{}
	var id string
	var s Standing
	_, err = pgx.ForEachRow(rows, []any{&id, &s.Position, &s.Status, &s.ProcessedAt, &s.RetryCount, &s.LastError, &s.Behind}, func() error { all[id] = s; return nil })
	if err != nil {
		return nil, said("look for rows", err)
	}
	return all, nil
}
