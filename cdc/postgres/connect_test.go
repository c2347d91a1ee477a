package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/pglimit"
)

// broken lists defaults that a database, a role or a server may have, and the values that a session of walpost must
// have instead.
var broken = []struct {
	name, theirs, ours string
	since              int
}{
	{"statement_timeout", "5s", "0", 14},
	{"lock_timeout", "5s", "0", 14},
	{"idle_in_transaction_session_timeout", "5s", "0", 14},
	{"idle_session_timeout", "5s", "0", 14},
	{"transaction_timeout", "5s", "0", 17},
	{"default_transaction_read_only", "on", "off", 14},
	{"default_transaction_isolation", "serializable", "read committed", 14},
	{"default_transaction_deferrable", "on", "off", 14},
	{"tcp_keepalives_idle", "7200", "10", 14},
	{"tcp_keepalives_interval", "75", "5", 14},
	{"tcp_keepalives_count", "9", "3", 14},
	{"row_security", "on", "off", 14},
	{"standard_conforming_strings", "off", "on", 14},
	{"quote_all_identifiers", "on", "off", 14},
	{"client_min_messages", "error", "warning", 14},
	{"DateStyle", "SQL, DMY", "ISO, DMY", 14},
	{"TimeZone", "Asia/Tokyo", "UTC", 14},
	{"IntervalStyle", "iso_8601", "postgres", 14},
	{"bytea_output", "escape", "hex", 14},
	{"extra_float_digits", "-3", "3", 14},
	{"xmlbinary", "hex", "base64", 14},
	{"search_path", "traps, pg_catalog", "pg_catalog, traps, pg_catalog", 14},
}

