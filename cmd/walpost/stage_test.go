package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/sql"
)

// TestMain is also the walpost process that tests start and kill.
func TestMain(m *testing.M) {
	if os.Getenv("WALPOST_TEST_KFAKE") != "" {
		kfakeMain()
	}
	if os.Getenv("WALPOST_TEST_MAIN") != "" {
		app.Main(run)
	}
	cdctest.Main(m)
}

// stage is a database, a Kafka and a configuration for one test.
type stage struct {
	t        testing.TB
	admin    string // superuser's URL of the database
	brokers  []string
	pipeline string
	topic    string // of aggregate type order
	env      map[string]string
}

// newStage has an outbox and nothing else; what walpost needs is made by init.
func newStage(t testing.TB) *stage {
	t.Helper()
	return stageOn(t, cdctest.Database(t), cdctest.Kafka(t))
}

func stageOn(t testing.TB, admin string, brokers []string) *stage {
	t.Helper()
	name := cdctest.Name(t, "orders")
	slot := strings.ReplaceAll(name, "-", "_")
	s := &stage{t: t, admin: admin, brokers: brokers, pipeline: name, topic: name + ".order"}
	s.env = map[string]string{
		"WALPOST_PIPELINE":              name,
		"WALPOST_SOURCE_URL":            s.as("relay_"+slot, "s3cret"),
		"WALPOST_SOURCE_SLOT":           slot,
		"WALPOST_KAFKA_BROKERS":         strings.Join(brokers, ","),
		"WALPOST_KAFKA_TOPIC":           name + ".{aggregate_type}",
		"WALPOST_KAFKA_AGGREGATE_TYPES": "order",
		"WALPOST_KAFKA_REPLICATION":     "1",
		"WALPOST_HTTP":                  "127.0.0.1:0",
		"WALPOST_ADMIN_URL":             admin,
		"LOG_LEVEL":                     "info",
		"LOG_FORMAT":                    "json",
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, admin)
		if err != nil {
			return // the server was this test's own
		}
		defer func() { _ = conn.Close(ctx) }()
		_, _ = conn.Exec(ctx, "DROP ROLE IF EXISTS "+pgx.Identifier{"relay_" + slot}.Sanitize())
	})
	return s
}

// as is the database's URL for another user.
func (s *stage) as(user, password string) string {
	u, err := url.Parse(s.admin)
	if err != nil {
		s.t.Fatal(err)
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}

func (s *stage) getenv(key string) string { return s.env[key] }

// walpost runs a command in this process to its end.
func (s *stage) walpost(args ...string) (string, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	err := run(ctx, args, s.getenv, &out, &out)
	return out.String(), err
}

// must is walpost for commands that have to succeed.
func (s *stage) must(args ...string) string {
	s.t.Helper()
	out, err := s.walpost(args...)
	if err != nil {
		s.t.Fatalf("walpost %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s *stage) exec(sql string, args ...any) {
	s.t.Helper()
	conn := s.connect()
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

func (s *stage) query(sql string, args ...any) (text string) {
	s.t.Helper()
	conn := s.connect()
	defer func() { _ = conn.Close(context.Background()) }()
	if err := conn.QueryRow(s.t.Context(), sql, args...).Scan(&text); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	return text
}

func (s *stage) connect() *pgx.Conn {
	s.t.Helper()
	return connectTo(s.t, s.admin)
}

func connectTo(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// insert writes n outbox rows in one transaction.
func (s *stage) insert(n int) {
	s.t.Helper()
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', jsonb_build_object('n', i) FROM generate_series(1, $1::int) i`, n)
}

// confirmed waits until the slot has confirmed everything written so far.
func (s *stage) confirmed(within time.Duration) {
	s.t.Helper()
	end := s.query("SELECT pg_current_wal_lsn()::text")
	s.eventually(within, "confirmed_flush_lsn >= '"+end+"'")
}

// state reads the newest state record.
func (s *stage) state() *cdc.State {
	s.t.Helper()
	cfgs, err := config.Load("", s.getenv)
	if err != nil {
		s.t.Fatal(err)
	}
	st, err := kafka.NewSink(cfgs[0], nil).Peek(s.t.Context())
	if err != nil || st == nil {
		s.t.Fatalf("read the state record: %v, %v", st, err)
	}
	return st
}

// eventually waits until the slot's row satisfies a condition.
func (s *stage) eventually(within time.Duration, condition string) {
	s.t.Helper()
	cdctest.Eventually(s.t, within, func() error {
		if row := s.query("SELECT coalesce((SELECT s::text || CASE WHEN "+condition+" THEN '' ELSE ' no' END FROM pg_replication_slots s WHERE slot_name = $1), 'no slot no')",
			s.env["WALPOST_SOURCE_SLOT"]); strings.HasSuffix(row, " no") {
			return fmt.Errorf("slot is not %s: %s", condition, row)
		}
		return nil
	})
}

// relay is `walpost relay`, in this process or as a child.
type relay struct {
	t    testing.TB
	log  *cdctest.Log
	stop func() error // SIGTERM, or the end of its context; returns how it ended

	// only a child has
	kill func() // SIGKILL
	pid  int
	gone <-chan struct{} // closed when it has ended
}

// start runs the relay in this process.
func (s *stage) start() *relay {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	r := &relay{t: s.t, log: &cdctest.Log{}}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"relay"}, s.getenv, r.log, r.log) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Minute):
			return errors.New("the relay did not stop within a minute")
		}
	})
	s.t.Cleanup(func() { s.report(r, r.stop()) })
	return r
}

