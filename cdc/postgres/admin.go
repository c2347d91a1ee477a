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
}

// Admin prepares a database for a relay, with an administrator's rights.
type Admin struct {
	source *Source
	conn   *pgx.Conn
}

// Admin connects as the administrator to the database of source.url.
func (s *Source) Admin(ctx context.Context, adminURL string) (*Admin, error) {
	conn, err := s.connectAs(ctx, "the administrator's URL", adminURL, "walpost init")
	if err != nil {
		return nil, err
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

// Plan returns the steps that role, table and publication need, in order. Problems that no step mends are an error, all of
// them together.
func (a *Admin) Plan(ctx context.Context, want Wanted) ([]Step, error) {
	var walLevel string
	if err := a.conn.QueryRow(ctx, `SELECT current_setting('wal_level')`).Scan(&walLevel); err != nil {
		return nil, classify("ask for wal_level", err)
	}
	if walLevel != "logical" {
		return nil, unfit([]string{fmt.Sprintf("wal_level is %s: ALTER SYSTEM SET wal_level = 'logical' and restart PostgreSQL", walLevel)})
	}
	role, err := a.planRole(ctx)
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
	steps := []Step{role, step, publication}
	for _, note := range notes {
		steps = append(steps, Step{What: note})
	}
	if want.Delete && !table.partitioned && a.source.cfg.Messages == "" {
		sight, err := a.planSight(ctx, false)
		if err != nil {
			return nil, err
		}
		steps = append(append(steps, a.planDelete()), sight...)
	}
	return steps, nil
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

// planRole gives the relay's role LOGIN and REPLICATION and nothing else.
func (a *Admin) planRole(ctx context.Context) (Step, error) {
	target, err := pgconn.ParseConfig(a.source.cfg.URL)
	if err != nil {
		return Step{}, errors.New("source.url: not a PostgreSQL URL (postgres://user@host:5432/database)")
	}
	var login, replication bool
	err = a.conn.QueryRow(ctx, `SELECT rolcanlogin, rolreplication OR rolsuper FROM pg_roles WHERE rolname = $1`, target.User).Scan(&login, &replication)
	name := pgx.Identifier{target.User}.Sanitize()
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		sql := fmt.Sprintf("CREATE ROLE %s LOGIN REPLICATION CONNECTION LIMIT 24", name)
		if target.Password != "" {
			sql += " PASSWORD :password"
		}
		return Step{What: fmt.Sprintf("role %s: create it with LOGIN and REPLICATION", target.User), SQL: []string{sql}, secret: target.Password}, nil
	case err != nil:
		return Step{}, classify("look for the role", err)
	case !login || !replication:
		return Step{What: fmt.Sprintf("role %s: give it LOGIN and REPLICATION", target.User), SQL: []string{fmt.Sprintf("ALTER ROLE %s LOGIN REPLICATION", name)}}, nil
	}
	return Step{What: fmt.Sprintf("role %s: there, with LOGIN and REPLICATION", target.User)}, nil
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
	name := pgx.Identifier{cfg.Publication}.Sanitize()
	w, exists, err := a.source.width(ctx, a.conn, t)
	if err != nil {
		return Step{}, err
	}
	switch {
	case cfg.Messages != "" && exists:
		return Step{What: fmt.Sprintf("publication %s: there", cfg.Publication)}, nil
	case cfg.Messages != "":
		sql := "CREATE PUBLICATION " + name + " WITH (publish = 'insert')"
		return Step{What: fmt.Sprintf("publication %s: create it, empty: pgoutput asks for one, messages do not go by it", cfg.Publication), SQL: []string{sql}}, nil
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
		return Step{What: fmt.Sprintf("publication %s: add %s to it", cfg.Publication, cfg.Table), SQL: []string{fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", name, quotedTable(cfg))}}, nil
	}
	return Step{What: fmt.Sprintf("publication %s: there, it carries the inserts into %s", cfg.Publication, cfg.Table)}, nil
}

// notes are what keeps no row from the stream, and is worth a word all the same.
func (s *Source) notes(ctx context.Context, conn *pgx.Conn, t table) (notes []string, err error) {
	if s.cfg.Messages != "" {
		return nil, nil
	}
	if s.cfg.Columns.CreatedAtZone == "" { // else checkTable has looked at it
		_, err := s.Age(ctx, conn, createdAt(s.cfg))
		switch {
		case errors.Is(err, ErrZone):
			notes = append(notes, fmt.Sprintf("`walpost replay`, `cleanup` and `where` by time will refuse: %v", err))
		case err != nil:
			return nil, err
		}
	}
	if s.cfg.Kind == cdc.Polling {
		return notes, nil
	}
	w, _, err := s.width(ctx, conn, t)
	if w.more != "" {
		notes = append(notes, fmt.Sprintf("publication %s carries %s: changes of other tables are sent to the relay, which throws them away; and where it does not name %s, a rewrite of that table (ALTER TABLE) halts the relay until `walpost adopt`, because SET UNLOGGED would be one: a publication of the outbox alone does neither: run `%s`, name it in source.publication, and `walpost adopt` where a relay has run already",
			s.cfg.Publication, w.more, s.cfg.Table, publicationDDL(s.cfg, s.cfg.Slot+"_outbox", t)))
	}
	return notes, err
}

// publicationDDL makes a publication of the outbox alone.
func publicationDDL(cfg cdc.SourceConfig, name string, t table) string {
	with := "publish = 'insert'"
	if t.partitioned {
		with += ", publish_via_partition_root = true"
	}
	return fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (%s)", pgx.Identifier{name}.Sanitize(), quotedTable(cfg), with)
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

// Do runs the step's SQL.
func (a *Admin) Do(ctx context.Context, step Step) error {
	for _, sql := range step.SQL {
		if strings.Contains(sql, ":password") {
			// Utility statements take no parameters; the server quotes.
			var quoted string
			if err := a.conn.QueryRow(ctx, `SELECT quote_literal($1::text)`, step.secret).Scan(&quoted); err != nil {
				return classify("quote the password", err)
			}
			sql = strings.ReplaceAll(sql, ":password", quoted)
		}
		if _, err := a.conn.Exec(ctx, sql); err != nil {
			return classify(step.What, err)
		}
	}
	return nil
}

// Facts is what a first state record is made of. Table and publication must be there.
func (a *Admin) Facts(ctx context.Context) (cdc.Facts, error) {
	f, _, err := a.source.look(ctx, a.conn)
	if err != nil {
		return cdc.Facts{}, err
	}
	if err := a.conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&f.SystemID); err != nil {
		return cdc.Facts{}, classify("identify the server", err)
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

// CreateSlot makes the slot. PostgreSQL first waits for the transactions that are running; after a minute it gives up.
func (a *Admin) CreateSlot(ctx context.Context) error {
	if _, err := a.conn.Exec(ctx, `SET statement_timeout = '60s'`); err != nil {
		return classify("set a timeout", err)
	}
	_, err := a.conn.Exec(ctx, a.CreateSlotSQL())
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
	if _, err := a.conn.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, a.source.cfg.Slot); err != nil {
		return classify("drop the slot", err)
	}
	return nil
}

// RowsBefore counts the rows that are in the outbox already: no slot will ever stream them. It is an ErrUnseen where the
// administrator does not see them.
func (a *Admin) RowsBefore(ctx context.Context) (n int64, err error) {
	if a.source.cfg.Messages != "" {
		return 0, nil
	}
	if err := a.source.seesAll(ctx, a.conn, false); err != nil {
		return 0, err
	}
	if err := a.conn.QueryRow(ctx, "SELECT count(*) FROM "+quotedTable(a.source.cfg)).Scan(&n); err != nil {
		return 0, classify("count the outbox", err)
	}
	return n, nil
}

// Removal returns the steps that take the role away, and the publication where there is one. Slot and state have their own; the
// table stays.
func (a *Admin) Removal(ctx context.Context) ([]Step, error) {
	target, err := pgconn.ParseConfig(a.source.cfg.URL)
	if err != nil {
		return nil, errors.New("source.url: not a PostgreSQL URL (postgres://user@host:5432/database)")
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
