package devenv_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// start runs a server in a temporary folder of this test alone, so that the test can see leftovers.
func start(t *testing.T, cfg devenv.PostgresConfig) (*devenv.Postgres, string) {
	t.Helper()
	temp := openTemp(t)
	t.Setenv("TMPDIR", temp)
	server, err := devenv.StartPostgres(within(t, 2*time.Minute), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return server, temp
}

// openTemp returns a folder like t.TempDir that another user may enter, for servers that run as another user.
func openTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "devenv-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func query(t *testing.T, url, sql string) string {
	t.Helper()
	var got string
	conn := connect(t, url)
	if err := conn.QueryRow(t.Context(), sql).Scan(&got); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestPostgresIsReadyForLogicalReplication(t *testing.T) {
	var log strings.Builder
	server, _ := start(t, devenv.PostgresConfig{Settings: map[string]string{"application_name": "it's"}, Log: &log})
	if err := server.CreateDatabase(t.Context(), "a b"); err != nil {
		t.Fatal(err)
	}
	url := server.URL("a b")
	for sql, want := range map[string]string{
		"SHOW wal_level":       "logical",
		"SHOW server_encoding": "UTF8",
		"SELECT datcollate FROM pg_database WHERE datname = current_database()":  "C",
		"SHOW unix_socket_directories":                                           "",
		"SELECT current_user::text":                                              "postgres",
		"SHOW application_name":                                                  "it's",
		"SELECT current_database()":                                              "a b",
		"SHOW synchronous_commit":                                                "on", // decoding reads only what is flushed
		"SELECT (pg_create_logical_replication_slot('s', 'pgoutput')).slot_name": "s",
		"SELECT (current_setting('server_version_num')::int / 10000)::text":      fmt.Sprint(server.Major()),
	} {
		if got := query(t, url, sql); got != want {
			t.Errorf("%s: got %q, want %q", sql, got, want)
		}
	}
	if got := query(t, server.URLFor("postgres", "p@ss", "postgres"), "SELECT current_user::text"); got != "postgres" {
		t.Errorf("with a password: connected as %q", got)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "ready to accept connections") {
		t.Errorf("the server's log did not arrive: %q", log.String())
	}
}

func TestRestartKeepsPortAndData(t *testing.T) {
	cdctest.Long(t, "starts and stops servers")
	server, _ := start(t, devenv.PostgresConfig{})
	url := server.URL("postgres")
	conn := connect(t, url)
	if _, err := conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 0 AS n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"smart", "fast", "immediate"} {
		query(t, url, "UPDATE kept SET n = n + 1 RETURNING n::text")
		if err := server.Stop(within(t, 30*time.Second), mode); err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		if err := server.Start(within(t, 30*time.Second)); err != nil {
			t.Fatalf("after %s: %v", mode, err)
		}
	}
	if got := query(t, url, "SELECT n::text FROM kept"); got != "3" {
		t.Errorf("after three restarts n is %s, want 3", got)
	}
	if err := server.Start(t.Context()); err == nil {
		t.Error("a running server was started once more")
	}
}

// A killed server's pid file says ready, and its children may keep a new one from starting for a moment: then Start
// returns an error, or else the server is up.
func TestKilledServerIsUpWhenStartSaysSo(t *testing.T) {
	cdctest.Long(t, "starts and stops servers")
	server, _ := start(t, devenv.PostgresConfig{})
	url := server.URL("postgres")
	for range 5 {
		pid, err := strconv.Atoi(query(t, url, `SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)`))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = server.Stop(within(t, 30*time.Second), "immediate") // the server has ended already
		for err = server.Start(within(t, 30*time.Second)); err != nil; err = server.Start(within(t, 30*time.Second)) {
			if !strings.Contains(err.Error(), "ended while starting") {
				t.Fatal(err)
			}
		}
		query(t, url, "SELECT 'up'")
	}
}

func TestSmartStopThatTakesTooLongSaysSoAndCanBeHardened(t *testing.T) {
	cdctest.Long(t, "starts and stops servers")
	server, _ := start(t, devenv.PostgresConfig{})
	connect(t, server.URL("postgres"))
	err := server.Stop(within(t, 200*time.Millisecond), "smart")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "received smart shutdown request") {
		t.Errorf("got %v, want a deadline and the end of the log", err)
	}
	if err := server.Stop(within(t, 30*time.Second), "fast"); err != nil {
		t.Error(err)
	}
	if err := server.Stop(t.Context(), "gently"); err == nil {
		t.Error("an unknown mode was accepted")
	}
}

