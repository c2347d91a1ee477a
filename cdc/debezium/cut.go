package debezium

import (
	"bytes"
	"context"
	bigendian "encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/internal/failpoint"
	"github.com/walpost/walpost/cdc/postgres"
)

// peekWithin is the limit for a look into a slot: PostgreSQL decodes everything that the slot keeps.
const peekWithin = 10 * time.Minute

// slotSeen is a replication slot as the catalog shows it.
type slotSeen struct {
	name      string
	exists    bool
	kind      string // logical, physical
	plugin    string
	database  string
	here      bool // it belongs to the database of this connection
	active    bool
	pid       uint32
	confirmed cdc.LSN
	lost      string // why it can never be read again; empty if it can
}

// readSlot reads a slot of the server.
func readSlot(ctx context.Context, conn *pgx.Conn, name string) (s slotSeen, err error) {
	s.name = name
	var status, reason string
	err = conn.QueryRow(ctx, `
		SELECT slot_type, coalesce(plugin, '')::text, coalesce(database, '')::text, database IS NOT DISTINCT FROM current_database(), active, coalesce(active_pid, 0),
		       coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(wal_status, ''), coalesce(to_jsonb(s) ->> 'invalidation_reason', '')
		FROM pg_replication_slots s WHERE slot_name = $1`, name).
		Scan(&s.kind, &s.plugin, &s.database, &s.here, &s.active, &s.pid, &s.confirmed, &status, &reason)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return s, nil
	case err != nil:
		return s, fmt.Errorf("look at slot %s: %w", name, err)
	}
	s.exists = true
	if status == "lost" || reason != "" {
		s.lost = strings.Join(slices.DeleteFunc([]string{"wal_status " + status, reason}, func(t string) bool { return t == "" }), ", ")
	}
	return s, nil
}

// readable returns an error if pgoutput cannot read the slot in this database.
func (s *slotSeen) readable() error {
	switch {
	case !s.exists:
		return fmt.Errorf("slot %s does not exist: name the connector's slot (slot.name; %s is the default), or the server that it is on", s.name, defaultSlotName)
	case s.kind != "logical" || s.plugin != "pgoutput":
		what := s.plugin
		if s.kind != "logical" {
			what = s.kind
		}
		return fmt.Errorf("slot %s is a slot of %s, and walpost reads pgoutput: set plugin.name to pgoutput in the connector, with another slot.name, let it run, and run this again", s.name, what)
	case !s.here:
		return fmt.Errorf("slot %s belongs to database %s: name that database in source.url", s.name, s.database)
	case s.lost != "":
		return fmt.Errorf("slot %s is lost (%s): the server no longer has the rows after %s: the connector cannot go on either; begin with `walpost init`, and `walpost replay` publishes rows that are still in the table", s.name, s.lost, s.confirmed)
	}
	return nil
}

// publicationSeen is a publication as the catalog shows it.
type publicationSeen struct {
	name    string
	exists  bool
	all     bool     // FOR ALL TABLES
	schemas []string // FOR TABLES IN SCHEMA
	tables  []string // that it names
	outbox  bool     // it names the outbox
	carries bool     // it carries the outbox, by name or otherwise
	filter  bool     // it has a row filter for the outbox
	owner   string
	ours    bool // the connection's role may alter it
}

