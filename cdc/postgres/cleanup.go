package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc"
)

const (
	batchBlocks   = 512                    // of the table, looked through in one transaction
	lockWithin    = "2s"                   // writers wait behind who waits for a lock
	confirmWithin = 30 * time.Second       // what was committed when the cleanup began
	confirmPoll   = 100 * time.Millisecond // between two looks at the slots
)

// Cleaner takes rows out of the outbox that are delivered and older than the retention. What is delivered every slot has
// confirmed; in a polled table the row says so.
type Cleaner struct {
	source *Source
	key    string // holds the URL
	conn   *pgx.Conn
	marks  *Marks
	age    Age // of a row
	days   Age // what the table is partitioned by, where it is
}

// Marks is how rows themselves say that they are delivered, and since when.
type Marks struct {
	Delivered string // SQL that is true for a row that is
	Column    string // of the time
	Key       string // that names the column
}

// CleanerOptions is who cleans up, and by what.
type CleanerOptions struct {
	Key, URL string // the URL, and what holds it
	Marks    *Marks // nil: what every slot has confirmed is delivered
}

// Cleaner connects as somebody who may delete from the outbox or, where it is partitioned, owns it.
func (s *Source) Cleaner(ctx context.Context, o CleanerOptions) (*Cleaner, error) {
	conn, err := s.connectAs(ctx, o.Key, o.URL, "walpost cleanup")
	if err != nil {
		return nil, err
	}
	c := &Cleaner{source: s, key: o.Key, conn: conn, marks: o.Marks}
	if err := c.prepare(ctx); err != nil {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("nothing was deleted: %w", err)
	}
	return c, nil
}

// prepare refuses what could not be cleaned up rightly.
func (c *Cleaner) prepare(ctx context.Context) error {
	if err := c.source.seesAll(ctx, c.conn, true); err != nil {
		return err
	}
	name, err := c.aged(ctx)
	if err != nil {
		return err
	}
	if c.age, err = c.source.Age(ctx, c.conn, name); err != nil {
		return err
	}
	var by *string
	err = c.conn.QueryRow(ctx, `
		SELECT (SELECT a.attname::text FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
		        WHERE p.partrelid = to_regclass($1) AND p.partstrat = 'r')`, TableName(c.source.cfg)).Scan(&by)
	if err != nil {
		return c.failed(ctx, "read the table's partitioning", err)
	}
	if by != nil {
		if c.days, err = c.source.Age(ctx, c.conn, *by); err != nil {
			return err
		}
	}
	if _, err := c.conn.Exec(ctx, `SET synchronous_commit = local; SET lock_timeout = '`+lockWithin+`'`); err != nil {
		return classify("prepare to clean up", err)
	}
	return nil
}

// Close ends the connection.
func (c *Cleaner) Close(ctx context.Context) { _ = c.conn.Close(ctx) }

// horizon is what is old enough, and what is delivered.
//
// For the WAL it is a moment in both of PostgreSQL's counts. A transaction writes its commit record before it is seen as ended, so
// the commits of all transactions before xid stand in the WAL before lsn: what they wrote is confirmed once lsn is. A row says by
// its xmin which side it is on, whatever its created_at says. Both ages count from the same transaction, modulo 2^32: a row that
// is too old to be told is kept.
type horizon struct {
	retention time.Duration
	before    time.Time // by the server's clock
	lsn       cdc.LSN   // to be confirmed before anything is deleted
	old       string    // SQL for a row that is older than the retention
	delivered string    // SQL for a row that is delivered, once lsn is confirmed
}

func (c *Cleaner) horizon(ctx context.Context, retention time.Duration) (h horizon, err error) {
	var xid string // xid8: no transaction before it is running, nor prepared
	// The snapshot is of the statement's begin, the end of the WAL is read after it.
	err = c.conn.QueryRow(ctx, `SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_current_wal_insert_lsn(), clock_timestamp()`).Scan(&xid, &h.lsn, &h.before)
	if err != nil {
		return h, classify("ask for the oldest running transaction", err)
	}
	h.retention, h.before = retention, h.before.Add(-retention)
	h.old = fmt.Sprintf("%s < '%s'::timestamptz", c.age.last(), text(h.before))
	h.delivered = fmt.Sprintf("age(xmin) > age('%s'::xid8::xid)", xid)
	if c.marks != nil {
		h.delivered = c.marks.Delivered
	}
	return h, nil
}

