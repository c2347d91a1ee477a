package postgres

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

// TestPublicationThatWasMissingAtAPlaceInTheWAL: the publication exists again when the stream reaches the row, and
// every version of the server reports by its routine, in an error or a warning, that it did not exist.
func TestPublicationThatWasMissingAtAPlaceInTheWAL(t *testing.T) {
	t.Parallel()
	admin := cdctest.Database(t)
	cdctest.CreateOutbox(t, admin, "public.outbox")
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	cfg := defaults()
	cfg.URL, cfg.Slot = admin, cdctest.SlotName(t, "missing")
	for _, sql := range []string{
		"SELECT pg_create_logical_replication_slot('" + cfg.Slot + "', 'pgoutput')",
		"DROP PUBLICATION IF EXISTS walpost",
		"INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'Paid', '{}')",
		"CREATE PUBLICATION walpost FOR TABLE outbox",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(sql, err)
		}
	}
	source := NewSource("missing", cfg, zerolog.Nop())
	table, err := source.Preflight(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stream, _, err := source.Connect(t.Context(), table)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	err = stream.Start(t.Context())
	for end := time.Now().Add(20 * time.Second); err == nil && time.Now().Before(end); {
		var m cdc.Message
		if _, err = stream.Next(&m); err == nil {
			_, err = stream.Fill(time.Now().Add(100 * time.Millisecond))
		}
		if m.Kind == cdc.Insert {
			t.Fatal("the row came")
		}
	}
	var halt *cdc.HaltError
	if !errors.As(err, &halt) || !halt.Latch {
		t.Errorf("got %v, want the latched halt of a missing publication", err)
	}
}