// readPublication reads a publication of the database.
func readPublication(ctx context.Context, conn *pgx.Conn, name string, table uint32) (p publicationSeen, err error) {
	p.name = name
	schemas := `'{}'::text[]`
	if postgres.Major(conn) >= 15 {
		schemas = `ARRAY(SELECT n.nspname::text FROM pg_publication_namespace x JOIN pg_namespace n ON n.oid = x.pnnspid WHERE x.pnpubid = p.oid ORDER BY 1)`
	}
	err = conn.QueryRow(ctx, `
		SELECT p.puballtables, `+schemas+`, ARRAY(SELECT prrelid::regclass::text FROM pg_publication_rel WHERE prpubid = p.oid ORDER BY 1),
		       EXISTS (SELECT FROM pg_publication_rel WHERE prpubid = p.oid AND prrelid = $2),
		       EXISTS (SELECT FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
		               WHERE t.pubname = p.pubname AND (c.oid = $2 OR $2 IN (SELECT relid FROM pg_partition_ancestors(c.oid)))),
		       EXISTS (SELECT FROM pg_publication_rel r WHERE prpubid = p.oid AND prrelid = $2 AND to_jsonb(r) ->> 'prqual' IS NOT NULL),
		       pg_get_userbyid(p.pubowner)::text, pg_has_role(p.pubowner, 'USAGE')
		FROM pg_publication p WHERE p.pubname = $1`, name, table).
		Scan(&p.all, &p.schemas, &p.tables, &p.outbox, &p.carries, &p.filter, &p.owner, &p.ours)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return p, nil
	case err != nil:
		return p, fmt.Errorf("look at publication %s: %w", name, err)
	}
	p.exists = true
	return p, nil
}

// backlog is what a slot keeps of the outbox, compared with how far a connector has come.
type backlog struct {
	// start is where walpost begins: no row of the outbox at or before it is missing in Kafka.
	start cdc.Start
	// The rows after start that the slot keeps: how many, their payloads' bytes, the first commit and the end of the last.
	rows        int64
	bytes       int64
	first, last cdc.LSN
	exact       bool // the connector's last row was found in the slot
	// waiting are the first of these rows, up to mostWaiting, as far as their ids can be read.
	waiting []waitingRow
	shared  int64 // of these rows, those of the connector's last stored LSN: rows of one COPY
	found   int64 // rows before start that only a look into Kafka has shown
	again   int64 // rows of waiting that are in Kafka nevertheless: the connector sent them before an earlier one

	most int64 // how many rows waiting may have
}

// waitingRow is a row that may be in Kafka, although the offset does not say so.
type waitingRow struct {
	id     string
	start  cdc.Start // the position after it
	end    cdc.LSN   // of its transaction, if it is the last row there
	length int64
}

const (
	mostWaiting = 10_000 // how many rows of a connector are looked up in Kafka
	// How many rows of a relay are looked up. It writes a state record for 16 MB of rows or more, and a few windows may be on
	// the way besides.
	mostRelayed = 400_000
)

// passes moves the start past the rows that are in Kafka, up to the first one that is not.
func (l *backlog) passes(there map[string]bool) {
	for len(l.waiting) > 0 && there[l.waiting[0].id] {
		row := l.waiting[0]
		l.start.Last, l.start.XID, l.start.Commit = row.start.Last, row.start.XID, row.start.Commit
		l.start.Covered = max(l.start.Covered, row.end)
		l.waiting = l.waiting[1:]
		l.rows--
		l.bytes -= row.length
		l.shared = max(0, l.shared-1)
		l.found++
		if len(l.waiting) > 0 {
			l.first = l.waiting[0].start.Last.Commit
		}
	}
	for _, row := range l.waiting {
		if there[row.id] {
			l.again++
		}
	}
}

// whole returns the end of the last transaction that is in Kafka whole, together with everything before it, and how many later
// rows are there.
func (l *backlog) whole(there map[string]bool) (at cdc.LSN, again int64) {
	at = l.start.Covered
	next := 0
	for i, row := range l.waiting {
		if !there[row.id] {
			break
		}
		if row.end > 0 {
			at, next = max(at, row.end), i+1
		}
	}
	for _, row := range l.waiting[next:] {
		if there[row.id] {
			again++
		}
	}
	return at, again
}

func (l *backlog) String() string {
	if l.rows == 0 {
		return "no rows"
	}
	return fmt.Sprintf("%d rows (%d bytes of WAL messages) committed from %s to %s", l.rows, l.bytes, l.first, l.last)
}

