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
	batchBlocks   = 512                    // blocks of the table that one transaction reads
	lockWithin    = "2s"                   // writers wait as long as the cleanup waits for a lock
	confirmWithin = 30 * time.Second       // how long to wait until everything committed before the cleanup is confirmed
	confirmPoll   = 100 * time.Millisecond // time between two looks at the slots
)

// Cleaner deletes outbox rows that are delivered and older than the retention. A row is delivered if every slot has
// confirmed it; in a polled table the row itself says so.
type Cleaner struct {
	source *Source
	key    string // the configuration key with the URL
	conn   *pgx.Conn
	marks  *Marks
	age    Age // of a row
	days   Age // the partition key, if the table is partitioned
	tell   func(done, total int64)
}

// Marks describes the columns in which rows record that they are delivered, and when.
type Marks struct {
	Delivered string // SQL that is true for a delivered row
	Column    string // the time of delivery
	Key       string // the configuration key that names the column
}

// CleanerOptions says which role cleans up, and how it knows delivered rows.
type CleanerOptions struct {
	Key, URL string // the URL, and the configuration key that has it
	Marks    *Marks // nil: a row is delivered if every slot has confirmed it
	// Progress is called with the blocks of a table that are read, and the number of its blocks. It may be nil.
	Progress func(done, total int64)
}

// Cleaner connects as a role that may delete from the outbox or, if it is partitioned, owns it.
func (s *Source) Cleaner(ctx context.Context, o CleanerOptions) (*Cleaner, error) {
	conn, err := s.connectAs(ctx, o.Key, o.URL, "walpost cleanup")
	if err != nil {
		return nil, err
	}
	c := &Cleaner{source: s, key: o.Key, conn: conn, marks: o.Marks, tell: o.Progress}
	if c.tell == nil {
		c.tell = func(int64, int64) {}
	}
	if err := c.prepare(ctx); err != nil {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("nothing was deleted: %w", err)
	}
	return c, nil
}

// prepare returns an error for a table that could not be cleaned up correctly.
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

// horizon describes which rows are old enough, and which are delivered.
//
// For the WAL it is one moment in both of PostgreSQL's counts. A transaction writes its commit record before other
// transactions see it as ended. So the commits of all transactions before xid are in the WAL before lsn, and their
// rows are confirmed once lsn is confirmed. A row's xmin shows on which side it is, regardless of its created_at.
// Both ages count from the same transaction, modulo 2^32: a row that is too old to be decided is kept.
type horizon struct {
	retention time.Duration
	before    time.Time // by the server's clock
	lsn       cdc.LSN   // must be confirmed before anything is deleted
	old       string    // SQL that is true for a row older than the retention
	delivered string    // SQL that is true for a delivered row, once lsn is confirmed
}

func (c *Cleaner) horizon(ctx context.Context, retention time.Duration) (h horizon, err error) {
	var xid string // xid8: no earlier transaction is running or prepared
	// The snapshot is from the statement's begin; the end of the WAL is read after it.
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

// aged returns the column that shows how old a row is.
func (c *Cleaner) aged(ctx context.Context) (name string, err error) {
	cfg := c.source.cfg
	key := "source.columns.created_at"
	if c.marks == nil {
		if name, err = c.source.written(ctx, c.conn); err == nil && name == "" {
			err = fmt.Errorf("%s has no column that shows how old a row is: name it in %s", cfg.Table, key)
		}
		return name, err
	}
	key, name = c.marks.Key, c.marks.Column
	types, err := c.source.columnTypes(ctx, c.conn)
	if err != nil {
		return "", err
	}
	if types[name] == "" {
		return "", fmt.Errorf("%s has no column %q, which should show how old a row is: name it in %s", cfg.Table, name, key)
	}
	return name, nil
}

// behind returns the slot that has not confirmed the horizon yet, as an error, and whether waiting can help (a relay
// reads the slot). Every pgoutput slot of the database counts, because a slot does not record which table it serves,
// and a relay whose slot is lost can only replay the rows that the table still has.
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
		return fmt.Errorf("nothing was deleted: slot %q does not exist, so it is not known which rows were delivered: `walpost status` shows what is wrong", own), false, nil
	case err != nil:
		return nil, false, classify("look at the slots", err)
	case confirmed >= h.lsn:
		return nil, false, nil
	case ours:
		return fmt.Errorf("nothing was deleted: the relay lags, perhaps by more than the retention of %s: slot %q has confirmed %s, the table may hold rows committed up to %s: `walpost status` shows what blocks it", h.retention, slot, confirmed, h.lsn), active, nil
	}
	return fmt.Errorf("nothing was deleted: another relay's slot %q of this database has confirmed %s, the table may hold rows committed up to %s that it has not read: start its relay, or drop the slot if that relay no longer exists", slot, confirmed, h.lsn), active, nil
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

