package polling

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/postgres"
)

const (
	mostTroubled = 10_000 // refused rows that are remembered at a time
	firstRows    = 64     // of a session's first fetch

	alive   = time.Second     // between two looks at the connection, while rows are published
	answers = 5 * time.Second // that it may take

	marksWithin  = 10 * time.Minute // a lock on one of the rows, somebody else's
	countsWithin = 10 * time.Minute // a table with a large backlog
)

// item is a row that was fetched.
type item struct {
	position int64
	retries  int
	bytes    int64 // of all of it
	row      cdc.Row
}

// scan reads what within selects.
func (it *item) scan(rows pgx.CollectableRow, more ...any) error {
	r := &it.row
	return rows.Scan(append([]any{&it.position, &it.retries, &it.bytes, &r.ID, &r.AggregateType, &r.AggregateID, &r.EventType, &r.Payload, &r.Headers, &r.CreatedAt}, more...)...)
}

// within selects rows of from in the order of their positions. One that is larger than most comes without payload and headers, and no
// column comes that is larger by itself: what is never sent takes no memory here.
func within(cfg *config.Source, columns []string, most, from string, more ...string) string {
	inner := append([]string{id(cfg.Polling.Columns.Position) + " AS position", id(cfg.Polling.Columns.RetryCount) + " AS retries"}, more...)
	outer := []string{"position", "retries", "bytes"}
	var sizes []string
	for i, c := range columns {
		name := fmt.Sprintf("c%d", i)
		inner, sizes = append(inner, c+" AS "+name), append(sizes, "coalesce(octet_length("+name+"), 0)::bigint")
		limit := fmt.Sprintf("octet_length(%s) <= %d", name, cfg.MaxRowBytes)
		if i == 4 || i == 5 {
			limit = "bytes <= " + most
		}
		outer = append(outer, "CASE WHEN "+limit+" THEN "+name+" END")
	}
	for _, m := range more {
		outer = append(outer, m[strings.LastIndex(m, " ")+1:])
	}
	return fmt.Sprintf(`SELECT %s FROM (SELECT %s FROM %s) r, LATERAL (SELECT %s AS bytes) s ORDER BY position`,
		strings.Join(outer, ", "), strings.Join(inner, ", "), from, strings.Join(sizes, " + "))
}

// key is what order is kept for; empty is no key.
func (it *item) key() string {
	if len(it.row.AggregateID) == 0 {
		return ""
	}
	return string(it.row.AggregateType) + "\x00" + string(it.row.AggregateID)
}

// table is the outbox of one session.
type table struct {
	conn    *pgx.Conn
	cfg     *config.Source
	oid     uint32
	settled int64 // no row appears at or before it any more
	rows    int   // that the next fetch asks for, at most
	asked   struct {
		position int64 // is settled as soon as
		xid      int64 // no transaction below it is open; 0 is nothing asked
	}

	newest, fetchRows, markRows, markRefused, troubled string // SQL
}

// querier is a connection or its transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

func id(name string) string { return pgx.Identifier{name}.Sanitize() }

func literal(word string) string { return "'" + strings.ReplaceAll(word, "'", "''") + "'" }

func quoted(cfg *config.Source) string {
	schema, name := cfg.SchemaTable()
	return pgx.Identifier{schema, name}.Sanitize()
}

// DDL makes the table, for a service that has its own migrations; `walpost init` does the same, and adds what a table lacks.
func DDL(cfg config.Source) []string { return postgres.PolledDDL(cfg) }

// words puts the configuration's names into SQL. A row f that {holds} stands before o in the same order if it is the {same}.
func words(cfg *config.Source) *strings.Replacer {
	c, w := cfg.Polling.Columns, cfg.Polling.Words
	names := []string{
		"{table}", quoted(cfg), "{id}", id(cfg.Columns.ID), "{type}", id(cfg.Columns.AggregateType), "{key}", id(cfg.Columns.AggregateID),
		"{position}", id(c.Position), "{status}", id(c.Status), "{processed_at}", id(c.ProcessedAt), "{retry_count}", id(c.RetryCount), "{last_error}", id(c.LastError),
		"{pending}", literal(w.Pending), "{sent}", literal(w.Sent), "{failed}", literal(w.Failed),
	}
	once := strings.NewReplacer(names...)
	return strings.NewReplacer(append(names,
		"{holds}", once.Replace(`(f.{status} = {failed} OR f.{status} = {pending} AND f.{retry_count} > 0)`),
		"{same}", once.Replace(`hashtextextended(f.{key}::text, 0) = hashtextextended(o.{key}::text, 0) AND f.{key} = o.{key} AND f.{type} = o.{type} AND f.{position} < o.{position}`))...)
}

