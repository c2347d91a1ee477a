package polling

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/postgres"
)

const (
	mostRetried = 10_000 // most rejected rows that the relay remembers
	firstRows   = 64     // rows of a session's first fetch

	alive   = time.Second     // time between two checks of the connection while rows are published
	answers = 5 * time.Second // longest time for the answer of such a check

	marksWithin = 10 * time.Minute // longest time to mark rows: another transaction may hold a lock on one of them
)

// item is a row that was fetched.
type item struct {
	position int64
	retries  int
	bytes    int64 // size of the whole row
	row      cdc.Row
}

// scan reads the columns that selectRows selects.
func (it *item) scan(rows pgx.CollectableRow, columns postgres.RowColumns, more ...any) error {
	return rows.Scan(slices.Concat([]any{&it.position, &it.retries, &it.bytes}, columns.Into(&it.row), more)...)
}

// maxRow returns source.max_row_bytes as SQL.
func (o *Outbox) maxRow() string { return strconv.FormatInt(int64(o.cfg.MaxRowBytes), 10) }

// selectRows returns the statement that selects rows of from in the order of their positions. It leaves out payload and
// headers of a row that is larger than most, and any column that is larger than source.max_row_bytes: the relay needs
// no memory for bytes that it never sends.
func (o *Outbox) selectRows(columns postgres.RowColumns, most, from string, more ...string) string {
	inner := []string{o.sql("{position} AS position"), o.sql("{retry_count} AS retries")}
	outer := []string{"position", "retries", "bytes"}
	var sizes []string
	for i, c := range columns.List {
		name := fmt.Sprintf("c%d", i)
		inner, sizes = append(inner, c.SQL+" AS "+name), append(sizes, "coalesce(octet_length("+name+"), 0)::bigint")
		limit := "octet_length(" + name + ") <= " + o.maxRow()
		if c.Body {
			limit = "bytes <= " + most
		}
		outer = append(outer, "CASE WHEN "+limit+" THEN "+name+" END")
	}
	for _, m := range more {
		inner, outer = append(inner, o.sql(m)), append(outer, m[strings.LastIndex(m, " ")+1:])
	}
	return fmt.Sprintf(`SELECT %s FROM (SELECT %s FROM %s) r, LATERAL (SELECT %s AS bytes) s ORDER BY position`,
		strings.Join(outer, ", "), strings.Join(inner, ", "), o.sql(from), strings.Join(sizes, " + "))
}

// key returns the key within which the relay keeps the order; empty for a row without a key.
func (it *item) key() string {
	if len(it.row.AggregateID) == 0 {
		return ""
	}
	return string(it.row.AggregateType) + "\x00" + string(it.row.AggregateID)
}

// table is the outbox of one session.
type table struct {
	*postgres.OpenTable
	cfg     *config.Source
	row     postgres.RowColumns
	settled int64 // no further row can become visible at or before this position
	rows    int   // most rows of the next fetch
	asked   struct {
		position int64 // this position is settled as soon as
		xid      int64 // no transaction below this id is open; 0: no position waits to be settled
	}

	newest, fetchRows, markRows, markRejected, retries string // SQL
}

// querier is a connection or its transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// begin opens the table for a session.
func (o *Outbox) begin(ctx context.Context) (*table, error) {
	opened, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	row, err := opened.Row(ctx)
	if err == nil {
		err = o.unknownWords(ctx, opened)
	}
	if err != nil {
		_ = opened.Conn.Close(ctx)
		return nil, err
	}
	p := &o.cfg.Polling
	t := &table{OpenTable: opened, cfg: &o.cfg, row: row, rows: firstRows}
	t.newest = o.sql(`SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, coalesce(max({position}), 0) FROM {table} WHERE {status} = {pending}`)
	t.retries = o.sql(`SELECT {position}, {retry_count} FROM {table} WHERE {status} = {pending} AND {retry_count} > 0 ORDER BY {position} LIMIT $1`)
	inOrder, lock := ` AND {position} <= $3 AND NOT EXISTS (
			SELECT FROM {table} f WHERE {holds} AND {same})`, ``
	if p.Order == config.OrderNone {
		inOrder, lock = ` AND $3::bigint IS NOT NULL`, ` FOR UPDATE SKIP LOCKED`
	}
	t.fetchRows = o.selectRows(row, o.maxRow(), `{table} o
		WHERE {status} = {pending} AND ({retry_count} = 0 OR {position} = ANY($2))`+inOrder+` ORDER BY {position} LIMIT $1`+lock)
	t.markRows = o.sql(`UPDATE {table} SET {status} = {sent}, {processed_at} = clock_timestamp() WHERE {position} = ANY($1) AND {status} = {pending}`)
	if p.AfterPublish == config.DeleteRow {
		t.markRows = o.sql(`DELETE FROM {table} WHERE {position} = ANY($1) AND {status} = {pending}`)
	}
	t.markRejected = o.sql(`UPDATE {table} SET {retry_count} = $2::int, {last_error} = $3,
		{status} = CASE WHEN $4::bool THEN {failed} ELSE {status} END, {processed_at} = CASE WHEN $4 THEN clock_timestamp() END
		WHERE {position} = $1 AND {status} = {pending}`)
	return t, nil
}

