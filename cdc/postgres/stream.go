package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

const (
	readChunk    = 256 << 10 // most bytes that one Fill reads from the socket
	writeTimeout = 10 * time.Second
	closeTimeout = time.Second
)

// stream is one replication connection. pgconn connects, logs in and identifies. From START_REPLICATION on, stream
// reads the frames itself, straight from the socket into one buffer, because a row should cost neither a copy nor a
// system call.
type stream struct {
	cfg     config.Source
	conn    net.Conn
	decoder *decoder

	buf  []byte
	r, w int // buf[r:w] is received and not decoded

	// skim is how many bytes of the skipped frame have not arrived yet; they are dropped as they arrive.
	skim    int
	skimmed bool // Next has to count that frame

	socket      *socket // below TLS
	interrupted atomic.Bool
	closeOnce   sync.Once
	started     bool
}

var _ cdc.Stream = (*stream)(nil)

// Connect opens the replication connection and identifies the server. The stream returns the inserts into the table
// with that OID, which no relay polls while the stream is open; 0 means that there is no table.
func (s *Source) Connect(ctx context.Context, table uint32) (cdc.Stream, cdc.Identity, error) {
	pg, err := s.login().replicate(ctx)
	if err != nil {
		return nil, cdc.Identity{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	sys, err := pglogrepl.IdentifySystem(ctx, pg)
	if err != nil {
		_ = pg.Close(ctx)
		return nil, cdc.Identity{}, classify("identify the server", err)
	}
	id := cdc.Identity{SystemID: sys.SystemID, Timeline: sys.Timeline}
	// Asked over SQL: a pooler in between has process ids that are not the server's.
	if id.PID, id.Timeout, err = backend(ctx, pg); err != nil {
		_ = pg.Close(ctx)
		return nil, cdc.Identity{}, classify("ask for the backend's process id", err)
	}
	if err := markStreamed(ctx, pg, table); err != nil {
		_ = pg.Close(ctx)
		return nil, cdc.Identity{}, classify("take the outbox table", err)
	}
	id.History = past(ctx, pg, sys.Timeline)
	// A write that took long has left a background reader of pgconn, which would take the stream's first bytes.
	if err := pg.SyncConn(ctx); err != nil {
		_ = pg.Close(ctx)
		return nil, cdc.Identity{}, classify("take over the replication connection", err)
	}
	hijacked, err := pg.Hijack()
	if err != nil {
		_ = pg.Close(ctx)
		return nil, cdc.Identity{}, fmt.Errorf("take over the replication connection: %w", err)
	}
	d := newDecoder(s.cfg, table)
	if v := s.cfg.Columns.Verbatim; v != nil {
		d.describe, d.problems = s.describe, s.problems
		if v.Updates == config.WarnOfUpdate {
			d.onUpdate = func() {
				s.log.Warn().Str("slot", s.cfg.Slot).Str("table", s.cfg.Table).Msg("a row of the outbox was updated: updates are not published, and later ones in this session are not logged")
			}
		}
	}
	st := newStream(s.cfg, hijacked.Conn, d)
	id.Window, id.Wire = st.socket.keepShut()
	return st, id, nil
}

// describe reads a table's columns from the catalog while the stream waits.
func (s *Source) describe(table uint32) ([]column, error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	conn, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	return readColumns(ctx, conn, table)
}

// backend returns the process id of the server's process for the connection, and its wal_sender_timeout.
func backend(ctx context.Context, pg *pgconn.PgConn) (pid uint32, timeout time.Duration, err error) {
	results, err := pg.Exec(ctx, "SELECT pg_backend_pid(), setting FROM pg_settings WHERE name = 'wal_sender_timeout'").ReadAll()
	if err != nil {
		return 0, 0, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return 0, 0, errors.New("no answer")
	}
	row := results[0].Rows[0]
	n, err := strconv.ParseUint(string(row[0]), 10, 32)
	if err != nil {
		return 0, 0, err
	}
	ms, err := strconv.ParseInt(string(row[1]), 10, 64)
	return uint32(n), time.Duration(ms) * time.Millisecond, err
}

// parseHistory parses a timeline history file: a line for each earlier timeline, with its number, the LSN of its end,
// and the reason.
func parseHistory(text string) (past []cdc.PastTimeline) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		tli, err := strconv.ParseInt(fields[0], 10, 32)
		end, lsnErr := cdc.ParseLSN(fields[1])
		if err == nil && lsnErr == nil {
			past = append(past, cdc.PastTimeline{Timeline: int32(tli), End: end})
		}
	}
	return past
}

