package e2e

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

// Exec runs SQL as superuser.
func (s *Pipeline) Exec(sql string, args ...any) {
	s.T.Helper()
	s.session(sql, func(conn *pgx.Conn) error {
		_, err := conn.Exec(s.T.Context(), sql, args...)
		return err
	})
}

// Query returns the one text value that the SQL selects.
func (s *Pipeline) Query(sql string, args ...any) (text string) {
	s.T.Helper()
	s.session(sql, func(conn *pgx.Conn) error { return conn.QueryRow(s.T.Context(), sql, args...).Scan(&text) })
	return text
}

// spare holds the connection of the last Query or Exec for the next one: to open one costs the server ten times as much as
// most queries. A statement that may change its session leaves none.
type spare struct {
	mu   sync.Mutex
	conn *pgx.Conn
	url  string
}

var sessionless = regexp.MustCompile(`(?i)^\s*(SELECT|INSERT|UPDATE|DELETE)\b`)

// session calls do with a connection, which no other goroutine uses meanwhile.
func (s *Pipeline) session(sql string, do func(*pgx.Conn) error) {
	s.T.Helper()
	ctx := context.Background()
	s.spare.mu.Lock()
	conn, url := s.spare.conn, s.spare.url
	s.spare.conn = nil
	s.spare.mu.Unlock()
	if conn != nil && (url != s.AdminURL || conn.Ping(s.T.Context()) != nil) { // another server, or the same one started again
		_ = conn.Close(ctx)
		conn = nil
	}
	if conn == nil {
		cfg, err := pgx.ParseConfig(s.AdminURL)
		if err == nil {
			cfg.DefaultQueryExecMode = pgx.QueryExecModeDescribeExec // no statement is kept: tables change in between
			conn, err = pgx.ConnectConfig(s.T.Context(), cfg)
		}
		if err != nil {
			s.T.Fatal(err)
		}
	}
	err := do(conn)
	s.spare.mu.Lock()
	if err == nil && sessionless.MatchString(sql) && s.spare.conn == nil {
		s.spare.conn, s.spare.url, conn = conn, s.AdminURL, nil
	}
	s.spare.mu.Unlock()
	if conn != nil {
		_ = conn.Close(ctx)
	}
	if err != nil {
		s.T.Fatalf("%s: %v", sql, err)
	}
}

// Rest closes the connection that the last Query or Exec left open, so that the server can stop.
func (s *Pipeline) Rest() { s.spare.close() }

func (s *spare) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close(context.Background())
		s.conn = nil
	}
}

// Connect returns a superuser's connection to the database.
func (s *Pipeline) Connect() *pgx.Conn {
	s.T.Helper()
	return ConnectTo(s.T, s.AdminURL)
}

// ConnectTo returns a connection to a database.
func ConnectTo(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// InsertRows writes n outbox rows in one transaction.
func (s *Pipeline) InsertRows(n int) {
	s.T.Helper()
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', jsonb_build_object('n', i) FROM generate_series(1, $1::int) i`, n)
}

// InsertRow writes one outbox row and returns its id.
func (s *Pipeline) InsertRow() string {
	s.T.Helper()
	id := uuid.NewString()
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'order', 'k', 'OrderPaid', '{}')`, id)
	return id
}

// CountRows counts the rows of the outbox.
func (s *Pipeline) CountRows() string {
	s.T.Helper()
	return s.Query("SELECT count(*)::text FROM outbox")
}

// WaitForCommits waits until the writer has committed this many more rows.
func WaitForCommits(t testing.TB, w *cdctest.Writer, more int) {
	t.Helper()
	want := w.Committed() + more
	cdctest.Eventually(t, 30*time.Second, func() error {
		if n := w.Committed(); n < want {
			return fmt.Errorf("%d of %d rows are committed", n, want)
		}
		return nil
	})
}

// InsertEvent inserts an outbox row for a key on a connection, in the transaction that is open there.
func InsertEvent(t testing.TB, conn *pgx.Conn, key, event string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', $1, $2, '{}')`, key, event); err != nil {
		t.Fatal(err)
	}
}

// ExecOn runs SQL on a connection.
func ExecOn(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Header returns a header that the relay sets, under its plain name or the name of CloudEvents.
func Header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key || h.Key == "ce_"+key {
			return string(h.Value)
		}
	}
	return ""
}

// PositionOf returns the position in a record's headers.
func PositionOf(t testing.TB, r *kgo.Record) (p cdc.Position) {
	t.Helper()
	seq, err := strconv.ParseUint(Header(r, "seq"), 10, 32)
	if err := errors.Join(err, p.Commit.Scan(Header(r, "lsn"))); err != nil {
		t.Fatal(err)
	}
	p.Ordinal = uint32(seq)
	return p
}

// EventTypes returns the event types of a key's records, in the topic's order.
func EventTypes(records []*kgo.Record, key string) (all []string) {
	for _, r := range records {
		if string(r.Key) == key {
			all = append(all, Header(r, "type"))
		}
	}
	return all
}
