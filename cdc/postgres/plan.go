package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
)

// PlanOptions says what a plan must prepare besides relaying.
type PlanOptions struct {
	ByDay  bool // partition by day a table that is to be created
	Delete bool // the relay's role deletes delivered rows from the table
	// Unpublished leaves the publication out: it gets the table later, in another transaction.
	Unpublished bool
}

// Plan returns the steps for role, table and publication, in order. If a problem cannot be solved by a step, or the
// administrator may not run one, it returns an error with all problems together.
func (a *Admin) Plan(ctx context.Context, o PlanOptions) ([]Step, error) {
	g, err := readGuard(ctx, a.conn)
	if err != nil {
		return nil, err
	}
	var walLevel string
	if err := a.conn.QueryRow(ctx, `SELECT current_setting('wal_level')`).Scan(&walLevel); err != nil {
		return nil, classify("ask for wal_level", err)
	}
	if walLevel != "logical" {
		return nil, errors.New(g.notLogical(walLevel).String())
	}
	role, err := a.planRole(ctx, &g)
	if err != nil {
		return nil, err
	}
	step, table, err := a.planTable(ctx, o.ByDay)
	if err != nil {
		return nil, err
	}
	var publication Step
	if !o.Unpublished {
		if publication, err = a.planPublication(ctx, table); err != nil {
			return nil, err
		}
	}
	notes, err := a.source.notes(ctx, a.conn, table)
	if err != nil {
		return nil, err
	}
	lacks, err := a.privileges(ctx, table.oid, false, len(publication.SQL) > 0)
	if err != nil {
		return nil, err
	}
	refused, err := a.try(ctx, role)
	if err != nil {
		return nil, err
	}
	if refused {
		lacks = append(lacks, fmt.Sprintf("%s: %s", strings.Join(role.SQL, "; "), g.wayOut(role.role)))
	}
	password, why, err := a.planPassword(ctx, role)
	if err != nil {
		return nil, err
	}
	if lacks = append(lacks, why...); len(lacks) > 0 {
		return nil, errForbidden(lacks)
	}
	steps := slices.Concat([]Step{role}, password, []Step{step})
	if !o.Unpublished {
		steps = append(steps, publication)
	}
	for _, note := range notes {
		steps = append(steps, Step{What: note})
	}
	if o.Delete && !table.partitioned {
		sight, err := a.planSight(ctx, false)
		if err != nil {
			return nil, err
		}
		rights, err := a.planRights(ctx, "delete from", deleting(a.source.cfg)...)
		if err != nil {
			return nil, err
		}
		steps = append(append(steps, rights), sight...)
	}
	return steps, nil
}

// TablePlan says what a relay that works over SQL alone needs of the table.
type TablePlan struct {
	OID   uint32 // of the table; 0 if there is none
	Table Step   // creates what the table lacks
}

// PlanTable returns the steps that such a relay needs, in order: its role, the table, its rights. Errors are as in
// Plan.
func (a *Admin) PlanTable(ctx context.Context, p TablePlan) ([]Step, error) {
	if p.OID == 0 {
		if err := a.misspelt(ctx); err != nil {
			return nil, err
		}
	}
	role, err := a.planPollingRole(ctx)
	if err != nil {
		return nil, err
	}
	lacks, err := a.privileges(ctx, p.OID, len(p.Table.SQL) > 0, false)
	if err != nil {
		return nil, err
	}
	refused, err := a.try(ctx, role)
	if err != nil {
		return nil, err
	}
	if refused {
		lacks = append(lacks, fmt.Sprintf("%s: the role of %s may not do that: let a role that may run it, or name an existing role in source.url", strings.Join(role.SQL, "; "), adminURL))
	}
	password, why, err := a.planPassword(ctx, role)
	if err != nil {
		return nil, err
	}
	if lacks = append(lacks, why...); len(lacks) > 0 {
		return nil, errForbidden(lacks)
	}
	rights, err := a.planRights(ctx, "read, mark and delete rows of", polling...)
	if err != nil {
		return nil, err
	}
	sight, err := a.planSight(ctx, true) // it cleans up partitions by their names
	if err != nil {
		return nil, err
	}
	streamed, err := a.streamed(ctx, p.OID)
	if err != nil {
		return nil, err
	}
	steps := slices.Concat(streamed, []Step{role}, password, []Step{p.Table, rights}, sight)
	notes, err := a.source.zoneNotes(ctx, a.conn)
	for _, note := range notes {
		steps = append(steps, Step{What: note})
	}
	return steps, err
}

