package postgres

import (
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walpost/walpost/cdc"
)

// classify turns a server's error into the engine's decision, by SQLSTATE and never by message text. Detail and Where are
// left out: they can hold row data.
func classify(doing string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	said := fmt.Sprintf("%s: PostgreSQL says %s (SQLSTATE %s)", doing, pg.Message, pg.Code)
	switch pg.Code {
	case "55006":
		return fmt.Errorf("%s: %w", said, cdc.ErrSlotInUse)
	case "42704": // undefined object: slot, or, up to 17, the publication as it was at that place in the WAL
		return &cdc.Halt{Found: said, Means: "the slot, or the publication at this place in the WAL, does not exist; rows may have been missed", Run: "run `walpost status`; then restore what was dropped, or `walpost init --remove` and `walpost init` begin anew"}
	case "55000": // object not in the right state: an invalidated slot
		return &cdc.Halt{Found: said, Means: "the slot can no longer be read: rows behind its confirmed position may never be streamed", Run: "run `walpost status` for the positions; then `walpost init --remove` and `walpost init` begin anew"}
	case "42501", "28P01", "28000", "3D000":
		return &cdc.Halt{Found: said, Means: "the relay may not connect or stream", Run: "check user, password and database of source.url; the role needs LOGIN and REPLICATION (`walpost init` makes it)"}
	case "XX000", "22021", "22P05", "54000":
		return &cdc.Halt{Found: said, Means: "PostgreSQL cannot decode a change; everything behind it waits in the slot", Run: "find the row in the outbox (encoding, or larger than 500 MB) and step over it with pg_replication_slot_advance after taking its content down"}
	}
	return errors.New(said)
}

// connectError is classify for a connection that was refused or never made; key is what holds its URL.
func connectError(key string, cfg pgconn.Config, err error) error {
	var op *net.OpError
	if errors.As(err, new(*pgconn.PgError)) || !errors.As(err, &op) {
		return classify("connect to "+key, err)
	}
	return fmt.Errorf("%s: PostgreSQL at %s:%d does not answer (%w): start it, or name the right host and port", key, cfg.Host, cfg.Port, op)
}

func errorResponse(body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return fmt.Errorf("read the server's error: %w", err)
	}
	return pgconn.ErrorResponseToPgError(&e)
}

// notice halts on the one notice that means loss: from 18 on a missing publication is a warning, and its rows are skipped.
func notice(body []byte) error {
	var n pgproto3.NoticeResponse
	if err := n.Decode(body); err != nil {
		return fmt.Errorf("read the server's notice: %w", err)
	}
	if n.Code == "55000" {
		return &cdc.Halt{Found: "PostgreSQL warns: " + n.Message, Means: "rows are being skipped from here on", Run: "create the publication again (`walpost init`) and compare the outbox with the topic"}
	}
	return nil
}

func lost(err error) error { return fmt.Errorf("replication connection lost: %w", err) }
