package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/config"
)

// right is a right on the outbox table, or on some of its columns.
type right struct {
	name    string
	columns []string
}

func (r right) String() string {
	if len(r.columns) == 0 {
		return r.name
	}
	var quoted []string
	for _, c := range r.columns {
		quoted = append(quoted, Ident(c))
	}
	return r.name + " (" + strings.Join(quoted, ", ") + ")"
}

// deleting returns the rights that it takes to delete delivered rows without seeing their contents.
func deleting(cfg config.Source) []right {
	return []right{{name: "DELETE"}, {"SELECT", []string{"ctid", "xmin", createdAt(cfg)}}}
}

// polling lists the rights that it takes to publish the rows of a table over SQL alone, and to clean up.
var polling = []right{{name: "SELECT"}, {name: "UPDATE"}, {name: "DELETE"}}

// reading lists the rights that it takes to read rows.
var reading = []right{{name: "SELECT"}}

// asRole is SQL for a role's name if the role exists, and otherwise for public.
const asRole = `(CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = $1) THEN $1 ELSE 'public' END)::name`

// grants returns the SQL that gives a role the rights on the table, and on the schema, that it lacks.
func (s *Source) grants(ctx context.Context, conn *pgx.Conn, role string, wants ...right) (sql []string, err error) {
	schema, table := s.cfg.SchemaTable()
	var uses bool
	err = conn.QueryRow(ctx, `SELECT coalesce((SELECT has_schema_privilege(`+asRole+`, oid, 'USAGE') FROM pg_namespace WHERE nspname = $2), true)`, role, schema).Scan(&uses)
	if err != nil {
		return nil, classify("look for the role's rights", err)
	}
	if !uses {
		sql = append(sql, fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s", Ident(schema), Ident(role)))
	}
	var lacks []string
	for _, want := range wants {
		var has bool
		err := conn.QueryRow(ctx, `
			SELECT coalesce((SELECT has_table_privilege(`+asRole+`, c.oid, $2) OR cardinality($5::text[]) > 0 AND
			                        NOT EXISTS (SELECT FROM unnest($5::text[]) col LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = col
			                                    WHERE has_column_privilege(`+asRole+`, c.oid, a.attnum, $2) IS NOT TRUE)
			                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $3 AND c.relname = $4), false)`,
			role, want.name, schema, table, append([]string{}, want.columns...)).Scan(&has)
		if err != nil {
			return nil, classify("look for the role's rights", err)
		}
		if !has {
			lacks = append(lacks, want.String())
		}
	}
	if len(lacks) > 0 {
		sql = append(sql, fmt.Sprintf("GRANT %s ON %s TO %s", strings.Join(lacks, ", "), TableName(s.cfg), Ident(role)))
	}
	return sql, nil
}

// connects returns the SQL that lets a role connect to the database; none if it may already.
func (a *Admin) connects(ctx context.Context, role string) ([]string, error) {
	var may bool
	var database string
	if err := a.conn.QueryRow(ctx, `SELECT has_database_privilege(`+asRole+`, current_database(), 'CONNECT'), current_database()`, role).Scan(&may, &database); err != nil {
		return nil, classify("look for the role's rights", err)
	}
	if may {
		return nil, nil
	}
	return []string{fmt.Sprintf("GRANT CONNECT ON DATABASE %s TO %s", Ident(database), Ident(role))}, nil
}

// PlanCleaner returns the step that lets the role of cleanup.url reach the table. The role's own rights decide what
// it may do there.
func (a *Admin) PlanCleaner(ctx context.Context, url string) ([]Step, error) {
	const key = "cleanup.url"
	who, err := a.source.other(key, url).Target()
	if err != nil {
		return nil, err
	}
	target, err := a.source.target()
	if err != nil || who.User == target.User {
		return nil, err
	}
	var there bool
	if err := a.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, who.User).Scan(&there); err != nil {
		return nil, classify("look for the role", err)
	}
	if !there {
		return []Step{{What: fmt.Sprintf("role %s of %s: there is no such role, so cleanup cannot connect: name the table's owner, or create it (CREATE ROLE %s LOGIN PASSWORD '…') and run init again", who.User, key, Ident(who.User))}}, nil
	}
	sql, err := a.connects(ctx, who.User)
	if err != nil {
		return nil, err
	}
	uses, err := a.source.grants(ctx, a.conn, who.User)
	if sql = append(sql, uses...); err != nil || len(sql) == 0 {
		return nil, err
	}
	return []Step{{What: fmt.Sprintf("role %s of %s: let it reach %s", who.User, key, a.source.cfg.Table), SQL: sql}}, nil
}

