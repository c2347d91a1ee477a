package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// askWithin is how long PostgreSQL may take to answer one question of Examine.
const askWithin = 5 * time.Second

// Examined is what Examine has found.
type Examined struct {
	Findings []cdc.Finding
	Reached  bool // the server let the relay's role in
	Refused  bool // the server does not accept role or password, which `walpost init` creates
	Database string
	Open     []OpenTransaction
	Asked    bool // Open has all transactions
	Largest  Largest
}

// OpenTransaction is an open transaction of any database of the server. Seconds is 0 if the relay's role may not see it.
type OpenTransaction struct {
	cdc.Transaction
	XID      string
	Database string
}

// Largest is the largest payload among some rows of the table.
type Largest struct {
	Bytes int64 // 0: not known
	Rows  int64 // number of rows that were looked at
	Table int64 // 0, or the largest payload that a constraint of the table lets in
}

// Examine asks PostgreSQL, with the relay's own rights, for everything that a relay needs from it, and returns a finding for each
// check, also for one that passes. It takes no lock on a table and changes nothing. A question without an answer is a finding too,
// and Examine asks the other questions nevertheless. reads is true if the relay's role reads or deletes rows of the table.
func (s *Source) Examine(ctx context.Context, reads bool) (e Examined) {
	x := &examiner{source: s, e: &e}
	defer x.close(ctx)
	if !x.connects(ctx) {
		return e
	}
	polled := s.cfg.Kind == config.KindPolling
	x.ask(ctx, "server", x.server)
	if x.ended {
		return e
	}
	if !polled {
		x.ask(ctx, "slots_free", x.limits)
		x.ask(ctx, "table", x.table)
	}
	if polled {
		x.ask(ctx, "table_rights", func(ctx context.Context) error { return x.rights(ctx, polling...) })
	} else if reads {
		x.ask(ctx, "table_rights", func(ctx context.Context) error { return x.rights(ctx, deleting(s.cfg)...) })
	}
	x.ask(ctx, "row_security", func(ctx context.Context) error { return x.rowSecurity(ctx, polled || reads) })
	x.ask(ctx, "open_transaction", x.transactions)
	x.ask(ctx, "largest_row", x.largest)
	return e
}

// examiner asks the questions of Examine on one connection, and on a new one if a question has ended it.
type examiner struct {
	source *Source
	conn   *pgx.Conn
	ended  bool // nothing more can be asked
	e      *Examined
}

func (x *examiner) close(ctx context.Context) {
	if x.conn != nil {
		_ = x.conn.Close(context.WithoutCancel(ctx))
	}
}

// add adds findings.
func (x *examiner) add(findings ...cdc.Finding) { x.e.Findings = append(x.e.Findings, findings...) }

// passes adds a check that has found nothing wrong.
func (x *examiner) passes(check, format string, args ...any) {
	x.add(cdc.Finding{Side: cdc.InPostgreSQL, Severity: cdc.OK, Check: check, Found: fmt.Sprintf(format, args...)})
}

// connects opens the connection, and reports whether the server let the relay's role in.
func (x *examiner) connects(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, state, err := x.source.login().connect(ctx)
	if err != nil {
		f := Found("connection", err)
		if f.Means == "" {
			f.Means = "no relay can stream; rows wait in PostgreSQL, and nothing else of it could be checked"
		}
		x.e.Refused = state == pgerrcode.InvalidPassword || state == pgerrcode.InvalidAuthorizationSpecification
		x.ended = true
		x.add(f)
		return false
	}
	x.conn, x.e.Reached = conn, true
	cfg := conn.Config()
	x.e.Database = cfg.Database
	with := "without TLS"
	if _, secured := conn.PgConn().Conn().(*tls.Conn); secured {
		with = "with TLS"
	}
	version, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), " ")
	x.passes("connection", "PostgreSQL %s at %s lets role %s into database %s, %s", version, addresses(&cfg.Config), Ident(cfg.User), Ident(cfg.Database), with)
	return true
}

// ask asks a question. An error becomes a finding of that check. After a question without an answer it connects again.
func (x *examiner) ask(ctx context.Context, check string, question func(context.Context) error) {
	if x.ended {
		return
	}
	limited, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	err := question(limited)
	if err == nil {
		return
	}
	x.add(Found(check, err))
	if !x.conn.IsClosed() {
		return
	}
	again, stop := context.WithTimeout(ctx, askWithin)
	defer stop()
	if x.conn, _, err = x.source.login().connect(again); err != nil {
		x.ended = true
		x.add(Found("connection", err))
	}
}

