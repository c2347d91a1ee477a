package postgres

import (
	"context"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc"
)

// Identify returns the server's system id and timeline, as the relay's role reads them over SQL. If recorded, the
// timeline of a state record, is an earlier one, it also returns the ends of the timelines since then.
func (s *Source) Identify(ctx context.Context, recorded int32) (cdc.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, err := s.Open(ctx)
	if err != nil {
		return cdc.Identity{}, err
	}
	defer func() { _ = conn.Close(ctx) }()
	return s.who(ctx, conn, recorded)
}

// Identify does the same as Source.Identify, on the administrator's connection.
func (a *Admin) Identify(ctx context.Context, recorded int32) (cdc.Identity, error) {
	return a.source.who(ctx, a.conn, recorded)
}

func (s *Source) who(ctx context.Context, conn *pgx.Conn, recorded int32) (id cdc.Identity, err error) {
	if err := conn.QueryRow(ctx, `SELECT `+currentTimeline).Scan(&id.Timeline); err != nil {
		return id, classify("identify the server", err)
	}
	err = conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&id.SystemID)
	switch {
	case SQLState(err) == pgerrcode.InsufficientPrivilege: // some providers reserve the function for themselves
	case err != nil:
		return id, classify("identify the server", err)
	case recorded == 0 || recorded >= id.Timeline:
		return id, nil
	}
	return s.history(ctx)
}

// history reads the identity over a replication connection, because only that can read the history file.
func (s *Source) history(ctx context.Context) (cdc.Identity, error) {
	pg, err := s.login().replicate(ctx)
	if err != nil {
		return cdc.Identity{}, err
	}
	defer func() { _ = pg.Close(context.WithoutCancel(ctx)) }()
	sys, err := pglogrepl.IdentifySystem(ctx, pg)
	if err != nil {
		return cdc.Identity{}, classify("identify the server", err)
	}
	return cdc.Identity{SystemID: sys.SystemID, Timeline: sys.Timeline, History: past(ctx, pg, sys.Timeline)}, nil
}

// past returns the ends of the earlier timelines; nil if the server does not know them. A timeline without a known
// end counts as one that left the common history elsewhere, which is a HaltError if it matters.
func past(ctx context.Context, pg *pgconn.PgConn, timeline int32) []cdc.PastTimeline {
	if timeline <= 1 {
		return nil
	}
	h, err := pglogrepl.TimelineHistory(ctx, pg, timeline)
	if err != nil {
		return nil
	}
	return parseHistory(string(h.Content))
}
