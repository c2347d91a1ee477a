package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A role that reads the outbox, or deletes from it, must see all of it. Row-level security shows other roles some
// rows, or none, without an error. So every connection sets row_security = off, which turns that into an error, and
// every reader calls seesAll first, whose error says what to do.

// ErrUnseen is returned when row-level security would show less than all rows of the outbox.
var ErrUnseen = errors.New("row-level security hides rows of the outbox")

// seesAll returns an ErrUnseen that names role, tables and what to do. below also checks partitions and children, for
// a reader that names them directly. The contents of the policies do not matter: PostgreSQL does not tell whether
// they let every row pass.
func (s *Source) seesAll(ctx context.Context, conn *pgx.Conn, below bool) error {
	rows, err := conn.Query(ctx, family(oidOf("$1"))+`
		SELECT current_user::text, m.name, quote_ident(o.rolname), pg_has_role(current_user, o.oid, 'USAGE'), o.rolsuper
		FROM member m JOIN pg_class c ON c.oid = m.oid JOIN pg_roles o ON o.oid = c.relowner
		WHERE row_security_active(m.oid) AND (m.oid = `+oidOf("$1")+` OR $2) ORDER BY m.name`, TableName(s.cfg), below)
	if err != nil {
		return classify("look for row-level security", err)
	}
	var role, name, owner string
	var owns, super bool
	var names, ways []string
	if _, err := pgx.ForEachRow(rows, []any{&role, &name, &owner, &owns, &super}, func() error {
		names = append(names, name)
		way := fmt.Sprintf(", or `GRANT %s TO %s`", owner, Ident(role))
		switch {
		case owns:
			way = ", or `ALTER TABLE " + name + " NO FORCE ROW LEVEL SECURITY`"
		case super: // no role should become a member of a superuser
			return nil
		}
		if !slices.Contains(ways, way) {
			ways = append(ways, way)
		}
		return nil
	}); err != nil {
		return classify("look for row-level security", err)
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: role %q does not see all rows of %s: run `ALTER ROLE %s BYPASSRLS`%s",
		ErrUnseen, role, few(names), Ident(role), strings.Join(ways, ""))
}

// unseen returns an ErrUnseen if a server's error is one, and otherwise nil: row-level security may have been
// switched on since seesAll.
func unseen(doing string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != pgerrcode.InsufficientPrivilege || pg.Routine != "check_enable_rls" {
		return nil
	}
	return fmt.Errorf("%s: %w (PostgreSQL says %s): run `ALTER ROLE … BYPASSRLS` for the role that reads it, or, for the table's owner, `ALTER TABLE … NO FORCE ROW LEVEL SECURITY`", doing, ErrUnseen, pg.Message)
}

// planSight lets the relay's role see the rows that it reads or deletes; below is as in seesAll. It returns no step
// if the role sees them already.
func (a *Admin) planSight(ctx context.Context, below bool) ([]Step, error) {
	cfg := a.source.cfg
	target, err := a.source.target()
	if err != nil {
		return nil, err
	}
	var hidden bool
	err = a.conn.QueryRow(ctx, family("to_regclass($1)::oid")+`
		SELECT EXISTS (
			SELECT FROM member m JOIN pg_class c ON c.oid = m.oid LEFT JOIN pg_roles r ON r.rolname = $3
			WHERE c.relrowsecurity AND (m.oid = to_regclass($1) OR $2) AND (r.oid IS NULL OR NOT (r.rolsuper OR r.rolbypassrls)
			      AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'))))`, TableName(cfg), below, target.User).Scan(&hidden)
	if err != nil {
		return nil, classify("look for row-level security", err)
	}
	if !hidden {
		return nil, nil
	}
	return []Step{{
		What: fmt.Sprintf("role %s: let it see all rows of %s, which has row-level security", target.User, cfg.Table),
		SQL:  []string{"ALTER ROLE " + Ident(target.User) + " BYPASSRLS"},
	}}, nil
}