// Found returns an error of PostgreSQL as a finding: a HaltError in its parts, another error as a check without an answer.
func Found(check string, err error) cdc.Finding {
	var halt *cdc.HaltError
	switch {
	case errors.As(err, &halt):
		f := Problem(check, halt.Run, "%s", halt.Found)
		f.Means = halt.Means
		return f
	case errors.Is(err, errRefused):
		return parted(check, err.Error())
	case errors.Is(err, errAway):
		f := parted(check, err.Error())
		f.Severity = cdc.Unknown
		return f
	}
	f := Problem(check, "run `walpost doctor` again; if this stays, look into the server's log", "%s", err.Error())
	f.Severity, f.Means = cdc.Unknown, "this check has got no answer"
	return f
}

// server checks the server's settings, the relay's role, and the slot's kind.
func (x *examiner) server(ctx context.Context) error {
	standby, problems, err := x.source.checkServer(ctx, x.conn)
	if err != nil {
		return err
	}
	if standby != nil {
		standby.Means = "a relay cannot stream from a standby; nothing else of PostgreSQL was checked"
		x.ended = true
		x.add(*standby)
		return nil
	}
	if x.source.cfg.Kind == config.KindPolling { // it needs neither WAL nor replication
		return nil
	}
	wrong := map[string]bool{}
	for _, f := range problems {
		f.Means = "the relay cannot stream like this; nothing is lost"
		if f.Check == "slot_database" { // table and publication would be missing here, and that would be a false trail
			f.Means += "; nothing else of PostgreSQL was checked, because this is the wrong database"
			x.ended = true
		}
		wrong[f.Check] = true
		x.add(f)
	}
	if !wrong["wal_level"] {
		x.passes("wal_level", "wal_level is logical")
	}
	if !wrong["role_replication"] {
		x.passes("role_replication", "the relay's role may replicate")
	}
	return nil
}

// limits checks the server's numbers of slots and walsenders, and whether a slot can fill the disk.
func (x *examiner) limits(ctx context.Context) error {
	var slots, usedSlots, senders, usedSenders int
	var exists, active bool
	var keeps string
	err := x.conn.QueryRow(ctx, `
		SELECT current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots),
		       current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication),
		       EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1),
		       coalesce((SELECT active FROM pg_replication_slots WHERE slot_name = $1), false), current_setting('max_slot_wal_keep_size')`, x.source.cfg.Slot).
		Scan(&slots, &usedSlots, &senders, &usedSenders, &exists, &active, &keeps)
	if err != nil {
		return classify("count slots and walsenders", err)
	}
	switch unread, err := unreadSlots(ctx, x.conn, x.source.cfg.Slot); {
	case err != nil:
		return err
	case usedSlots < slots:
		x.passes("slots_free", "%d of %d replication slots are in use", usedSlots, slots)
	default:
		f := Problem("slots_free", dropASlot(unread), "all %d slots that max_replication_slots allows are in use", slots)
		if f.Means = "`walpost init` cannot create this pipeline's slot"; exists {
			f.Severity, f.Means = cdc.Warning, "this pipeline has its slot; if it is lost, `walpost adopt --create-slot` could not create another"
		}
		x.add(f)
	}
	if usedSenders < senders {
		x.passes("walsenders_free", "%d of %d walsenders are in use", usedSenders, senders)
	} else {
		f := Problem("walsenders_free", "end one (`SELECT pid, application_name FROM pg_stat_replication`), or raise max_wal_senders and restart PostgreSQL", "all %d walsenders that max_wal_senders allows are in use", senders)
		if f.Means = "the relay cannot connect to stream; rows wait in the slot"; active {
			f.Severity, f.Means = cdc.Warning, "a relay streams; another one could take over only after the server has ended this one's walsender"
		}
		x.add(f)
	}
	if keeps != "-1" {
		x.passes("slot_limit", "max_slot_wal_keep_size is %s", keeps)
		return nil
	}
	f := Problem("slot_limit", "set a size that the disk can bear: `ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'` and `SELECT pg_reload_conf()`", "max_slot_wal_keep_size is -1: the server keeps WAL for a slot without limit")
	f.Severity, f.Means = cdc.Warning, "while no relay runs, or Kafka is away, the WAL grows until the disk is full, and then the whole server stops"
	x.add(f)
	return nil
}