// open connects, and finds out that the table is what is needed.
func open(ctx context.Context, pipeline string, cfg *config.Source) (*table, error) {
	conn, oid, columns, err := postgres.NewSource(pipeline, *cfg).OpenPolled(ctx)
	if err != nil {
		return nil, err
	}
	p := &cfg.Polling
	t := &table{conn: conn, cfg: cfg, oid: oid, rows: firstRows}
	sql := words(cfg)
	t.newest = sql.Replace(`SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, coalesce(max({position}), 0) FROM {table} WHERE {status} = {pending}`)
	t.troubled = sql.Replace(`SELECT {position}, {retry_count} FROM {table} WHERE {status} = {pending} AND {retry_count} > 0 ORDER BY {position} LIMIT $1`)
	inOrder, lock := ` AND {position} <= $3 AND NOT EXISTS (
			SELECT FROM {table} f WHERE {holds} AND {same})`, ``
	if p.Order == config.OrderNone {
		inOrder, lock = ` AND $3::bigint IS NOT NULL`, ` FOR UPDATE SKIP LOCKED`
	}
	t.fetchRows = within(cfg, columns, strconv.FormatInt(int64(cfg.MaxRowBytes), 10), sql.Replace(`{table} o
		WHERE {status} = {pending} AND ({retry_count} = 0 OR {position} = ANY($2))`+inOrder+` ORDER BY {position} LIMIT $1`+lock))
	t.markRows = sql.Replace(`UPDATE {table} SET {status} = {sent}, {processed_at} = clock_timestamp() WHERE {position} = ANY($1) AND {status} = {pending}`)
	if p.AfterPublish == config.DeleteRow {
		t.markRows = sql.Replace(`DELETE FROM {table} WHERE {position} = ANY($1) AND {status} = {pending}`)
	}
	t.markRefused = sql.Replace(`UPDATE {table} SET {retry_count} = $2::int, {last_error} = $3,
		{status} = CASE WHEN $4::bool THEN {failed} ELSE {status} END, {processed_at} = CASE WHEN $4 THEN clock_timestamp() END
		WHERE {position} = $1 AND {status} = {pending}`)
	return t, nil
}

// close also gives the lock back.
func (t *table) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = t.conn.Close(ctx)
}

// lock takes the table for this session: for itself where it keeps the order, with others where there is none.
func (t *table) lock(ctx context.Context) error {
	return postgres.Poll(ctx, t.conn, t.cfg.Table, t.oid, t.cfg.Polling.Order == config.OrderNone)
}

// holding runs f, whose ctx ends when the connection is found dead: the lock is lost with it, and another relay may have the table.
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
			// Not ctx: a ping that is broken off closes the connection.
			ping, cancel := context.WithTimeout(context.WithoutCancel(ctx), answers)
			err := t.conn.Ping(ping)
			cancel()
			if err != nil {
				lose(fmt.Errorf("the connection to PostgreSQL, and with it the table, was lost while rows were published; they are published again: %w", err))
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

// settle moves the settled position on, as far as it is known. anew asks for the newest row too; more says that something was asked
// that is not known yet.
func (t *table) settle(ctx context.Context, anew bool) (more bool, err error) {
	for range 2 {
		var xmin, newest int64
		if err := t.conn.QueryRow(ctx, t.newest).Scan(&xmin, &newest); err != nil {
			return false, said("look for the newest row", err)
		}
		if t.asked.xid != 0 && xmin >= t.asked.xid {
			t.settled, t.asked.xid = t.asked.position, 0
		}
		if t.asked.xid != 0 || !anew || newest <= t.settled {
			break
		}
		anew = false
		t.asked.position = newest
		// Behind the look at the newest row: all that drew a number before had an id before this one.
		if err := t.conn.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&t.asked.xid); err != nil {
			return false, said("draw a transaction id", err)
		}
	}
	return t.asked.xid != 0, nil
}

