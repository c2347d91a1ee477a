package polling

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/postgres"
)

const (
	lookEvery    = 5 * time.Second
	lookWithin   = 3 * time.Second
	stallAfter   = 14 * time.Second // three looks, the same as for a relay that reads the WAL
	sameFailures = 3                // failed sessions in a row, without a row or a round, that count as a stall
)

// motion has the counters that show whether the session moves. The session writes them, the watcher reads them.
type motion struct {
	rows    atomic.Int64 // number of rows marked as published or rejected
	began   atomic.Bool  // the session has the table
	resting atomic.Bool  // the session waits for the next round
	round   atomic.Int64 // number of finished rounds
	kafka   atomic.Bool  // Kafka has not answered for stallLog
}

// stalls is the stall that was reported last, in any session.
type stalls struct {
	mu    sync.Mutex
	told  *cdc.StallError
	fails int // failed sessions in a row
}

// tell reports once that the relay stalls, and once that it no longer does.
func (r *Relay) tell(s *cdc.StallError) {
	r.stalls.mu.Lock()
	told := r.stalls.told
	r.stalls.told = s
	r.stalls.mu.Unlock()
	if (s == nil) != (told == nil) || s != nil && s.Cause != told.Cause {
		r.observer.Stuck(s)
	}
}

// failed counts a session that had the table and ended before it finished a round. It returns err.
func (r *Relay) failed(err error) error {
	switch {
	case errors.Is(err, cdc.ErrTableInUse): // another relay polls and reports stalls
		r.tell(nil)
		fallthrough
	case err == nil, errors.As(err, new(*cdc.HaltError)), r.motion.round.Load()+r.motion.rows.Load() > 0:
		r.stalls.fails = 0
		return err
	case !r.motion.began.Load():
		return err
	}
	if r.stalls.fails++; r.stalls.fails >= sameFailures {
		r.tell(&cdc.StallError{Cause: "failures", Found: fmt.Sprintf("%d sessions in a row have failed before they finished a query of the table: %s", r.stalls.fails, err)})
	}
	return err
}

// watch reports a stall while rows wait and the session publishes none. It uses its own connection, because the session's may hang.
func (r *Relay) watch(ctx context.Context, pid uint32) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	rows, rounds, since := int64(0), int64(-1), time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		hangs := !r.motion.resting.Load() && r.motion.round.Load() == rounds
		moved := r.motion.rows.Load() != rows
		rows, rounds = r.motion.rows.Load(), r.motion.round.Load()
		if moved || !hangs && !r.waits(ctx) {
			since = time.Now()
			r.tell(nil)
			continue
		}
		if time.Since(since) >= stallAfter+r.cfg.Source.Polling.Interval {
			s := r.cause(ctx, pid, hangs)
			if ctx.Err() == nil {
				r.tell(s)
			}
		}
	}
}

// ask queries PostgreSQL on another connection than the session's.
func (r *Relay) ask(ctx context.Context, sql string, args []any, answer ...any) error {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	conn, err := r.outbox.Source.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return conn.QueryRow(ctx, sql, args...).Scan(answer...)
}

// waits reports whether a pending row waits that the relay should have published: neither the row nor an earlier one of its key was
// rejected. It reports true also if PostgreSQL does not answer.
func (r *Relay) waits(ctx context.Context) (waits bool) {
	held := ""
	if r.cfg.Source.Polling.Order == config.OrderKey {
		held = ` AND NOT EXISTS (SELECT FROM {table} f WHERE {holds} AND {same})`
	}
	sql := r.outbox.sql(`SELECT EXISTS (SELECT FROM {table} o WHERE {status} = {pending} AND {retry_count} = 0` + held + `)`)
	return r.ask(ctx, sql, nil, &waits) != nil || waits
}

// cause returns the reason why the session publishes no rows. hangs reports that the session waits for an answer. The catalog answers also
// while the table is locked.
func (r *Relay) cause(ctx context.Context, pid uint32, hangs bool) *cdc.StallError {
	say := func(cause, format string, args ...any) *cdc.StallError {
		return &cdc.StallError{Cause: cause, Found: fmt.Sprintf("rows may be waiting in %s, and none was taken for %.0f s: ", r.cfg.Source.Table, stallAfter.Seconds()+1) + fmt.Sprintf(format, args...)}
	}
	if r.motion.kafka.Load() {
		return say("kafka", "Kafka does not accept the rows; nothing is lost")
	}
	var blocker int32
	var who string
	// The process that blocks the session, or has a lock on a row that the session skips.
	err := r.ask(ctx, `
		SELECT b.pid, coalesce(a.application_name, '') FROM (
			SELECT unnest(pg_blocking_pids($1)) AS pid, 0 AS n
			UNION ALL
			SELECT l.pid, 1 FROM pg_locks l WHERE l.relation = to_regclass($2) AND l.granted AND l.pid <> $1 AND l.mode NOT IN ('AccessShareLock', 'RowExclusiveLock')
			ORDER BY n LIMIT 1) b LEFT JOIN pg_stat_activity a ON a.pid = b.pid`, []any{int32(pid), postgres.TableName(r.cfg.Source)}, &blocker, &who)
	if err == nil && blocker != 0 {
		return say("lock", "process %d (%s) holds a lock on the rows: end it (SELECT pg_terminate_backend(%d)), or wait until its transaction has ended", blocker, who, blocker)
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return say("unknown", "the reason is unknown, because PostgreSQL does not answer: %s", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*lookWithin)
	defer cancel()
	if b, err := r.outbox.Backlog(ctx); !hangs && err == nil && b.Horizon != nil {
		return say("transaction", "%s", b.Horizon)
	}
	return say("unknown", "PostgreSQL does not answer, or returns no rows: the relay's process on the server is %d, and pg_stat_activity shows what it waits for; `walpost status` shows the pending rows", pid)
}