// table checks the table and its publication, as Facts does.
func (x *examiner) table(ctx context.Context) error {
	f, t, err := x.source.look(ctx, x.conn)
	if err != nil {
		return err
	}
	if t.oid == 0 { // then look leaves out the publication
		hidden, err := x.source.checkPublication(ctx, x.conn, t)
		if err != nil {
			return err
		}
		f.Hidden = append(f.Hidden, hidden...)
	} else {
		pollers, err := x.source.pollers(ctx, x.conn, t.oid)
		if err != nil {
			return err
		}
		f.Unfit = append(f.Unfit, pollers...)
	}
	for _, p := range f.Hidden {
		p.Means = "rows of the outbox do not reach the relay, or not whole"
		x.add(p)
	}
	for _, p := range f.Unfit {
		p.Means = "walpost cannot publish the rows like this; nothing is lost"
		x.add(p)
	}
	if len(f.Hidden)+len(f.Unfit) == 0 {
		x.passes("table", "%s has the columns that are needed, and no row takes a way past the WAL", x.source.cfg.Table)
		x.passes("publication", "%s carries all inserts into %s", x.source.cfg.Publication, x.source.cfg.Table)
	}
	return nil
}

// rights checks the relay's rights on the table.
func (x *examiner) rights(ctx context.Context, wants ...right) error {
	var role string
	if err := x.conn.QueryRow(ctx, `SELECT current_user`).Scan(&role); err != nil {
		return classify("ask for the role", err)
	}
	if oid, err := x.tableOID(ctx); oid == 0 || err != nil {
		return err
	}
	lacks, err := x.source.grants(ctx, x.conn, role, wants...)
	if err != nil {
		return err
	}
	if len(lacks) == 0 {
		x.passes("table_rights", "role %s has the rights on %s that are needed", Ident(role), x.source.cfg.Table)
		return nil
	}
	f := Problem("table_rights", "run as the table's owner: "+strings.Join(lacks, "; "), "role %s lacks rights on %s", Ident(role), x.source.cfg.Table)
	if f.Init, f.Means = true, "no row can be published; nothing is lost"; x.source.cfg.Kind != config.KindPolling {
		f.Severity, f.Means = cdc.Warning, "rows are streamed, but the relay cannot delete delivered ones (cleanup.every), and the table grows"
	}
	x.add(f)
	return nil
}

// tableOID returns the OID of the table; 0 if there is none.
func (x *examiner) tableOID(ctx context.Context) (oid uint32, err error) {
	if err := x.conn.QueryRow(ctx, `SELECT coalesce(`+oidOf("$1")+`, 0)`, TableName(x.source.cfg)).Scan(&oid); err != nil {
		return 0, classify("look for the table", err)
	}
	return oid, nil
}

// rowSecurity checks whether row-level security hides rows from the relay's role.
func (x *examiner) rowSecurity(ctx context.Context, reads bool) error {
	if oid, err := x.tableOID(ctx); oid == 0 || err != nil {
		return err
	}
	err := x.source.seesAll(ctx, x.conn, false)
	switch {
	case err == nil && reads:
		x.passes("row_security", "the relay's role sees all rows of %s", x.source.cfg.Table)
	case err == nil:
		x.passes("row_security", "no policy hides rows of %s", x.source.cfg.Table)
	case !errors.Is(err, ErrUnseen):
		return err
	case reads:
		f := parted("row_security", strings.TrimPrefix(err.Error(), ErrUnseen.Error()+": "))
		f.Severity, f.Means = cdc.Warning, "rows are streamed, but the relay does not delete delivered ones (cleanup.every), and the table grows"
		if x.source.cfg.Kind == config.KindPolling {
			f.Severity, f.Means = cdc.Problem, "rows that the role does not see are never published"
		}
		x.add(f)
	default:
		f := parted("row_security", strings.TrimPrefix(err.Error(), ErrUnseen.Error()+": "))
		f.Severity, f.Means = cdc.Note, "the relay streams all rows, because the WAL has no policies; `walpost replay`, `walpost cleanup` and `walpost where` need a role that sees all rows"
		x.add(f)
	}
	return nil
}

// transactions reads the open transactions of all databases that have written something: each keeps WAL for the slot.
func (x *examiner) transactions(ctx context.Context) (err error) {
	x.e.Open, err = openTransactions(ctx, x.conn)
	x.e.Asked = err == nil
	return err
}

// openTransactions returns the open transactions of every database that have written something, the oldest first.
func openTransactions(ctx context.Context, conn *pgx.Conn) (open []OpenTransaction, err error) {
	rows, err := conn.Query(ctx, `
		SELECT pid, gid, database, seconds, xid::text FROM (
			SELECT pid, '' AS gid, coalesce(datname, '')::text AS database, backend_xid AS xid, coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0)::float8 AS seconds
			FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
			UNION ALL
			SELECT 0, gid, database::text, transaction, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts) t
		ORDER BY age(xid) DESC`)
	if err != nil {
		return nil, classify("look for open transactions", err)
	}
	var t OpenTransaction
	if _, err := pgx.ForEachRow(rows, []any{&t.PID, &t.Prepared, &t.Database, &t.Seconds, &t.XID}, func() error { open = append(open, t); return nil }); err != nil {
		return nil, classify("look for open transactions", err)
	}
	return open, nil
}

