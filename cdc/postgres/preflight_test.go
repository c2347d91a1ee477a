package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/postgres"
)

// TestWhatChangesWhileItIsLookedAtIsLookedAtAgain: a table that is swapped during a look has hidden rows, and the
// look must return the new fingerprint, which shows that.
func TestWhatChangesWhileItIsLookedAtIsLookedAtAgain(t *testing.T) {
	admin := cdctest.Database(t)
	cdctest.CreateOutbox(t, admin, "public.outbox")
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	var swap sync.Once
	swapped := errors.New("nobody asked for the publication")
	proxy := cdctest.StartProxy(t, u.Host, func(f cdctest.Frame) cdctest.Verdict {
		if !f.FromServer && bytes.Contains(f.Bytes, []byte("pg_publication_tables")) {
			swap.Do(func() {
				_, swapped = conn.Exec(t.Context(), `ALTER TABLE outbox RENAME TO outbox_old; CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL)`)
			})
		}
		return cdctest.Pass
	})
	cfg := config.Default().Source
	cfg.URL = admin
	before, err := postgres.NewSource("test", cfg, zerolog.Nop()).Facts(t.Context())
	if err != nil || len(before.Hidden) > 0 {
		t.Fatal(before, err)
	}
	cfg.URL = proxy.URL(t, admin)
	facts, err := postgres.NewSource("test", cfg, zerolog.Nop()).Facts(t.Context())
	if err := errors.Join(err, swapped); err != nil {
		t.Fatal(err)
	}
	if len(facts.Hidden) == 0 || facts.Fingerprint == before.Fingerprint {
		t.Errorf("rows are hidden by %q, under fingerprint %s, as before: %t", facts.Hidden, facts.Fingerprint, facts.Fingerprint == before.Fingerprint)
	}
}

// TestPatroniIsKnownByItsSessions: Patroni drops slots that it does not know, but no failover slots, which exist from
// 17 on. The relay's role also sees Patroni's sessions.
func TestPatroniIsKnownByItsSessions(t *testing.T) {
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	exec := func(sql string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), server.URL("postgres"))
		if err == nil {
			_, err = conn.Exec(t.Context(), sql)
			_ = conn.Close(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE ROLE relay LOGIN REPLICATION")
	cfg := config.Default().Source
	cfg.URL, cfg.Slot = server.URLFor("relay", "", "postgres"), "1st"
	entry := func() string {
		t.Helper()
		facts, err := postgres.NewSource("test", cfg, zerolog.Nop()).Facts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return facts.Slot.Patroni
	}
	if got := entry(); got != "" {
		t.Errorf("without Patroni: %q", got)
	}
	conn, err := pgx.Connect(t.Context(), server.URL("postgres")+"&application_name=Patroni%20heartbeat")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	want := `"1st": {type: logical, database: postgres, plugin: pgoutput}`
	if server.Major() >= 17 {
		want = ""
	}
	if got := entry(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
