package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/internal/failpoint"
)

const (
	countWithin   = 30 * time.Second
	advanceWithin = 10 * time.Minute // PostgreSQL decodes everything that it passes
	countLimit    = 1_000_000        // changes
)

// Operator returns an Admin with the relay's own rights, which are enough for the slot.
func (s *Source) Operator(ctx context.Context) (*Admin, error) {
	conn, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	// A role that a login assumes (ALTER ROLE … SET role) is for tables, and may not replicate.
	if _, err := conn.Exec(ctx, "SET ROLE NONE"); err != nil {
		_ = conn.Close(ctx)
		return nil, classify("take the relay's own rights", err)
	}
	return &Admin{source: s, conn: conn}, nil
}

// CreateSlotSQL returns the SQL that creates the slot. From 17 on PostgreSQL can keep the slot on standbys too, so
// that it survives a failover.
func (a *Admin) CreateSlotSQL() string {
	failover := ""
	if a.version() >= 17 {
		failover = ", failover => true"
	}
	return fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput'%s)", a.source.cfg.Slot, failover)
}

// replicating returns an Admin that may create and drop slots: this one, or one with the relay's own role.
func (a *Admin) replicating(ctx context.Context) (_ *Admin, done func(), err error) {
	g, err := readGuard(ctx, a.conn)
	if err != nil || g.mayReplicate {
		return a, func() {}, err
	}
	own, err := a.source.Operator(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("role %s of %s may not create or drop slots, and the relay's role, which may, cannot connect: %w", g.me, adminURL, err)
	}
	return own, func() { own.Close(ctx) }, nil
}

// CreateSlot creates the slot. PostgreSQL first waits for the transactions that are running; after a minute
// CreateSlot stops waiting.
func (a *Admin) CreateSlot(ctx context.Context) error { return a.createSlot(ctx, time.Minute) }

func (a *Admin) createSlot(ctx context.Context, within time.Duration) error {
	ctx, cancel := patient(ctx)
	defer cancel()
	a, done, err := a.replicating(ctx)
	if err != nil {
		return err
	}
	defer done()
	// PostgreSQL waits for a transaction by its lock.
	if _, err := a.conn.Exec(ctx, fmt.Sprintf(`SET statement_timeout = %d; SET lock_timeout = 0`, within.Milliseconds())); err != nil {
		return classify("set a timeout", err)
	}
	_, err = a.conn.Exec(ctx, a.CreateSlotSQL())
	if _, rerr := a.conn.Exec(ctx, "SET statement_timeout = 0; SET lock_timeout = '"+lockedAfter+"'"); err == nil && rerr != nil {
		return classify("set a timeout", rerr)
	}
	switch SQLState(err) {
	case pgerrcode.QueryCanceled:
		return a.slotWaited(ctx, within)
	case pgerrcode.ConfigurationLimitExceeded:
		return a.slotsUsedUp(ctx, err)
	}
	if err != nil {
		return classify("create the slot", err)
	}
	return failpoint.Hit("init_slot")
}

// slotWaited returns an error with the transactions whose end a new slot waits for: the open ones of every database
// that have written something.
func (a *Admin) slotWaited(ctx context.Context, within time.Duration) error {
	all, err := openTransactions(ctx, a.conn)
	if err != nil {
		return err
	}
	var open []string
	for _, t := range all[:min(len(all), 3)] {
		open = append(open, fmt.Sprintf("%s, of database %s (there: %s)", t, t.Database, t.End()))
	}
	if len(open) == 0 {
		open = []string{"they have ended meanwhile"}
	}
	return fmt.Errorf("create the slot: PostgreSQL first waits for the end of earlier transactions, and %s was not enough: %s: end those that were forgotten, and run the command again; no slot was created", within, strings.Join(open, "; "))
}

// slotsUsedUp returns an error with the slots that no process reads.
func (a *Admin) slotsUsedUp(ctx context.Context, full error) error {
	var most string
	err := a.conn.QueryRow(ctx, `SELECT current_setting('max_replication_slots')`).Scan(&most)
	unread, unseen := unreadSlots(ctx, a.conn, a.source.cfg.Slot)
	if errors.Join(err, unseen) != nil {
		return classify("create the slot", full)
	}
	return fmt.Errorf("create the slot: all %s that max_replication_slots allows are in use: %s; then run the command again", most, dropASlot(unread))
}

// DropSlot removes the slot, if it exists and no process reads it.
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

// writers is SQL for the open transactions of this database that have written something. Every role sees pid and
// backend_xid of all sessions. An autovacuum worker has no user, and writes no rows.
const writers = `
	SELECT backend_xid::text AS xid, pid, '' AS gid, coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0)::float8 AS seconds
	FROM pg_stat_activity
	WHERE datname = current_database() AND backend_xid IS NOT NULL AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
	UNION ALL
	SELECT transaction::text, 0, gid, extract(epoch FROM clock_timestamp() - prepared)::float8
	FROM pg_prepared_xacts WHERE database = current_database()`

// Writers returns the open transactions of this database that have written something, prepared ones too, by their
// ids.
func (a *Admin) Writers(ctx context.Context) (map[string]cdc.Transaction, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	rows, err := a.conn.Query(ctx, writers)
	if err != nil {
		return nil, classify("look for open transactions", err)
	}
	all := map[string]cdc.Transaction{}
	var xid string
	var t cdc.Transaction
	_, err = pgx.ForEachRow(rows, []any{&xid, &t.PID, &t.Prepared, &t.Seconds}, func() error { all[xid] = t; return nil })
	if err != nil {
		return nil, classify("look for open transactions", err)
	}
	return all, nil
}