const (
	largestAmong  = 10_000 // rows
	largestWithin = 2 * time.Second
)

// largest looks for the largest payload among some rows, if the role may read them. A role that only relays may not.
func (x *examiner) largest(ctx context.Context) error {
	cfg := x.source.cfg
	var may bool
	var checks []string
	err := x.conn.QueryRow(ctx, `SELECT ARRAY(SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = `+oidOf("$1")+` AND contype = 'c' AND convalidated)`, TableName(cfg)).Scan(&checks)
	if err != nil {
		return classify("read the table's constraints", err)
	}
	x.e.Largest.Table = bound(checks, cfg.Columns.Payload)
	err = x.conn.QueryRow(ctx, `SELECT coalesce((SELECT has_column_privilege(c.oid, a.attnum, 'SELECT') AND has_schema_privilege(c.relnamespace, 'USAGE') AND NOT row_security_active(c.oid)
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $2 AND NOT a.attisdropped WHERE c.oid = `+oidOf("$1")+`), false)`,
		TableName(cfg), cfg.Columns.Payload).Scan(&may)
	if err != nil {
		return classify("look for the right to read rows", err)
	}
	if !may {
		return nil
	}
	if _, err := x.conn.Exec(ctx, fmt.Sprintf("SET statement_timeout = %d; SET lock_timeout = %[1]d", largestWithin.Milliseconds())); err != nil {
		return classify("set a timeout", err)
	}
	// the size as text is that of the record's value
	err = x.conn.QueryRow(ctx, fmt.Sprintf(`SELECT coalesce(max(octet_length(p::text)), 0), count(*) FROM (SELECT %s AS p FROM %s LIMIT %d) t`,
		Ident(cfg.Columns.Payload), TableName(cfg), largestAmong)).Scan(&x.e.Largest.Bytes, &x.e.Largest.Rows)
	_, reset := x.conn.Exec(ctx, "SET statement_timeout = 0; SET lock_timeout = 0")
	switch SQLState(err) {
	case pgerrcode.QueryCanceled, pgerrcode.LockNotAvailable: // large rows, or a lock: not worth more time
		return reset
	}
	if err != nil {
		return classify("look for the largest row", err)
	}
	return reset
}

// bound returns the largest payload in bytes that the table's constraints let in, as walpost's own table has one; 0 without one.
func bound(checks []string, payload string) (most int64) {
	limit := regexp.MustCompile(`octet_length\(+` + regexp.QuoteMeta(Ident(payload)) + `?\)*(?:::text)?\)* <= (\d+)`)
	plain := regexp.MustCompile(`octet_length\(+` + regexp.QuoteMeta(payload) + `\)*(?:::text)?\)* <= (\d+)`)
	for _, check := range checks {
		for _, form := range []*regexp.Regexp{limit, plain} {
			if m := form.FindStringSubmatch(check); m != nil && !strings.Contains(check, " OR ") {
				n, err := strconv.ParseInt(m[1], 10, 64)
				if err == nil && (most == 0 || n < most) {
					most = n
				}
			}
		}
	}
	return most
}

// unreadSlots returns the slots that no process reads, without the pipeline's own.
func unreadSlots(ctx context.Context, conn *pgx.Conn, own string) (unread []string, err error) {
	err = conn.QueryRow(ctx, `SELECT ARRAY(SELECT format('%s%s', slot_name, ' of database ' || database) FROM pg_replication_slots WHERE NOT active AND slot_name <> $1 ORDER BY 1)`, own).Scan(&unread)
	if err != nil {
		return nil, classify("look for slots that no process reads", err)
	}
	return unread, nil
}

// dropASlot returns how to make room for a slot.
func dropASlot(unread []string) string {
	who := "each of them is in use"
	if len(unread) > 0 {
		who = "no process reads " + some(unread) + ": drop a slot that is not needed (SELECT pg_drop_replication_slot('…'))"
	}
	return who + "; or raise max_replication_slots, and restart PostgreSQL"
}

// parted returns a problem whose sentence ends with what to do.
func parted(check, sentence string) cdc.Finding {
	found, run := cdc.Parted(sentence)
	return Problem(check, run, "%s", found)
}
