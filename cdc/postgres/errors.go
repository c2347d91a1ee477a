package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/pglimit"
)

// decoding matches the place in the WAL at which decoding failed. Nothing else of Where is read, and nothing of
// Detail: both can hold row data.
var decoding = regexp.MustCompile(`associated LSN ([0-9A-F]+/[0-9A-F]+)`)

// looksForPublication lists the server's functions that notice, while they decode, that a publication did not exist
// at that place in the WAL: get_publication_oid with an error, up to 17, LoadPublications with a warning, from 18 on.
// The names are never translated.
var looksForPublication = map[string]bool{"get_publication_oid": true, "GetPublicationByName": true, "LoadPublications": true}

// classify turns a server's error into the engine's decision, by SQLSTATE and never by message text. It makes no halt
// of 55000 and 42704 for a slot (it is lost, it does not exist): they also report an absent standby, a server that
// stops and an unknown parameter. The next session's start reads the slot's state in the catalog.
func classify(doing string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return noAnswer(doing, err)
	}
	at := ""
	if m := decoding.FindStringSubmatch(pg.Where); m != nil {
		at = m[1]
	}
	if err := unseen(doing, err); err != nil {
		return err
	}
	said := fmt.Sprintf("%s: PostgreSQL says %s (SQLSTATE %s)", doing, pg.Message, pg.Code)
	if at != "" && looksForPublication[pg.Routine] {
		return publicationMissing(said)
	}
	switch pg.Code {
	case pgerrcode.ObjectInUse:
		return fmt.Errorf("%s: %w", said, cdc.ErrSlotInUse)
	case pgerrcode.InsufficientPrivilege:
		return &cdc.HaltError{Found: said, Means: "the role of this connection lacks the right", Run: "grant it the right that PostgreSQL names, or connect as a role that has it"}
	case pgerrcode.DuplicatePreparedStatement, pgerrcode.InvalidSQLStatementName:
		return fmt.Errorf("%s: %s", said, transactionPooler)
	case pgerrcode.InternalError, pgerrcode.CharacterNotInRepertoire, pgerrcode.UntranslatableCharacter, pgerrcode.UndefinedObject, pgerrcode.ProgramLimitExceeded:
		if at != "" {
			what, quiet := map[string]string{pgerrcode.CharacterNotInRepertoire: "bytes that are no text in the database's encoding", pgerrcode.UntranslatableCharacter: "a character that UTF-8 does not have"}[pg.Code]
			if !quiet { // those two would show bytes of the row
				what = pg.Message
			}
			// a value of more than 1 GB in text form has either code
			if pg.Code == pgerrcode.ProgramLimitExceeded || pg.Code == pgerrcode.InternalError {
				what += "; it may belong to another table: a publication of the outbox alone keeps the next such change out"
			}
			return &cdc.UndecodableError{Found: fmt.Sprintf("PostgreSQL cannot decode the change at %s: %s (SQLSTATE %s)", at, what, pg.Code)}
		}
	}
	return errors.New(said)
}

// classify does the same as the function classify, and names the missing right.
func (s *Source) classify(conn *pgx.Conn, doing string, err error, wants ...right) error {
	classified := classify(doing, err)
	var halt *cdc.HaltError
	if SQLState(err) != pgerrcode.InsufficientPrivilege || !errors.As(classified, &halt) || conn == nil {
		return classified
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	if lacks := s.lacking(ctx, conn, err, wants...); lacks != "" {
		halt.Run = "run as the table's owner: " + lacks
	}
	return halt
}

// SQLState returns the code of a server's error; empty if err is not one.
func SQLState(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return ""
	}
	return pg.Code
}