// outbox is the table with its partitions, and the column with a row's id. A publication may send rows as those of the
// partitions.
type outbox struct {
	oids []uint32
	id   string
}

// readOutbox reads the partitions of the table.
func readOutbox(ctx context.Context, conn *pgx.Conn, table uint32, id string) (outbox, error) {
	rows, err := conn.Query(ctx, `SELECT $1::oid UNION SELECT relid::oid FROM pg_partition_tree($1::oid)`, table)
	if err != nil {
		return outbox{}, fmt.Errorf("read the table's partitions: %w", err)
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return outbox{}, fmt.Errorf("read the table's partitions: %w", err)
	}
	return outbox{oids, id}, nil
}

// headBytes is how much of a row is read: its id is among the first columns, and its payload may be large.
const headBytes = 2048

// peek reads what a slot that nobody reads keeps for a publication, in the order in which a connector gets it, and finds
// the connector's position in it. It does not move the slot. o may be nil: then only the slot tells the position.
func peek(ctx context.Context, conn *pgx.Conn, slot, publication string, of outbox, o *Offset, confirmed cdc.LSN) (*backlog, error) {
	if o == nil {
		o = &Offset{}
	}
	return peekUpTo(ctx, conn, slot, publication, of, o, confirmed, mostWaiting)
}

// peekUpTo does the same, and keeps the ids of up to most rows.
func peekUpTo(ctx context.Context, conn *pgx.Conn, slot, publication string, of outbox, o *Offset, confirmed cdc.LSN, most int64) (*backlog, error) {
	l := &backlog{start: cdc.Start{Covered: max(o.end(), confirmed)}, most: most}
	ctx, cancel := context.WithTimeout(ctx, peekWithin)
	defer cancel()
	// A Begin has the start of the commit record, the commit time and the id; an Insert begins with the table's OID. The
	// function's lsn is the one that a connector sees.
	rows, err := conn.Query(ctx, `
		SELECT lsn::text, CASE get_byte(data, 0) WHEN ascii('R') THEN data WHEN ascii('I') THEN substring(data FOR $3) ELSE substring(data FOR 21) END, length(data)
		FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', $2)
		WHERE get_byte(data, 0) IN (ascii('R'), ascii('B'), ascii('C'), ascii('I'), ascii('U'), ascii('D'), ascii('T'))`, slot, postgres.Ident(publication), headBytes)
	if err != nil {
		return nil, fmt.Errorf("look into slot %s: %w", slot, err)
	}
	w := walk{backlog: l, offset: o, outbox: of, column: map[uint32]int{}}
	var lsn cdc.LSN
	var data []byte
	var length int64
	if _, err := pgx.ForEachRow(rows, []any{&lsn, &data, &length}, func() error { return w.message(lsn, data, length) }); err != nil {
		return nil, fmt.Errorf("look into slot %s: %w", slot, err)
	}
	return l, nil
}

// walk follows the messages of a slot as a connector did.
type walk struct {
	*backlog
	offset *Offset
	outbox
	column map[uint32]int // of the id in the rows of a table, by the table's OID

	commit  cdc.LSN // start of the open transaction's commit record
	xid     uint32
	time    time.Time
	ordinal uint32 // rows of the outbox in the open transaction
	at      cdc.LSN
	same    int64 // messages at the LSN at
	open    bool  // rows of the open transaction are counted
}

