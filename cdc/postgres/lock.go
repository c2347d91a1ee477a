package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc"
)

// These are the first halves of advisory locks on the outbox table; the table's oid is the second half. A table is
// either polled or streamed from the WAL, or each row would be published twice. Each side takes its own lock first
// and then looks for the other's, so that if both start at once at least one sees the other.
const (
	polledLock   = 0x77706f6c
	streamedLock = 0x7770776c
)

// markStreamed takes a shared advisory lock that marks the table as streamed while the replication connection lives.
func markStreamed(ctx context.Context, pg *pgconn.PgConn, table uint32) error {
	if table == 0 {
		return nil
	}
	_, err := pg.Exec(ctx, fmt.Sprintf("SELECT pg_try_advisory_lock_shared(%d, %d)", streamedLock, int32(table))).ReadAll()
	return err
}

// Poller returns the process that polls the table; 0 if there is none.
func (s *Source) Poller(ctx context.Context) (pid int32, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, err := s.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	t, err := s.checkTable(ctx, conn)
	if err != nil {
		return 0, err
	}
	return poller(ctx, conn, t.oid)
}

// pollers returns a problem if a relay polls the table.
func (s *Source) pollers(ctx context.Context, conn *pgx.Conn, oid uint32) ([]cdc.Finding, error) {
	pid, err := poller(ctx, conn, oid)
	if pid == 0 || err != nil {
		return nil, err
	}
	return []cdc.Finding{Problem("polled_too", "stop the other relay, or this one", "source.kind: a relay polls %s (pid %d), and each row would be published twice", s.cfg.Table, pid)}, nil
}

func poller(ctx context.Context, conn *pgx.Conn, oid uint32) (pid int32, err error) {
	err = conn.QueryRow(ctx, `
		SELECT pid FROM pg_locks
		WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = $1 AND objid = $2
		  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 1`, uint32(polledLock), oid).Scan(&pid)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, classify("look for pollers", err)
	}
	return pid, nil
}

// PollOptions says how to poll a table.
type PollOptions struct {
	Shared bool // with other pollers
}

// Poll takes the lock for polling the table, for as long as the connection lives.
func (o *OpenTable) Poll(ctx context.Context, options PollOptions) error {
	conn := o.Conn
	// While rows are on the way to a vanished relay, no keepalive notices it. On a connection that Kafka may stall,
	// like the replication connection, this would end a relay that is only slow.
	if _, err := conn.Exec(ctx, "SET tcp_user_timeout = '30s'"); err != nil {
		return classify("take the outbox table", err)
	}
	try := "pg_try_advisory_lock"
	if options.Shared {
		try += "_shared"
	}
	var ok bool
	if err := conn.QueryRow(ctx, "SELECT "+try+"($1::int, $2::int)", int32(polledLock), int32(o.OID)).Scan(&ok); err != nil {
		return classify("take the outbox table", err)
	}
	if !ok {
		return cdc.ErrTableInUse
	}
	var pid int32
	var slot string
	err := conn.QueryRow(ctx, `
		SELECT l.pid, s.slot_name::text FROM pg_locks l JOIN pg_replication_slots s ON s.active_pid = l.pid
		WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = $1 AND l.objid = $2
		  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 1`, uint32(streamedLock), o.OID).Scan(&pid, &slot)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return classify("look for relays that stream the table", err)
	}
	return &cdc.HaltError{
		Found: fmt.Sprintf("source.kind: a relay streams %s from the WAL (slot %s, pid %d)", o.Name, slot, pid),
		Means: "each row would be published twice",
		Run:   "stop the other relay, or this one",
	}
}
