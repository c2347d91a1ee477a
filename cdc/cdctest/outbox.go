package cdctest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Publication is the name of the publication that CreateOutbox creates.
const Publication = "walpost"

// CreateOutbox creates an outbox table with walpost's default columns, and the publication for its inserts, in the
// database at url. It keeps objects that exist already.
func CreateOutbox(t testing.TB, url, table string) {
	t.Helper()
	if err := execAll(t.Context(), url, fmt.Sprintf(`
		CREATE TABLE IF NOT EXISTS %[1]s (
			id             uuid PRIMARY KEY,
			aggregate_type text NOT NULL CHECK (aggregate_type ~ '^[A-Za-z0-9._-]{1,100}$'),
			aggregate_id   text NOT NULL CHECK (octet_length(aggregate_id) BETWEEN 1 AND 1024),
			event_type     text NOT NULL CHECK (octet_length(event_type) BETWEEN 1 AND 255),
			payload        jsonb NOT NULL CHECK (jsonb_typeof(payload) = 'object') CHECK (octet_length(payload::text) <= 900000),
			headers        jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(headers) = 'object') CHECK (octet_length(headers::text) <= 16384),
			created_at     timestamptz NOT NULL DEFAULT clock_timestamp()
		);
		DO $$ BEGIN
			CREATE PUBLICATION %[2]s FOR TABLE %[1]s WITH (publish = 'insert');
		EXCEPTION WHEN duplicate_object THEN NULL;
		END $$`, identifier(table).Sanitize(), Publication)); err != nil {
		t.Fatalf("create outbox %s: %v", table, err)
	}
}

func execAll(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

// identifier splits schema.table.
func identifier(table string) pgx.Identifier { return strings.Split(table, ".") }