// TestASessionBringsItsOwnSettings: a default of the database breaks no session, and a lower wal_sender_timeout
// stays.
func TestASessionBringsItsOwnSettings(t *testing.T) {
	t.Parallel()
	admin := cdctest.Database(t)
	cdctest.CreateOutbox(t, admin, "public.outbox")
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	major := cdctest.Postgres(t).Major()
	database := Ident(conn.Config().Database)
	alter := func(name, value string) {
		t.Helper()
		if name != "search_path" {
			value = Literal(value)
		}
		if _, err := conn.Exec(t.Context(), fmt.Sprintf("ALTER DATABASE %s SET %s = %s", database, name, value)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Exec(t.Context(), `CREATE SCHEMA traps; CREATE FUNCTION traps.pg_current_wal_flush_lsn() RETURNS pg_lsn LANGUAGE sql AS $$ SELECT '0/1'::pg_lsn $$`); err != nil {
		t.Fatal(err)
	}
	for _, b := range broken {
		if b.since <= major {
			alter(b.name, b.theirs)
		}
	}
	cfg := config.Default().Source
	cfg.URL = admin
	s := NewSource("test", cfg, zerolog.Nop())
	sql, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sql.Close(context.Background()) }()
	for _, timeout := range [][2]string{{"10min", "60000"}, {"0", "60000"}, {"7s", "7000"}} {
		alter("wal_sender_timeout", timeout[0])
		pg, err := login{Postgres: identity.NewPostgres(sourceURL, admin, zerolog.Nop()), application: "test"}.replicate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ask := func(name string) string {
			t.Helper()
			results, err := pg.Exec(t.Context(), "SELECT setting FROM pg_catalog.pg_settings WHERE pg_catalog.lower(name) = pg_catalog.lower('"+name+"')").ReadAll()
			if err != nil || len(results[0].Rows) != 1 {
				t.Fatal(name, results, err)
			}
			return string(results[0].Rows[0][0])
		}
		for _, b := range broken {
			if got := ask; b.since <= major && got(b.name) != b.ours {
				t.Errorf("replication connection: %s is %s, want %s", b.name, got(b.name), b.ours)
			}
		}
		if got := ask("wal_sender_timeout"); got != timeout[1] {
			t.Errorf("wal_sender_timeout is %s where the database has %s, want %s", got, timeout[0], timeout[1])
		}
		_ = pg.Close(context.Background())
	}
	for _, b := range broken {
		var got string
		if b.since > major {
			continue
		}
		if err := sql.QueryRow(t.Context(), `SELECT setting FROM pg_settings WHERE lower(name) = lower($1)`, b.name).Scan(&got); err != nil || got != b.ours {
			t.Errorf("SQL connection: %s is %s, want %s: %v", b.name, got, b.ours, err)
		}
	}
	facts, err := s.Facts(t.Context())
	if err != nil || facts.WALEnd < 2 {
		t.Errorf("the end of the WAL is %s, as the function in another schema says: %v", facts.WALEnd, err)
	}
	if _, id, err := s.Connect(t.Context(), 0); err != nil || id.Timeout != 7*time.Second {
		t.Errorf("wal_sender_timeout is told as %s: %v", id.Timeout, err)
	}
}

// ways lists all functions of this package that open a connection.
func ways(ctx context.Context, text string) map[string]func() error {
	cfg := config.Default().Source
	cfg.URL = text
	s := NewSource("test", cfg, zerolog.Nop())
	at := cfg
	if u, err := url.Parse(text); err == nil { // for a URL that only cleanup and administrators use
		at.URL = "postgres://relay@127.0.0.1:1" + u.Path
	}
	other := NewSource("test", at, zerolog.Nop())
	return map[string]func() error{
		"source.url, preflight": func() error { _, err := s.Preflight(ctx); return err },
		"source.url, facts":     func() error { _, err := s.Facts(ctx); return err },
		"source.url, replication": func() error {
			_, err := login{Postgres: identity.NewPostgres(sourceURL, text, zerolog.Nop())}.replicate(ctx)
			return err
		},
		"source.url, polling":  func() error { _, err := s.OpenTable(ctx); return err },
		"source.url, operator": func() error { _, err := s.Operator(ctx); return err },
		adminURL:               func() error { _, err := other.Admin(ctx, text); return err },
		"cleanup.url":          func() error { _, err := other.Cleaner(ctx, CleanerOptions{Key: "cleanup.url", URL: text}); return err },
		"--read-url":           func() error { _, _, err := other.Find(ctx, "--read-url", text, "x"); return err },
	}
}

// TestEveryConnectionAttemptEnds: a connection attempt to a server that does not answer ends as soon as that is
// certain, and the error names the server.
func TestEveryConnectionAttemptEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		addr, query, says string
		within            time.Duration
	}{
		"never accepts":             {cdctest.Unaccepting(t), "?connect_timeout=1", "does not answer within 1s", 3 * time.Second},
		"never answers":             {cdctest.Silent(t), "?connect_timeout=1", "has not answered within 1s", 3 * time.Second},
		"never answers, no TLS":     {cdctest.Silent(t), "?connect_timeout=1&sslmode=disable", "has not answered within 1s", 3 * time.Second},
		"never accepts, no timeout": {cdctest.Unaccepting(t), "", "does not answer within 10s", 12 * time.Second},
		"endless timeout":           {cdctest.Silent(t), "?connect_timeout=86400", "has not answered within 10s", 12 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all sync.WaitGroup
			defer all.Wait()
			for key, connect := range ways(t.Context(), "postgres://relay@"+c.addr+"/shop"+c.query) {
				all.Go(func() {
					began := time.Now()
					err := connect()
					key, _, _ := strings.Cut(key, ",")
					if err == nil || !strings.HasPrefix(err.Error(), key+": ") || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.addr) {
						t.Errorf("got %v, want %q, %q and %s", err, key, c.says, c.addr)
					}
					if took := time.Since(began); took > cdctest.Patience(c.within) {
						t.Errorf("it took %s", took)
					}
				})
			}
		})
	}
}