// noAnswer returns an error with the query and the reason why the server did not answer.
func noAnswer(doing string, err error) error {
	if pgconn.Timeout(err) {
		return fmt.Errorf("%s: PostgreSQL has not answered in time: SELECT pid, wait_event_type, wait_event, query FROM pg_stat_activity WHERE application_name LIKE 'walpost%%' shows what it waits for; if that does not answer either, check the server and the network: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

var (
	errAway    = errors.New("PostgreSQL does not answer")
	errRefused = errors.New("PostgreSQL refuses the connection")
)

// kindError is an error of a connection that is either errAway or errRefused.
type kindError struct {
	error
	kind error
}

func (k kindError) Unwrap() []error { return []error{k.error, k.kind} }

// refused returns the reason why there is no connection. It never mentions a slot or another URL than this one.
// reached is true if an address has accepted the connection.
func (l login) refused(cfg *pgconn.Config, reached bool, took time.Duration, err error) error {
	away := func(format string, args ...any) error { return kindError{fmt.Errorf(format, args...), errAway} }
	at := addresses(cfg)
	var pg *pgconn.PgError
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: the connection attempt to PostgreSQL at %s was stopped: %w", l.Key, at, err)
	case errors.As(err, &pg):
		kind := errRefused
		if pg.Code == pgerrcode.CannotConnectNow {
			kind = errAway
		}
		return kindError{l.denied(cfg, pg), kind}
	case errors.Is(err, pgconn.ErrReadOnlyConnection):
		return away("%s: no PostgreSQL at %s takes writes: those that answer are standbys: wait until one is promoted, or start the primary", l.Key, at)
	case errors.As(err, &dns) && dns.IsNotFound:
		return away("%s: there is no host %q: name the right host (%w)", l.Key, dns.Name, dns)
	case pgconn.Timeout(err) && reached:
		return away("%s: %s accepts the connection but has not answered within %s: check whether it is PostgreSQL and not Kafka, and what it waits for", l.Key, at, took.Round(time.Second))
	case pgconn.Timeout(err) || errors.As(err, &dns):
		return away("%s: PostgreSQL at %s does not answer within %s: start it, or name the right host and port", l.Key, at, took.Round(time.Second))
	}
	if trouble := l.Trouble(cfg, at, err); trouble != "" {
		return kindError{fmt.Errorf("%s: %s", l.Key, trouble), errRefused}
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return away("%s: PostgreSQL at %s does not answer (%w): start it, or name the right host and port", l.Key, at, op)
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // without user and database, which are in the URL
	}
	return fmt.Errorf("%s: cannot connect to PostgreSQL at %s: %s", l.Key, at, strings.Join(strings.Fields(err.Error()), " "))
}

// denied returns what the server's refusal of a connection means, and what to do, for the URL that was used.
func (l login) denied(cfg *pgconn.Config, pg *pgconn.PgError) error {
	if name := pglimit.Parameter(cfg, pg); name != "" {
		if pg.Code == pgerrcode.UndefinedObject || pg.Code == pgerrcode.ProtocolViolation {
			return &cdc.HaltError{
				Found: fmt.Sprintf("%s: PostgreSQL does not know the parameter %q (SQLSTATE %s)", l.Key, name, pg.Code),
				Means: "it accepts no connection with this parameter",
				Run:   "remove it from the URL",
			}
		}
		return &cdc.HaltError{
			Found: fmt.Sprintf("%s: PostgreSQL refuses the parameter %q: %s (SQLSTATE %s)", l.Key, name, pg.Message, pg.Code),
			Means: "it accepts no connection with this value",
			Run:   "correct it in the URL, or remove it",
		}
	}
	role, database := Ident(cfg.User), Ident(cmp.Or(cfg.Database, cfg.User))
	relay := l.Key == sourceURL
	found := fmt.Sprintf("%s: PostgreSQL at %s says %s (SQLSTATE %s)", l.Key, addresses(cfg), pg.Message, pg.Code)
	halt := func(means, run string, args ...any) error {
		return &cdc.HaltError{Found: found, Means: means, Run: fmt.Sprintf(run, args...)}
	}
	from := l.PasswordFrom()
	who := l.Trouble(cfg, addresses(cfg), pg)
	// a file or a command may correct this at any moment: no halt, because its next try comes late
	if who != "" && from != "" {
		return fmt.Errorf("%s: %s", found, who)
	}
	switch pg.Code {
	case pgerrcode.InvalidPassword:
		if who != "" {
			return halt("the server does not accept the proof of identity", "%s", who)
		}
		if relay {
			return halt("the relay's role has another password, or none", "correct user and password in source.url, or give the role that password: `walpost init` does so (ALTER ROLE %s PASSWORD '…')", role)
		}
		return halt("user or password is wrong", "correct them in %s", l.Key)
	case pgerrcode.InvalidAuthorizationSpecification:
		if who != "" {
			return halt("the server does not accept this user with this kind of login", "%s", who)
		}
		if relay {
			return halt("the server does not accept the relay's role from this host", "`walpost init` creates the role if it does not exist; an existing role needs LOGIN (ALTER ROLE %s LOGIN), and pg_hba.conf needs a line for it, database %s and this host", role, database)
		}
		return halt("the server does not accept this user from this host", "the role must exist and have LOGIN (ALTER ROLE %s LOGIN), and pg_hba.conf needs a line for it, database %s and this host: correct that, or %s", role, database, l.Key)
	case pgerrcode.InvalidCatalogName:
		if l.database != "" && !relay {
			return halt("source.url names a database that is not on this server", "create it (CREATE DATABASE %s), correct the database in source.url, or the host in %s", database, l.Key)
		}
		return halt("there is no such database on this server", "create it (CREATE DATABASE %s), or correct host, port or database in the URL", database)
	case pgerrcode.InsufficientPrivilege:
		if cfg.RuntimeParams["replication"] != "" {
			return halt("the relay's role may connect but not replicate", "give it the right: ALTER ROLE %s REPLICATION; `walpost init` does so", role)
		}
		return halt("the role may not connect to the database", "run as the database's owner: GRANT CONNECT ON DATABASE %s TO %s", database, role)
	case pgerrcode.TooManyConnections:
		if cfg.RuntimeParams["replication"] != "" {
			return fmt.Errorf("%s: all of max_wal_senders are in use (SELECT pid, application_name FROM pg_stat_replication): end one, or raise it and restart PostgreSQL", found)
		}
		const ended = "%s: %s: end a connection (SELECT pid, application_name FROM pg_stat_activity WHERE usename = '%s'), or %s"
		switch pg.Routine { // never translated, unlike the message
		case "InitializeSessionUserId":
			return fmt.Errorf(ended, found, "the role's CONNECTION LIMIT is used up", cfg.User, "remove it (ALTER ROLE "+role+" CONNECTION LIMIT -1)")
		case "CheckMyDatabase":
			return fmt.Errorf(ended, found, "the database's CONNECTION LIMIT is used up", cfg.User, "raise it (ALTER DATABASE "+database+" CONNECTION LIMIT …)")
		}
		return fmt.Errorf(ended, found, "the server's max_connections are used up", cfg.User, "raise max_connections, and restart PostgreSQL")
	case pgerrcode.CannotConnectNow:
		return fmt.Errorf("%s: it is starting, stopping or recovering: wait until it is ready", found)
	case pgerrcode.ProtocolViolation, pgerrcode.FeatureNotSupported:
		return fmt.Errorf("%s: a pooler or another program is in between: name PostgreSQL's own host and port in %s", found, l.Key)
	case pgerrcode.DuplicatePreparedStatement, pgerrcode.InvalidSQLStatementName:
		return fmt.Errorf("%s: %s", found, transactionPooler)
	}
	return errors.New(found)
}

const transactionPooler = "a pooler in transaction mode is in between, and gives each statement another session: name PostgreSQL's own host and port, or a pool in session mode"

func errorResponse(body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return fmt.Errorf("read the server's error: %w", err)
	}
	return pgconn.ErrorResponseToPgError(&e)
}

// notice returns a halt for the one notice that means loss: from 18 on a missing publication is a warning, and its
// rows are skipped. Other notices have the same SQLSTATE: the server writes one each second while the slot waits for
// an absent standby.
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

// publicationMissing returns the halt for a publication that did not exist when this place in the WAL was written.
// Creating the publication again does not change that.
func publicationMissing(said string) error {
	return &cdc.HaltError{
		Found: said,
		Means: "the publication was dropped: rows committed until it exists again are never streamed",
		Run:   "`walpost init` creates the publication again, then `walpost adopt` continues from the end of the WAL",
		Latch: true,
	}
}

func lost(err error) error { return fmt.Errorf("replication connection lost: %w", err) }