// streamed returns a warning if publications carry a table that is to be polled.
func (a *Admin) streamed(ctx context.Context, oid uint32) ([]Step, error) {
	var by []string
	err := a.conn.QueryRow(ctx, `SELECT ARRAY(SELECT pubname::text FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
		JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE c.oid = $1 ORDER BY 1)`, oid).Scan(&by)
	if err != nil {
		return nil, classify("look for publications of the table", err)
	}
	if len(by) == 0 {
		return nil, nil
	}
	return []Step{{What: fmt.Sprintf("warning: publication %s carries %s: a relay that streams it would also publish the polled rows", some(by), a.source.cfg.Table)}}, nil
}

// planPollingRole gives the relay's role LOGIN, and CONNECT if PUBLIC does not have it: polling does not replicate.
func (a *Admin) planPollingRole(ctx context.Context) (Step, error) {
	step, there, login, _, err := a.theirRole(ctx, false)
	if err != nil {
		return Step{}, err
	}
	name := Ident(step.role)
	var sql []string
	switch {
	case !there:
		step.What, sql = fmt.Sprintf("role %s: create it with LOGIN", step.role), []string{"CREATE ROLE " + name + " LOGIN" + step.password()}
	case !login:
		step.What, sql = fmt.Sprintf("role %s: give it LOGIN", step.role), []string{"ALTER ROLE " + name + " LOGIN"}
	case len(step.SQL) > 0:
		step.What = fmt.Sprintf("role %s: let it connect to the database", step.role)
	default:
		step.What = fmt.Sprintf("role %s: exists, with LOGIN", step.role)
	}
	step.SQL = append(sql, step.SQL...)
	if !there {
		step.What += step.login()
	}
	return step, nil
}

// planRights gives the relay's role the rights on the table that it lacks.
func (a *Admin) planRights(ctx context.Context, what string, wants ...right) (Step, error) {
	target, err := a.source.target()
	if err != nil {
		return Step{}, err
	}
	sql, err := a.source.grants(ctx, a.conn, target.User, wants...)
	if err != nil {
		return Step{}, err
	}
	if len(sql) == 0 {
		return Step{What: fmt.Sprintf("role %s: it may %s %s", target.User, what, a.source.cfg.Table)}, nil
	}
	return Step{What: fmt.Sprintf("role %s: let it %s %s", target.User, what, a.source.cfg.Table), SQL: sql}, nil
}

// planPassword gives an existing role the password of source.url, if PostgreSQL refuses it. why has the reasons why
// this is not possible: the administrator may not, or the role is an administrator's, whose password init does not
// change.
func (a *Admin) planPassword(ctx context.Context, role Step) (steps []Step, why []string, err error) {
	var own bool
	err = a.conn.QueryRow(ctx, `SELECT rolsuper OR rolname = session_user FROM pg_roles WHERE rolname = $1`, role.role).Scan(&own)
	switch {
	// a new role gets its password when it is created; without one there is nothing to compare
	case errors.Is(err, pgx.ErrNoRows) || err == nil && role.secret == "":
		return nil, nil, nil
	case err != nil:
		return nil, nil, classify("look for the role", err)
	}
	renews, err := a.renews(ctx)
	if err != nil || !renews {
		return nil, nil, err
	}
	const differs = "role %s: PostgreSQL refuses the password of source.url"
	if own {
		return nil, []string{fmt.Sprintf(differs+", and init does not change an administrator's password: correct it in source.url, or name a role that only the relay uses", role.role)}, nil
	}
	step := Step{
		What: fmt.Sprintf(differs+": set it for the role", role.role), SQL: []string{"ALTER ROLE " + Ident(role.role) + role.password()},
		role: role.role, secret: role.secret,
	}
	refused, err := a.try(ctx, step)
	if refused {
		return nil, []string{fmt.Sprintf(differs+", and the role of %s may not change it: correct it in source.url, or let a role that may run %s", role.role, adminURL, step.SQL[0])}, nil
	}
	return []Step{step}, nil, err
}

// planRole gives the relay's role LOGIN, the right to replicate, and CONNECT if PUBLIC does not have it, and nothing
// else.
func (a *Admin) planRole(ctx context.Context, g *guard) (Step, error) {
	step, there, login, replicates, err := a.theirRole(ctx, g.super)
	if err != nil {
		return Step{}, err
	}
	name := Ident(step.role)
	right, sql := "REPLICATION", []string{g.letReplicate(step.role)}
	if g.replicator != "" {
		right = "membership in " + g.replicator
	}
	connect := step.SQL
	switch {
	case !there && g.replicator == "":
		step.What, sql = fmt.Sprintf("role %s: create it with LOGIN and REPLICATION", step.role), []string{"CREATE ROLE " + name + " LOGIN REPLICATION" + step.password()}
	case !there:
		step.What, sql = fmt.Sprintf("role %s: create it with LOGIN and %s", step.role, right), append([]string{"CREATE ROLE " + name + " LOGIN" + step.password()}, sql...)
	case !login || !replicates:
		step.What = fmt.Sprintf("role %s: give it LOGIN and %s", step.role, right)
		if replicates {
			sql = nil
		}
		if !login {
			sql = append([]string{"ALTER ROLE " + name + " LOGIN"}, sql...)
		}
	case len(connect) > 0:
		step.What, sql = fmt.Sprintf("role %s: let it connect to the database", step.role), nil
	default:
		step.What, sql = fmt.Sprintf("role %s: exists, with LOGIN and REPLICATION", step.role), nil
	}
	step.SQL = append(sql, connect...)
	if !there {
		step.What += step.login()
	}
	return step, nil
}

