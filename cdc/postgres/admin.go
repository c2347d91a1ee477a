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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc"
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
	if want.Delete && !table.partitioned && a.source.cfg.Messages == "" {
		steps = append(steps, a.planDelete())
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
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, back):
		return false, nil
	case errors.As(err, &pg) && pg.Code == "42501":
		return true, nil
	}
	return false, a.failed(ctx, step.What, err)
}

// planDelete lets the relay's role delete rows without letting it see what is in them.
func (a *Admin) planDelete() Step {
	cfg := a.source.cfg
	target, _ := pgconn.ParseConfig(cfg.URL) // planRole has read it
	role, created := pgx.Identifier{target.User}.Sanitize(), pgx.Identifier{cmp.Or(cfg.Columns.CreatedAt, "created_at")}.Sanitize()
	return Step{What: fmt.Sprintf("role %s: let it delete from %s (cleanup.every)", target.User, cfg.Table), SQL: []string{
		fmt.Sprintf("GRANT DELETE, SELECT (ctid, xmin, %s) ON %s TO %s", created, quotedTable(cfg), role),
	}}
}

// planRole gives the relay's role LOGIN, what replication needs, and CONNECT where PUBLIC has it not, and nothing else.
func (a *Admin) planRole(ctx context.Context, g *guard) (Step, error) {
	step, there, login, replicates, err := a.theirRole(ctx)
	if err != nil {
		return Step{}, err
	}
	name := pgx.Identifier{step.role}.Sanitize()
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
// is needed.
func (a *Admin) theirRole(ctx context.Context) (step Step, there, login, replicates bool, err error) {
	target, err := a.source.target()
	if err != nil {
		return Step{}, false, false, false, err
	}
	step = Step{role: target.User, secret: target.Password}
	var database string
	var connects bool
	err = a.conn.QueryRow(ctx, `
		SELECT r.oid IS NOT NULL, coalesce(r.rolcanlogin, false), coalesce(`+mayReplicate+`, false), current_database(),
		       coalesce(has_database_privilege(r.oid, current_database(), 'CONNECT'), has_database_privilege('public', current_database(), 'CONNECT'))
		FROM (SELECT 1) one LEFT JOIN pg_roles r ON r.rolname = $1`, target.User).Scan(&there, &login, &replicates, &database, &connects)
	if err != nil {
		return Step{}, false, false, false, classify("look for the role", err)
	}
	if !connects {
		step.SQL = []string{fmt.Sprintf("GRANT CONNECT ON DATABASE %s TO %s", pgx.Identifier{database}.Sanitize(), pgx.Identifier{target.User}.Sanitize())}
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
	if cfg.Messages != "" {
		return Step{What: fmt.Sprintf("no table: events are transactional messages with the prefix %q", cfg.Messages)}, t, nil
	}
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
	case len(t.hidden)+len(t.unfit) > 0:
		return Step{}, t, unfit(append(t.hidden, t.unfit...))
	}
	return Step{What: fmt.Sprintf("table %s: there, with the columns that are needed", cfg.Table)}, t, nil
}

// TableDDL is the outbox table that `walpost init` creates where there is none. Its CHECKs keep at the writer what the relay
// or Kafka could never take.
func TableDDL(cfg cdc.SourceConfig) string {
	id := func(name, fallback string) string {
		if name == "" {
			name = fallback
		}
		return pgx.Identifier{name}.Sanitize()
	}
	c := cfg.Columns
	return strings.NewReplacer(
		"{table}", quotedTable(cfg), "{id}", id(c.ID, ""), "{aggregate_type}", id(c.AggregateType, ""), "{aggregate_id}", id(c.AggregateID, ""),
		"{event_type}", id(c.EventType, ""), "{payload}", id(c.Payload, ""), "{headers}", id(c.Headers, "headers"), "{created_at}", id(c.CreatedAt, "created_at"),
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
func partitionedDDL(cfg cdc.SourceConfig) (sql []string) {
	c := cfg.Columns
	created := pgx.Identifier{cmp.Or(c.CreatedAt, "created_at")}.Sanitize()
	id := pgx.Identifier{c.ID}.Sanitize()
	root := strings.Replace(TableDDL(cfg), id+" uuid PRIMARY KEY", id+" uuid NOT NULL", 1)
	schema, table := cfg.SchemaTable()
	sql = append(sql, strings.TrimSuffix(root, "\n)")+fmt.Sprintf(",\n    PRIMARY KEY (%s, %s)\n) PARTITION BY RANGE (%s)", id, created, created),
		fmt.Sprintf("CREATE TABLE %s PARTITION OF %s DEFAULT", pgx.Identifier{schema, table + "_default"}.Sanitize(), quotedTable(cfg)))
	for _, day := range days(time.Now()) {
		_, ddl := partitionDDL(cfg, day)
		sql = append(sql, ddl...)
	}
	return sql
}

func quotedTable(cfg cdc.SourceConfig) string {
	schema, table := cfg.SchemaTable()
	return pgx.Identifier{schema, table}.Sanitize()
}

func (a *Admin) planPublication(ctx context.Context, t table) (Step, error) {
	cfg := a.source.cfg
	var exists bool
	err := a.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)`, cfg.Publication).Scan(&exists)
	if err != nil {
		return Step{}, classify("look for the publication", err)
	}
	switch {
	case cfg.Messages != "" && exists:
		return Step{What: fmt.Sprintf("publication %s: there", cfg.Publication)}, nil
	case cfg.Messages != "":
		sql := "CREATE PUBLICATION " + pgx.Identifier{cfg.Publication}.Sanitize() + " WITH (publish = 'insert')"
		return Step{What: fmt.Sprintf("publication %s: create it, empty: pgoutput asks for one, messages do not go by it", cfg.Publication), SQL: []string{sql}}, nil
	case !exists:
		with := "publish = 'insert'"
		if t.partitioned {
			with += ", publish_via_partition_root = true"
		}
		sql := fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (%s)", pgx.Identifier{cfg.Publication}.Sanitize(), quotedTable(cfg), with)
		return Step{What: fmt.Sprintf("publication %s: create it for %s, inserts only", cfg.Publication, cfg.Table), SQL: []string{sql}}, nil
	}
	problems, err := a.source.checkPublication(ctx, a.conn, t)
	if err != nil {
		return Step{}, err
	}
	if len(problems) > 0 {
		return Step{}, unfit(problems)
	}
	return Step{What: fmt.Sprintf("publication %s: there, it carries the inserts into %s", cfg.Publication, cfg.Table)}, nil
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
	case pg.Code == "55P03":
		var holders string
		_ = a.conn.QueryRow(ctx, `
			SELECT coalesce(string_agg(DISTINCT CASE WHEN l.pid IS NULL THEN format('prepared transaction %L of %s', p.gid, p.prepared)
				ELSE format('pid %s (%s as %s, %s, transaction begun %s)', l.pid, coalesce(nullif(s.application_name, ''), 'a client'), s.usename, s.state, s.xact_start) END, ', '), 'nobody any more')
			FROM pg_locks l LEFT JOIN pg_stat_activity s ON s.pid = l.pid
			LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND p.transaction::text = split_part(l.virtualtransaction, '/', 2)
			WHERE l.relation = to_regclass($1) AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
			  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`, quotedTable(a.source.cfg)).Scan(&holders)
		return fmt.Errorf("%s: a lock on %s did not come within %s, and writers would have queued behind the wait: it is held by %s: wait for its end, or end it (SELECT pg_terminate_backend(pid), ROLLBACK PREPARED), and run the command again", doing, a.source.cfg.Table, lockedAfter, cmp.Or(holders, "somebody who cannot be named"))
	case pg.Code == "42501":
		return fmt.Errorf("%s: PostgreSQL says %s (SQLSTATE %s): the role of %s has not the right: connect as one that has, or let somebody who has run the SQL above; nothing was changed", doing, pg.Message, pg.Code, adminURL)
	}
	return classify(doing, err)
}

// Facts is what a first state record is made of. Table and publication must be there.
func (a *Admin) Facts(ctx context.Context) (cdc.Facts, error) {
	f, _, err := a.source.look(ctx, a.conn)
	if err != nil {
		return cdc.Facts{}, err
	}
	err = a.conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&f.SystemID)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "42501" {
		f.SystemID, err = a.source.systemID(ctx) // some providers keep the function to themselves
		return f, err
	}
	if err != nil {
		return cdc.Facts{}, classify("identify the server", err)
	}
	return f, nil
}

// systemID asks over a replication connection, as the relay's role.
func (s *Source) systemID(ctx context.Context) (string, error) {
	stream, id, err := s.Connect(ctx)
	if err != nil {
		return "", err
	}
	return id.SystemID, stream.Close()
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
func (a *Admin) version() int {
	major, _, _ := strings.Cut(a.conn.PgConn().ParameterStatus("server_version"), ".")
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
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "57014" {
		return fmt.Errorf("create the slot: a transaction has been open for a minute and PostgreSQL waits for its end: end it (SELECT pid, xact_start FROM pg_stat_activity ORDER BY xact_start) and run `walpost init` again")
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

// RowsBefore counts the rows that are in the outbox already: no slot will ever stream them.
func (a *Admin) RowsBefore(ctx context.Context) (n int64, err error) {
	if a.source.cfg.Messages != "" {
		return 0, nil
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	if err := a.conn.QueryRow(ctx, "SELECT count(*) FROM "+quotedTable(a.source.cfg)).Scan(&n); err != nil {
		return 0, classify("count the outbox", err)
	}
	return n, nil
}

// Removal returns the steps that take the role away, and the publication where there is one. Slot and state have their own; the
// table stays.
func (a *Admin) Removal(ctx context.Context) ([]Step, error) {
	target, err := a.source.target()
	if err != nil {
		return nil, err
	}
	user := pgx.Identifier{target.User}.Sanitize()
	var revoke []string
	if a.source.cfg.Messages == "" {
		schema, _ := a.source.cfg.SchemaTable()
		revoke = append(revoke, fmt.Sprintf("DO $$ BEGIN REVOKE ALL ON %s FROM %s; REVOKE ALL ON SCHEMA %s FROM %s; EXCEPTION WHEN undefined_table THEN NULL; END $$",
			quotedTable(a.source.cfg), user, pgx.Identifier{schema}.Sanitize(), user))
	}
	var steps []Step
	if a.source.cfg.Kind == cdc.WAL {
		steps = append(steps, Step{
			What: fmt.Sprintf("publication %s: drop it", a.source.cfg.Publication),
			SQL:  []string{"DROP PUBLICATION IF EXISTS " + pgx.Identifier{a.source.cfg.Publication}.Sanitize()},
		})
	}
	var super, me bool
	err = a.conn.QueryRow(ctx, `SELECT rolsuper, rolname = current_user FROM pg_roles WHERE rolname = $1`, target.User).Scan(&super, &me)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return nil, classify("look for the role", err)
	case super || me:
		steps = append(steps, Step{What: fmt.Sprintf("role %s: an administrator's, left as it is", target.User)})
	default:
		steps = append(steps, Step{What: fmt.Sprintf("role %s: drop it", target.User), SQL: append(revoke, "DROP ROLE "+user)})
	}
	return steps, nil
}

// FlushLag is how long the relay takes to confirm what the server has written, as the server measures it; false when
// nobody reads the slot. Visible to the relay's own role.
func (s *Source) FlushLag(ctx context.Context) (seconds float64, connected bool, err error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, `
		SELECT coalesce(extract(epoch FROM r.flush_lag), 0)::float8
		FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
		WHERE s.slot_name = $1`, s.cfg.Slot).Scan(&seconds)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, classify("ask for the lag", err)
	}
	return seconds, true, nil
}
