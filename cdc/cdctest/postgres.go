package cdctest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/walpost/walpost/cdc/devenv"
)

// startTimeout includes the time to fetch a server that is not installed.
const startTimeout = 3 * time.Minute

var shared struct {
	once   sync.Once
	server *devenv.Postgres
	err    error
}

// Main runs the tests of a package, as the body of its TestMain. It stops the shared server afterwards, and fails the
// run if a goroutine is left or if a Log contains the Canary. Without the flag -parallel it runs six tests at a time, because
// they mostly wait; in the long form, whose programs have the race detector, it runs four. The process collects garbage half
// as often as Go does by default. Main does not return.
func Main(m *testing.M) {
	flag.Parse()
	debug.SetGCPercent(200)
	byHand := false
	flag.Visit(func(f *flag.Flag) { byHand = byHand || f.Name == "test.parallel" })
	if !byHand {
		n := "6"
		if LongForm() {
			n = "4"
		}
		_ = flag.Set("test.parallel", n)
	}
	goleak.VerifyTestMain(run{m})
}

type run struct{ *testing.M }

func (r run) Run() int {
	code := r.M.Run()
	if leaked() {
		code = max(code, 1)
	}
	shared.once.Do(func() {}) // so that a leaked test cannot start the server now
	if shared.server != nil {
		if err := shared.server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close the shared PostgreSQL:", err)
			code = max(code, 1)
		}
	}
	return code
}

// Postgres returns the server that all tests of this binary share; the first call starts it. Never stop this server: a
// test that stops one uses OwnPostgres.
func Postgres(t testing.TB) *devenv.Postgres {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		shared.server, shared.err = devenv.StartPostgres(ctx, devenv.PostgresConfig{Version: version(), InMemory: inMemory(t), Password: Canary})
	})
	if shared.err != nil {
		t.Fatalf("start the shared PostgreSQL: %v", shared.err)
	}
	if shared.server == nil {
		t.Fatal("the shared PostgreSQL is closed already")
	}
	return shared.server
}

// OwnPostgres starts a server for this test alone, to be restarted or crashed, and removes it at the end. If cfg names
// no version, WALPOST_TEST_POSTGRES does.
func OwnPostgres(t testing.TB, cfg devenv.PostgresConfig) *devenv.Postgres {
	t.Helper()
	if cfg.Version == "" {
		cfg.Version = version()
	}
	cfg.InMemory, cfg.Password = inMemory(t), Canary
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	server, err := devenv.StartPostgres(ctx, cfg)
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close PostgreSQL: %v", err)
		}
	})
	return server
}

// inMemory reports whether a server keeps its data in memory. Tests do; a benchmark measures a server with a disk.
func inMemory(t testing.TB) bool {
	_, benchmark := t.(*testing.B)
	return !benchmark
}

func version() string { return os.Getenv("WALPOST_TEST_POSTGRES") }

// Database creates an empty database on the shared server, with options of CREATE DATABASE if given, and returns the
// superuser's URL for it. At the end of the test it drops the database with its replication slots, and ends all
// connections to it.
func Database(t testing.TB, options ...string) string {
	t.Helper()
	server := Postgres(t)
	name := "test_" + unique()
	if server.Major() >= 15 { // before, there is no other way
		options = append(options, "STRATEGY file_copy") // the other way writes 7 MB of WAL, which each walsender then reads
	}
	if err := execAll(t.Context(), server.URL("postgres"), "CREATE DATABASE "+name+" "+strings.Join(options, " ")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dropDatabase(server, name); err != nil {
			t.Errorf("drop database %s: %v", name, err)
		}
	})
	return server.URL(name)
}

// PoolConfig returns the pool configuration for a URL.
func PoolConfig(t testing.TB, url string) *pgxpool.Config {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

var roles sync.Mutex

// AlterRoles runs do, which creates or alters roles that other tests of this binary use too, alone. Roles belong to the
// whole server, and PostgreSQL refuses one of two sessions that alter a role at the same time.
func AlterRoles(t testing.TB, do func() error) {
	t.Helper()
	roles.Lock()
	err := do()
	roles.Unlock()
	if err != nil {
		t.Fatal(err)
	}
}

func dropDatabase(server *devenv.Postgres, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	// A relay that still runs takes its slot again, so end the walsender and drop until no slot is left.
	for {
		var left int
		err := conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(active_pid)) + count(*) FROM pg_replication_slots WHERE database = $1`, name).Scan(&left)
		if err != nil {
			return fmt.Errorf("end its walsenders: %w", err)
		}
		if left == 0 {
			break
		}
		_, err = conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT active`, name)
		if err != nil && !isObjectInUse(err) {
			return fmt.Errorf("drop its slots: %w", err)
		}
		if !sleep(ctx, 10*time.Millisecond) {
			return fmt.Errorf("drop its slots: %w", context.Cause(ctx))
		}
	}
	if err := rollbackPrepared(ctx, server.URL(name)); err != nil {
		return fmt.Errorf("end its prepared transactions: %w", err)
	}
	_, err = conn.Exec(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
	return err
}

// rollbackPrepared rolls back the prepared transactions of a failed test: they prevent that the database is dropped.
func rollbackPrepared(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
	if err != nil {
		return err
	}
	left, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, gid := range left {
		_, undo := conn.Exec(ctx, "ROLLBACK PREPARED '"+gid+"'")
		err = errors.Join(err, undo)
	}
	return err
}

// Name returns base with a unique suffix, for names that tests share on a real Kafka: topics, groups, pipelines.
func Name(t testing.TB, base string) string {
	t.Helper()
	return base + "-" + unique()
}

// SlotName does the same as Name for replication slots, whose names may contain no hyphen.
func SlotName(t testing.TB, base string) string {
	t.Helper()
	return base + "_" + unique()
}

// unique returns the random tail of a UUID.
func unique() string { return uuid.New().String()[24:] }
