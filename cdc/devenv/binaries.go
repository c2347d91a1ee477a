package devenv

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// BinVariable names the environment variable with the folder of PostgreSQL's programs. That folder is used before every
// other place.
const BinVariable = "WALPOST_POSTGRES_BIN"

// fetchable are the versions that can be fetched if the wanted major is not installed.
var fetchable = map[int]embeddedpostgres.PostgresVersion{14: "14.24.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}

const (
	oldestMajor = 14
	newestMajor = 18
)

// installation is a folder that contains postgres and initdb.
type installation struct {
	dir   string
	major int
}

// findPostgres returns the installed server of a major, or the newest installed for "", and fetches one if none is
// installed.
func findPostgres(ctx context.Context, cfg PostgresConfig, user serverUser) (installation, error) {
	want, version := 0, cfg.Version
	if version != "" {
		var err error
		if want, err = strconv.Atoi(version); err != nil || fetchable[want] == "" {
			return installation{}, fmt.Errorf("PostgreSQL version %q: give a major from %d to %d", version, oldestMajor, newestMajor)
		}
	}
	if dir := os.Getenv(BinVariable); dir != "" {
		found, err := inspect(ctx, dir, user)
		if err != nil {
			return installation{}, fmt.Errorf("%s=%s: %w: let it name the folder that holds postgres and initdb, or unset it", BinVariable, dir, err)
		}
		if want == 0 || want == found.major {
			return found, nil
		}
	}
	var best installation
	for _, dir := range folders() {
		found, err := inspect(ctx, dir, user)
		if err != nil {
			continue
		}
		if found.major == want || want == 0 && found.major >= oldestMajor && found.major > best.major {
			best = found
		}
	}
	if best.dir != "" {
		return best, nil
	}
	if ctx.Err() != nil { // otherwise a cancelled search would look like "nothing is installed"
		return installation{}, fmt.Errorf("look for an installed PostgreSQL: %w", context.Cause(ctx))
	}
	if want == 0 {
		want = newestMajor
	}
	return fetch(ctx, want, user, cfg.Fetching)
}

// folders lists the folders that may contain PostgreSQL's programs: PATH, the folder from pg_config, and the usual
// installation folders.
func folders() []string {
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
		"/usr/pgsql-*/bin",          // Red Hat, from postgresql.org
		"/usr/libexec/postgresql*",  // Alpine
		"/usr/local/pgsql*/bin",     // from source
		"/opt/homebrew/opt/postgresql*/bin",
		"/usr/local/opt/postgresql*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		`C:\Program Files\PostgreSQL\*\bin`,
	} {
		found, _ := filepath.Glob(pattern)
		slices.Reverse(found)
		dirs = append(dirs, found...)
	}
	return slices.Compact(dirs)
}

// inspect asks the server in dir for its version, as the user that the server will run as: that user must be able to
// read the programs.
func inspect(ctx context.Context, dir string, user serverUser) (installation, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return installation{}, err
	}
	if _, err := exec.LookPath(filepath.Join(dir, "initdb")); err != nil {
		return installation{}, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version")
	user.prepare(cmd, "/")
	out, err := cmd.Output()
	if err != nil {
		return installation{}, fmt.Errorf("run %s as user %s: %w", cmd.Path, user.name, err)
	}
	text := strings.TrimSpace(string(out)) // postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1), or 18beta1
	_, number, ok := strings.Cut(text, "(PostgreSQL) ")
	digits := strings.IndexFunc(number+".", func(r rune) bool { return r < '0' || r > '9' })
	major, err := strconv.Atoi((number + ".")[:digits])
	if !ok || err != nil {
		return installation{}, fmt.Errorf("%s says %q, which names no version", cmd.Path, text)
	}
	return installation{dir, major}, nil
}

// fetch downloads a server into the cache, once. If two processes fetch at the same time, each unpacks into a separate
// folder, and the first rename wins.
func fetch(ctx context.Context, major int, user serverUser, fetching func(version string)) (installation, error) {
	version := fetchable[major]
	root, err := cacheRoot()
	if err != nil {
		return installation{}, err
	}
	home := filepath.Join(root, string(version))
	dir := filepath.Join(home, "bin")
	if !exists(filepath.Join(dir, "postgres")) {
		if fetching != nil {
			fetching(string(version))
		}
		if err := download(ctx, version, root, home); err != nil {
			return installation{}, fmt.Errorf("PostgreSQL %d is not installed and could not be fetched: %w: install it, or name the folder of its programs in %s", major, err, BinVariable)
		}
	}
	found, err := inspect(ctx, dir, user)
	if err != nil {
		return installation{}, fmt.Errorf("fetched PostgreSQL %s does not run: %w: remove %s to fetch it again, or install PostgreSQL", version, err, home)
	}
	return found, nil
}

// download fetches and unpacks a version. The library takes no context: if ctx ends first, the library finishes its
// work, and the result is then removed.
func download(ctx context.Context, version embeddedpostgres.PostgresVersion, root, home string) error {
	done := make(chan error, 1)
	go func() { done <- unpack(version, root, home) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func unpack(version embeddedpostgres.PostgresVersion, root, home string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(root, ".fetch-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(temp) }()
	port, err := FreePort()
	if err != nil {
		return err
	}
	// The library unpacks before it starts a server. A data path that no system accepts ends it right after
	// unpacking, before it runs anything: its server would outlive this process, and would not start as root.
	unpacked := filepath.Join(temp, "unpacked")
	logs := fetcherLogs()
	err = embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(version).Port(uint32(port)).Logger(io.Discard).
		CachePath(filepath.Join(temp, "archive")).BinariesPath(unpacked).
		RuntimePath(filepath.Join(temp, "run")).DataPath("\x00")).Start()
	http.DefaultClient.CloseIdleConnections()
	for _, log := range fetcherLogs() {
		if !slices.Contains(logs, log) {
			_ = os.Remove(log)
		}
	}
	if !exists(filepath.Join(unpacked, "bin", "postgres")) {
		return err
	}
	if err := os.Rename(unpacked, home); err != nil && !exists(filepath.Join(home, "bin", "postgres")) {
		return err
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// fetcherLogs lists the empty files that the library leaves in the temporary folder.
func fetcherLogs() []string {
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), "embedded_postgres_log*"))
	return found
}

// cacheRoot returns the folder for fetched servers. It is not root's own cache: root's home is closed to the user that
// the server runs as.
func cacheRoot() (string, error) {
	root, err := os.UserCacheDir()
	if os.Getuid() == 0 && runtime.GOOS == "linux" {
		root, err = "/var/cache", nil
	}
	if err != nil {
		return "", fmt.Errorf("find a folder to keep PostgreSQL in: %w: set HOME or XDG_CACHE_HOME", err)
	}
	return filepath.Join(root, "walpost", "postgres"), nil
}

// Tool returns the path of a client program such as psql or pg_recvlogical, from the newest installation that has it.
// Fetched servers contain no clients.
func Tool(name string) (string, error) {
	if dir := os.Getenv(BinVariable); dir != "" {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range folders() {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: install PostgreSQL's client programs, or name their folder in %s", name, BinVariable)
}