// fetch takes the next rows, refused ones only where they are due. full says that there may be more. The server sends all that a
// query asks for, whether it is read or not: so what is asked for follows what fitted before.
func (t *table) fetch(ctx context.Context, q querier, most, bytes int, due []int64) (items []*item, full bool, err error) {
	asked := min(most, t.rows)
	rows, err := q.Query(ctx, t.fetchRows, asked, due, t.settled)
	if err != nil {
		return nil, false, said("fetch rows", err)
	}
	defer rows.Close()
	size := 0
	for rows.Next() {
		it := &item{}
		if err := it.scan(rows); err != nil {
			return nil, false, said("fetch rows", err)
		}
		items = append(items, it)
		r := &it.row
		if size += len(r.ID) + len(r.AggregateType) + len(r.AggregateID) + len(r.EventType) + len(r.Payload) + len(r.Headers); size >= bytes {
			t.rows = len(items)
			return items, true, nil
		}
	}
	if err := rows.Err(); err != nil {
		return nil, false, said("fetch rows", err)
	}
	full = len(items) == asked
	if full && asked == t.rows {
		t.rows *= 2
	}
	return items, full, nil
}

// refusal is a row that was refused once more.
type refusal struct {
	*item
	why *cdc.Refused
}

// mark records, in one transaction, what became of rows.
func (t *table) mark(ctx context.Context, q querier, published []int64, refused []refusal) error {
	var b pgx.Batch
	if len(published) > 0 {
		b.Queue(t.markRows, published)
	}
	for _, r := range refused {
		b.Queue(t.markRefused, r.position, r.retries+1, r.why.Reason, t.fails(r.item))
	}
	// What is published and cannot be marked is published again: somebody's lock on a row is waited for.
	ctx, cancel := context.WithTimeout(ctx, marksWithin)
	defer cancel()
	if err := q.SendBatch(ctx, &b).Close(); err != nil {
		return said("mark rows", err)
	}
	return nil
}

// fails says of a row that is refused once more that it is not tried again.
func (t *table) fails(it *item) bool { return it.retries+1 >= t.cfg.Polling.Attempts }

// inTrouble are the pending rows that were refused before, and how often.
func (t *table) inTrouble(ctx context.Context) (map[int64]int, error) {
	rows, err := t.conn.Query(ctx, t.troubled, mostTroubled)
	if err != nil {
		return nil, said("look for refused rows", err)
	}
	all := map[int64]int{}
	var position int64
	var retries int
	if _, err := pgx.ForEachRow(rows, []any{&position, &retries}, func() error { all[position] = retries; return nil }); err != nil {
		return nil, said("look for refused rows", err)
	}
	return all, nil
}

// Left says how many rows that are in the table now are pending up to a position, or failed, and the highest position; up to 0 is
// all of them.
func Left(ctx context.Context, pipeline string, cfg config.Source, upTo int64) (pending, failed, newest int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, countsWithin)
	defer cancel()
	conn, _, _, err := postgres.NewSource(pipeline, cfg).OpenPolled(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	c, w := cfg.Polling.Columns, cfg.Polling.Words
	err = conn.QueryRow(ctx, fmt.Sprintf(`
		SELECT count(*) FILTER (WHERE %[1]s = %[2]s), count(*) FILTER (WHERE %[1]s = %[3]s), coalesce(max(%[4]s), 0)
		FROM %[5]s WHERE %[1]s IN (%[2]s, %[3]s) AND (%[4]s <= $1 OR $1 = 0)`,
		id(c.Status), literal(w.Pending), literal(w.Failed), id(c.Position), quoted(&cfg)), upTo).Scan(&pending, &failed, &newest)
	if err != nil {
		return 0, 0, 0, said("look for what is left", err)
	}
	return pending, failed, newest, nil
}

// Watch reads how a polled table stands, with connections of its own.
type Watch struct {
	pipeline string
	cfg      config.Source
}

// NewWatch connects to nothing yet.
func NewWatch(pipeline string, cfg config.Source) *Watch { return &Watch{pipeline, cfg} }