// Cleaned counts what one cleanup deleted, or would delete.
type Cleaned struct {
	Rows    int64
	Dropped []string // partitions
	Made    []string // partitions
	// Kept lists partitions older than the retention that were kept, because they were busy or have rows of
	// transactions that are not known to be confirmed.
	Kept []string
}

// Clean deletes rows older than the retention, once every slot has confirmed everything that was committed when it
// began. In a partitioned table it drops the partitions whose rows are all old and delivered, deletes from the
// default partition, and creates the partitions of the coming days.
func (c *Cleaner) Clean(ctx context.Context, retention time.Duration, dryRun bool) (done Cleaned, err error) {
	parts, partitioned, err := c.partitions(ctx)
	if err != nil {
		return done, err
	}
	if partitioned {
		// Do this first: a day without a partition must not wait for a slot.
		if done.Made, err = c.ahead(ctx, parts, dryRun); err != nil {
			return done, err
		}
	}
	h, err := c.horizon(ctx, retention)
	if err != nil {
		return done, err
	}
	if c.marks == nil {
		// WAL that is written and not flushed may stay in the server's buffers for many seconds, where no relay sees
		// it: a commit flushes it.
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
		case p.to.IsZero(): // not a partition of a range of time
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

// remove deletes from a table and from all tables below it: partitions of a partition, and children by inheritance,
// which a polled table may have.
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

// removeFrom reads one table once, batchBlocks in a transaction, and needs no index. Between two transactions it
// rests for as long as the last one took.
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
		c.tell(min(at+batchBlocks, blocks), blocks)
		select {
		case <-time.After(time.Since(began)):
		case <-ctx.Done():
			return n, context.Cause(ctx)
		}
	}
	return n, nil
}

// failed returns the error with the missing right.
func (c *Cleaner) failed(ctx context.Context, doing string, err error) error {
	pg := (*pgconn.PgError)(nil)
	if !errors.As(err, &pg) || pg.Code != pgerrcode.InsufficientPrivilege || unseen(doing, err) != nil {
		return classify(doing, err)
	}
	lacks := c.source.lacking(ctx, c.conn, err, deleting(c.source.cfg)...)
	if lacks == "" {
		lacks = "of a partitioned table only the owner may"
	}
	return fmt.Errorf("%s: PostgreSQL says %s: the role of %s lacks the right: %s: if cleanup.every is set, `walpost init` gives the relay's role the rights on a plain table; or name the owner in cleanup.url, or in `walpost cleanup --admin-url`", doing, pg.Message, c.key, lacks)
}

// partition is a partition of the outbox, which is partitioned by range of created_at.
type partition struct {
	name      string // quoted
	byDefault bool
	from, to  time.Time // local times in the column's zone; zero if there is no bound, or it is no time
	until     time.Time // the instant of to
}

// partitions returns the partitions directly below the root.
func (c *Cleaner) partitions(ctx context.Context) (parts []partition, partitioned bool, err error) {
	table := TableName(c.source.cfg)
	if err := c.conn.QueryRow(ctx, `SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)`, table).Scan(&partitioned); err != nil || !partitioned {
		return nil, false, err
	}
	bound := func(which string) string {
		return `CASE WHEN pg_get_expr(c.relpartbound, c.oid) ~ '` + which + ` \(''[0-9]{4}-' THEN (regexp_match(pg_get_expr(c.relpartbound, c.oid), '` + which + ` \(''([^'']+)''\)'))[1]::timestamptz END`
	}
	// A bound without a zone is read as UTC, so it has the local time of its zone.
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

// ahead creates the partitions of today and the coming days, if the table already has partitions of a day, or none.
// Attaching a partition does not stop writers. A day whose rows are already in the default partition stays there.
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
			return nil, nil // the partitions follow another scheme
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
	ctx, cancel := patient(ctx) // attaching a partition scans the default one
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

// drop drops a partition if every row in it is delivered. It checks under a lock that keeps writers out, so every
// writer has ended. If it does not get the lock soon, it leaves the partition for the next cleanup.
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