func TestCloseLeavesNoProcessAndNoFolder(t *testing.T) {
	cdctest.Long(t, "starts and stops servers")
	for _, inMemory := range []bool{false, true} {
		server, temp := start(t, devenv.PostgresConfig{InMemory: inMemory})
		addr := address(t, server.URL("postgres"))
		folder := filepath.Dir(query(t, server.URL("postgres"), "SHOW data_directory"))
		if !inMemory && filepath.Dir(folder) != temp {
			t.Errorf("the server is in %s and not in %s", folder, temp)
		}
		connect(t, server.URL("postgres"))
		for range 2 {
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if listening(addr) {
			t.Error("something still listens on the server's port")
		}
		if left, _ := filepath.Glob(filepath.Join(temp, "*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left behind: %v", folder, err)
		}
		if left := processes(t, folder); left != "" {
			t.Errorf("still running: %s", left)
		}
	}
}

func TestKilledParentLeavesNoServer(t *testing.T) {
	cdctest.Long(t, "starts and stops servers")
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a child that its parent died")
	}
	temp := openTemp(t)
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), childVariable+"=1", "TMPDIR="+temp)
	parent.Stderr = os.Stderr
	stdin, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	url, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the child started no server: %v (%v)", err, parent.Wait())
	}
	addr := address(t, strings.TrimSpace(url))
	if !listening(addr) || processes(t, temp) == "" {
		t.Fatal("no server to begin with")
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	for deadline := time.Now().Add(10 * time.Second); listening(addr) || processes(t, temp) != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("10 s after its parent's death the server still runs: %s", processes(t, temp))
		}
	}

	// Its folder stays until the next server starts, and longer if it is so new that its owner may not have locked it
	// yet.
	owners, _ := filepath.Glob(filepath.Join(temp, "*", "owner"))
	if len(owners) != 1 {
		t.Fatalf("folders of the killed parent: %v", owners)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(owners[0], old, old); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", temp)
	for range 2 {
		server, err := devenv.StartPostgres(within(t, time.Minute), devenv.PostgresConfig{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Close() }()
		left, _ := filepath.Glob(filepath.Join(temp, "*", "owner"))
		for _, owner := range left { // the second start must not sweep the first, of any age
			if err := os.Chtimes(owner, old, old); err != nil {
				t.Fatal(err)
			}
		}
		if slices.Contains(left, owners[0]) {
			t.Error("the killed parent's folder was not swept")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(temp, "*", "owner")); len(left) != 2 {
		t.Errorf("two servers run, in %v", left)
	}
}

func TestStartErrorCarriesTheLogAndLeavesNothing(t *testing.T) {
	temp := openTemp(t)
	t.Setenv("TMPDIR", temp)
	_, err := devenv.StartPostgres(within(t, time.Minute), devenv.PostgresConfig{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), `unrecognized configuration parameter "no_such_setting"`) {
		t.Errorf("got %v, want the server's own words", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("had enough"))
	if _, err := devenv.StartPostgres(ctx, devenv.PostgresConfig{}); err == nil || !strings.Contains(err.Error(), "had enough") {
		t.Errorf("under an ended context: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(temp, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWrongVersionAndFolderAreNamed(t *testing.T) {
	for _, version := range []string{"13", "19", "new"} {
		_, err := devenv.StartPostgres(t.Context(), devenv.PostgresConfig{Version: version})
		if err == nil || !strings.Contains(err.Error(), version) || !strings.Contains(err.Error(), "14 to 18") {
			t.Errorf("version %q: got %v", version, err)
		}
	}
	t.Setenv(devenv.BinVariable, "/no/such/folder")
	_, err := devenv.StartPostgres(t.Context(), devenv.PostgresConfig{})
	if err == nil || !strings.Contains(err.Error(), devenv.BinVariable) || !strings.Contains(err.Error(), "/no/such/folder") {
		t.Errorf("got %v", err)
	}
}

func TestServersStartSideBySide(t *testing.T) {
	cdctest.Long(t, "starts and stops servers")
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			server, err := devenv.StartPostgres(within(t, time.Minute), devenv.PostgresConfig{})
			if err != nil {
				t.Error(err)
				return
			}
			if err := server.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

func TestToolIsFoundOrNamed(t *testing.T) {
	if path, err := devenv.Tool("initdb"); err == nil && !filepath.IsAbs(path) {
		t.Errorf("initdb: %q is no absolute path", path)
	}
	if _, err := devenv.Tool("no-such-tool"); err == nil || !strings.Contains(err.Error(), "no-such-tool") {
		t.Errorf("got %v", err)
	}
}

func address(t *testing.T, url string) string {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s:%d", cfg.Host, cfg.Port)
}

func listening(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// processes lists the command lines that contain a folder below temp; it is empty if the system does not show them.
func processes(t *testing.T, temp string) string {
	t.Helper()
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var lines []string
	for _, file := range found {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), temp) {
			lines = append(lines, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return strings.Join(lines, "; ")
}

// TestAServerThatIsDownKeepsItsPort: nobody else gets the port of a stopped server until the server is closed.
func TestAServerThatIsDownKeepsItsPort(t *testing.T) {
	cdctest.Long(t, "starts and stops servers")
	server, _ := start(t, devenv.PostgresConfig{})
	_, port, _ := net.SplitHostPort(address(t, server.URL("postgres")))
	if err := server.Stop(t.Context(), "fast"); err != nil {
		t.Fatal(err)
	}
	if ln, err := net.Listen("unix", "@walpost-port-"+port); err == nil {
		_ = ln.Close()
		t.Error("another would take the port of a server that is down")
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", "@walpost-port-"+port)
	if err != nil {
		t.Fatalf("the port of a server that is gone: %v", err)
	}
	_ = ln.Close()
}
