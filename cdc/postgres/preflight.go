package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
)

// Source is the outbox of one PostgreSQL database.
type Source struct {
	identity.Unshown

	cfg         config.Source
	application string
	log         zerolog.Logger
	relay       *identity.Postgres
	fits        func(*cdc.Shape) error // nil: the route takes every row

	mu     sync.Mutex
	others map[[2]string]*identity.Postgres // by key and URL: the other roles that connect, administrators and cleanup
}

var _ cdc.Source = (*Source)(nil)

// NewSource returns a source, and connects to nothing yet. pg_stat_replication shows the pipeline's name. The source
// logs which client certificate it uses, and what is wrong with a new certificate or password, while it continues
// with the last good one.
func NewSource(pipeline string, cfg config.Source, log zerolog.Logger) *Source {
	log = log.With().Str("pipeline", pipeline).Logger()
	return &Source{
		cfg: cfg, application: "walpost " + pipeline, log: log, relay: identity.NewPostgres(sourceURL, cfg.URL, log),
		others: map[[2]string]*identity.Postgres{},
	}
}

// Require makes fits decide which columns a route takes, if config.Verbatim asks for their description. A table that does
// not fit is a problem like a missing column. Call it before the source is used; fits may be called at any time.
func (s *Source) Require(fits func(*cdc.Shape) error) { s.fits = fits }

// problems returns the reasons why the route does not take rows of the columns.
func (s *Source) problems(m *mapping, columns []column) (problems []cdc.Finding) {
	if s.fits == nil || s.cfg.Columns.Verbatim == nil || len(m.problems) > 0 {
		return nil
	}
	if err := s.fits(m.shape(s.cfg.Table, columns)); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			problems = append(problems, parted("columns", line))
		}
	}
	return problems
}

// Preflight checks what a session needs from the server, with the relay's own rights, and returns all problems at
// once. Problems of publication and table alone are in Facts. It returns the table's OID, or 0 if there is no table.
func (s *Source) Preflight(ctx context.Context) (uint32, error) {
	conn, err := s.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	standby, problems, err := s.checkServer(ctx, conn)
	if err != nil {
		return 0, err
	}
	if standby != nil {
		return 0, errors.New(standby.String())
	}
	f, t, err := s.look(ctx, conn)
	if err != nil {
		return 0, err
	}
	if len(problems) > 0 {
		return 0, unfit(slices.Concat(problems, f.Hidden, f.Unfit)) // all problems at once
	}
	return t.oid, nil
}