// Advice returns what the application's role needs to write events, unless a role has it already.
func (a *Admin) Advice(ctx context.Context) (string, error) {
	schema, table := a.source.cfg.SchemaTable()
	var given, everybody bool
	var sequences []string
	err := a.conn.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_class c, aclexplode(c.relacl) x WHERE c.oid = t.oid AND x.privilege_type = 'INSERT' AND x.grantee <> c.relowner),
		       coalesce((SELECT has_schema_privilege('public', oid, 'USAGE') FROM pg_namespace WHERE nspname = $1), true),
		       ARRAY(SELECT DISTINCT d.refobjid::regclass::text FROM pg_attrdef f JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
		             JOIN pg_class q ON q.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass AND q.relkind = 'S' WHERE f.adrelid = t.oid ORDER BY 1)
		FROM (SELECT 1) one LEFT JOIN (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2) t ON true`,
		schema, table).Scan(&given, &everybody, &sequences)
	if err != nil {
		return "", classify("look who may write events", err)
	}
	if given {
		return "", nil
	}
	needs := []string{fmt.Sprintf("GRANT INSERT ON %s TO …", TableName(a.source.cfg))}
	if !everybody {
		needs = append([]string{fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO …", Ident(schema))}, needs...)
	}
	for _, sequence := range sequences {
		needs = append(needs, fmt.Sprintf("GRANT USAGE ON SEQUENCE %s TO …", sequence))
	}
	return "the application's role needs the right to write events, unless it owns the table: " + strings.Join(needs, "; "), nil
}

// lacking names the missing right, if the error reports one.
func (s *Source) lacking(ctx context.Context, conn *pgx.Conn, err error, wants ...right) string {
	if SQLState(err) != pgerrcode.InsufficientPrivilege {
		return ""
	}
	var role string
	if conn.QueryRow(ctx, `SELECT current_user`).Scan(&role) != nil {
		return ""
	}
	sql, err := s.grants(ctx, conn, role, wants...)
	if err != nil {
		return ""
	}
	return strings.Join(sql, "; ")
}

// SameServer returns an error if source.url leads to another PostgreSQL than the administrator's URL. warning is the
// reason why that could not be checked: the relay may run where its URL works. made is true if the role exists and
// has the password of source.url.
func (a *Admin) SameServer(ctx context.Context, made bool) (warning string, err error) {
	const which = `SELECT pg_postmaster_start_time()::text || ' ' || oid FROM pg_database WHERE datname = current_database()`
	target, err := a.source.target()
	if err != nil {
		return "", err
	}
	password, _, err := a.source.relay.RolePassword(ctx)
	if err != nil {
		return "", err
	}
	conn, state, err := a.asRelay(ctx)
	switch {
	case state == pgerrcode.InvalidPassword && made && password != "":
		return "", fmt.Errorf("%s: PostgreSQL at %s refuses the password that role %s has at %s: they are different servers, or a pooler in between has another password: correct source.url or %[5]s",
			sourceURL, addresses(target), target.User, addresses(&a.conn.Config().Config), adminURL)
	case err != nil:
		return fmt.Sprintf("%v: this is right only if the relay runs on another host", err), nil
	}
	defer func() { _ = conn.Close(ctx) }()
	var theirs, ours string
	if err = conn.QueryRow(ctx, which).Scan(&theirs); err == nil {
		err = a.conn.QueryRow(ctx, which).Scan(&ours)
	}
	if err != nil {
		return "", classify("ask which server this is", err)
	}
	if theirs != ours {
		return "", fmt.Errorf("source.url and %s lead to different servers (%s and %s): correct one of them", adminURL, addresses(&conn.Config().Config), addresses(&a.conn.Config().Config))
	}
	return "", nil
}

// OtherDatabase returns a note if the administrator's URL names another database than source.url, in which init
// works; otherwise "".
func (s *Source) OtherDatabase(url string) string {
	target, err := s.target()
	if err != nil {
		return ""
	}
	cfg, err := s.other(adminURL, url).Target()
	if err != nil || cfg.Database == "" || cfg.Database == target.Database {
		return ""
	}
	return fmt.Sprintf("database %s: init works there, because source.url names it; %s names %s", target.Database, adminURL, cfg.Database)
}

// renews reports whether PostgreSQL refuses the password of source.url for its role, which exists. A server that asks
// for no password, or that does not answer, refuses nothing.
func (a *Admin) renews(ctx context.Context) (bool, error) {
	conn, state, err := a.asRelay(ctx)
	if err == nil {
		_ = conn.Close(ctx)
	}
	return state == pgerrcode.InvalidPassword, nil
}

// asRelay connects with source.url; state is the SQLSTATE of a refusal.
func (a *Admin) asRelay(ctx context.Context) (conn *pgx.Conn, state string, err error) {
	return a.source.login().connect(ctx)
}