func newStream(cfg config.Source, conn net.Conn, d *decoder) *stream {
	s := &stream{cfg: cfg, conn: conn, decoder: d, buf: make([]byte, readChunk)}
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	s.socket, _ = conn.(*socket)
	return s
}

// Start begins streaming at 0/0: the server continues from the slot's confirmed position.
func (s *stream) Start(ctx context.Context) error {
	publications := strings.ReplaceAll(Ident(s.cfg.Publication), "'", "''")
	command := fmt.Sprintf(`START_REPLICATION SLOT "%s" LOGICAL 0/0 ("proto_version" '1', "publication_names" '%s')`, s.cfg.Slot, publications)
	query, err := (&pgproto3.Query{String: command}).Encode(nil)
	if err != nil {
		return fmt.Errorf("encode START_REPLICATION: %w", err)
	}
	if err := s.write(query); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, s.Interrupt)()
	for deadline := time.Now().Add(answerWithin); ; {
		typ, body, ok := s.frame()
		if !ok {
			if time.Now().After(deadline) {
				return fmt.Errorf("start replication: PostgreSQL has not answered within %s: the relay closes the connection and tries again", answerWithin)
			}
			if _, err := s.Fill(time.Now().Add(time.Second)); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			continue
		}
		switch typ {
		case 'W': // CopyBothResponse
			s.started = true
			return nil
		case 'E':
			return classify("start replication", errorResponse(body))
		}
	}
}

// Fill reads one chunk from the socket, and returns how many bytes came over the wire: with TLS they are more than
// the bytes to decode. It sets the connection's deadline each time: with an expired deadline it would spin.
func (s *stream) Fill(deadline time.Time) (int, error) {
	if err := s.makeRoom(); err != nil {
		return 0, err
	}
	if err := s.conn.SetReadDeadline(deadline); err != nil {
		return 0, lost(err)
	}
	if s.interrupted.Swap(false) {
		return 0, nil
	}
	before, total := s.wire(), 0
	for {
		n, err := s.conn.Read(s.buf[s.w:])
		s.w += n
		total += n
		s.drop()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		} else if err != nil {
			return total, lost(err)
		}
		// With TLS a read ends with a TLS record. Read everything that was received with it, and everything after a
		// record that was left over.
		if n == 0 || s.w == len(s.buf) || s.socket == nil || !s.socket.buffered() && (s.wire() > before || s.socket.waiting() == 0) {
			return max(total, s.wire()-before), nil
		}
	}
}

// wire returns how many bytes were received so far, if that is known.
func (s *stream) wire() int {
	if s.socket == nil {
		return 0
	}
	return s.socket.received
}

// Rest lets the socket fill for d.
func (s *stream) Rest(d time.Duration) {
	if s.socket == nil {
		time.Sleep(d)
		return
	}
	s.socket.rest(d)
}

// Waiting returns how many received bytes are still in the kernel.
func (s *stream) Waiting() int {
	if s.socket == nil {
		return 0
	}
	return s.socket.waiting()
}

// OpenWindow lets the kernel's autotuning size the receive buffer again.
func (s *stream) OpenWindow() {
	if s.socket != nil {
		s.socket.openWindow()
	}
}

// drop removes the bytes of the skipped frame from the buffer.
func (s *stream) drop() {
	n := min(s.skim, s.w-s.r)
	s.r += n
	s.skim -= n
}