// Backlog asks the table and the server.
func (w *Watch) Backlog(ctx context.Context) (b Backlog, err error) {
	conn, oid, _, err := postgres.NewSource(w.pipeline, w.cfg).OpenPolled(ctx)
	if err != nil {
		return b, err
	}
	defer func() { _ = conn.Close(ctx) }()
	p, created := &w.cfg.Polling, cmp.Or(w.cfg.Columns.CreatedAt, "created_at")
	age := "NULL"
	var aged bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = $1 AND attname = $2 AND NOT attisdropped)`, oid, created).Scan(&aged); err != nil {
		return b, said("look at the table", err)
	}
	if aged {
		a, err := postgres.NewSource(w.pipeline, w.cfg).Age(ctx, conn, created)
		if err != nil && !errors.Is(err, postgres.ErrZone) { // the likely zone will do for a metric
			return b, err
		}
		age = a.Seconds()
	}
	var waits float64 // of rows that wait for nothing but the relay and other transactions
	err = conn.QueryRow(ctx, words(&w.cfg).Replace(strings.ReplaceAll(`
		SELECT (SELECT count(*) FROM {table} WHERE {status} = {pending}),
		       (SELECT count(*) FROM {table} WHERE {status} = {pending} AND {retry_count} > 0),
		       (SELECT count(*) FROM {table} WHERE {status} = {failed}),
		       (SELECT count(*) FROM (SELECT DISTINCT {type}, {key} FROM {table} WHERE {status} = {failed} AND {key} IS NOT NULL) k),
		       coalesce((SELECT {age} FROM {table} WHERE {status} = {pending} ORDER BY {position} LIMIT 1), 0)::float8,
		       coalesce((SELECT {age} FROM {table} o WHERE {status} = {pending} AND {retry_count} = 0
		                 AND NOT EXISTS (SELECT FROM {table} f WHERE {holds} AND {same}) ORDER BY {position} LIMIT 1), 0)::float8`, "{age}", age))).
		Scan(&b.Pending, &b.Refused, &b.Failed, &b.HeldKeys, &b.OldestSeconds, &waits)
	switch {
	case err != nil:
		return b, said("count the outbox", err)
	case p.Order == config.OrderNone:
		b.HeldKeys = 0
		return b, nil
	case b.Pending == 0:
		return b, nil
	}
	// Ids in these views have lost their epoch.
	h := Horizon{}
	err = conn.QueryRow(ctx, `
		WITH oldest AS (SELECT (pg_snapshot_xmin(s)::text::bigint % 4294967296)::text::xid AS id FROM pg_current_snapshot() s WHERE pg_snapshot_xmin(s) < pg_snapshot_xmax(s))
		SELECT a.pid, '', coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 FROM oldest JOIN pg_stat_activity a ON a.backend_xid = id
		UNION ALL
		SELECT 0, p.gid, extract(epoch FROM clock_timestamp() - p.prepared)::float8 FROM oldest JOIN pg_prepared_xacts p ON p.transaction = id
		LIMIT 1`).Scan(&h.PID, &h.Prepared, &h.Seconds)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return b, nil
	case err != nil:
		return b, said("look for the oldest transaction", err)
	}
	if h.Seconds == 0 { // how long another role's transaction is open, only some may see
		h.Seconds = waits
	}
	if h.Seconds > p.Interval.Seconds() { // else it is one of those that come and go
		b.Horizon = &h
	}
	return b, nil
}

// said is a server's error by its SQLSTATE: what a person must fix is a Halt.
func said(doing string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return postgres.NoAnswer(doing, err)
	}
	if unseen := postgres.Unseen(doing, err); unseen != nil {
		return &cdc.Halt{Found: unseen.Error(), Means: "the table cannot be polled like this, and nothing is lost", Run: "the relay goes on by itself then"}
	}
	text := fmt.Sprintf("%s: PostgreSQL says %s (SQLSTATE %s)", doing, pg.Message, pg.Code)
	switch pg.Code {
	case "42501", "42P01", "42703", "42804", "42883":
		return &cdc.Halt{Found: text, Means: "the table cannot be polled like this, and nothing is lost", Run: "let `walpost init` make what is missing, or fix it, and the relay goes on by itself"}
	}
	return errors.New(text) // the server's detail may hold row data
}