// aged is the column that says how old a row is.
func (c *Cleaner) aged(ctx context.Context) (name string, err error) {
	cfg := c.source.cfg
	key := "source.columns.created_at"
	if c.marks == nil {
		if name, err = c.source.written(ctx, c.conn); err == nil && name == "" {
			err = fmt.Errorf("%s has no column that says how old a row is: name it in %s", cfg.Table, key)
		}
		return name, err
	}
	key, name = c.marks.Key, c.marks.Column
	types, err := c.source.columnTypes(ctx, c.conn)
	if err != nil {
		return "", err
	}
	if types[name] == "" {
		return "", fmt.Errorf("%s has no column %q, which says how old a row is: name it in %s", cfg.Table, name, key)
	}
	return name, nil
}

// behind says why rows of before the horizon may not all be deleted: a slot that has not confirmed it. Waiting helps while
// somebody reads the slot. Every slot of pgoutput in the database counts: which table it is for stands nowhere, and a relay
// whose slot is lost can replay only what the table still holds.
func (c *Cleaner) behind(ctx context.Context, h horizon) (why error, wait bool, err error) {
	own := c.source.cfg.Slot
	var slot string
	var confirmed cdc.LSN
	var active, ours bool
	err = c.conn.QueryRow(ctx, `
		SELECT s.slot_name, coalesce(s.confirmed_flush_lsn, '0/0'), s.active, s.slot_name = $2
		FROM pg_replication_slots s
		WHERE s.database = current_database() AND s.plugin = 'pgoutput' AND NOT s.temporary
		  AND (s.slot_name = $2 OR coalesce(s.confirmed_flush_lsn, '0/0') < $1::text::pg_lsn)
		ORDER BY coalesce(s.confirmed_flush_lsn, '0/0') < $1::text::pg_lsn DESC, s.slot_name = $2 DESC LIMIT 1`, h.lsn.String(), own,
	).Scan(&slot, &confirmed, &active, &ours)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("nothing was deleted: slot %q does not exist, so nobody knows what was delivered: `walpost status` says what is wrong", own), false, nil
	case err != nil:
		return nil, false, classify("look at the slots", err)
	case confirmed >= h.lsn:
		return nil, false, nil
	case ours:
		return fmt.Errorf("nothing was deleted: the relay lags, perhaps by more than the retention of %s: slot %q has confirmed %s, the table may hold rows committed up to %s: `walpost status` says what blocks", h.retention, slot, confirmed, h.lsn), active, nil
	}
	return fmt.Errorf("nothing was deleted: another relay's slot %q of this database has confirmed %s, the table may hold rows committed up to %s that it has not read: start its relay, or drop the slot if there is none any more", slot, confirmed, h.lsn), active, nil
}

