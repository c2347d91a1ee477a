package postgres_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/postgres"
)

// TestPollTakesTheTable: one connection takes the table, and the server checks whether that connection still lives.
func TestPollTakesTheTable(t *testing.T) {
	t.Parallel()
	url := cdctest.Database(t)
	var conns []*pgx.Conn
	for range 2 {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(t.Context()) }()
		conns = append(conns, conn)
	}
	first, second := postgres.OpenTable{Conn: conns[0], OID: 4711}, postgres.OpenTable{Conn: conns[1], OID: 4711}
	if err := first.Poll(t.Context(), postgres.PollOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, shared := range []bool{false, true} {
		if err := second.Poll(t.Context(), postgres.PollOptions{Shared: shared}); !errors.Is(err, cdc.ErrTableInUse) {
			t.Errorf("a second one, shared %t: %v", shared, err)
		}
	}
	var gone string
	if err := conns[0].QueryRow(t.Context(), `SELECT current_setting('tcp_user_timeout')`).Scan(&gone); err != nil || gone != "30000" {
		t.Errorf("a relay that is gone is noticed after %s, %v", gone, err)
	}
}
