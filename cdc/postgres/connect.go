package postgres

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/pglimit"
)

const (
	// answerWithin is how long PostgreSQL may take to answer a query that has no other limit.
	answerWithin = 30 * time.Second
	// workWithin is the limit for work that may rightly take long: an index, a count, a page of rows that Kafka takes
	// slowly.
	workWithin = time.Hour
	// lockedAfter is how long an administrator's statement waits for a lock: writers queue behind it.
	lockedAfter = "5s"
)

// login is a role and a server to connect to.
type login struct {
	*identity.Postgres
	database    string // instead of the URL's
	application string
}

const (
	sourceURL = "source.url"
	adminURL  = "--admin-url (WALPOST_ADMIN_URL)"
)

// Open opens an SQL connection as the relay's role.
func (s *Source) Open(ctx context.Context) (*pgx.Conn, error) {
	return s.login().open(ctx)
}

// connectAs opens an SQL connection to the outbox's database as another role; key is the configuration key with the
// URL.
func (s *Source) connectAs(ctx context.Context, key, url, application string) (*pgx.Conn, error) {
	target, err := s.target()
	if err != nil {
		return nil, err
	}
	return login{Postgres: s.other(key, url), database: target.Database, application: application}.open(ctx)
}

// other returns the identity for the URL that the key has, the same one each time.
func (s *Source) other(key, url string) *identity.Postgres {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key == sourceURL {
		return s.relay
	}
	of := [2]string{key, url}
	if s.others[of] == nil {
		s.others[of] = identity.NewPostgres(key, url, s.log)
	}
	return s.others[of]
}

// Certificates returns when the client certificates in use expire, by the names of their keys: source.url: sslcert.
func (s *Source) Certificates() map[string]time.Time {
	ends := s.relay.Certificates()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.others {
		maps.Copy(ends, other.Certificates())
	}
	return ends
}

// login returns the relay's role.
func (s *Source) login() login { return login{Postgres: s.relay, application: s.application} }

// target returns the parsed source.url.
func (s *Source) target() (*pgconn.Config, error) {
	return s.relay.Target()
}

// open opens an SQL connection on which every query has a limit.
func (l login) open(ctx context.Context) (*pgx.Conn, error) {
	conn, _, err := l.connect(ctx)
	return conn, err
}

// connect opens a connection like open, and also returns the SQLSTATE of a refusal.
func (l login) connect(ctx context.Context) (conn *pgx.Conn, state string, err error) {
	cfg, err := l.Config(ctx)
	if err != nil {
		return nil, "", err
	}
	cfg.Tracer = pglimit.Queries{Within: answerWithin}
	reached := l.prepare(&cfg.Config)
	began := time.Now()
	if conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
		return nil, SQLState(err), l.refused(&cfg.Config, reached.Load(), time.Since(began), err)
	}
	return conn, "", nil
}

// replicate opens a connection in replication mode.
func (l login) replicate(ctx context.Context) (*pgconn.PgConn, error) {
	full, err := l.Config(ctx)
	if err != nil {
		return nil, err
	}
	cfg := &full.Config
	reached := l.prepare(cfg)
	cfg.RuntimeParams["replication"] = "database"
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return newSocket(c), nil
	}
	cfg.AfterConnect = func(ctx context.Context, pg *pgconn.PgConn) error {
		return apply(ctx, pg, settings+replicationSettings)
	}
	began := time.Now()
	pg, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, l.refused(cfg, reached.Load(), time.Since(began), err)
	}
	return pg, nil
}

// prepare sets limits and settings. reached becomes true when an address has accepted the connection. pgx also dials
// to cancel a query, in a goroutine that may outlive the call.
func (l login) prepare(cfg *pgconn.Config) (reached *atomic.Bool) {
	if l.database != "" {
		cfg.Database = l.database
	}
	// A pooler lets few startup parameters pass: all other settings are made after the login.
	cfg.RuntimeParams["application_name"] = l.application
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	cfg.AfterConnect = func(ctx context.Context, pg *pgconn.PgConn) error { return apply(ctx, pg, settings) }
	pglimit.Set(cfg)
	reached = new(atomic.Bool)
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err == nil {
			reached.Store(true)
		}
		return c, err
	}
	return reached
}

