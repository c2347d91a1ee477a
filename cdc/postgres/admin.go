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
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/internal/failpoint"
)

// Step is one thing that `walpost init` does to PostgreSQL, with the SQL that does it. A step without SQL is done already.
type Step struct {
	What string
	SQL  []string
	// secret is what stands for :password in the SQL when it is run, never when it is shown.
	secret string
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

// Wanted is what a plan is for beyond relaying.
type Wanted struct {
	ByDay  bool // a table that is to be created is partitioned by day
	Delete bool // the relay's role shall delete from the table what was delivered
}

// Plan returns the steps that role, table and publication need, in order. Problems that no step solves, and what the administrator may
// not do, are an error, all of them together.
func (a *Admin) Plan(ctx context.Context, want Wanted) ([]Step, error) {
	g, err := readGuard(ctx, a.conn)
	if err != nil {
		return nil, err
	}
	var walLevel string
	if err := a.conn.QueryRow(ctx, `SELECT current_setting('wal_level')`).Scan(&walLevel); err != nil {
		return nil, classify("ask for wal_level", err)
	}
	if walLevel != "logical" {
		return nil, errors.New(g.notLogical(walLevel))
	}
	role, err := a.planRole(ctx, &g)
	if err != nil {
		return nil, err
	}
	step, table, err := a.planTable(ctx, want.ByDay)
	if err != nil {
		return nil, err
	}
	publication, err := a.planPublication(ctx, table)
	if err != nil {
		return nil, err
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
	if len(lacks) > 0 {
		return nil, errForbidden(lacks)
	}
	steps := []Step{role, step, publication}
	for _, note := range notes {
		steps = append(steps, Step{What: note})
	}
	if want.Delete && !table.partitioned {
		sight, err := a.planSight(ctx, false)
		if err != nil {
			return nil, err
		}
		steps = append(append(steps, a.planDelete()), sight...)
	}
	return steps, nil
}

// try runs the step and takes it back. refused says that the administrator may not do it: a provider has rules that stand in no catalog.
func (a *Admin) try(ctx context.Context, step Step) (refused bool, err error) {
	if len(step.SQL) == 0 {
		return false, nil
	}
	// A server writes what it refuses into its log, with the password in it.
	step.SQL = slices.Clone(step.SQL)
	for i := range step.SQL {
		step.SQL[i] = strings.ReplaceAll(step.SQL[i], step.password(), "")
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

// TablePlan is what a relay that works over SQL alone needs of the table.
type TablePlan struct {
	OID    uint32 // of the table; 0 where there is none
	Table  Step   // that makes what the table lacks
	Rights Step   // that the relay's role needs on it
}

// PlanTable returns the steps that such a relay needs, in order: its role, the table, its rights. Errors are as in Plan.
func (a *Admin) PlanTable(ctx context.Context, p TablePlan) ([]Step, error) {
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
		lacks = append(lacks, fmt.Sprintf("%s: the role of %s may not do that: let one who may run it, or name a role in source.url that is there", strings.Join(role.SQL, "; "), adminURL))
	}
	if len(lacks) > 0 {
		return nil, errForbidden(lacks)
	}
	sight, err := a.planSight(ctx, true) // it cleans partitions up by their names
	if err != nil {
		return nil, err
	}
	steps := append([]Step{role, p.Table, p.Rights}, sight...)
	notes, err := a.source.zoneNotes(ctx, a.conn)
	for _, note := range notes {
		steps = append(steps, Step{What: note})
	}
	return steps, err
}

// planPollingRole gives the relay's role LOGIN, and CONNECT where PUBLIC has it not: polling does not replicate.
func (a *Admin) planPollingRole(ctx context.Context) (Step, error) {
	step, there, login, _, err := a.theirRole(ctx, false)
	if err != nil {
		return Step{}, err
	}
	name := Ident(step.role)
	var sql []string
	switch {
	case !there:
		step.What, sql = fmt.Sprintf("role %s: create it with LOGIN", step.role), []string{"CREATE ROLE " + name + " LOGIN CONNECTION LIMIT 24" + step.password()}
	case !login:
		step.What, sql = fmt.Sprintf("role %s: give it LOGIN", step.role), []string{"ALTER ROLE " + name + " LOGIN"}
	case len(step.SQL) > 0:
		step.What = fmt.Sprintf("role %s: let it connect to the database", step.role)
	default:
		step.What = fmt.Sprintf("role %s: there, with LOGIN", step.role)
	}
	step.SQL = append(sql, step.SQL...)
	return step, nil
}

// planDelete lets the relay's role delete rows without letting it see what is in them.
func (a *Admin) planDelete() Step {
	cfg := a.source.cfg
	target, _ := a.source.target() // planRole has read it
	role, created := Ident(target.User), Ident(cmp.Or(cfg.Columns.CreatedAt, "created_at"))
	return Step{What: fmt.Sprintf("role %s: let it delete from %s (cleanup.every)", target.User, cfg.Table), SQL: []string{
		fmt.Sprintf("GRANT DELETE, SELECT (ctid, xmin, %s) ON %s TO %s", created, TableName(cfg), role),
	}}
}

// planRole gives the relay's role LOGIN, what replication needs, and CONNECT where PUBLIC has it not, and nothing else.
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
		step.What, sql = fmt.Sprintf("role %s: create it with LOGIN and REPLICATION", step.role), []string{"CREATE ROLE " + name + " LOGIN REPLICATION CONNECTION LIMIT 24" + step.password()}
	case !there:
		step.What, sql = fmt.Sprintf("role %s: create it with LOGIN and %s", step.role, right), append([]string{"CREATE ROLE " + name + " LOGIN CONNECTION LIMIT 24" + step.password()}, sql...)
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
		step.What, sql = fmt.Sprintf("role %s: there, with LOGIN and REPLICATION", step.role), nil
	}
	step.SQL = append(sql, connect...)
	return step, nil
}

// theirRole looks for the relay's role. The step that it returns holds the SQL that lets the role connect to the database, where that
// is needed. With attribute a membership is not enough to replicate.
func (a *Admin) theirRole(ctx context.Context, attribute bool) (step Step, there, login, replicates bool, err error) {
	target, err := a.source.target()
	if err != nil {
		return Step{}, false, false, false, err
	}
	step = Step{role: target.User, secret: target.Password}
	var database string
	var connects bool
	err = a.conn.QueryRow(ctx, `
		SELECT r.oid IS NOT NULL, coalesce(r.rolcanlogin, false), coalesce(CASE WHEN $2 THEN r.rolreplication OR r.rolsuper ELSE `+mayReplicate+` END, false), current_database(),
		       coalesce(has_database_privilege(r.oid, current_database(), 'CONNECT'), has_database_privilege('public', current_database(), 'CONNECT'))
		FROM (SELECT 1) one LEFT JOIN pg_roles r ON r.rolname = $1`, target.User, attribute).Scan(&there, &login, &replicates, &database, &connects)
	if err != nil {
		return Step{}, false, false, false, classify("look for the role", err)
	}
	if !connects {
		step.SQL = []string{fmt.Sprintf("GRANT CONNECT ON DATABASE %s TO %s", Ident(database), Ident(target.User))}
	}
	return step, there, login, replicates, nil
}

// password is the clause that sets it, where source.url has one.
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
		step = Step{What: fmt.Sprintf("table %s: create it", cfg.Table), SQL: []string{TableDDL(cfg)}}
		if t.partitioned = byDay; byDay {
			step = Step{What: fmt.Sprintf("table %s: create it, with a partition for each day, %d days ahead, and one for all other rows", cfg.Table, DaysAhead), SQL: partitionedDDL(cfg)}
		}
		return step, t, nil
	case byDay && !t.partitioned:
		return Step{}, t, fmt.Errorf("--partition-by-day: %s is there already and is not partitioned: name another table in source.table, or init without it", cfg.Table)
	}
	_, hidden, err := a.source.detours(ctx, a.conn, t.oid)
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
	return Step{What: fmt.Sprintf("table %s: there, with the columns that are needed", cfg.Table)}, t, nil
}