// message takes the next message: its LSN, its first bytes and its whole length.
func (w *walk) message(lsn cdc.LSN, data []byte, length int64) error {
	switch kind := data[0]; kind {
	case 'B':
		if len(data) < 21 {
			return errors.New("a Begin is too short")
		}
		w.commit, w.xid, w.ordinal, w.same, w.at, w.open = cdc.LSN(bigendian.BigEndian.Uint64(data[1:])), bigendian.BigEndian.Uint32(data[17:]), 0, 0, 0, false
		w.time = time.UnixMicro(int64(bigendian.BigEndian.Uint64(data[9:])) + epoch2000).UTC()
	case 'R':
		if rel := (relation{}); len(data) >= 5 && rel.read(data[5:]) {
			w.column[bigendian.BigEndian.Uint32(data[1:])] = slices.Index(rel, w.id)
		}
	case 'C':
		last := len(w.waiting) - 1
		switch {
		case w.open:
			w.last = lsn
			if int(w.rows) == last+1 {
				w.waiting[last].end = lsn
			}
		case w.exact && w.start.Last.Commit == w.commit: // the transaction is published whole
			w.start.Covered = max(w.start.Covered, lsn)
		}
	default:
		if lsn != w.at {
			w.at, w.same = lsn, 0
		}
		w.same++
		row := kind == 'I' && len(data) >= 5 && slices.Contains(w.oids, bigendian.BigEndian.Uint32(data[1:]))
		if row {
			w.ordinal++
		}
		switch {
		case w.offset.row() && w.xid == w.offset.XID && lsn == w.offset.Processed && w.same <= max(w.offset.Events, 1):
			// This is a row that the connector has published, and so is everything before it.
			start := w.start
			*w.backlog = backlog{start: start, exact: true, most: w.most}
			w.start.Last, w.start.XID, w.start.Commit = cdc.Position{Commit: w.commit, Ordinal: w.ordinal}, w.xid, w.time
			w.open = false
		case row && w.commit >= w.start.Covered:
			if w.rows == 0 {
				w.first = w.commit
			}
			w.rows++
			w.bytes += length
			w.open, w.last = true, w.commit
			if w.offset.row() && w.xid == w.offset.XID && lsn == w.offset.Processed {
				w.shared++
			}
			column, known := w.column[bigendian.BigEndian.Uint32(data[1:])]
			id, ok := "", false
			if known {
				id, ok = columnText(data[5:], column)
			}
			if ok && len(w.waiting) == int(w.rows)-1 && w.rows <= w.most {
				w.waiting = append(w.waiting, waitingRow{id: id, length: length, start: cdc.Start{Last: cdc.Position{Commit: w.commit, Ordinal: w.ordinal}, XID: w.xid, Commit: w.time}})
			}
		}
	}
	return nil
}

// relation has the names of a table's columns, as pgoutput describes it.
type relation []string

// read reads a description, after the OID. It reports false for one that is cut off.
func (r *relation) read(b []byte) bool {
	text := func() (s string, ok bool) {
		before, after, ok := bytes.Cut(b, []byte{0})
		b = after
		return string(before), ok
	}
	_, schema := text()
	_, name := text()
	if !schema || !name || len(b) < 3 {
		return false
	}
	n := int(bigendian.BigEndian.Uint16(b[1:]))
	b = b[3:]
	for range n {
		if len(b) < 1 {
			return false
		}
		b = b[1:] // flags
		column, ok := text()
		if !ok || len(b) < 8 {
			return false
		}
		b = b[8:] // type and its modifier
		*r = append(*r, column)
	}
	return true
}

// columnText returns a column's text of an inserted row, after the table's OID. It reports false if the column is NULL or not
// among the bytes.
func columnText(b []byte, column int) (string, bool) {
	if column < 0 || len(b) < 3 || b[0] != 'N' {
		return "", false
	}
	for b = b[3:]; len(b) > 0; column-- {
		kind := b[0]
		b = b[1:]
		if kind == 't' {
			if len(b) < 4 {
				return "", false
			}
			n := uint64(bigendian.BigEndian.Uint32(b))
			if b = b[4:]; n > uint64(len(b)) {
				return "", false
			}
			if column == 0 {
				return string(b[:n]), true
			}
			b = b[n:]
		} else if column == 0 {
			return "", false
		}
	}
	return "", false
}

const epoch2000 = 946684800000000 // PostgreSQL's epoch, in microseconds of Unix time