// theirRole looks for the relay's role. The step that it returns has the SQL that lets the role connect to the
// database, if that is needed. With attribute a membership is not enough to replicate.
func (a *Admin) theirRole(ctx context.Context, attribute bool) (step Step, there, login, replicates bool, err error) {
	target, err := a.source.target()
	if err != nil {
		return Step{}, false, false, false, err
	}
	step = Step{role: target.User}
	if step.secret, step.token, err = a.source.relay.RolePassword(ctx); err != nil {
		return Step{}, false, false, false, err
	}
	err = a.conn.QueryRow(ctx, `
		SELECT r.oid IS NOT NULL, coalesce(r.rolcanlogin, false), coalesce(CASE WHEN $2 THEN r.rolreplication OR r.rolsuper ELSE `+mayReplicate+` END, false)
		FROM (SELECT 1) one LEFT JOIN pg_roles r ON r.rolname = $1`, target.User, attribute).Scan(&there, &login, &replicates)
	if err != nil {
		return Step{}, false, false, false, classify("look for the role", err)
	}
	step.SQL, err = a.connects(ctx, target.User)
	return step, there, login, replicates, err
}

// login returns how a new role logs in if its password is a token.
func (s *Step) login() string {
	if s.token == "" {
		return ""
	}
	return fmt.Sprintf(", without a password: %s of source.url supplies a token that expires: let the role log in with tokens (GRANT rds_iam TO %s in RDS), or set a password yourself", s.token, Ident(s.role))
}

// password returns the clause that sets the password of source.url, if there is one.
func (s *Step) password() string {
	if s.secret == "" {
		return ""
	}
	return " PASSWORD :password"
}

func (a *Admin) planTable(ctx context.Context, byDay bool) (step Step, t table, err error) {
	cfg := a.source.cfg
	switch t, err = a.source.checkTable(ctx, a.conn); {
	case err != nil:
		return Step{}, t, err
	case t.oid == 0:
		if err := a.misspelt(ctx); err != nil {
			return Step{}, t, err
		}
		step = Step{What: fmt.Sprintf("table %s: create it", cfg.Table), SQL: []string{TableDDL(cfg)}}
		if t.partitioned = byDay; byDay {
			step = Step{What: fmt.Sprintf("table %s: create it, with a partition for each day, %d days ahead, and one for all other rows", cfg.Table, daysAhead), SQL: partitionedDDL(cfg)}
		}
		return step, t, nil
	case byDay && !t.partitioned:
		return Step{}, t, fmt.Errorf("--partition-by-day: %s exists already and is not partitioned: name another table in source.table, or run init without this flag", cfg.Table)
	}
	has, err := flagsOf(ctx, a.conn, t.oid)
	if err != nil {
		return Step{}, t, err
	}
	_, hidden, err := a.source.detours(ctx, a.conn, t.oid, has)
	if err != nil {
		return Step{}, t, err
	}
	moved, err := a.source.moved(ctx, a.conn, t.oid)
	if err != nil {
		return Step{}, t, err
	}
	if problems := slices.Concat(t.hidden, hidden, t.unfit, moved); len(problems) > 0 {
		return Step{}, t, unfit(problems)
	}
	return Step{What: fmt.Sprintf("table %s: exists, with the columns that are needed", cfg.Table)}, t, nil
}

// misspelt returns an error if there is no table of the configured name, but one whose name differs only in the case
// of letters. Otherwise init would create an empty table, and the application's rows would never be relayed.
func (a *Admin) misspelt(ctx context.Context) error {
	schema, name := a.source.cfg.SchemaTable()
	var there string
	err := a.conn.QueryRow(ctx, `
		SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND lower(n.nspname) = lower($1) AND lower(c.relname) = lower($2) AND (n.nspname, c.relname) <> ($1, $2) LIMIT 1`,
		schema, name).Scan(&there)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return classify("look for the table", err)
	}
	return fmt.Errorf("source.table: there is no table %s: did you mean %s? Write the name in the same case; nothing was changed", a.source.cfg.Table, there)
}

