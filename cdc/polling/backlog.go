package polling

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/postgres"
)

// CountsTo is the largest number to which Backlog counts, so that it costs the same for all larger tables.
const CountsTo = 100_000

// Count returns a number of Backlog as text: "at least 100000" if Backlog has stopped to count.
func Count(n int64) string {
	if n >= CountsTo {
		return fmt.Sprintf("at least %d", n)
	}
	return strconv.FormatInt(n, 10)
}

// Backlog has the numbers of rows of a polled table that wait or have failed. Its counts end at CountsTo.
type Backlog struct {
	Pending  int64 `json:"pending"`
	Rejected int64 `json:"refused"` // of those pending: they are tried again
	Failed   int64 `json:"failed"`
	HeldKeys int64 `json:"held_keys"` // keys that wait for a failed row
	// OldestSeconds is the age of the oldest pending row, if the table has created_at.
	OldestSeconds float64 `json:"oldest_pending_seconds"`
	// Horizon is the oldest transaction that may still commit rows before the newest pending one; nil without one.
	Horizon *Horizon `json:"horizon,omitempty"`
}

// Horizon is the open transaction that rows of a polled table wait for. If the relay may not see its age, Seconds is the time that rows
// have waited, and the transaction is at least that old.
type Horizon struct{ cdc.Transaction }

func (h *Horizon) String() string {
	return fmt.Sprintf("rows wait for %s: it may still commit rows that come before them: end it (%s)", h.Transaction, h.End())
}

const countsWithin = 10 * time.Minute // long enough for a large backlog

// Remaining are the numbers of rows that are not published.
type Remaining struct {
	Pending, Failed int64
	Newest          int64 // the highest position of all of them
}

// Remaining counts the pending and the failed rows at or before the position upTo, or all of them if upTo is 0. It also returns
// their highest position.
func (o *Outbox) Remaining(ctx context.Context, upTo int64) (r Remaining, err error) {
	ctx, cancel := context.WithTimeout(ctx, countsWithin)
	defer cancel()
	t, err := o.open(ctx)
	if err != nil {
		return r, err
	}
	defer func() { _ = t.Conn.Close(ctx) }()
	err = t.Conn.QueryRow(ctx, o.sql(`
		SELECT count(*) FILTER (WHERE {status} = {pending}), count(*) FILTER (WHERE {status} = {failed}), coalesce(max({position}), 0)
		FROM {table} WHERE {status} IN ({pending}, {failed}) AND ({position} <= $1 OR $1 = 0)`), upTo).Scan(&r.Pending, &r.Failed, &r.Newest)
	if err != nil {
		return Remaining{}, classify(t, "count the remaining rows", err)
	}
	return r, nil
}

// Backlog counts the waiting and failed rows, and finds the transaction that they wait for.
func (o *Outbox) Backlog(ctx context.Context) (b Backlog, err error) {
	t, err := o.open(ctx)
	if err != nil {
		return b, err
	}
	defer func() { _ = t.Conn.Close(ctx) }()
	age, err := o.age(ctx, t)
	if err != nil {
		return b, err
	}
	var waits float64 // seconds that rows have waited which no rejected row holds
	err = t.Conn.QueryRow(ctx, strings.NewReplacer("{age}", age, "{most}", strconv.Itoa(CountsTo)).Replace(o.sql(`
		SELECT (SELECT count(*) FROM (SELECT FROM {table} WHERE {status} = {pending} LIMIT {most}) p),
		       (SELECT count(*) FROM (SELECT FROM {table} WHERE {status} = {pending} AND {retry_count} > 0 LIMIT {most}) r),
		       (SELECT count(*) FROM (SELECT FROM {table} WHERE {status} = {failed} LIMIT {most}) f),
		       (SELECT count(DISTINCT ({type}, {key})) FROM (SELECT {type}, {key} FROM {table} WHERE {status} = {failed} AND {key} IS NOT NULL LIMIT {most}) k),
		       coalesce((SELECT {age} FROM {table} WHERE {status} = {pending} ORDER BY {position} LIMIT 1), 0)::float8,
		       coalesce((SELECT {age} FROM (SELECT * FROM {table} WHERE {status} = {pending} ORDER BY {position} LIMIT 1000) o WHERE {retry_count} = 0
		                 AND NOT EXISTS (SELECT FROM {table} f WHERE {holds} AND {same}) ORDER BY {position} LIMIT 1), 0)::float8`))).
		Scan(&b.Pending, &b.Rejected, &b.Failed, &b.HeldKeys, &b.OldestSeconds, &waits)
	switch {
	case err != nil:
		return b, classify(t, "count the outbox", err)
	case o.cfg.Polling.Order == config.OrderNone:
		b.HeldKeys = 0
		return b, nil
	case b.Pending == 0:
		return b, nil
	}
	b.Horizon, err = o.horizon(ctx, t, waits)
	return b, err
}

// age returns SQL for the age of a row in seconds, a float8; NULL if the table has no time of writing.
func (o *Outbox) age(ctx context.Context, t *postgres.OpenTable) (string, error) {
	created, err := t.Written(ctx)
	if err != nil {
		return "", classify(t, "look at the table", err)
	}
	if created == "" {
		return "NULL::float8", nil
	}
	a, err := t.Age(ctx, created)
	if err != nil && !errors.Is(err, postgres.ErrZone) { // for a metric the likely zone is good enough
		return "", err
	}
	return a.Seconds(), nil
}

// horizon returns the oldest transaction that may still commit rows, or nil if it is younger than a polling interval. waits is how many
// seconds rows have waited for it.
func (o *Outbox) horizon(ctx context.Context, t *postgres.OpenTable, waits float64) (*Horizon, error) {
	h := Horizon{}
	// Ids in these views have lost their epoch.
	err := t.Conn.QueryRow(ctx, `
		WITH oldest AS (SELECT (pg_snapshot_xmin(s)::text::bigint % 4294967296)::text::xid AS id FROM pg_current_snapshot() s WHERE pg_snapshot_xmin(s) < pg_snapshot_xmax(s))
		SELECT a.pid, '', coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 FROM oldest JOIN pg_stat_activity a ON a.backend_xid = id
		UNION ALL
		SELECT 0, p.gid, extract(epoch FROM clock_timestamp() - p.prepared)::float8 FROM oldest JOIN pg_prepared_xacts p ON p.transaction = id
		LIMIT 1`).Scan(&h.PID, &h.Prepared, &h.Seconds)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, classify(t, "look for the oldest transaction", err)
	}
	if h.Seconds == 0 { // the relay's role may not see the age of another role's transaction
		h.Seconds = waits
	}
	if h.Seconds <= o.cfg.Polling.Interval.Seconds() {
		return nil, nil
	}
	return &h, nil
}