// peekCopy does the same as peek with a temporary copy of a slot that a connector reads at the moment. The copy ends
// with the connection, if not before.
func peekCopy(ctx context.Context, conn *pgx.Conn, name, publication string, of outbox, o *Offset) (l *backlog, err error) {
	copied := fmt.Sprintf("walpost_look_%d", conn.PgConn().PID())
	var confirmed cdc.LSN
	err = conn.QueryRow(ctx, `SELECT lsn::text FROM pg_copy_logical_replication_slot($1, $2, true)`, name, copied).Scan(&confirmed)
	if err != nil {
		return nil, fmt.Errorf("copy slot %s, to look into it while the connector reads it: %w: this needs a role that may replicate, and one free slot (max_replication_slots)", name, err)
	}
	defer func() {
		_, dropped := conn.Exec(context.WithoutCancel(ctx), `SELECT pg_drop_replication_slot($1)`, copied)
		if err == nil && dropped != nil {
			err = fmt.Errorf("drop the copy of slot %s: %w", name, dropped)
		}
	}()
	return peek(ctx, conn, copied, publication, of, o, confirmed)
}

// lockWithin is how long the cut waits for the table's lock at a time: writers queue behind it.
const lockWithin = time.Second

// errLocked is returned when the table's lock was not free within lockWithin.
var errLocked = errors.New("the table is locked")

// emptySQL returns the SQL that creates the publication for the table, without it.
func emptySQL(table *postgres.OpenTable, name string) string {
	with := table.Publishes
	if table.Partitioned {
		with += ", publish_via_partition_root = true"
	}
	if postgres.Major(table.Conn) >= 18 {
		with += ", publish_generated_columns = stored"
	}
	return fmt.Sprintf("CREATE PUBLICATION %s WITH (%s)", postgres.Ident(name), with)
}

// cutSQL returns the statements that move the table from one publication to another, in one transaction.
//
// PostgreSQL looks up a change's publication as of the change. The lock waits for every transaction that has a row of the
// outbox open, and keeps new ones out until the commit: so each row is wholly before the cut or wholly after it, and no
// transaction has rows on both sides of a change of the catalog, which older minor versions decode wrongly.
func cutSQL(cfg config.Source, from, to string) []string {
	table := postgres.TableName(cfg)
	return []string{
		"LOCK TABLE " + table + " IN SHARE ROW EXCLUSIVE MODE",
		fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE %s", postgres.Ident(from), table),
		fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", postgres.Ident(to), table),
	}
}

// cutOver moves the table from one publication to the other, and returns the end of the WAL at that moment: each row of the
// outbox is committed before it and belongs to from, or after it and belongs to to.
func cutOver(ctx context.Context, conn *pgx.Conn, cfg config.Source, from, to string) (at cdc.LSN, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = '%dms'", lockWithin.Milliseconds())); err != nil {
			return err
		}
		for i, sql := range cutSQL(cfg, from, to) {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
			if i == 0 {
				if err := tx.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&at); err != nil {
					return err
				}
			}
		}
		return failpoint.Hit("takeover_cut")
	})
	switch postgres.SQLState(err) {
	case pgerrcode.LockNotAvailable:
		return 0, errLocked
	case pgerrcode.InsufficientPrivilege:
		return 0, fmt.Errorf("move %s from publication %s to %s: %w: connect as the owner of both publications and of the table, or as a superuser; nothing was moved", cfg.Table, from, to, err)
	}
	if err != nil {
		return 0, fmt.Errorf("move %s from publication %s to %s: %w", cfg.Table, from, to, err)
	}
	return at, nil
}

// includes reports whether a list of Debezium's regular expressions, separated by commas, matches a name whole. An
// expression that Go cannot read matches: the connector knows it better.
func includes(patterns, name string) bool {
	for pattern := range strings.SplitSeq(patterns, ",") {
		re, err := regexp.Compile("(?i)^(?:" + strings.TrimSpace(pattern) + ")$")
		if err != nil || re.MatchString(name) {
			return true
		}
	}
	return false
}
