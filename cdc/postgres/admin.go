package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc"
)

// Step is one action of `walpost init` in PostgreSQL, with its SQL. A step without SQL is already done.
type Step struct {
	What string
	SQL  []string
	// secret replaces :password in the SQL when it is run, never when it is shown.
	secret string
	token  string // the setting that supplies the role's password, if that is a token and not a password to be set
	role   string // the role that the step is for, if any
}

// Admin prepares a database for a relay, with an administrator's rights.
type Admin struct {
	source *Source
	conn   *pgx.Conn
}

// Admin connects as the administrator to the database of source.url.
func (s *Source) Admin(ctx context.Context, url string) (*Admin, error) {
	conn, err := s.connectAs(ctx, adminURL, url, "walpost init")
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "SET lock_timeout = '"+lockedAfter+"'"); err != nil {
		_ = conn.Close(ctx)
		return nil, classify("set a timeout", err)
	}
	return &Admin{source: s, conn: conn}, nil
}

// Close ends the connection.
func (a *Admin) Close(ctx context.Context) { _ = a.conn.Close(ctx) }

// try runs the step and rolls it back. refused is true if the administrator may not run it: a provider has rules that
// are in no catalog.
func (a *Admin) try(ctx context.Context, step Step) (refused bool, err error) {
	if len(step.SQL) == 0 {
		return false, nil
	}
	// The server writes a refused statement into its log, with the password in it.
	step.SQL = slices.Clone(step.SQL)
	for i := range step.SQL {
		step.SQL[i] = strings.ReplaceAll(step.SQL[i], ":password", "NULL")
	}
	back := errors.New("taken back")
	err = pgx.BeginFunc(ctx, a.conn, func(tx pgx.Tx) error {
		if err := run(ctx, tx, step); err != nil {
			return err
		}
		return back
	})
	switch {
	case errors.Is(err, back):
		return false, nil
	case SQLState(err) == pgerrcode.InsufficientPrivilege:
		return true, nil
	}
	return false, a.failed(ctx, step.What, err)
}

// ErrMadeMeanwhile is returned when another session created or changed the same object at the same time. Nothing was
// changed.
var ErrMadeMeanwhile = errors.New("another session changes the same objects at this moment: run the command again")

// madeMeanwhile lists the SQLSTATEs of such a conflict: two sessions create a role, table or publication, or alter a
// role or grant a right.
var madeMeanwhile = []string{pgerrcode.UniqueViolation, pgerrcode.DuplicateObject, pgerrcode.DuplicateTable, pgerrcode.InternalError}

// Alone waits until no other init works on this database, and keeps others waiting until Close. It calls waits once,
// if it has to wait.
func (a *Admin) Alone(ctx context.Context, waits func()) error {
	for told := false; ; {
		var alone bool
		// Not a blocking lock: PostgreSQL creates no slot while an older transaction is open.
		if err := a.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtextextended('walpost init', 0))`).Scan(&alone); err != nil || alone {
			return err
		}
		if !told {
			told = true
			waits()
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waited for another init: nothing was changed: %w", context.Cause(ctx))
		}
	}
}

// Do runs the SQL of all steps, or changes nothing.
func (a *Admin) Do(ctx context.Context, steps ...Step) error {
	ctx, cancel := patient(ctx) // building an index takes time
	defer cancel()
	var doing string
	err := pgx.BeginFunc(ctx, a.conn, func(tx pgx.Tx) error {
		for _, step := range steps {
			doing = step.What
			if err := run(ctx, tx, step); err != nil {
				return err
			}
		}
		doing = "commit what was prepared"
		return nil
	})
	if err != nil {
		return a.failed(ctx, doing, err)
	}
	return nil
}

func run(ctx context.Context, tx pgx.Tx, step Step) error {
	for _, sql := range step.SQL {
		if strings.Contains(sql, ":password") {
			// Utility statements take no parameters, so the server quotes the value.
			var quoted string
			if err := tx.QueryRow(ctx, `SELECT quote_literal($1::text)`, step.secret).Scan(&quoted); err != nil {
				return err
			}
			sql = strings.ReplaceAll(sql, ":password", quoted)
		}
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// failed returns the reason why a step failed: the transaction that holds the lock, or the missing right of the
// administrator.
func (a *Admin) failed(ctx context.Context, doing string, err error) error {
	var pg *pgconn.PgError
	switch {
	case !errors.As(err, &pg):
	case pg.Code == pgerrcode.LockNotAvailable:
		var holders string
		_ = a.conn.QueryRow(ctx, `
			SELECT coalesce(string_agg(DISTINCT CASE WHEN l.pid IS NULL THEN format('prepared transaction %L of %s', p.gid, p.prepared)
				ELSE format('pid %s (%s as %s, %s, transaction begun %s)', l.pid, coalesce(nullif(s.application_name, ''), 'a client'), s.usename, s.state, s.xact_start) END, ', '), 'nobody any more')
			FROM pg_locks l LEFT JOIN pg_stat_activity s ON s.pid = l.pid
			LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND p.transaction::text = split_part(l.virtualtransaction, '/', 2)
			WHERE l.relation = to_regclass($1) AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
			  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`, TableName(a.source.cfg)).Scan(&holders)
		return fmt.Errorf("%s: no lock on %s within %s, and writers must not wait longer: it is held by %s: wait until that ends, or end it (SELECT pg_terminate_backend(pid), ROLLBACK PREPARED), and run the command again", doing, a.source.cfg.Table, lockedAfter, cmp.Or(holders, "a transaction that cannot be named"))
	case slices.Contains(madeMeanwhile, pg.Code):
		return fmt.Errorf("%s: PostgreSQL says %s (SQLSTATE %s): %w", doing, pg.Message, pg.Code, ErrMadeMeanwhile)
	case pg.Code == pgerrcode.InsufficientPrivilege:
		return fmt.Errorf("%s: PostgreSQL says %s (SQLSTATE %s): the role of %s lacks the right: connect as a role that has it, or let its owner run the SQL above; nothing was changed", doing, pg.Message, pg.Code, adminURL)
	}
	return classify(doing, err)
}

// Facts reads what a first state record needs, except the server's identity. Table and publication must exist.
func (a *Admin) Facts(ctx context.Context) (cdc.Facts, error) {
	f, _, err := a.source.look(ctx, a.conn)
	if err == nil {
		err = a.source.waits(ctx, a.conn, &f)
	}
	if err != nil {
		return cdc.Facts{}, err
	}
	return f, nil
}

// version returns the server's major version.
func (a *Admin) version() int { return Major(a.conn) }

// Major returns the major version of the connection's server.
func Major(conn *pgx.Conn) int {
	major, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	n, _ := strconv.Atoi(major)
	return n
}

// RowsBefore counts the rows that are in the outbox already: no slot will ever stream them. It returns ErrUnseen if
// the administrator does not see all rows.
func (a *Admin) RowsBefore(ctx context.Context) (n int64, err error) {
	if err := a.source.seesAll(ctx, a.conn, false); err != nil {
		return 0, err
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	if err := a.conn.QueryRow(ctx, "SELECT count(*) FROM "+TableName(a.source.cfg)).Scan(&n); err != nil {
		return 0, classify("count the outbox", err)
	}
	return n, nil
}