// spawn runs the relay as a process of its own.
func (s *stage) spawn() *relay {
	s.t.Helper()
	return s.command(exec.Command(os.Args[0], "relay"), "WALPOST_TEST_MAIN=1")
}

// command runs a relay's binary, with more in its environment than the configuration.
func (s *stage) command(cmd *exec.Cmd, env ...string) *relay {
	s.t.Helper()
	cmd.Env = append(os.Environ(), env...)
	for k, v := range s.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	r := &relay{t: s.t, log: &cdctest.Log{}}
	cmd.Stdout, cmd.Stderr = r.log, r.log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	r.pid = cmd.Process.Pid
	gone := make(chan struct{})
	r.gone = gone
	var ended error
	go func() {
		ended = cmd.Wait()
		close(gone)
	}()
	r.stop = func() error {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-gone:
			return ended
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-gone
			return errors.New("the relay did not stop within a minute")
		}
	}
	r.kill = func() {
		_ = cmd.Process.Kill()
		<-gone
	}
	s.t.Cleanup(func() { s.report(r, r.stop()) })
	return r
}

func (s *stage) report(r *relay, err error) {
	if s.t.Failed() {
		log := r.log.String()
		s.t.Logf("relay ended with %v; the end of its log:\n%s", err, log[max(0, len(log)-4000):])
	}
}

// says waits until the log holds the text.
func (r *relay) says(within time.Duration, text string) {
	r.t.Helper()
	cdctest.Eventually(r.t, within, func() error {
		if !strings.Contains(r.log.String(), text) {
			return fmt.Errorf("the log does not say %q", text)
		}
		return nil
	})
}

// get asks the relay's own HTTP address, which its log tells.
func (r *relay) get(t testing.TB, path string) string {
	t.Helper()
	r.says(10*time.Second, `"serving HTTP"`)
	said, err := r.ask(path)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func (r *relay) ask(path string) (string, error) {
	_, rest, _ := strings.Cut(r.log.String(), `"address":"`)
	addr, _, _ := strings.Cut(rest, `"`)
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, body), err
}

// migrateOrders makes the orders database.
func (s *stage) migrateOrders() {
	s.t.Helper()
	if err := sql.Migrate(s.t.Context(), sql.Orders, s.admin, s.as("orders_"+strings.ReplaceAll(s.pipeline, "-", "_"), "pw"), io.Discard); err != nil {
		s.t.Fatal(err)
	}
}

// truncate takes all records away. A broker refuses that for a topic that is compacted only.
func truncate(ctx context.Context, admin *kadm.Client, topic string) error {
	policy := func(value string) error {
		answers, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: &value}}, topic)
		if err == nil {
			_, err = answers.On(topic, func(a *kadm.AlterConfigsResponse) error { return a.Err })
		}
		return err
	}
	if err := policy("compact,delete"); err != nil {
		return err
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	for { // the leader may not know of the policy yet
		answers, err := admin.DeleteRecords(ctx, ends.Offsets())
		if err == nil {
			err = answers.Error()
		}
		switch {
		case err == nil:
			return policy("compact")
		case !errors.Is(err, kerr.PolicyViolation) || ctx.Err() != nil:
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// contains is nil when the text holds the other.
func contains(text, other string) error {
	if !strings.Contains(text, other) {
		return fmt.Errorf("it does not say %q: %s", other, text)
	}
	return nil
}
