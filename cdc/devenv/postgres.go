package devenv

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const folderPattern = "walpost-postgres-*"

// PostgresConfig describes a PostgreSQL server. The zero value is the newest installed version with the settings that
// walpost needs.
type PostgresConfig struct {
	// Version is a major from "14" to "18", fetched if it is not installed. Empty means the newest installed, and "18"
	// if none is installed.
	Version string
	// Settings are lines of postgresql.conf. They add to the settings of this package (wal_level=logical, fsync=off,
	// and so on) or replace them.
	Settings map[string]string
	// InMemory keeps the data in memory if the system has a file system in memory with enough room (Linux: /dev/shm),
	// and otherwise with temporary files.
	InMemory bool
	// Password is the password in the superuser's URL. Trust authentication accepts any password, and none.
	Password string
	// Log receives the server's log. Nil keeps only its last lines, for error messages.
	Log io.Writer
	// Fetching is called before a server that is not installed is fetched, because the download may be slow. It may be
	// nil.
	Fetching func(version string)
}

// Postgres is a running, or stopped but kept, PostgreSQL server. Its methods may be called from several goroutines,
// but Start, Stop and Close only from one at a time.
type Postgres struct {
	folder string    // holds data/; removed by Close
	lock   *os.File  // shows other processes that the folder is in use
	kept   io.Closer // reserves the port, also while the server is stopped
	bin    installation
	user   serverUser
	port   int
	log    *tail

	password string // of the superuser's URL

	settings map[string]string
	proc     *process // nil when stopped
}

// StartPostgres creates a new database cluster and starts a server on it. The superuser is "postgres", without
// password. It takes one to three seconds, plus a download if PostgreSQL must be fetched. If ctx ends before the server
// is ready, everything is removed again, and the error contains the end of the server's log.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	user, err := findServerUser()
	if err != nil {
		return nil, err
	}
	bin, err := findPostgres(ctx, cfg, user)
	if err != nil {
		return nil, err
	}
	p := &Postgres{bin: bin, user: user, log: &tail{next: cfg.Log}, password: cfg.Password}
	parent := os.TempDir()
	if cfg.InMemory {
		parent = cmp.Or(memory(), parent)
	}
	sweep(filepath.Join(parent, folderPattern))
	if p.folder, err = os.MkdirTemp(parent, folderPattern); err != nil {
		return nil, fmt.Errorf("make a folder for PostgreSQL: %w", err)
	}
	if err := p.create(ctx, cfg.Settings); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Postgres) create(ctx context.Context, settings map[string]string) error {
	if err := p.user.openFolder(p.folder); err != nil {
		return err
	}
	var err error
	if p.lock, err = lockFolder(p.folder); err != nil {
		return fmt.Errorf("lock PostgreSQL's folder: %w", err)
	}
	data := p.data()
	if err := os.Mkdir(data, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if err := p.user.own(data); err != nil {
		return fmt.Errorf("give the data folder to user %s: %w", p.user.name, err)
	}
	initdb := exec.CommandContext(ctx, filepath.Join(p.bin.dir, "initdb"),
		"-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	p.user.prepare(initdb, p.folder)
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("%s as user %s: %w\n%s", initdb.Path, p.user.name, cmpErr(ctx, err), bytes.TrimSpace(out))
	}
	return p.begin(ctx, settings)
}

// begin starts a new data folder for the first time, on a free port.
func (p *Postgres) begin(ctx context.Context, settings map[string]string) error {
	p.settings = settings
	// The port is free now but may be taken a moment later: then another port is tried.
	for attempt := 1; ; attempt++ {
		if p.kept != nil {
			_ = p.kept.Close()
		}
		var err error
		if p.port, p.kept, err = keepPort(); err != nil {
			return err
		}
		if err := p.configure(settings); err != nil {
			return err
		}
		err = p.Start(ctx)
		if err == nil || attempt == 3 || !strings.Contains(p.log.String(), "Address already in use") {
			return err
		}
	}
}

// configure writes settings to a separate file, so that ALTER SYSTEM still overrides them.
func (p *Postgres) configure(settings map[string]string) error {
	all := map[string]string{
		"listen_addresses":          "127.0.0.1",
		"port":                      fmt.Sprint(p.port),
		"unix_socket_directories":   "",
		"wal_level":                 "logical",
		"fsync":                     "off",
		"full_page_writes":          "off", // a crash of the server alone tears no page
		"wal_init_zero":             "off",
		"max_connections":           "200",
		"max_wal_senders":           "50",
		"max_replication_slots":     "100",
		"max_prepared_transactions": "60",
		"timezone":                  "UTC",
		"log_timezone":              "UTC",
	}
	maps.Copy(all, settings)
	var conf strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(all[name], "'", "''"))
	}
	main := filepath.Join(p.data(), "postgresql.conf")
	if err := os.WriteFile(filepath.Join(p.folder, "walpost.conf"), []byte(conf.String()), 0o644); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	if err := os.WriteFile(main, []byte("include '../walpost.conf'\n"), 0o600); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// Start starts a stopped server again, on the same port and data, and returns when it accepts connections.
