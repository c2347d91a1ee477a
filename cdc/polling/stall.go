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
	stallAfter   = 14 * time.Second // three looks, as a relay of the WAL has it
	sameFailures = 3                // sessions in a row in which no row and no round got through
)

// motion is what moves while the table is polled. The session writes it, the watcher reads it.
type motion struct {
	rows    atomic.Int64 // marked, or refused
	began   atomic.Bool  // the session has the table
	resting atomic.Bool  // a round is over and the next is not due
	round   atomic.Int64 // how many are over
	kafka   atomic.Bool  // Kafka has not answered for stallLog
}

// stalls is what was told of them, in any session.
type stalls struct {
	mu    sync.Mutex
	told  *cdc.StallError
	fails int
}

// tell says once that the relay stalls, and once that it does not any more.
func (r *Relay) tell(s *cdc.StallError) {
	r.stalls.mu.Lock()
	told := r.stalls.told
	r.stalls.told = s
	r.stalls.mu.Unlock()
	if (s == nil) != (told == nil) || s != nil && s.Cause != told.Cause {
		r.observer.Stuck(s)
	}
}

// failed counts a session that had the table and ended before a round was over. It returns err.
func (r *Relay) failed(err error) error {
	switch {
	case errors.Is(err, cdc.ErrTableInUse): // how rows flow is another's concern
		r.tell(nil)
		fallthrough
	case err == nil, errors.As(err, new(*cdc.HaltError)), r.motion.round.Load()+r.motion.rows.Load() > 0:
		r.stalls.fails = 0
		return err
	case !r.motion.began.Load():
		return err
	}
	if r.stalls.fails++; r.stalls.fails >= sameFailures {
		r.tell(&cdc.StallError{Cause: "failures", Found: fmt.Sprintf("%d sessions in a row have failed before they had asked the table once: %s", r.stalls.fails, err)})
	}
	return err
}

// watch looks whether rows wait and none is taken, on a connection beside the session's, which may be what hangs.
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

// ask asks PostgreSQL beside the session.
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

// waits says whether there is a row that nothing of ours holds back: it was not refused, nor one of its key before it.
func (r *Relay) waits(ctx context.Context) (waits bool) {
	held := ""
	if r.cfg.Source.Polling.Order == config.OrderKey {
		held = ` AND NOT EXISTS (SELECT FROM {table} f WHERE {holds} AND {same})`
	}
	sql := r.outbox.sql(`SELECT EXISTS (SELECT FROM {table} o WHERE {status} = {pending} AND {retry_count} = 0` + held + `)`)
	return r.ask(ctx, sql, nil, &waits) != nil || waits
}

// cause is what keeps rows from being taken; hangs says that the session waits for an answer. The catalog can be asked while the table cannot.
func (r *Relay) cause(ctx context.Context, pid uint32, hangs bool) *cdc.StallError {
	say := func(cause, format string, args ...any) *cdc.StallError {
		return &cdc.StallError{Cause: cause, Found: fmt.Sprintf("rows may be waiting in %s, and none was taken for %.0f s: ", r.cfg.Source.Table, stallAfter.Seconds()+1) + fmt.Sprintf(format, args...)}
	}
	if r.motion.kafka.Load() {
		return say("kafka", "Kafka does not take them; nothing is lost")
	}
	var blocker int32
	var who string
	// Whoever blocks the session, or has a lock on a row that the session steps over.
	err := r.ask(ctx, `
		SELECT b.pid, coalesce(a.application_name, '') FROM (
			SELECT unnest(pg_blocking_pids($1)) AS pid, 0 AS n
			UNION ALL
			SELECT l.pid, 1 FROM pg_locks l WHERE l.relation = to_regclass($2) AND l.granted AND l.pid <> $1 AND l.mode NOT IN ('AccessShareLock', 'RowExclusiveLock')
			ORDER BY n LIMIT 1) b LEFT JOIN pg_stat_activity a ON a.pid = b.pid`, []any{int32(pid), postgres.TableName(r.cfg.Source)}, &blocker, &who)
	if err == nil && blocker != 0 {
		return say("lock", "process %d (%s) holds a lock on them: end it (SELECT pg_terminate_backend(%d)), or wait until its transaction has ended", blocker, who, blocker)
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return say("unknown", "PostgreSQL cannot be asked why: %s", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*lookWithin)
	defer cancel()
	if b, err := r.outbox.Backlog(ctx); !hangs && err == nil && b.Horizon != nil {
		return say("transaction", "%s", b.Horizon)
	}
	return say("unknown", "PostgreSQL does not answer, or gives no rows: the relay's process on the server is %d, and pg_stat_activity shows what it waits for; `walpost status` shows what is pending", pid)
}