// TestEachHostHasItsChance: of several hosts the one that answers is found, even if one that does not answer comes
// first.
func TestEachHostHasItsChance(t *testing.T) {
	cdctest.Long(t, "waits for hosts that do not answer")
	t.Parallel()
	u, err := url.Parse(cdctest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = cdctest.Silent(t) + "," + cdctest.Unaccepting(t) + "," + u.Host
	u.RawQuery = "connect_timeout=1"
	cfg := config.Default().Source
	cfg.URL = u.String()
	if _, err := NewSource("test", cfg, zerolog.Nop()).Facts(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestEveryQueryHasALimit: a query without a deadline gets one; it ends with its rows.
func TestEveryQueryHasALimit(t *testing.T) {
	t.Parallel()
	cfg := config.Default().Source
	cfg.URL = cdctest.Database(t)
	open := func() *pgx.Conn {
		conn, err := NewSource("test", cfg, zerolog.Nop()).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return conn
	}
	const sleep = `SELECT pg_sleep(60)`
	for name, ask := range map[string]func(*pgx.Conn) error{
		"exec":  func(c *pgx.Conn) error { _, err := c.Exec(t.Context(), sleep); return err },
		"query": func(c *pgx.Conn) error { return c.QueryRow(t.Context(), sleep).Scan(new(any)) },
		"batch": func(c *pgx.Conn) error {
			var b pgx.Batch
			b.Queue(sleep)
			return c.SendBatch(t.Context(), &b).Close()
		},
		"transaction": func(c *pgx.Conn) error {
			return pgx.BeginFunc(t.Context(), c, func(tx pgx.Tx) error { _, err := tx.Exec(t.Context(), sleep); return err })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := open()
			limit := pglimit.Queries{Within: 300 * time.Millisecond}
			limited, err := pgx.ConnectConfig(t.Context(), func() *pgx.ConnConfig { c := conn.Config(); c.Tracer = limit; return c }())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { <-limited.PgConn().CleanupDone() }()
			began := time.Now()
			said := classify("look", ask(limited))
			if took := time.Since(began); took > cdctest.Patience(5*time.Second) || !strings.Contains(said.Error(), "look: PostgreSQL has not answered in time") {
				t.Errorf("after %s: %v", took, said)
			}
		})
	}
	if conn := open(); conn.Config().Tracer != (pglimit.Queries{Within: answerWithin}) {
		t.Errorf("a connection is opened with the tracer %#v", conn.Config().Tracer)
	}
	ctx := pglimit.Queries{Within: time.Minute}.TraceQueryStart(t.Context(), nil, pgx.TraceQueryStartData{})
	pglimit.Queries{}.TraceQueryEnd(ctx, nil, pgx.TraceQueryEndData{})
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Error("the limit outlives its query")
	}
	own, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if got := (pglimit.Queries{Within: time.Minute}).TraceQueryStart(own, nil, pgx.TraceQueryStartData{}); got != own {
		t.Error("a query's own deadline is replaced")
	}
}

// TestAParameterThatPostgreSQLDoesNotTake: the error names the parameter and the key of its URL, and does not mention
// a slot.
func TestAParameterThatPostgreSQLDoesNotTake(t *testing.T) {
	t.Parallel()
	admin := cdctest.Database(t)
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	role := strings.ReplaceAll(cdctest.Name(t, "plain"), "-", "_")
	cdctest.AlterRoles(t, func() error { _, err := conn.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN REPLICATION"); return err })
	t.Cleanup(func() {
		cdctest.AlterRoles(t, func() error { _, err := conn.Exec(context.Background(), "DROP ROLE "+role); return err })
	})
	for query, says := range map[string]string{
		"schema=public":                     `PostgreSQL does not know the parameter "schema"`,
		"pgbouncer=true":                    `PostgreSQL does not know the parameter "pgbouncer"`,
		"connection_limit=5":                `PostgreSQL does not know the parameter "connection_limit"`,
		"gssencmode=disable":                `PostgreSQL does not know the parameter "gssencmode"`,
		"keepalives_idle=5":                 `PostgreSQL does not know the parameter "keepalives_idle"`,
		"options=-c%20nonsense%3D1":         `PostgreSQL does not know the parameter "nonsense"`,
		"options=--also-nonsense%3D1":       `PostgreSQL does not know the parameter "also_nonsense"`,
		"statement_timeout=soon":            `PostgreSQL refuses the parameter "statement_timeout"`,
		"options=-c%20lock_timeout%3Dsoon":  `PostgreSQL refuses the parameter "lock_timeout"`,
		"options=-c%20log_statement%3Dall":  `PostgreSQL refuses the parameter "log_statement"`,
		"options=-cshared_buffers%3D1GB":    `PostgreSQL refuses the parameter "shared_buffers"`,
		"pool_max_conns=10":                 `PostgreSQL does not know the parameter "pool_max_conns"`,
		"default_query_exec_mode=exec":      `PostgreSQL does not know the parameter "default_query_exec_mode"`,
		"statement_cache_capacity=0":        `PostgreSQL does not know the parameter "statement_cache_capacity"`,
		"description_cache_capacity=0":      `PostgreSQL does not know the parameter "description_cache_capacity"`,
		"replication=database":              `PostgreSQL does not know the parameter "replication"`,
		"application_name=x&sslmode=prefer": "",
	} {
		t.Run(query, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(admin)
			if err != nil {
				t.Fatal(err)
			}
			u.User, u.RawQuery = url.User(role), query
			for key, connect := range ways(t.Context(), u.String()) {
				key, _, _ := strings.Cut(key, ",")
				err := connect()
				if says == "" {
					if err != nil && strings.Contains(err.Error(), "parameter") {
						t.Errorf("%s: %v", key, err)
					}
					continue
				}
				if err == nil || !strings.HasPrefix(err.Error(), key+": "+says) || strings.Contains(err.Error(), "slot") || !strings.Contains(err.Error(), "the URL") {
					t.Errorf("%s: got %v, want %s", key, err, says)
				}
			}
		})
	}
}

// TestTheStartIsWhatAPoolerPasses: a session's start has only parameters that a pooler in session mode passes; all
// others are set after it.
func TestTheStartIsWhatAPoolerPasses(t *testing.T) {
	t.Parallel()
	admin := cdctest.Database(t)
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	asked := map[string]bool{}
	proxy := cdctest.StartProxy(t, u.Host, func(f cdctest.Frame) cdctest.Verdict {
		var m pgproto3.StartupMessage
		if !f.FromServer && f.Type == 0 && len(f.Bytes) > 8 && m.Decode(f.Bytes[4:]) == nil {
			mu.Lock()
			defer mu.Unlock()
			for name := range m.Parameters {
				asked[name] = true
			}
		}
		return cdctest.Pass
	})
	for key, connect := range ways(t.Context(), proxy.URL(t, admin)) {
		if err := connect(); err != nil && strings.Contains(err.Error(), "does not answer") {
			t.Errorf("%s: %v", key, err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if !asked["application_name"] || !asked["replication"] {
		t.Errorf("the proxy saw only %v", asked)
	}
	for name := range asked {
		switch name {
		case "user", "database", "replication", "application_name", "client_encoding", "DateStyle", "TimeZone":
		default:
			t.Errorf("%s is a parameter of the start of a session", name)
		}
	}
}

// TestClocksThatDiffer: clocks that differ by more than a connection's delay get a note.
func TestClocksThatDiffer(t *testing.T) {
	at := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for off, want := range map[time.Duration]string{
		0: "", 59 * time.Second: "", -59 * time.Second: "",
		2 * time.Hour:        "this machine's clock is 2h0m0s ahead of the database server's (2026-11-22T08:00:00Z)",
		-10 * 24 * time.Hour: "this machine's clock is 240h0m0s behind the database server's",
	} {
		if got := ClockNote(at.Add(off), at); (got == "") != (want == "") || !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", off, got, want)
		}
	}
}

// TestStandbysAreNoServersThatAreDown: during a failover one host is gone, and the others answer but take no writes.
func TestStandbysAreNoServersThatAreDown(t *testing.T) {
	server, exec := Guarded(t)
	// answers as a standby does
	exec("postgres", "CREATE ROLE standby LOGIN REPLICATION PASSWORD 'secret'", "ALTER ROLE standby SET default_transaction_read_only = on")
	u, err := url.Parse(server.URLFor("standby", "secret", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = "127.0.0.1:1," + u.Host
	u.RawQuery += "&target_session_attrs=read-write"
	for way, connect := range ways(t.Context(), u.String()) {
		if err := connect(); err == nil || !strings.Contains(err.Error(), "takes writes: those that answer are standbys: wait until one is promoted, or start the primary") {
			t.Errorf("%s: %v", way, err)
		}
	}
}
