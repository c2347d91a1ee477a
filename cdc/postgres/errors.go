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

// looksForPublication are the server's functions that find, while it decodes, that a publication was not there at that place in the
// WAL: get_publication_oid with an error, up to 17, LoadPublications with a warning, from 18 on. The names are never translated.
var looksForPublication = map[string]bool{"get_publication_oid": true, "GetPublicationByName": true, "LoadPublications": true}

// classify turns a server's error into the engine's decision, by SQLSTATE and never by message text. What 55000 and 42704 say of a
// slot (it is lost, it is not there), the next session's start reads in the catalog: they say the same of a standby that is away,
// of a server that stops and of a parameter that nobody knows.
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
	if at != "" && looksForPublication[pg.Routine] {
		return publicationMissing(said)
	}
	switch pg.Code {
	case "55006":
		return fmt.Errorf("%s: %w", said, cdc.ErrSlotInUse)
	case "42501", "28P01", "28000", "3D000":
		return &cdc.Halt{Found: said, Means: "the relay may not connect or stream", Run: "check user, password and database of source.url; the role needs LOGIN and REPLICATION (`walpost init` makes it)"}
	case "XX000", "22021", "22P05", "42704", "54000":
		if at != "" {
			what, quiet := map[string]string{"22021": "bytes that are no text in the database's encoding", "22P05": "a character that UTF-8 does not have"}[pg.Code]
			if !quiet { // those two would show bytes of the row
				what = pg.Message
			}
			if pg.Code == "54000" || pg.Code == "XX000" { // a value of more than 1 GB in text form has either code
				what += "; it can be another table's, and a publication of the outbox alone keeps the next one out"
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

// notice halts on the one notice that means loss: from 18 on a missing publication is a warning, and its rows are skipped. Others have
// its SQLSTATE: the server writes one each second while a standby is away that the slot waits for.
func notice(body []byte) error {
	var n pgproto3.NoticeResponse
	if err := n.Decode(body); err != nil {
		return fmt.Errorf("read the server's notice: %w", err)
	}
	if looksForPublication[n.Routine] {
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