// TableDDL is the outbox table that `walpost init` creates where there is none. Its CHECKs keep at the writer what the relay
// or Kafka could never take.
func TableDDL(cfg config.Source) string {
	c := cfg.Columns
	return strings.NewReplacer(
		"{table}", TableName(cfg), "{id}", Ident(c.ID), "{aggregate_type}", Ident(c.AggregateType), "{aggregate_id}", Ident(c.AggregateID),
		"{event_type}", Ident(c.EventType), "{payload}", Ident(c.Payload), "{headers}", Ident(cmp.Or(c.Headers, "headers")), "{created_at}", Ident(cmp.Or(c.CreatedAt, "created_at")),
	).Replace(`CREATE TABLE {table} (
    {id} uuid PRIMARY KEY,
    {aggregate_type} text NOT NULL CHECK ({aggregate_type} ~ '^[A-Za-z0-9._-]{1,100}$'),
    {aggregate_id} text NOT NULL CHECK (octet_length({aggregate_id}) BETWEEN 1 AND 1024),
    {event_type} text NOT NULL CHECK (octet_length({event_type}) BETWEEN 1 AND 255),
    {payload} jsonb NOT NULL CHECK (jsonb_typeof({payload}) = 'object') CHECK (octet_length({payload}::text) <= 900000),
    {headers} jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof({headers}) = 'object') CHECK (octet_length({headers}::text) <= 16384),
    {created_at} timestamptz NOT NULL DEFAULT clock_timestamp()
)`)
}