// await waits until every slot has confirmed the horizon.
func (c *Cleaner) await(ctx context.Context, h horizon) error {
	for deadline := time.Now().Add(confirmWithin); ; {
		why, wait, err := c.behind(ctx, h)
		switch {
		case err != nil:
			return err
		case why == nil:
			return nil
		case !wait || time.Now().After(deadline):
			return why
		}
		select {
		case <-time.After(confirmPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Cleaned is what one cleanup took out, or would.
type Cleaned struct {
	Rows    int64
	Dropped []string // partitions
	Made    []string // partitions
	// Kept are partitions older than the retention that still hold rows of transactions that are not known to be confirmed, or that were busy.
	Kept []string
}

// Clean deletes what is older than the retention, once every slot has confirmed all that was committed when it began. Of a
// partitioned table it drops the partitions of which that holds for all rows, deletes from the default one, and makes
// those of the days to come.
func (c *Cleaner) Clean(ctx context.Context, retention time.Duration, dryRun bool) (done Cleaned, err error) {
	parts, partitioned, err := c.partitions(ctx)
	if err != nil {
		return done, err
	}
	if partitioned {
		// First: a day without a partition must not wait for a slot.
		if done.Made, err = c.ahead(ctx, parts, dryRun); err != nil {
			return done, err
		}
	}
	h, err := c.horizon(ctx, retention)
	if err != nil {
		return done, err
	}
	if c.marks == nil {
		// What is written and not committed may lie in the server's buffers for many seconds, unseen by any relay: a commit flushes it.
		if _, err := c.conn.Exec(ctx, `SELECT pg_logical_emit_message(true, 'walpost cleanup', '')`); err != nil {
			return done, classify("flush the WAL", err)
		}
		if err := c.await(ctx, h); err != nil {
			return done, err
		}
	}
	if !partitioned {
		parts = []partition{{name: TableName(c.source.cfg)}}
	}
	for _, p := range parts {
		switch {
		case p.to.IsZero(): // no partition of a time
			n, err := c.remove(ctx, p.name, h, dryRun)
			done.Rows += n
			if err != nil {
				return done, err
			}
		case !p.until.After(h.before):
			dropped, err := c.drop(ctx, p, h, dryRun)
			if err != nil {
				return done, err
			}
			if dropped {
				done.Dropped = append(done.Dropped, p.name)
			} else {
				done.Kept = append(done.Kept, p.name)
			}
		}
	}
	return done, nil
}

// remove deletes from a table and from all that is below it: partitions of a partition, and children by inheritance, which a polled
// table may have.
func (c *Cleaner) remove(ctx context.Context, table string, h horizon, dryRun bool) (n int64, err error) {
	rows, err := c.conn.Query(ctx, family("to_regclass($1)::oid")+` SELECT name FROM member WHERE relkind = 'r' ORDER BY name`, table)
	if err != nil {
		return 0, classify("look for partitions", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, classify("look for partitions", err)
	}
	for _, table := range tables {
		of, err := c.removeFrom(ctx, table, h, dryRun)
		if n += of; err != nil {
			return n, err
		}
	}
	return n, nil
}

// removeFrom goes once through one table, batchBlocks in a transaction, and needs no index. Between two it rests for as long as one took.
func (c *Cleaner) removeFrom(ctx context.Context, table string, h horizon, dryRun bool) (n int64, err error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	where := h.old + " AND " + h.delivered
	if dryRun {
		if err := c.conn.QueryRow(ctx, fmt.Sprintf("SELECT count(*) FROM ONLY %s WHERE %s", table, where)).Scan(&n); err != nil {
			return 0, c.failed(ctx, "count what can be deleted", err)
		}
		return n, nil
	}
	var blocks int64
	if err := c.conn.QueryRow(ctx, `SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::int`, table).Scan(&blocks); err != nil {
		return 0, c.failed(ctx, "ask for the table's size", err)
	}
	for at := int64(0); at < blocks; at += batchBlocks {
		began := time.Now()
		tag, err := c.conn.Exec(ctx, fmt.Sprintf("DELETE FROM ONLY %s WHERE ctid >= '(%d,0)' AND ctid < '(%d,0)' AND %s", table, at, at+batchBlocks, where))
		if err != nil {
			return n, c.failed(ctx, "delete from the outbox", err)
		}
		n += tag.RowsAffected()
		select {
		case <-time.After(time.Since(began)):
		case <-ctx.Done():
			return n, context.Cause(ctx)
		}
	}
	return n, nil
}

// failed names the right that is missing.
func (c *Cleaner) failed(ctx context.Context, doing string, err error) error {
	pg := (*pgconn.PgError)(nil)
	if !errors.As(err, &pg) || pg.Code != pgerrcode.InsufficientPrivilege || unseen(doing, err) != nil {
		return classify(doing, err)
	}
	lacks := c.source.lacking(ctx, c.conn, err, deleting(c.source.cfg)...)
	if lacks == "" {
		lacks = "of a partitioned table only the owner may"
	}
	return fmt.Errorf("%s: PostgreSQL says %s: the role of %s has not the right: %s: `walpost init` gives the relay's role what a plain table needs, where cleanup.every is set; or name the owner in cleanup.url, or in `walpost cleanup --admin-url`", doing, pg.Message, c.key, lacks)
}

// partition is one of the outbox, which is partitioned by range of created_at.
type partition struct {
	name      string // quoted
	byDefault bool
	from, to  time.Time // as a clock in the column's zone shows them; zero where there is no bound, or it is no time
	until     time.Time // the instant that to is
}

// partitions are those right below the root.
func (c *Cleaner) partitions(ctx context.Context) (parts []partition, partitioned bool, err error) {
	table := TableName(c.source.cfg)
	if err := c.conn.QueryRow(ctx, `SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)`, table).Scan(&partitioned); err != nil || !partitioned {
		return nil, false, err
	}
	bound := func(which string) string {
		return `CASE WHEN pg_get_expr(c.relpartbound, c.oid) ~ '` + which + ` \(''[0-9]{4}-' THEN (regexp_match(pg_get_expr(c.relpartbound, c.oid), '` + which + ` \(''([^'']+)''\)'))[1]::timestamptz END`
	}
	// A bound without a zone is read as UTC: so it shows what the clock of its zone shows.
	until := bound("TO")
	if c.days.zone != "" {
		until = "(" + until + " AT TIME ZONE 'UTC' AT TIME ZONE " + c.days.zone + ")"
	}
	rows, err := c.conn.Query(ctx, `
		SELECT c.oid::regclass::text, pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT', `+bound("FROM")+`, `+bound("TO")+`, `+until+`
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = to_regclass($1) AND c.relkind IN ('r', 'p') ORDER BY 4, 1`, table)
	if err != nil {
		return nil, true, classify("look for the partitions", err)
	}
	parts, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (p partition, err error) {
		var from, to, until *time.Time
		err = r.Scan(&p.name, &p.byDefault, &from, &to, &until)
		if from != nil && to != nil {
			p.from, p.to, p.until = *from, *to, *until
		}
		return p, err
	})
	if err != nil {
		return nil, true, classify("look for the partitions", err)
	}
	return parts, true, nil
}

// ahead makes the partitions of today and the days to come, if there are any of a day, or none. Attaching one does not stop
// writers. A day of which rows stand in the default partition already stays there.
func (c *Cleaner) ahead(ctx context.Context, parts []partition, dryRun bool) (made []string, err error) {
	var now time.Time
	clock := "clock_timestamp()"
	if c.days.zone != "" {
		clock += " AT TIME ZONE " + c.days.zone
	}
	if err := c.conn.QueryRow(ctx, `SELECT `+clock).Scan(&now); err != nil {
		return nil, classify("ask for the time", err)
	}
	for _, p := range parts {
		if !p.byDefault && p.to.Sub(p.from) != 24*time.Hour {
			return nil, nil // somebody else's scheme
		}
	}
days:
	for _, day := range days(now) {
		for _, p := range parts {
			if p.from.Equal(day) {
				continue days
			}
		}
		name, sql := partitionDDL(c.source.cfg, day)
		if !dryRun {
			if err := c.all(ctx, sql); err != nil {
				if SQLState(err) == pgerrcode.CheckViolation {
					continue
				}
				return made, c.failed(ctx, "make partition "+name, err)
			}
		}
		made = append(made, name)
	}
	return made, nil
}

// all runs statements in one transaction.
func (c *Cleaner) all(ctx context.Context, sql []string) error {
	ctx, cancel := patient(ctx) // attaching a partition looks through the default one
	defer cancel()
	return pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		for _, s := range sql {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// drop takes a partition away if every row in it is delivered. It looks under a lock that keeps
// writers out: who has written into it has ended. A lock that does not come soon leaves it for the next time.
func (c *Cleaner) drop(ctx context.Context, p partition, h horizon, dryRun bool) (dropped bool, err error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		if !dryRun {
			if _, err := tx.Exec(ctx, "LOCK TABLE "+p.name+" IN SHARE MODE"); err != nil {
				return err
			}
		}
		var open bool
		if err := tx.QueryRow(ctx, fmt.Sprintf("SELECT EXISTS (SELECT FROM %s WHERE (%s) IS NOT TRUE)", p.name, h.delivered)).Scan(&open); err != nil || open {
			return err
		}
		dropped = true
		if dryRun {
			return nil
		}
		_, err := tx.Exec(ctx, "DROP TABLE "+p.name)
		return err
	})
	switch SQLState(err) {
	case pgerrcode.LockNotAvailable, pgerrcode.DeadlockDetected:
		return false, nil
	}
	if err != nil {
		return false, c.failed(ctx, "drop partition "+p.name, err)
	}
	return dropped, nil
}
