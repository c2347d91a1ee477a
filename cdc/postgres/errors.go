package postgres

import (
	"errors"
	"fmt"
	"net"
	"regexp"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walpost/walpost/cdc"
)

// decoding is where the server stood in the WAL when decoding failed. Of Where nothing else is read, and of Detail nothing at
// all: they can hold row data.
var decoding = regexp.MustCompile(`associated LSN ([0-9A-F]+/[0-9A-F]+)`)

// classify turns a server's error into the engine's decision, by SQLSTATE and never by message text.
func classify(doing string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	at := ""
	if m := decoding.FindStringSubmatch(pg.Where); m != nil {
		at = m[1]
	}
	if err := Unseen(doing, err); err != nil {
		return err
	}
	said := fmt.Sprintf("%s: PostgreSQL says %s (SQLSTATE %s)", doing, pg.Message, pg.Code)
	switch pg.Code {
	case "55006":
		return fmt.Errorf("%s: %w", said, cdc.ErrSlotInUse)
	case "42704": // undefined object: slot, or, up to 17, the publication as it was at that place in the WAL
		if at != "" {
			return publicationMissing(said)
		}
		return &cdc.Halt{Found: said, Means: "the slot does not exist: rows committed since it was dropped will not be streamed by a new one", Run: "run `walpost status` for the positions; `walpost adopt --create-slot` begins with a new slot"}
	case "55000": // object not in the right state: an invalidated slot
		return &cdc.Halt{Found: said, Means: "the slot can no longer be read: rows behind its confirmed position may never be streamed", Run: "run `walpost status` for the positions; `walpost adopt --create-slot` begins with a new slot"}
	case "42501", "28P01", "28000", "3D000":
		return &cdc.Halt{Found: said, Means: "the relay may not connect or stream", Run: "check user, password and database of source.url; the role needs LOGIN and REPLICATION (`walpost init` makes it)"}
	case "XX000", "22021", "22P05", "54000":
		if at != "" {
			what, quiet := map[string]string{"22021": "bytes that are no text in the database's encoding", "22P05": "a character that UTF-8 does not have"}[pg.Code]
			if !quiet { // those two would show bytes of the row
				what = pg.Message
			}
			return &cdc.Wedge{Found: fmt.Sprintf("PostgreSQL cannot decode the change at %s: %s (SQLSTATE %s)", at, what, pg.Code)}
		}
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
		return publicationMissing("PostgreSQL warns: " + n.Message)
	}
	return nil
}

// publicationMissing: it was not there when this place in the WAL was written, and creating it again does not change that.
func publicationMissing(said string) error {
	return &cdc.Halt{
		Found: said,
		Means: "the publication was dropped: rows committed until it is there again are never streamed",
		Run:   "`walpost init` creates the publication again, `walpost adopt` goes on from the end of the WAL",
		Latch: true,
	}
}

func lost(err error) error { return fmt.Errorf("replication connection lost: %w", err) }
