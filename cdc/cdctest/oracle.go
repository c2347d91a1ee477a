package cdctest

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// decodedWithin is the longest time in which a busy server decodes the giants of fault 54.
const decodedWithin = time.Minute

// Commit is one transaction with rows in the outbox, as PostgreSQL itself decodes it.
type Commit struct {
	XID int64
	End pglogrepl.LSN // the end of its commit record; the next commit begins there or later
	IDs []uuid.UUID   // of its rows, in the order of the inserts
}

// Oracle reads the true order of commits, with the end of each, from a second slot (test_decoding) in the relay's
// database.
type Oracle struct {
	url, slot, insert string // insert matches a row of the table, or of a partition whose name begins with the table's

	mu      sync.Mutex
	conn    *pgx.Conn // nil before the first use, and after an error
	commits []Commit
}

// StartOracle creates the slot; the oracle knows all later commits. table is schema.name; its first column must be the
// id.
func StartOracle(t testing.TB, url, table string) *Oracle {
	t.Helper()
	o := &Oracle{url: url, slot: SlotName(t, "oracle"), insert: "^table " + regexp.QuoteMeta(table) + `(_[a-z0-9]+)?: INSERT: id\[`}
	if err := execAll(t.Context(), url, "SELECT pg_create_logical_replication_slot('"+o.slot+"', 'test_decoding')"); err != nil {
		t.Fatalf("create the oracle's slot: %v", err)
	}
	t.Cleanup(o.Rest)
	return o
}

// Commits returns all commits so far, in order. It peeks into the slot up to the end of the flushed WAL, and advances the slot
// there only when it has received all before: neither a lost connection nor a crash of the server makes the oracle forget a
// commit, and it reads the other databases' WAL of a shared server once.
func (o *Oracle) Commits(ctx context.Context) (_ []Commit, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn == nil {
		if o.conn, err = pgx.Connect(ctx, o.url); err != nil {
			return nil, fmt.Errorf("ask the oracle: %w", err)
		}
	}
	defer func() {
		if err != nil {
			o.rest()
		}
	}()
	var flushed string
	if err := o.conn.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&flushed); err != nil {
		return nil, fmt.Errorf("ask the oracle: %w", err)
	}
	rows, err := o.conn.Query(ctx, `SELECT lsn::text, xid::text::bigint, left(data, 200)
		FROM pg_logical_slot_peek_changes($1, $2::text::pg_lsn, NULL, 'skip-empty-xacts', '1')
		WHERE data LIKE 'COMMIT%' OR data ~ $3`, o.slot, flushed, o.insert)
	if err != nil {
		return nil, fmt.Errorf("ask the oracle: %w", err)
	}
	var last pglogrepl.LSN
	if n := len(o.commits); n > 0 {
		last = o.commits[n-1].End
	}
	var open Commit
	var found []Commit
	var lsn, data string
	var xid int64
	if _, err := pgx.ForEachRow(rows, []any{&lsn, &xid, &data}, func() error {
		if strings.HasPrefix(data, "table ") {
			_, rest, _ := strings.Cut(data, "'")
			text, _, _ := strings.Cut(rest, "'")
			id, err := uuid.Parse(text)
			open.IDs = append(open.IDs, id)
			return err
		}
		end, err := pglogrepl.ParseLSN(lsn)
		if err != nil {
			return err
		}
		open.XID, open.End = xid, end
		if len(open.IDs) > 0 && end > last { // a slot goes back if its server crashes
			found = append(found, open)
		}
		open = Commit{}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("ask the oracle: %w", err)
	}
	o.commits = append(o.commits, found...)
	if _, err := o.conn.Exec(ctx, "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)", o.slot, flushed); err != nil {
		return nil, fmt.Errorf("advance the oracle's slot: %w", err)
	}
	return o.commits[:len(o.commits):len(o.commits)], nil
}

// Rest closes the oracle's connection until the next use: a server in a smart shutdown waits for its clients.
func (o *Oracle) Rest() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest()
}

func (o *Oracle) rest() {
	if o.conn != nil {
		_ = o.conn.Close(context.Background())
		o.conn = nil
	}
}

// Follow switches to another server: a promoted standby that has a copy of the slot.
func (o *Oracle) Follow(url string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest()
	o.url = url
}

// Complete waits until the oracle knows every event of the ledger, and returns the ledger with the oracle's commits.
func (o *Oracle) Complete(t testing.TB, ledger Ledger) Ledger {
	t.Helper()
	Eventually(t, 2*time.Minute, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), Patience(decodedWithin))
		defer cancel()
		commits, err := o.Commits(ctx)
		if err != nil {
			return err
		}
		missing := make(map[uuid.UUID]bool, len(ledger.Events))
		for _, e := range ledger.Events {
			missing[e.ID] = true
		}
		for _, c := range commits {
			for _, id := range c.IDs {
				delete(missing, id)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("the oracle does not know %d of %d events", len(missing), len(ledger.Events))
		}
		ledger.Commits = commits
		return nil
	})
	return ledger
}