// settings are settings whose defaults a server, a database or a role may have changed so that a session of walpost
// would break. In 14 to 18 a user may set each of them within a session, and all but the first five at its start too.
// A setting that a version does not have (transaction_timeout came with 17) is left out.
//
//   - the timeouts: the client has limits, and streaming a large transaction or waiting for Kafka is no mistake
//   - default_transaction_*: a polled row is marked, a decision needs no serializable snapshot
//   - tcp_keepalives_*: what a vanished relay holds, for example a polled table, is free within half a minute and not
//     after hours
//   - row_security: a policy that hides rows from a reader becomes an error
//   - standard_conforming_strings, quote_all_identifiers: SQL is written, and names are read back, in the usual way
//   - client_min_messages: from 18 on only a warning reports a missing publication
//   - DateStyle and the settings after it: a value is written in the same way on the replication connection, by
//     polling and by replay
//
// search_path stays the role's, for the triggers of a polled table, but PostgreSQL's own names come first.
const settings = `
	('statement_timeout', '0'), ('lock_timeout', '0'), ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'),
	('transaction_timeout', '0'), ('default_transaction_read_only', 'off'), ('default_transaction_isolation', 'read committed'),
	('default_transaction_deferrable', 'off'),
	('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '3'),
	('row_security', 'off'), ('standard_conforming_strings', 'on'), ('quote_all_identifiers', 'off'),
	('client_min_messages', 'warning'), ('DateStyle', 'ISO'), ('TimeZone', 'UTC'), ('IntervalStyle', 'postgres'), ('bytea_output', 'hex'),
	('extra_float_digits', '3'), ('xmlbinary', 'base64'),
	('search_path', CASE WHEN (pg_catalog.current_schemas(true))[1]::text = 'pg_catalog' THEN pg_catalog.current_setting('search_path')
		ELSE 'pg_catalog, ' || pg_catalog.current_setting('search_path') END)`

// replicationSettings follow settings. While PostgreSQL decodes a large transaction, it answers a ping within half of
// wal_sender_timeout, and it ends the session of a vanished relay after the whole: so the timeout is at most a
// minute. A shorter one stays: the operator wants another relay to take over sooner.
const replicationSettings = `, ('wal_sender_timeout', (
		SELECT CASE WHEN setting::int BETWEEN 1 AND 60000 THEN setting ELSE '60000' END FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'))`

// apply makes the settings in one query.
func apply(ctx context.Context, pg *pgconn.PgConn, settings string) error {
	ctx, cancel := context.WithTimeout(ctx, pglimit.Connect)
	defer cancel()
	_, err := pg.Exec(ctx, `SELECT pg_catalog.set_config(name, value, false) FROM (VALUES `+settings+`) v(name, value)
		WHERE pg_catalog.current_setting(name, true) IS NOT NULL`).ReadAll()
	if err != nil {
		return fmt.Errorf("set up the session: %w", err)
	}
	return nil
}

// patient returns the context of a query that may rightly take longer than answerWithin.
func patient(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, workWithin)
}

// addresses returns the hosts and ports that a URL names.
func addresses(cfg *pgconn.Config) string {
	at := func(host string, port uint16) string {
		if strings.HasPrefix(host, "/") {
			return fmt.Sprintf("%s/.s.PGSQL.%d", host, port)
		}
		return net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	all := []string{at(cfg.Host, cfg.Port)}
	for _, f := range cfg.Fallbacks {
		if a := at(f.Host, f.Port); a != all[len(all)-1] {
			all = append(all, a)
		}
	}
	return strings.Join(all, ", ")
}
