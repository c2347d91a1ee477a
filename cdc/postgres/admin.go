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

// Step is one thing that `walpost init` does to PostgreSQL, with the SQL that does it. A step without SQL is done already.
type Step struct {
	What string
	SQL  []string
	// secret is what stands for :password in the SQL when it is run, never when it is shown.
	secret string
	token  string // what gives the role's password, where that is a token and no password to be set
	role   string // that the step is for, where it is for one
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

// try runs the step and takes it back. refused says that the administrator may not do it: a provider has rules that stand in no catalog.
func (a *Admin) try(ctx context.Context, step Step) (refused bool, err error) {
	if len(step.SQL) == 0 {
		return false, nil
	}
	// A server writes what it refuses into its log, with the password in it.
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

// ErrMadeMeanwhile is returned where a step met somebody who made or changed the same at the same time. Nothing was changed.
var ErrMadeMeanwhile = errors.New("somebody else may make or change the same at this moment: run the command again")

// madeMeanwhile are the SQLSTATEs of that: of two that make a role, table or publication, and of two that alter a role or grant a right.
var madeMeanwhile = []string{pgerrcode.UniqueViolation, pgerrcode.DuplicateObject, pgerrcode.DuplicateTable, pgerrcode.InternalError}

// Alone waits until no other init works on this database, and keeps others waiting until Close. waits is called once, where it has to wait.
func (a *Admin) Alone(ctx context.Context, waits func()) error {
	for told := false; ; {
		var alone bool
		// Not a lock that is waited for: PostgreSQL makes no slot while an older transaction is open.
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
	ctx, cancel := patient(ctx) // an index takes its time
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
			// Utility statements take no parameters; the server quotes.
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

// failed says why a step was not done: who holds the lock that did not come, or that the administrator may not.
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
		return fmt.Errorf("%s: a lock on %s did not come within %s, and writers would have queued behind the wait: it is held by %s: wait for its end, or end it (SELECT pg_terminate_backend(pid), ROLLBACK PREPARED), and run the command again", doing, a.source.cfg.Table, lockedAfter, cmp.Or(holders, "somebody who cannot be named"))
	case slices.Contains(madeMeanwhile, pg.Code):
		return fmt.Errorf("%s: PostgreSQL says %s (SQLSTATE %s): %w", doing, pg.Message, pg.Code, ErrMadeMeanwhile)
	case pg.Code == pgerrcode.InsufficientPrivilege:
		return fmt.Errorf("%s: PostgreSQL says %s (SQLSTATE %s): the role of %s has not the right: connect as one that has, or let somebody who has run the SQL above; nothing was changed", doing, pg.Message, pg.Code, adminURL)
	}
	return classify(doing, err)
}

// Facts reads what a first state record is made of, but for the server's identity. Table and publication must be there.
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

// version is the server's major.
func (a *Admin) version() int { return major(a.conn) }

func major(conn *pgx.Conn) int {
	major, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	n, _ := strconv.Atoi(major)
	return n
}

// RowsBefore counts the rows that are in the outbox already: no slot will ever stream them. It is an ErrUnseen where the
// administrator does not see them.
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