// checkServer returns the problems of the server's settings, of the relay's role, and of the slot's kind and database.
// Of a standby server it returns only that it is one.
func (s *Source) checkServer(ctx context.Context, conn *pgx.Conn) (standby *cdc.Finding, problems []cdc.Finding, err error) {
	g, err := readGuard(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	var version int
	var walLevel string
	var recovers bool
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery()`).Scan(&version, &walLevel, &recovers)
	if err != nil {
		return nil, nil, classify("ask for the server's settings", err)
	}
	if recovers {
		f := Problem("standby_server", "name all hosts and target_session_attrs=read-write, and the relay finds the primary itself", "source.url: the server is a standby: the relay waits for its promotion")
		return &f, nil, nil
	}
	if version < 140000 {
		problems = append(problems, Problem("server_version", "14 or newer is needed", "PostgreSQL %d is too old", version/10000))
	}
	if walLevel != "logical" {
		problems = append(problems, g.notLogical(walLevel))
	}
	if !g.mayReplicate {
		f := Problem("role_replication", g.letReplicate(g.me), "role %q may not replicate", g.me)
		f.Init = true
		problems = append(problems, f)
	}
	wrong, err := s.checkSlot(ctx, conn)
	return nil, append(problems, wrong...), err
}

// Problem returns a finding about PostgreSQL, with what to run.
func Problem(check, run, format string, args ...any) cdc.Finding {
	return cdc.Finding{Side: cdc.InPostgreSQL, Severity: cdc.Problem, Check: check, Found: fmt.Sprintf(format, args...), Run: run}
}

// checkSlot returns a problem with the slot's kind or database. Reconcile compares its existence and position with
// the state record.
func (s *Source) checkSlot(ctx context.Context, conn *pgx.Conn) ([]cdc.Finding, error) {
	var slotType, plugin, database, here string
	err := conn.QueryRow(ctx, `
		SELECT slot_type, coalesce(plugin, ''), coalesce(database, ''), current_database()
		FROM pg_replication_slots WHERE slot_name = $1`, s.cfg.Slot).Scan(&slotType, &plugin, &database, &here)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, classify("look at the slot", err)
	case slotType != "logical" || plugin != "pgoutput":
		return []cdc.Finding{Problem("slot_kind", "choose another source.slot and run `walpost init`", "slot %q is a %s slot of plugin %q, a logical slot of pgoutput is needed", s.cfg.Slot, slotType, plugin)}, nil
	case database != here:
		return []cdc.Finding{Problem("slot_database", "name "+database+" in source.url, or choose another source.slot", "slot %q belongs to database %q, source.url names %q", s.cfg.Slot, database, here)}, nil
	}
	return nil, nil
}

// checkPublication returns the reasons why inserts into the outbox would not be in the publication, or not whole.
func (s *Source) checkPublication(ctx context.Context, conn *pgx.Conn, t table) (problems []cdc.Finding, err error) {
	bad := func(check, run, format string, args ...any) {
		problems = append(problems, Problem(check, run, "source.publication: "+format, args...))
	}
	name := Ident(s.cfg.Publication)
	var inserts, updates, viaRoot bool
	err = conn.QueryRow(ctx, `SELECT pubinsert, pubupdate, pubviaroot FROM pg_publication WHERE pubname = $1`, s.cfg.Publication).Scan(&inserts, &updates, &viaRoot)
	if errors.Is(err, pgx.ErrNoRows) {
		f := Problem("publication_missing", "run `walpost init`", "source.publication: %s does not exist", s.cfg.Publication)
		f.Init = true
		return []cdc.Finding{f}, nil
	}
	if err != nil {
		return nil, classify("look for the publication", err)
	}
	if !inserts {
		bad("publication_inserts", fmt.Sprintf("ALTER PUBLICATION %s SET (publish = 'insert')", name), "%s does not publish inserts", s.cfg.Publication)
	}
	if v := s.cfg.Columns.Verbatim; v != nil && v.Updates == config.HaltAtUpdate && !updates {
		option := optionOf(&s.cfg.Columns, "updates")
		bad("publication_updates", fmt.Sprintf("ALTER PUBLICATION %s SET (publish = 'insert, update'), or set %s: warn", name, option), "%s does not publish updates, at which %s halts the relay", s.cfg.Publication, option)
	}
	if t.partitioned && !viaRoot {
		bad("publication_partitions", fmt.Sprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = true)", name), "%s is partitioned and the publication names its partitions", s.cfg.Table)
	}
	schema, table := s.cfg.SchemaTable()
	// Row filters and column lists exist from 15 on; with to_jsonb one query works for every version.
	var filtered bool
	var columns []string
	err = conn.QueryRow(ctx, `
		SELECT coalesce(to_jsonb(t) ->> 'rowfilter', '') <> '',
		       coalesce(ARRAY(SELECT jsonb_array_elements_text(to_jsonb(t) -> 'attnames')), '{}')
		FROM pg_publication_tables t WHERE t.pubname = $1 AND t.schemaname = $2 AND t.tablename = $3`,
		s.cfg.Publication, schema, table).Scan(&filtered, &columns)
	if errors.Is(err, pgx.ErrNoRows) && t.oid == 0 { // init creates the table, and adds it
		return problems, nil
	}
	if errors.Is(err, pgx.ErrNoRows) {
		bad("publication_table", fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", name, TableName(s.cfg)), "%s does not carry %s", s.cfg.Publication, s.cfg.Table)
		return problems, nil
	}
	if err != nil {
		return nil, classify("look at the publication", err)
	}
	// Not SET TABLE, which would remove other people's tables.
	again := fmt.Sprintf("ALTER PUBLICATION %[1]s DROP TABLE %[2]s; ALTER PUBLICATION %[1]s ADD TABLE %[2]s", name, TableName(s.cfg))
	if filtered {
		bad("publication_filter", again, "%s has a row filter on %s, which hides rows silently", s.cfg.Publication, s.cfg.Table)
	}
	var left []string
	for i, from := range t.mapped.from {
		if from.column < 0 || len(columns) == 0 && t.columns[from.column].generated == "" || slices.Contains(columns, t.columns[from.column].name) {
			continue
		}
		switch c := &t.columns[from.column]; {
		case c.generated != "" && purposes[i].value(&s.cfg.Columns) == "": // only its default name matches: see notes
		case c.generated != "":
			problems = append(problems, c.unseen(Major(conn), name))
		case purposes[i].value(&s.cfg.Columns) != "":
			left = append(left, strconv.Quote(c.name))
		}
	}
	for _, at := range t.mapped.further {
		switch {
		case at < 0 || len(columns) == 0 && t.columns[at].generated == "" || slices.Contains(columns, t.columns[at].name):
		case t.columns[at].generated != "":
			problems = append(problems, t.columns[at].unseen(Major(conn), name))
		default:
			left = append(left, strconv.Quote(t.columns[at].name))
		}
	}
	left = slices.Compact(left)
	if problems = slices.Compact(problems); len(left) > 0 {
		bad("publication_columns", again, "the column list of %s leaves out %s", s.cfg.Publication, strings.Join(left, ", "))
	}
	return problems, nil
}

// Facts queries everything that is compared with the state record, and the timeline of the server's identity. A relay
// must not stream a table that is polled; an Admin, who prepares a move to the WAL, may.
func (s *Source) Facts(ctx context.Context) (cdc.Facts, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, err := s.Open(ctx)
	if err != nil {
		return cdc.Facts{}, err
	}
	defer func() { _ = conn.Close(ctx) }()
	f, t, err := s.look(ctx, conn)
	if err == nil {
		err = s.waits(ctx, conn, &f)
	}
	if err != nil || t.oid == 0 {
		return f, err
	}
	pollers, err := s.pollers(ctx, conn, t.oid)
	f.Unfit = append(f.Unfit, pollers...)
	if notes, noteErr := s.notes(ctx, conn, t); noteErr == nil { // notes are not important enough to fail
		f.Notes = notes
	}
	if note := ClockNote(time.Now(), f.Time); note != "" {
		f.Notes = append(f.Notes, note)
	}
	return f, err
}

// clocksDiffer is the difference between this machine's clock and the server's from which on a note is written.
const clocksDiffer = time.Minute

// AboutClocks reports whether a note is of ClockNote.
func AboutClocks(note string) bool { return strings.HasPrefix(note, clockWords) }

const clockWords = "this machine's clock is "

// ClockNote returns a note if the clock here differs too much from the server's, and otherwise "".
func ClockNote(here, server time.Time) string {
	off, how := here.Sub(server), "ahead of"
	if off < 0 {
		off, how = -off, "behind"
	}
	if off < clocksDiffer {
		return ""
	}
	return fmt.Sprintf(clockWords+"%s %s the database server's (%s): Kafka rejects records from more than an hour ahead, and deletes records that seem older than the topic's retention: set the clocks",
		off.Round(time.Minute), how, server.UTC().Format(time.RFC3339))
}

// currentTimeline is SQL for the timeline in the names of the server's WAL files, which is right from the moment of a
// promotion on.
const currentTimeline = `('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int`

// look reads publication and table as one consistent snapshot: it starts again if the fingerprint changes meanwhile.
// Otherwise an old fingerprint could be paired with newer checks, and a change that may have hidden rows would be
// taken for a mistake that hid none.
func (s *Source) look(ctx context.Context, conn *pgx.Conn) (f cdc.Facts, t table, err error) {
	for {
		if f, err = s.identify(ctx, conn); err != nil {
			return f, t, err
		}
		if t, err = s.checkTable(ctx, conn); err != nil {
			return f, t, err
		}
		f.Hidden, f.Unfit = append(t.hidden, f.Hidden...), append(t.unfit, f.Unfit...)
		if t.oid != 0 {
			hidden, err := s.checkPublication(ctx, conn, t)
			if err != nil {
				return f, t, err
			}
			f.Hidden = append(f.Hidden, hidden...)
		}
		if len(f.Hidden)+len(f.Unfit) == 0 {
			return f, t, nil
		}
		if now, err := s.identify(ctx, conn); err != nil || now.Fingerprint == f.Fingerprint {
			return f, t, err
		}
	}
}

// identify reads the positions of server and slot, the fingerprint, and the detours of the table.
func (s *Source) identify(ctx context.Context, conn *pgx.Conn) (f cdc.Facts, err error) {
	schema, name := s.cfg.SchemaTable()
	f.Slot.Name, f.Configured = s.cfg.Slot, cdc.Configured{Publication: s.cfg.Publication, Table: s.cfg.Table}
	var version int
	// Read the open transactions before the end of the WAL: one that ends in between has its commit after that end.
	if err := conn.QueryRow(ctx, `SELECT ARRAY(SELECT xid FROM (`+writers+`) w)`).Scan(&f.Open); err != nil {
		return f, classify("look for open transactions", err)
	}
	// Read the end of the WAL before the catalog: the catalog's contents were valid up to there.
	err = conn.QueryRow(ctx, `
		SELECT pg_current_wal_flush_lsn()::text, `+currentTimeline+`, clock_timestamp(), current_setting('server_version_num')::int`,
	).Scan(&f.WALEnd, &f.Timeline, &f.Time, &version)
	if err != nil {
		return f, classify("ask for the end of the WAL", err)
	}
	schemas := "" // publications of whole schemas exist from 15 on
	if version >= 150000 {
		schemas = ` || coalesce((SELECT format(' schema %s/%s', x.oid, x.xmin) FROM pg_publication_namespace x WHERE x.pnpubid = p.oid AND x.pnnspid = n.oid), '')`
	}
	var table, toast uint32
	var named bool
	// Patroni is recognized by its own sessions. It does not drop failover slots, which init creates from 17 on. The
	// oid and xmin of the publication and of its entry for the table change even when a change was undone, and when a
	// row filter or a column list is added or removed.
	err = conn.QueryRow(ctx, `
		SELECT s.slot_name IS NOT NULL, coalesce(s.active, false), coalesce(s.active_pid, 0), coalesce(s.confirmed_flush_lsn, '0/0')::text,
		       coalesce(s.restart_lsn, '0/0')::text, coalesce(s.wal_status, ''), coalesce(to_jsonb(s) ->> 'invalidation_reason', ''),
		       s.safe_wal_size, format('publication %s/%s entry %s/%s table %s %s.%s',
		              coalesce(p.oid::text, 'none'), p.xmin, coalesce(pr.oid::text, 'none'), pr.xmin, coalesce(c.oid::text, 'none'), $3::text, $4::text)`+schemas+`,
		       coalesce(c.oid, 0), coalesce(c.reltoastrelid, 0), p.oid IS NULL OR pr.oid IS NOT NULL,
		       coalesce((SELECT format('%I: {type: logical, database: %I, plugin: pgoutput}', $1::text, current_database())
		                 FROM pg_stat_activity WHERE application_name LIKE 'Patroni%' AND $5 < 170000 LIMIT 1), '')
		FROM (SELECT 1) one
		LEFT JOIN pg_replication_slots s ON s.slot_name = $1
		LEFT JOIN pg_publication p ON p.pubname = $2
		LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace) ON n.nspname = $3 AND c.relname = $4
		LEFT JOIN pg_publication_rel pr ON pr.prpubid = p.oid AND pr.prrelid = c.oid`,
		s.cfg.Slot, s.cfg.Publication, schema, name, version,
	).Scan(&f.Slot.Exists, &f.Slot.Active, &f.Slot.ActivePID, &f.Slot.ConfirmedFlush, &f.Slot.RestartLSN, &f.Slot.WALStatus, &f.Slot.Invalidation, &f.Slot.SafeWALSize, &f.Fingerprint, &table, &toast, &named, &f.Slot.Patroni)
	if err != nil {
		return f, classify("read slot and publication", err)
	}
	if table == 0 {
		return f, nil
	}
	has, err := flagsOf(ctx, conn, table)
	if err != nil {
		return f, err
	}
	mark, hidden, err := s.detours(ctx, conn, table, has)
	if err != nil {
		return f, err
	}
	f.Fingerprint, f.Hidden = f.Fingerprint+mark, hidden
	if has.relatives {
		if f.Unfit, err = s.moved(ctx, conn, table); err != nil {
			return f, err
		}
	}
	// PostgreSQL forbids SET UNLOGGED for a table that a publication names; no other publication prevents it. SET
	// UNLOGGED rewrites the table, which then has another TOAST table; TRUNCATE, VACUUM FULL and CLUSTER keep the
	// TOAST table.
	if !named && toast != 0 {
		f.Fingerprint += fmt.Sprintf("%s%d", cdc.ToastMark, toast)
	}
	return f, nil
}