// partitionedDDL is TableDDL for a table of days. The key of a partitioned table contains what it is partitioned by. The default
// partition takes the rows of a day that has none: a service must not fail because nobody made it.
func partitionedDDL(cfg config.Source) (sql []string) {
	c := cfg.Columns
	created := Ident(cmp.Or(c.CreatedAt, "created_at"))
	id := Ident(c.ID)
	root := strings.Replace(TableDDL(cfg), id+" uuid PRIMARY KEY", id+" uuid NOT NULL", 1)
	schema, table := cfg.SchemaTable()
	sql = append(sql, strings.TrimSuffix(root, "\n)")+fmt.Sprintf(",\n    PRIMARY KEY (%s, %s)\n) PARTITION BY RANGE (%s)", id, created, created),
		fmt.Sprintf("CREATE TABLE %s PARTITION OF %s DEFAULT", Ident(schema, table+"_default"), TableName(cfg)))
	for _, day := range days(time.Now()) {
		_, ddl := partitionDDL(cfg, day)
		sql = append(sql, ddl...)
	}
	return sql
}

func (a *Admin) planPublication(ctx context.Context, t table) (Step, error) {
	cfg := a.source.cfg
	name := Ident(cfg.Publication)
	w, exists, err := a.source.width(ctx, a.conn, t)
	switch {
	case err != nil:
		return Step{}, err
	case !exists:
		return Step{What: fmt.Sprintf("publication %s: create it for %s, inserts only", cfg.Publication, cfg.Table), SQL: []string{publicationDDL(cfg, cfg.Publication, t)}}, nil
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
	return Step{What: fmt.Sprintf("publication %s: there, it carries the inserts into %s", cfg.Publication, cfg.Table)}, nil
}

// zoneNotes says that times of rows are of a zone that nobody knows, where it is so.
func (s *Source) zoneNotes(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	if s.cfg.Columns.CreatedAtZone != "" { // checkTable has looked at it
		return nil, nil
	}
	_, err := s.Age(ctx, conn, createdAt(s.cfg))
	if errors.Is(err, ErrZone) {
		return []string{fmt.Sprintf("`walpost replay`, `cleanup` and `where` by time will refuse: %v", err)}, nil
	}
	return nil, err
}

// notes are what keeps no row from the stream, and is worth a word all the same.
func (s *Source) notes(ctx context.Context, conn *pgx.Conn, t table) (notes []string, err error) {
	if notes, err = s.zoneNotes(ctx, conn); err != nil {
		return nil, err
	}
	w, _, err := s.width(ctx, conn, t)
	if w.more != "" {
		notes = append(notes, fmt.Sprintf("publication %s carries %s: changes of other tables are sent to the relay, which throws them away; and where it does not name %s, a rewrite of that table (ALTER TABLE) halts the relay until `walpost adopt`, because SET UNLOGGED would be one: a publication of the outbox alone does neither: run `%s`, name it in source.publication, and `walpost adopt` where a relay has run already",
			s.cfg.Publication, w.more, s.cfg.Table, publicationDDL(s.cfg, s.cfg.Slot+"_outbox", t)))
	}
	return notes, err
}

// publicationDDL makes a publication of the outbox alone.
func publicationDDL(cfg config.Source, name string, t table) string {
	with := "publish = 'insert'"
	if t.partitioned {
		with += ", publish_via_partition_root = true"
	}
	return fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (%s)", Ident(name), TableName(cfg), with)
}

// width is what a publication carries beside a table that it names.
type width struct {
	more string // in words; empty is nothing
	here bool   // a table of that name is carried without being named
}

// width says how wide the publication is, and whether there is one.
func (s *Source) width(ctx context.Context, conn *pgx.Conn, t table) (w width, exists bool, err error) {
	schema, _ := s.cfg.SchemaTable()
	schemas := `'{}'::text[]`
	if major(conn) >= 15 {
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

// CreateSlotSQL is how the slot is made. From 17 on PostgreSQL can keep it on standbys too, so that it survives a failover.
func (a *Admin) CreateSlotSQL() string {
	failover := ""
	if a.version() >= 17 {
		failover = ", failover => true"
	}
	return fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput'%s)", a.source.cfg.Slot, failover)
}

// version is the server's major.
func (a *Admin) version() int { return major(a.conn) }

func major(conn *pgx.Conn) int {
	major, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	n, _ := strconv.Atoi(major)
	return n
}

// replicating is an Admin that may make and drop slots: this one, or one with the relay's own role.
func (a *Admin) replicating(ctx context.Context) (_ *Admin, done func(), err error) {
	g, err := readGuard(ctx, a.conn)
	if err != nil || g.mayReplicate {
		return a, func() {}, err
	}
	own, err := a.source.Operator(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("role %s of %s may not make or drop slots, and the relay's role, which may, does not connect: %w", g.me, adminURL, err)
	}
	return own, func() { own.Close(ctx) }, nil
}

// CreateSlot makes the slot. PostgreSQL first waits for the transactions that are running; after a minute it gives up.
func (a *Admin) CreateSlot(ctx context.Context) error {
	ctx, cancel := patient(ctx)
	defer cancel()
	a, done, err := a.replicating(ctx)
	if err != nil {
		return err
	}
	defer done()
	// The wait for a transaction is a wait for its lock.
	if _, err := a.conn.Exec(ctx, `SET statement_timeout = '60s'; SET lock_timeout = 0`); err != nil {
		return classify("set a timeout", err)
	}
	_, err = a.conn.Exec(ctx, a.CreateSlotSQL())
	if _, rerr := a.conn.Exec(ctx, "SET statement_timeout = 0; SET lock_timeout = '"+lockedAfter+"'"); err == nil && rerr != nil {
		return classify("set a timeout", rerr)
	}
	if SQLState(err) == pgerrcode.QueryCanceled {
		return fmt.Errorf("create the slot: a transaction has been open for a minute and PostgreSQL waits for its end: end it (SELECT pid, xact_start FROM pg_stat_activity ORDER BY xact_start; prepared ones, of any database: SELECT gid, database FROM pg_prepared_xacts) and run the command again")
	}
	if err != nil {
		return classify("create the slot", err)
	}
	return failpoint.Hit("init_slot")
}

// DropSlot removes the slot, if it is there and nobody reads it.
func (a *Admin) DropSlot(ctx context.Context) error {
	var active bool
	err := a.conn.QueryRow(ctx, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, a.source.cfg.Slot).Scan(&active)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return classify("look at the slot", err)
	case active:
		return fmt.Errorf("slot %q is being read: stop the relay first", a.source.cfg.Slot)
	}
	a, done, err := a.replicating(ctx)
	if err != nil {
		return err
	}
	defer done()
	if _, err := a.conn.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, a.source.cfg.Slot); err != nil {
		return classify("drop the slot", err)
	}
	return nil
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

// Removal returns the steps that take away publication and role, as far as nobody else uses them; what stays is a step without SQL that
// says who does. Slot and state have their own steps; the table stays.
func (a *Admin) Removal(ctx context.Context) ([]Step, error) {
	cfg := a.source.cfg
	target, err := a.source.target()
	if err != nil {
		return nil, err
	}
	var steps []Step
	if cfg.Kind == config.KindWAL {
		step, err := a.removePublication(ctx)
		if err != nil {
			return nil, err
		}
		steps = append(steps, step)
	}
	step, err := a.removeRole(ctx, target.User)
	if err != nil {
		return nil, err
	}
	return append(steps, step), nil
}

// removePublication drops the publication, unless another slot of the database may read it or it carries other tables. Which
// publication a slot is read with stands nowhere on the server.
func (a *Admin) removePublication(ctx context.Context) (Step, error) {
	cfg := a.source.cfg
	name := Ident(cfg.Publication)
	schema, table := cfg.SchemaTable()
	var exists bool
	var slots, tables []string
	err := a.conn.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1),
		       ARRAY(SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() AND plugin = 'pgoutput' AND slot_name <> $2 ORDER BY 1),
		       ARRAY(SELECT format('%s.%s', schemaname, tablename) FROM pg_publication_tables
		             WHERE pubname = $1 AND (schemaname, tablename) IS DISTINCT FROM ($3, $4) ORDER BY 1)`,
		cfg.Publication, cfg.Slot, schema, table).Scan(&exists, &slots, &tables)
	switch {
	case err != nil:
		return Step{}, classify("look who else uses the publication", err)
	case !exists:
		return Step{What: fmt.Sprintf("publication %s: not there", cfg.Publication)}, nil
	case len(slots) > 0:
		return Step{What: fmt.Sprintf("publication %s: left as it is: slot %s of this database may be read with it (if not: DROP PUBLICATION %s)", cfg.Publication, some(slots), name)}, nil
	case len(tables) > 0:
		return Step{What: fmt.Sprintf("publication %s: left as it is: it carries %s, too (if nobody needs that: DROP PUBLICATION %s)", cfg.Publication, some(tables), name)}, nil
	}
	return Step{What: fmt.Sprintf("publication %s: drop it", cfg.Publication), SQL: []string{"DROP PUBLICATION " + name}}, nil
}

// removeRole drops the relay's role, unless another slot, session, grant or object of the server may need it.
func (a *Admin) removeRole(ctx context.Context, role string) (Step, error) {
	cfg := a.source.cfg
	user := Ident(role)
	var super, me bool
	var slots, sessions, members []string
	var objects int
	// A slot does not say whose it is: any other of pgoutput, in any database, may be read with this role. Rights on the outbox and its
	// schema are this pipeline's and are revoked.
	err := a.conn.QueryRow(ctx, `
		SELECT r.rolsuper, r.rolname = current_user,
		       ARRAY(SELECT format('%s (database %s)', slot_name, database) FROM pg_replication_slots WHERE plugin = 'pgoutput' AND slot_name <> $2 ORDER BY 1),
		       ARRAY(SELECT DISTINCT coalesce(nullif(application_name, ''), 'pid ' || pid) FROM pg_stat_activity WHERE usesysid = r.oid AND application_name <> $3 ORDER BY 1),
		       ARRAY(SELECT member::regrole::text FROM pg_auth_members WHERE roleid = r.oid AND member <> (SELECT oid FROM pg_roles WHERE rolname = current_user) ORDER BY 1),
		       (SELECT count(*) FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid
		          AND NOT (d.deptype = 'a' AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
		                   AND (d.classid = 'pg_class'::regclass AND d.objid = to_regclass($4) OR d.classid = 'pg_namespace'::regclass AND d.objid = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($4)))))
		FROM pg_roles r WHERE r.rolname = $1`, role, cfg.Slot, a.source.application, TableName(cfg)).Scan(&super, &me, &slots, &sessions, &members, &objects)
	left := func(why string) (Step, error) {
		return Step{What: fmt.Sprintf("role %s: left as it is: %s (if nobody needs it: DROP ROLE %s)", role, why, user)}, nil
	}
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Step{What: fmt.Sprintf("role %s: not there", role)}, nil
	case err != nil:
		return Step{}, classify("look who else uses the role", err)
	case super || me:
		return Step{What: fmt.Sprintf("role %s: an administrator's, left as it is", role)}, nil
	case len(slots) > 0:
		return left("slot " + some(slots) + " may be read with it")
	case len(sessions) > 0:
		return left("it is connected as " + some(sessions))
	case len(members) > 0:
		return left("role " + some(members) + " is a member of it")
	case objects > 0:
		return left(fmt.Sprintf("%d other objects of the server belong to it or have granted it rights", objects))
	}
	schema, _ := cfg.SchemaTable()
	return Step{What: fmt.Sprintf("role %s: drop it", role), SQL: []string{
		fmt.Sprintf("DO $$ BEGIN REVOKE ALL ON %s FROM %s; REVOKE ALL ON SCHEMA %s FROM %s; EXCEPTION WHEN undefined_table THEN NULL; END $$",
			TableName(cfg), user, Ident(schema), user),
		"DROP ROLE " + user,
	}}, nil
}

// some names a few of them, and says how many more there are.
func some(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
