package postgres

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/identity"
)

// Guarded returns a server that requires a password from every role except its superuser. Roles belong to a server,
// so tests that imitate a provider's share one, one after another.
func Guarded(t *testing.T) (server *devenv.Postgres, exec func(database string, sql ...string)) {
	t.Helper()
	hba, err := os.CreateTemp("", "walpost-hba-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(hba.Name()) })
	_, err = hba.WriteString("host all postgres 127.0.0.1/32 trust\nhost all rejected 127.0.0.1/32 reject\nhost all all 127.0.0.1/32 scram-sha-256\n")
	if err == nil {
		err = hba.Chmod(0o644)
	}
	if err := hba.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	server = cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"hba_file": hba.Name()}})
	return server, func(database string, sql ...string) {
		t.Helper()
		conn, err := pgx.Connect(context.Background(), server.URL(database))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.Background()) }()
		for _, s := range sql {
			if _, err := conn.Exec(context.Background(), s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
}

// TestARefusedConnection: the error for a refused connection names its URL's key, and says what to do about it.
func TestARefusedConnection(t *testing.T) {
	cdctest.Long(t, "waits for hosts that do not answer")
	t.Parallel()
	server, exec := Guarded(t)
	exec("postgres", "CREATE DATABASE shop", "CREATE DATABASE closed", "CREATE DATABASE private", "CREATE DATABASE narrow CONNECTION LIMIT 0", "ALTER DATABASE closed ALLOW_CONNECTIONS false", "REVOKE CONNECT ON DATABASE private FROM PUBLIC")
	for _, role := range []string{"relay LOGIN REPLICATION", "plain LOGIN", "nologin NOLOGIN", "rejected LOGIN", "full LOGIN REPLICATION CONNECTION LIMIT 0"} {
		exec("postgres", "CREATE ROLE "+role+" PASSWORD 'secret'")
	}
	at := func(user, password, database string) string { return server.URLFor(user, password, database) }
	for name, c := range map[string]struct {
		url, relay, others string // expected text for source.url, and for the other URLs
	}{
		"wrong password":        {at("relay", "wrong", "shop"), `ALTER ROLE "relay" PASSWORD`, "user or password is wrong"},
		"no such role":          {at("nobody", "secret", "shop"), `ALTER ROLE "nobody" PASSWORD`, "user or password is wrong"},
		"no login":              {at("nologin", "secret", "shop"), `ALTER ROLE "nologin" LOGIN`, "must exist and have LOGIN"},
		"rejected":              {at("rejected", "secret", "shop"), "pg_hba.conf", "pg_hba.conf"},
		"no such database":      {at("relay", "secret", "nowhere"), `CREATE DATABASE "nowhere"`, "source.url names a database that is not on this server"},
		"no connect":            {at("relay", "secret", "private"), `GRANT CONNECT ON DATABASE "private" TO "relay"`, `GRANT CONNECT ON DATABASE "private" TO "relay"`},
		"no connections at all": {at("relay", "secret", "closed"), "SQLSTATE 55000", "SQLSTATE 55000"},
		"too many":              {at("full", "secret", "shop"), `ALTER ROLE "full" CONNECTION LIMIT -1`, `ALTER ROLE "full" CONNECTION LIMIT -1`},
		"too many of all":       {at("relay", "secret", "narrow"), `ALTER DATABASE "narrow" CONNECTION LIMIT`, `ALTER DATABASE "narrow" CONNECTION LIMIT`},
	} {
		for key, connect := range ways(t.Context(), c.url) {
			key, way, _ := strings.Cut(key, ", ")
			err := connect()
			want := c.others
			if key == sourceURL {
				want = c.relay
			}
			if strings.HasPrefix(name, "too many") && way == "replication" {
				continue // walsenders are not counted
			}
			if name == "no connect" && way == "replication" {
				want = "replicate" // the check over SQL comes first and reports the other cause
			}
			if err == nil || !strings.HasPrefix(err.Error(), key+": ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "slot") {
				t.Errorf("%s, %s %s: got %v, want %s", name, key, way, err, want)
			}
			if err != nil && key != sourceURL && name != "no such database" && (strings.Contains(err.Error(), "source.url") || strings.Contains(err.Error(), "walpost init")) {
				t.Errorf("%s, %s: it is about source.url: %v", name, key, err)
			}
		}
	}
	_, err := login{Postgres: identity.NewPostgres(sourceURL, at("plain", "secret", "shop"), zerolog.Nop())}.replicate(t.Context())
	if err == nil || !strings.Contains(err.Error(), `ALTER ROLE "plain" REPLICATION`) {
		t.Errorf("a role that may not replicate: %v", err)
	}
	cfg, err := pgconn.ParseConfig(at("relay", "", "shop"))
	if err != nil {
		t.Fatal(err)
	}
	for code, says := range map[string]string{"57P03": "wait until it is ready", "08P01": "a pooler or another program is in between", "42P05": "transaction mode"} {
		if err := (login{Postgres: identity.NewPostgres("cleanup.url", "", zerolog.Nop())}).denied(cfg, &pgconn.PgError{Code: code, Message: "no"}); !strings.HasPrefix(err.Error(), "cleanup.url: ") || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", code, err)
		}
	}
	cfg.RuntimeParams["replication"] = "database"
	if err := (login{Postgres: identity.NewPostgres(sourceURL, "", zerolog.Nop())}).denied(cfg, &pgconn.PgError{Code: "53300"}); !strings.Contains(err.Error(), "max_wal_senders") {
		t.Error(err)
	}
	for _, p := range providers {
		g := guard{provider: &p}
		if says := g.notLogical("replica").String(); !strings.Contains(says, p.name) || strings.Contains(says, "ALTER SYSTEM") {
			t.Errorf("%s: %s", p.role, says)
		}
	}
}
