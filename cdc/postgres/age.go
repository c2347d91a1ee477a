package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
)

// ErrZone is returned when the zone of a column's times is not certain.
var ErrZone = errors.New("times without a zone")

// Age is a column with the time at which a row was written, as SQL. A timestamp without time zone is a local time: it
// is compared as all the instants that it can mean. There are two of them in the hour that a change from daylight
// saving repeats.
type Age struct {
	column string // quoted
	zone   string // quoted as a literal; empty where values are instants
}

// shift is more than any clock is put back by.
const shift = "interval '3 hours'"

// Age returns a column's Age. With ErrZone it has the most likely zone.
func (s *Source) Age(ctx context.Context, conn *pgx.Conn, column string) (Age, error) {
	a := Age{column: Ident(column)}
	var base uint32 // base type of a domain
	err := conn.QueryRow(ctx, `
		WITH RECURSIVE kind AS (
			SELECT t.oid, t.typtype, t.typbasetype FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			WHERE a.attrelid = `+oidOf("$1")+` AND a.attname = $2 AND NOT a.attisdropped
			UNION ALL
			SELECT t.oid, t.typtype, t.typbasetype FROM kind JOIN pg_type t ON t.oid = kind.typbasetype WHERE kind.typtype = 'd'
		)
		SELECT coalesce((SELECT oid FROM kind WHERE typtype <> 'd'), 0)`, TableName(s.cfg), column).Scan(&base)
	if err != nil {
		return a, classify("read the column of a row's time", err)
	}
	if base != oidTimestamp {
		return a, nil
	}
	zone, err := s.zone(ctx, conn, column)
	a.zone = Literal(zone)
	return a, err
}

// last returns SQL for the latest instant that the column's value can mean, which is the one that PostgreSQL takes. For
// the earliest, first uses the offset that was valid before.
func (a Age) last() string {
	if a.zone == "" {
		return a.column
	}
	return fmt.Sprintf("(%s AT TIME ZONE %s)", a.column, a.zone)
}

func (a Age) first() string {
	if a.zone == "" || a.zone == "'UTC'" {
		return a.last()
	}
	before := fmt.Sprintf("(%s - %s)", a.last(), shift)
	earlier := fmt.Sprintf("((%[1]s - (%[2]s AT TIME ZONE %[3]s - %[2]s AT TIME ZONE 'UTC')) AT TIME ZONE 'UTC')", a.column, before, a.zone)
	return fmt.Sprintf("(CASE WHEN NOT isfinite(%[1]s) THEN %[4]s WHEN %[2]s AT TIME ZONE %[3]s = %[1]s THEN least(%[2]s, %[4]s) ELSE %[4]s END)", a.column, earlier, a.zone, a.last())
}

// within returns SQL for a value that can mean an instant in [from, to), both SQL for instants. An index on the
// column serves it.
func (a Age) within(from, to string) string {
	if a.zone == "" {
		return fmt.Sprintf("%[1]s >= %[2]s AND %[1]s < %[3]s", a.column, from, to)
	}
	local := func(at string) string { return fmt.Sprintf("(%s AT TIME ZONE %s)", at, a.zone) }
	return fmt.Sprintf("%[1]s >= %[2]s - %[3]s AND %[1]s < %[4]s + %[3]s AND (%[5]s >= %[6]s AND %[5]s < %[7]s OR %[8]s >= %[6]s AND %[8]s < %[7]s)",
		a.column, local(from), shift, local(to), a.last(), from, to, a.first())
}

// Seconds returns SQL for the age in seconds, NULL for infinity.
func (a Age) Seconds() string {
	return fmt.Sprintf("CASE WHEN isfinite(%s) THEN greatest(0, extract(epoch FROM clock_timestamp() - %s)) END", a.column, a.last())
}

// zone returns source.columns.created_at_zone. If that is empty it returns UTC, if no default of the database is
// another zone: a service's sessions begin with those defaults. Otherwise it returns an ErrZone that names them.
func (s *Source) zone(ctx context.Context, conn *pgx.Conn, column string) (string, error) {
	if zone := s.cfg.Columns.CreatedAtZone; zone != "" {
		problem, err := s.unknownZone(ctx, conn)
		if problem != "" {
			err = errors.New(problem)
		}
		return zone, err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return "", classify("ask for the time zone", err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	// the settings of this connection say nothing about others
	if _, err := tx.Exec(ctx, `SET LOCAL timezone TO DEFAULT`); err != nil {
		return "", classify("ask for the time zone", err)
	}
	rows, err := tx.Query(ctx, `
		SELECT CASE WHEN s.setrole <> 0 THEN 3 WHEN s.setdatabase <> 0 THEN 1 ELSE 2 END,
		       CASE WHEN s.setrole <> 0 THEN 'role ' || pg_get_userbyid(s.setrole) WHEN s.setdatabase <> 0 THEN 'database ' || current_database() ELSE 'all roles' END,
		       substr(c, strpos(c, '=') + 1)
		FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) c
		WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) AND lower(c) LIKE 'timezone=%'
		UNION ALL
		SELECT 2, 'server', setting FROM pg_settings WHERE name = 'TimeZone' AND source NOT IN ('global', 'database', 'user', 'database user', 'client', 'session')
		ORDER BY 1, 2`)
	if err != nil {
		return "", classify("ask for the time zone", err)
	}
	var rank int
	var who, zone, base string
	var all, found []string
	if _, err := pgx.ForEachRow(rows, []any{&rank, &who, &zone}, func() error {
		switch {
		case rank == 3:
		case base != "": // a weaker default
			return nil
		default:
			base = zone
		}
		all, found = append(all, zone), append(found, who+": "+zone)
		return nil
	}); err != nil {
		return "", classify("ask for the time zone", err)
	}
	if base == "" {
		found = append(found, "this connection cannot see the server's own zone")
	}
	if base != "" && !slices.ContainsFunc(all, func(zone string) bool { return !slices.Contains(utc, strings.ToLower(zone)) }) {
		return "UTC", nil
	}
	if base == "" {
		base = "UTC"
	}
	column = Ident(column)
	return base, fmt.Errorf("%w: column %s of %s is a timestamp without time zone, and its zone is not certain (%s): set source.columns.created_at_zone to the writers' zone, or make it a timestamptz: `ALTER TABLE %s ALTER COLUMN %s TYPE timestamptz USING %s AT TIME ZONE %s`",
		ErrZone, column, s.cfg.Table, strings.Join(found, "; "), TableName(s.cfg), column, column, Literal(base))
}

// utc lists the names of UTC.
var utc = []string{
	"utc", "etc/utc", "gmt", "etc/gmt", "uct", "etc/uct", "zulu", "etc/zulu", "universal", "etc/universal", "greenwich", "etc/greenwich",
	"gmt0", "etc/gmt0", "gmt+0", "etc/gmt+0", "gmt-0", "etc/gmt-0",
}

// unknownZone returns a problem if PostgreSQL does not know the configured zone.
func (s *Source) unknownZone(ctx context.Context, conn *pgx.Conn) (problem string, err error) {
	zone := s.cfg.Columns.CreatedAtZone
	if zone == "" {
		return "", nil
	}
	_, err = conn.Exec(ctx, `SELECT now() AT TIME ZONE $1`, zone)
	switch {
	case SQLState(err) == pgerrcode.InvalidParameterValue:
		return fmt.Sprintf("source.columns.created_at_zone: PostgreSQL knows no time zone %q: write a name that `SELECT name FROM pg_timezone_names` has, Europe/Berlin for example, or UTC", zone), nil
	case err != nil:
		return "", classify("look for the time zone", err)
	}
	return "", nil
}