// Advance moves the slot to an LSN that the server has reached. It runs no output plugin, so it passes changes that
// cannot be decoded. From 17 on the server waits in it for the standbys of synchronized_standby_slots; the limit ends
// that.
func (a *Admin) Advance(ctx context.Context, to cdc.LSN) error {
	ctx, cancel := context.WithTimeout(ctx, advanceWithin)
	defer cancel()
	if _, err := a.conn.Exec(ctx, `SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)`, a.source.cfg.Slot, to.String()); err != nil {
		return classify("advance the slot", err)
	}
	return nil
}

// Waiting counts what the slot keeps for the outbox: transactions committed at or after from and before to, and their
// rows. It does not move the slot.
func (a *Admin) Waiting(ctx context.Context, from, to cdc.LSN) (transactions, rows int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, countWithin)
	defer cancel()
	// Use a separate connection that may be lost at the limit. Rows are counted without decoding their text: some of
	// the skipped ones may not be text in UTF-8.
	conn, err := a.source.Open(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "SET client_encoding = 'SQL_ASCII'"); err != nil {
		return 0, 0, classify("set the encoding", err)
	}
	// A Begin has the start of the commit record, an Insert the table's OID.
	err = conn.QueryRow(ctx, `
		WITH m AS MATERIALIZED (
			SELECT xid::text AS xid, data FROM pg_logical_slot_peek_binary_changes($1, $2::text::pg_lsn, $3, 'proto_version', '1', 'publication_names', $4)
		), tx AS (
			SELECT xid, ('x' || encode(substring(data FROM 2 FOR 8), 'hex'))::bit(64)::bigint AS commit FROM m WHERE get_byte(data, 0) = ascii('B')
		)
		SELECT count(DISTINCT xid), count(*) FROM m JOIN tx USING (xid)
		WHERE get_byte(data, 0) = ascii('I') AND substring(data FROM 2 FOR 4) = oidsend(`+oidOf("$5")+`) AND commit >= $6 AND commit < $7`,
		a.source.cfg.Slot, to.String(), countLimit, Ident(a.source.cfg.Publication), TableName(a.source.cfg), int64(from), int64(to),
	).Scan(&transactions, &rows)
	if err != nil {
		return 0, 0, fmt.Errorf("count what waits in the slot: %w", err)
	}
	return transactions, rows, nil
}

// EachWaiting calls f with the id of each row of the outbox that waits in the slot. It does not move the slot.
func (a *Admin) EachWaiting(ctx context.Context, f func(id string)) error {
	const doing = "look into the slot"
	ctx, cancel := context.WithTimeout(ctx, advanceWithin)
	defer cancel()
	conn, err := a.source.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var table *uint32
	if err := conn.QueryRow(ctx, "SELECT "+oidOf("$1"), TableName(a.source.cfg)).Scan(&table); err != nil || table == nil {
		return classify(doing, err)
	}
	d := newDecoder(a.source.cfg, *table)
	rows, err := conn.Query(ctx, `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', $2)`,
		a.source.cfg.Slot, Ident(a.source.cfg.Publication))
	if err == nil {
		var data []byte
		_, err = pgx.ForEachRow(rows, []any{&data}, func() error {
			var m cdc.Message
			if err := d.message(data, &m); err != nil {
				return err
			}
			if m.Kind == cdc.Insert {
				f(string(m.Row.ID))
			}
			return nil
		})
	}
	if err != nil {
		return classify(doing, err)
	}
	return nil
}

// Undecodable returns LSNs before and after the begin of the commit record of the next transaction in the slot that
// PostgreSQL cannot decode: skipping to the second steps over that transaction, and over no later one. It does not
// move the slot: it lets the server decode up to one LSN after another, until it knows at which record decoding
// fails. Everything before from can be decoded.
func (a *Admin) Undecodable(ctx context.Context, from, end cdc.LSN) (before, past cdc.LSN, err error) {
	options := []any{a.source.cfg.Slot, Ident(a.source.cfg.Publication)}
	fails := func(upTo cdc.LSN) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, advanceWithin)
		defer cancel()
		var n int64
		err := a.conn.QueryRow(ctx, `SELECT count(*) FROM pg_logical_slot_peek_binary_changes($1, $3::text::pg_lsn, NULL, 'proto_version', '1', 'publication_names', $2)`,
			append(options, upTo.String())...).Scan(&n)
		if err == nil {
			return false, nil
		}
		err = classify("decode what waits in the slot", err)
		return errors.As(err, new(*cdc.UndecodableError)), err
	}
	if undecodable, err := fails(end); !undecodable {
		if err == nil {
			err = errors.New("PostgreSQL can decode everything that waits in the slot: there is no transaction to skip; name an LSN")
		}
		return 0, 0, err
	}
	// Records begin at multiples of eight. The server reads the next record as long as the last one ends before upTo.
	low, high := from/recordAlign, end/recordAlign+1
	for low+1 < high {
		middle := (low + high) / 2
		switch undecodable, err := fails(middle * recordAlign); {
		case undecodable:
			high = middle
		case err != nil:
			return 0, 0, err
		default:
			low = middle
		}
	}
	past = (low + 1) * recordAlign // after the begin of the commit record, unless that is after a page's header
	if low*recordAlign%walPage == 0 {
		past += pageHeader
	}
	return low * recordAlign, past, nil
}

const (
	recordAlign = 8
	walPage     = 8192
	pageHeader  = 40 // the longer header, of a segment's first page; a commit record is longer than the difference
)