func (a *Admin) planPublication(ctx context.Context, t table) (Step, error) {
	cfg := a.source.cfg
	name := Ident(cfg.Publication)
	w, exists, err := a.source.width(ctx, a.conn, t)
	switch {
	case err != nil:
		return Step{}, err
	case !exists:
		var problems []cdc.Finding
		named, _ := t.generated(&cfg.Columns)
		for _, c := range named {
			if Major(a.conn) < 18 || c.generated == "v" {
				problems = append(problems, c.unseen(Major(a.conn), name))
			}
		}
		if len(problems) > 0 {
			return Step{}, unfit(problems)
		}
		return Step{What: fmt.Sprintf("publication %s: create it for %s, %s only", cfg.Publication, cfg.Table, operations(cfg, t)), SQL: []string{publicationDDL(cfg, cfg.Publication, t)}}, nil
	}
	problems, err := a.source.checkPublication(ctx, a.conn, t)
	if err != nil {
		return Step{}, err
	}
	if len(problems) > 0 {
		return Step{}, unfit(problems)
	}
	if t.oid == 0 && !w.here {
		return Step{What: fmt.Sprintf("publication %s: add %s to it", cfg.Publication, cfg.Table), SQL: []string{fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", name, TableName(cfg))}}, nil
	}
	return Step{What: fmt.Sprintf("publication %s: exists, and carries the inserts into %s", cfg.Publication, cfg.Table)}, nil
}

// zoneNotes returns a note if the zone of the rows' times is not known.
func (s *Source) zoneNotes(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	if s.cfg.Columns.CreatedAtZone != "" { // checkTable has checked it
		return nil, nil
	}
	at, err := s.written(ctx, conn)
	if err != nil || at == "" {
		return nil, err
	}
	_, err = s.Age(ctx, conn, at)
	if errors.Is(err, ErrZone) {
		return []string{fmt.Sprintf("`walpost replay`, `cleanup` and `where` by time will refuse: %v", err)}, nil
	}
	return nil, err
}

// notes returns what an operator should know and what keeps no row from the stream.
func (s *Source) notes(ctx context.Context, conn *pgx.Conn, t table) (notes []string, err error) {
	if notes, err = s.zoneNotes(ctx, conn); err != nil {
		return nil, err
	}
	notes = append(notes, t.left...)
	if _, byDefault := t.generated(&s.cfg.Columns); len(byDefault) > 0 {
		for _, c := range byDefault {
			notes = append(notes, c.unseen(Major(conn), Ident(s.cfg.Publication)).String()+"; until then it is not used")
		}
	}
	w, _, err := s.width(ctx, conn, t)
	if w.more != "" {
		notes = append(notes, fmt.Sprintf("publication %s carries %s: the relay receives changes of other tables and discards them; and if it does not name %s, a rewrite of that table (ALTER TABLE) halts the relay until `walpost adopt`, because SET UNLOGGED is a rewrite too: a publication of the outbox alone avoids both; a slot has no rows from before its publication, so change it only while nobody writes and `walpost status` shows a lag of 0 B: stop the relay, run `%s`, name it in source.publication, and run `walpost adopt`",
			s.cfg.Publication, w.more, s.cfg.Table, publicationDDL(s.cfg, s.cfg.Slot+"_outbox", t)))
	}
	return notes, err
}

// width describes what a publication carries besides a table that it names.
type width struct {
	more string // in words; empty if it carries nothing more
	here bool   // the publication carries the table without naming it
}

// width returns how wide the publication is, and whether it exists.
func (s *Source) width(ctx context.Context, conn *pgx.Conn, t table) (w width, exists bool, err error) {
	schema, _ := s.cfg.SchemaTable()
	schemas := `'{}'::text[]`
	if Major(conn) >= 15 {
		schemas = `ARRAY(SELECT n.nspname::text FROM pg_publication_namespace x JOIN pg_namespace n ON n.oid = x.pnnspid WHERE x.pnpubid = p.oid ORDER BY 1)`
	}
	var all bool
	var of, others []string
	err = conn.QueryRow(ctx, `
		SELECT p.puballtables, `+schemas+`, ARRAY(SELECT prrelid::regclass::text FROM pg_publication_rel WHERE prpubid = p.oid AND prrelid <> $2 ORDER BY 1)
		FROM pg_publication p WHERE p.pubname = $1`, s.cfg.Publication, t.oid).Scan(&all, &of, &others)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return w, false, nil
	case err != nil:
		return w, false, classify("look at the publication", err)
	case all:
		return width{"all tables", true}, true, nil
	case len(of) > 0:
		return width{"all tables of schema " + few(of), slices.Contains(of, schema)}, true, nil
	case len(others) > 0:
		w.more = "other tables (" + few(others) + ")"
	}
	return w, true, nil
}