// makeRoom moves the incomplete message to the front, and makes the buffer large enough for it. A large message of
// another table is skipped unread: its first bytes show which table it belongs to. An outbox row may be as large as
// the configuration allows.
func (s *stream) makeRoom() error {
	need := 0
	if s.w-s.r >= 5 {
		need = 1 + int(binary.BigEndian.Uint32(s.buf[s.r+1:]))
		if need < 5 {
			return fmt.Errorf("a frame of %d bytes in the replication stream", need)
		}
	}
	if need > readChunk && s.buf[s.r] == 'd' {
		head := s.buf[s.r+5 : s.w]
		switch foreign, err := s.decoder.foreign(head); {
		case errors.Is(err, errTruncated):
			need = readChunk // its first bytes are still to come
		case err != nil:
			return err
		case foreign:
			s.skim, s.skimmed = need, true
			s.drop()
			need = 0
		case need > int(s.cfg.MaxRowBytes)+readChunk && len(head) >= readChunk/2:
			return s.decoder.tooLarge(head, need)
		case need > int(s.cfg.MaxRowBytes)+readChunk:
			need = readChunk // its first columns are enough to name the row
		}
	}
	size := max(readChunk, need)
	if size == len(s.buf) && s.r == 0 {
		return nil
	}
	buf := s.buf
	if size != len(s.buf) {
		buf = make([]byte, size)
	}
	s.w = copy(buf, s.buf[s.r:s.w])
	s.r, s.buf = 0, buf
	return nil
}

// frame returns the type and body of the next whole frame in the buffer.
func (s *stream) frame() (typ byte, body []byte, ok bool) {
	if s.w-s.r < 5 {
		return 0, nil, false
	}
	end := s.r + 1 + int(binary.BigEndian.Uint32(s.buf[s.r+1:]))
	if end > s.w || end < s.r+5 {
		return 0, nil, false
	}
	typ, body = s.buf[s.r], s.buf[s.r+5:end]
	s.r = end
	return typ, body, true
}

// Next decodes the next message. A frame that is not CopyData ends the stream or is a notice.
func (s *stream) Next(m *cdc.Message) (bool, error) {
	if s.skimmed {
		s.skimmed = false
		m.Kind = cdc.Other
		return true, nil
	}
	for {
		typ, body, ok := s.frame()
		if !ok {
			return false, nil
		}
		switch typ {
		case 'd':
			return true, s.decoder.copyData(body, m)
		case 'E':
			return false, classify("stream", errorResponse(body))
		case 'N':
			if err := notice(body); err != nil {
				return false, err
			}
		case 'S': // ParameterStatus: a reload of the server's settings
		case 'c', 'C', 'Z':
			return false, errors.New("the server ended the stream (it is shutting down)")
		default:
			return false, fmt.Errorf("unexpected frame %q in the replication stream", typ)
		}
	}
}

// Status sends a standby status update with all three positions set: pglogrepl's encoder replaces a zero flush
// position by the written one, and would confirm rows that are not durable.
func (s *stream) Status(confirmed cdc.LSN, ping bool) error {
	var f [39]byte
	f[0] = 'd'
	binary.BigEndian.PutUint32(f[1:], 38)
	f[5] = pglogrepl.StandbyStatusUpdateByteID
	for i := range 3 { // written, flushed, applied
		binary.BigEndian.PutUint64(f[6+8*i:], uint64(confirmed))
	}
	binary.BigEndian.PutUint64(f[30:], uint64(time.Since(epoch).Microseconds()))
	if ping {
		f[38] = 1
	}
	return s.write(f[:])
}

func (s *stream) write(b []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return lost(err)
	}
	if _, err := s.conn.Write(b); err != nil {
		return lost(err)
	}
	return nil
}

// Interrupt sets a flag as well as a deadline, because Fill may be about to set another deadline.
func (s *stream) Interrupt() {
	s.interrupted.Store(true)
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
}

// Close ends the copy and waits a moment until the server has read everything: closing a socket with unread data
// resets the connection, and the last status update could be lost.
func (s *stream) Close() error {
	var err error
	s.closeOnce.Do(func() {
		if s.started && s.write([]byte{'c', 0, 0, 0, 4}) == nil {
			s.awaitCopyDone(time.Now().Add(closeTimeout))
		}
		_ = s.write([]byte{'X', 0, 0, 0, 4})
		err = s.conn.Close()
	})
	return err
}

// awaitCopyDone discards what arrives until the server has ended the copy too.
func (s *stream) awaitCopyDone(deadline time.Time) {
	s.interrupted.Store(false)
	for {
		switch typ, _, ok := s.frame(); {
		case ok && typ != 'd' && typ != 'N' && typ != 'S' && typ != 'c':
			return
		case !ok:
			if n, err := s.Fill(deadline); n == 0 || err != nil {
				return
			}
		}
	}
}