// close closes the connection, which releases the lock.
func (t *table) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = t.Conn.Close(ctx)
}

// lock takes the advisory lock of the table: alone if the relay keeps an order, otherwise shared with other relays.
func (t *table) lock(ctx context.Context) error {
	return t.Poll(ctx, postgres.PollOptions{Shared: t.cfg.Polling.Order == config.OrderNone})
}

// holding runs f while it checks the connection. If the connection is dead, it ends f's ctx: the lock is lost with the
// connection, and another relay may have the table.
func (t *table) holding(ctx context.Context, f func(context.Context) error) error {
	ctx, lose := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(alive):
			}
			// Not ctx: a cancelled ping would close the connection.
			ping, cancel := context.WithTimeout(context.WithoutCancel(ctx), answers)
			err := t.Conn.Ping(ping)
			cancel()
			if err != nil {
				lose(fmt.Errorf("the connection to PostgreSQL, and with it the lock on the table, was lost while rows were published; they are published again: %w", err))
				return
			}
		}
	}()
	err := f(ctx)
	lose(nil)
	<-ended
	if why := context.Cause(ctx); err != nil && !errors.Is(why, context.Canceled) {
		return why
	}
	return err
}

// settle advances the settled position as far as possible. If newRows is true, it also looks for newer rows. more
// reports that a position waits to be settled.
func (t *table) settle(ctx context.Context, newRows bool) (more bool, err error) {
	for range 2 {
		var xmin, newest int64
		if err := t.Conn.QueryRow(ctx, t.newest).Scan(&xmin, &newest); err != nil {
			return false, classify(t.OpenTable, "look for the newest row", err)
		}
		if t.asked.xid != 0 && xmin >= t.asked.xid {
			t.settled, t.asked.xid = t.asked.position, 0
		}
		if t.asked.xid != 0 || !newRows || newest <= t.settled {
			break
		}
		newRows = false
		t.asked.position = newest
		// After the look at the newest row: every transaction that drew a position before it has a lower id than this
		// one.
		if err := t.Conn.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&t.asked.xid); err != nil {
			return false, classify(t.OpenTable, "draw a transaction id", err)
		}
	}
	return t.asked.xid != 0, nil
}

// fetch reads the next rows, and those rejected rows that are due. full reports that more rows may be waiting. The
// server sends all rows of a query, also those that fetch does not read: so the limit of each query follows the number
// of rows that fitted before.
func (t *table) fetch(ctx context.Context, q querier, most, bytes int, due []int64) (items []*item, full bool, err error) {
	asked := min(most, t.rows)
	rows, err := q.Query(ctx, t.fetchRows, asked, due, t.settled)
	if err != nil {
		return nil, false, classify(t.OpenTable, "fetch rows", err)
	}
	defer rows.Close()
	size := 0
	for rows.Next() {
		it := &item{}
		if err := it.scan(rows, t.row); err != nil {
			return nil, false, classify(t.OpenTable, "fetch rows", err)
		}
		items = append(items, it)
		r := &it.row
		if size += r.Size(); size >= bytes {
			t.rows = len(items)
			return items, true, nil
		}
	}
	if err := rows.Err(); err != nil {
		return nil, false, classify(t.OpenTable, "fetch rows", err)
	}
	full = len(items) == asked
	if full && asked == t.rows {
		t.rows *= 2
	}
	return items, full, nil
}

// rejection is a row that was rejected once more.
type rejection struct {
	*item
	why *cdc.RejectedError
}

// mark marks the published and the rejected rows in one transaction.
func (t *table) mark(ctx context.Context, q querier, published []int64, refused []rejection) error {
	var b pgx.Batch
	if len(published) > 0 {
		b.Queue(t.markRows, published)
	}
	for _, r := range refused {
		b.Queue(t.markRejected, r.position, r.retries+1, r.why.Reason, t.fails(r.item))
	}
	// A published row that cannot be marked would be published again, so wait for another transaction's lock on a row.
	ctx, cancel := context.WithTimeout(ctx, marksWithin)
	defer cancel()
	if err := q.SendBatch(ctx, &b).Close(); err != nil {
		return classify(t.OpenTable, "mark rows", err)
	}
	return nil
}

// fails reports whether a row that is rejected once more has used all its attempts.
func (t *table) fails(it *item) bool { return it.retries+1 >= t.cfg.Polling.Attempts }

// retrying returns the positions of the pending rows that were rejected before, each with the number of rejections.
func (t *table) retrying(ctx context.Context) (map[int64]int, error) {
	rows, err := t.Conn.Query(ctx, t.retries, mostRetried)
	if err != nil {
		return nil, classify(t.OpenTable, "look for rejected rows", err)
	}
	all := map[int64]int{}
	var position int64
	var retries int
	if _, err := pgx.ForEachRow(rows, []any{&position, &retries}, func() error { all[position] = retries; return nil }); err != nil {
		return nil, classify(t.OpenTable, "look for rejected rows", err)
	}
	return all, nil
}
