package postgres

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestASlotThatCannotBeMade: the error names what keeps PostgreSQL from creating the slot, in any database, and
// nothing is left behind.
func TestASlotThatCannotBeMade(t *testing.T) {
	cdctest.Long(t, "starts a server with one slot")
	t.Parallel()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"max_replication_slots": "1"}})
	session := func(database string) func(string) {
		conn, err := pgx.Connect(t.Context(), server.URL(database))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return func(sql string) {
			t.Helper()
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	exec, other := session("postgres"), session("template1")
	cfg := config.Default().Source
	cfg.URL = server.URL("postgres")
	admin, err := NewSource("test", cfg, zerolog.Nop()).Admin(t.Context(), cfg.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	refused := func(texts ...string) {
		t.Helper()
		err := admin.createSlot(t.Context(), 500*time.Millisecond)
		for _, text := range texts {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("got %v, want it to say %s", err, text)
			}
		}
		var left int
		if err := admin.conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, cfg.Slot).Scan(&left); err != nil || left > 0 {
			t.Errorf("%d slots are left behind: %v", left, err)
		}
	}
	other("BEGIN; CREATE TABLE x (); PREPARE TRANSACTION 'it''s forgotten'")
	refused(`the prepared transaction "it's forgotten"`, "of database template1", "ROLLBACK PREPARED 'it''s forgotten'", "no slot was created")
	other("ROLLBACK PREPARED 'it''s forgotten'")
	other("BEGIN; CREATE TABLE x ()")
	refused("the transaction of pid ", "of database template1", "SELECT pg_terminate_backend(")
	other("ROLLBACK")
	exec("SELECT pg_create_physical_replication_slot('forgotten')")
	refused("all 1 that max_replication_slots allows are in use", "no process reads forgotten", "SELECT pg_drop_replication_slot(")
	exec("SELECT pg_drop_replication_slot('forgotten')")
	if err := admin.createSlot(t.Context(), 5*time.Second); err != nil {
		t.Error(err)
	}
}