func (p *Postgres) Start(ctx context.Context) error {
	if p.proc != nil {
		return errors.New("PostgreSQL is running already: Stop it first")
	}
	p.log.reset()
	cmd := exec.Command(filepath.Join(p.bin.dir, "postgres"), "-D", p.data())
	p.user.prepare(cmd, p.folder)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.WaitDelay = 5 * time.Second // a killed postmaster's children hold its log open until they notice
	proc, err := startProcess(cmd)
	if err != nil {
		return fmt.Errorf("start %s as user %s: %w", cmd.Path, p.user.name, err)
	}
	p.proc = proc
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !p.ready() {
		select {
		case <-proc.ended:
			p.proc = nil
			return fmt.Errorf("PostgreSQL %d ended while starting (%w); end of its log:\n%s", p.bin.major, proc.err, p.log)
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL %d was not ready in time: %w; end of its log:\n%s", p.bin.major,
				errors.Join(context.Cause(ctx), p.kill()), p.log)
		case <-tick.C:
		}
	}
	return nil
}

// ready reads the status line that the server keeps in its pid file. A killed server leaves its file behind, and that
// says ready too.
func (p *Postgres) ready() bool {
	const statusLine = 7 // the eighth
	b, err := os.ReadFile(filepath.Join(p.data(), "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(b), "\n")
	return len(lines) > statusLine && lines[0] == strconv.Itoa(p.proc.cmd.Process.Pid) && strings.TrimSpace(lines[statusLine]) == "ready"
}

// Stop stops the server and keeps its data. The modes are those of pg_ctl: "smart" waits until clients leave, "fast"
// disconnects them but waits for a walsender whose client does not confirm, "immediate" is a crash. If ctx ends first,
// the server is still stopping, and Stop may be called again with a harder mode.
func (p *Postgres) Stop(ctx context.Context, mode string) error {
	sig, ok := map[string]os.Signal{"smart": syscall.SIGTERM, "fast": os.Interrupt, "immediate": syscall.SIGQUIT}[mode]
	if !ok {
		return fmt.Errorf("stop mode %q: use smart, fast or immediate", mode)
	}
	if p.proc == nil {
		return nil
	}
	if err := p.proc.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	select {
	case <-p.proc.ended:
		p.proc = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("PostgreSQL did not stop (%s) in time: %w; end of its log:\n%s", mode, context.Cause(ctx), p.log)
	}
}

// Close stops the server at once and removes its folder. It may be called more than once.
func (p *Postgres) Close() error {
	err := p.kill()
	_ = p.lock.Close() // may be nil or closed
	if p.kept != nil {
		_ = p.kept.Close()
	}
	if rm := os.RemoveAll(p.folder); rm != nil {
		err = errors.Join(err, fmt.Errorf("remove PostgreSQL's folder: %w", rm))
	}
	return err
}

func (p *Postgres) kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := p.Stop(ctx, "immediate")
	if err != nil {
		_ = p.proc.cmd.Process.Kill()
		<-p.proc.ended
		p.proc = nil
	}
	return err
}

// URL returns the superuser's connection string for a database.
func (p *Postgres) URL(database string) string { return p.URLFor("postgres", p.password, database) }

// URLFor returns the connection string of a role. Trust authentication accepts any password, and none.
func (p *Postgres) URLFor(user, password, database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(user), Host: fmt.Sprintf("127.0.0.1:%d", p.port), Path: "/" + database, RawQuery: "sslmode=disable"}
	if password != "" {
		u.User = url.UserPassword(user, password)
	}
	return u.String()
}

// CreateDatabase creates an empty database owned by the superuser.
func (p *Postgres) CreateDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// Major returns the server's major version.
func (p *Postgres) Major() int { return p.bin.major }

func (p *Postgres) data() string { return filepath.Join(p.folder, "data") }

// cmpErr returns the reason why ctx ended, if it ended, instead of the "signal: killed" that follows from it.
func cmpErr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// serverEnv returns this process's environment without the PG* variables, which would redirect the server's programs.
func serverEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PG") })
}

// process is a child together with the goroutine that waits for it.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // why it ended; readable after ended is closed
}

// tail keeps the end of the text written to it, and passes all text on.
type tail struct {
	next io.Writer

	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	const limit = 4096
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - limit; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	if t.next != nil {
		return t.next.Write(b)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}

func (t *tail) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = nil
}
