package cdctest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// WriterConfig says how to write. Only URL is required.
type WriterConfig struct {
	URL        string // of the database; missing tables are created
	Table      string // "outbox" if empty, may carry a schema; with the columns of CreateOutbox
	Type       string // the events' aggregate_type; "order" if empty
	Goroutines int    // 4 if 0; each has a separate connection and separate keys
	Keys       int    // per goroutine; 8 if 0
	Body       int    // bytes of a payload's body, on average; 200 if 0
	Events     int    // the writer ends after about this many committed events; 0: at Stop
	Rate       int    // transactions per second, all together; 0: as fast as the server takes them
	Seed       uint64 // of the random choices; 0: a random seed, which is logged

	Prepared bool          // every fourth transaction goes through PREPARE TRANSACTION
	Long     time.Duration // every tenth transaction stays open for this long before it ends
}

// Writer writes events into an outbox as services do, and notes each event in the table ledger in the same transaction:
// with single and multi-row inserts and COPY, in transactions of one row and of hundreds, with savepoints, and on
// demand with long and prepared transactions. At least a fifth of the transactions and of the savepoints roll back. If
// its connection is lost, it opens a new one and finds out whether the open COMMIT succeeded.
type Writer struct {
	t         testing.TB
	cfg       WriterConfig
	stop      chan struct{}
	halt      func() // stops, once
	ctx       context.Context
	cancel    context.CancelFunc
	group     sync.WaitGroup
	committed atomic.Int64

	mu         sync.Mutex
	err        error
	rolledBack map[uuid.UUID]bool
}

// StartWriter creates missing tables and starts to write. The writer ends at Stop, or with the test.
func StartWriter(t testing.TB, cfg WriterConfig) *Writer {
	t.Helper()
	if cfg.Table == "" {
		cfg.Table = "outbox"
	}
	if cfg.Type == "" {
		cfg.Type = "order"
	}
	if cfg.Goroutines == 0 {
		cfg.Goroutines = 4
	}
	if cfg.Keys == 0 {
		cfg.Keys = 8
	}
	if cfg.Body == 0 {
		cfg.Body = 200
	}
	if cfg.Seed == 0 {
		cfg.Seed = rand.Uint64()
		t.Logf("writer's seed: %d", cfg.Seed)
	}
	CreateOutbox(t, cfg.URL, cfg.Table)
	if err := execAll(t.Context(), cfg.URL, createLedger); err != nil {
		t.Fatalf("create the ledger: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stop := make(chan struct{})
	w := &Writer{
		t: t, cfg: cfg, ctx: ctx, cancel: cancel, rolledBack: map[uuid.UUID]bool{},
		stop: stop, halt: sync.OnceFunc(func() { close(stop) }),
	}
	t.Cleanup(func() {
		w.halt()
		w.cancel()
		w.group.Wait()
	})
	run := unique() // so that keys of an earlier writer in this database are not reused
	for n := range cfg.Goroutines {
		h := &hand{w: w, lock: rand.Int64(), rng: rand.New(rand.NewPCG(cfg.Seed, uint64(n)))}
		for k := range cfg.Keys {
			h.keys = append(h.keys, &key{name: fmt.Sprintf("%s-%d-%d", run, n, k)})
		}
		w.group.Go(h.run)
	}
	return w
}

// Committed returns the number of events committed so far.
func (w *Writer) Committed() int { return int(w.committed.Load()) }

// Stop lets every goroutine finish its transaction and returns the ledger. It fails the test if writing failed for
// another reason than a lost connection, or if the outcome of a commit cannot be found within a minute.
func (w *Writer) Stop() Ledger {
	w.t.Helper()
	w.halt()
	return w.Wait()
}

// Wait does the same as Stop for a Writer that ends by itself.
func (w *Writer) Wait() Ledger {
	w.t.Helper()
	done := make(chan struct{})
	go func() {
		w.group.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-w.stopped(time.Minute):
		w.cancel()
		<-done
		w.fail(errors.New("not stopped within a minute"))
	}
	if w.err != nil {
		w.t.Fatalf("writer: %v", w.err)
	}
	events, err := readLedger(w.t.Context(), w.cfg.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	return Ledger{Events: events, RolledBack: w.rolledBack}
}

// stopped returns a channel that is closed d after Stop.
func (w *Writer) stopped(d time.Duration) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		select {
		case <-w.stop:
		case <-w.ctx.Done():
			return
		}
		if sleep(w.ctx, d) {
			close(over)
		}
	}()
	return over
}

func (w *Writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, err)
	w.halt()
}

// hand is one writing goroutine. A key belongs to one hand, so its sequence numbers are in the order of its commits.
type hand struct {
	w                        *Writer
	rng                      *rand.Rand
	lock                     int64 // the advisory lock of its transaction; it is free once the transaction has ended
	keys                     []*key
	conn                     *pgx.Conn
	transactions, savepoints quota
}

type key struct {
	name string
	seq  int64 // the number of the last committed event
}

// quota answers yes at random, at least once in five times.
type quota struct{ asked, yes int }

func (q *quota) ask(rng *rand.Rand) bool {
	q.asked++
	yes := rng.IntN(4) == 0 || q.yes*5 < q.asked
	if yes {
		q.yes++
	}
	return yes
}

func (h *hand) run() {
	defer func() {
		if h.conn != nil {
			_ = h.conn.Close(h.w.ctx)
		}
	}()
	next := time.Now()
	for {
		select {
		case <-h.w.stop:
			return
		default:
		}
		if limit := h.w.cfg.Events; limit > 0 && h.w.Committed() >= limit {
			return
		}
		if rate := h.w.cfg.Rate; rate > 0 {
			next = next.Add(time.Second * time.Duration(h.w.cfg.Goroutines) / time.Duration(rate))
			if !sleep(h.w.ctx, time.Until(next)) {
				return
			}
		}
		if err := h.transaction(); err != nil {
			h.w.fail(err)
			return
		}
	}
}

// transaction writes one transaction. It returns nil if the connection was lost.
func (h *hand) transaction() error {
	ctx := h.w.ctx
	if err := h.connect(); err != nil {
		return err
	}
	tx := &transaction{hand: h, seqs: map[*key]int64{}}
	rollback := h.transactions.ask(h.rng)
	if h.w.cfg.Prepared && h.rng.IntN(4) == 0 {
		tx.prepared = "writer_" + unique()
	}
	err := tx.write(ctx)
	switch {
	case err != nil:
		h.drop()
		h.note(append(tx.undone, tx.events...))
		if !lost(err) {
			return fmt.Errorf("write a transaction: %w", err)
		}
		return nil
	case rollback && tx.prepared == "":
		if _, err := h.conn.Exec(ctx, "ROLLBACK"); err != nil {
			h.drop()
		}
		h.note(append(tx.undone, tx.events...))
		return nil
	}
	h.note(tx.undone)
	if err := tx.end(ctx, rollback); err != nil || rollback {
		if err != nil {
			h.drop()
		}
		committed, err := h.resolve(tx, rollback)
		if err != nil {
			return fmt.Errorf("find out whether a transaction was committed: %w", err)
		}
		if !committed {
			h.note(tx.events)
			return nil
		}
	}
	for k, seq := range tx.seqs {
		k.seq = seq
	}
	h.w.committed.Add(int64(len(tx.events)))
	return nil
}

// resolve finishes a transaction that was left prepared. It waits for the end of a transaction whose connection was
// lost during its end, and looks it up in the ledger.
func (h *hand) resolve(tx *transaction, rollback bool) (committed bool, err error) {
	for {
		if err := h.connect(); err != nil {
			return false, err
		}
		var prepared, ended bool
		err := h.conn.QueryRow(h.w.ctx, "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = $1)", tx.prepared).Scan(&prepared)
		if err == nil && prepared {
			_ = tx.second(h.w.ctx, rollback) // its first backend may still be doing it
		}
		if err == nil && !prepared {
			err = h.conn.QueryRow(h.w.ctx, "SELECT pg_try_advisory_xact_lock($1)", h.lock).Scan(&ended)
		}
		if err == nil && (prepared || !ended) { // its backend may not have noticed yet
			if !sleep(h.w.ctx, 10*time.Millisecond) {
				return false, context.Cause(h.w.ctx)
			}
			continue
		}
		if err == nil && len(tx.events) > 0 {
			err = h.conn.QueryRow(h.w.ctx, "SELECT EXISTS (SELECT FROM ledger WHERE id = $1)", [16]byte(tx.events[0].id)).Scan(&committed)
		}
		if err == nil {
			return committed, nil
		}
		h.drop()
		if !lost(err) {
			return false, err
		}
	}
}

// connect opens a connection if there is none, and retries until it succeeds.
func (h *hand) connect() error {
	for h.conn == nil {
		conn, err := pgx.Connect(h.w.ctx, h.w.cfg.URL)
		if err == nil {
			h.conn = conn
			return nil
		}
		if !lost(err) {
			return err
		}
		if !sleep(h.w.ctx, 20*time.Millisecond) {
			return context.Cause(h.w.ctx)
		}
	}
	return nil
}

func (h *hand) drop() {
	_ = h.conn.Close(h.w.ctx)
	h.conn = nil
}

func (h *hand) note(undone []event) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	for _, e := range undone {
		h.w.rolledBack[e.id] = true
	}
}

// lost reports whether err comes from the connection or the server, and not from the written data.
func lost(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		// connection exceptions, too many connections, and a server that shuts down or starts up
		return pgerrcode.IsConnectionException(pg.Code) || pg.Code == pgerrcode.TooManyConnections || strings.HasPrefix(pg.Code, "57P")
	}
	return !errors.Is(err, context.Canceled)
}

type event struct {
	id      uuid.UUID
	key     *key
	seq     int64
	ord     int32
	payload string
}

// transaction is an open transaction: the events that it will commit and the events that its savepoints have rolled
// back.
type transaction struct {
	hand           *hand
	prepared       string         // its name if it ends in two phases
	seqs           map[*key]int64 // of keys it has touched
	events, undone []event
	ord            int32
}

func (tx *transaction) write(ctx context.Context) error {
	conn, rng := tx.hand.conn, tx.hand.rng
	if _, err := conn.Exec(ctx, fmt.Sprintf("BEGIN; SELECT pg_advisory_xact_lock(%d)", tx.hand.lock)); err != nil {
		return err
	}
	for range 1 + rng.IntN(4) {
		savepoint := rng.IntN(3) == 0
		before, seqs := len(tx.events), tx.snapshot()
		if savepoint {
			if _, err := conn.Exec(ctx, "SAVEPOINT s"); err != nil {
				return err
			}
		}
		if err := tx.piece(ctx); err != nil {
			return err
		}
		end := "RELEASE SAVEPOINT s"
		switch {
		case !savepoint:
			continue
		case tx.hand.savepoints.ask(rng):
			end = "ROLLBACK TO SAVEPOINT s; " + end
			tx.undone = append(tx.undone, tx.events[before:]...)
			tx.events, tx.seqs = tx.events[:before], seqs
		}
		if _, err := conn.Exec(ctx, end); err != nil {
			return err
		}
	}
	return nil
}

// end commits, in two phases if the transaction has a name, or rolls a prepared transaction back.
func (tx *transaction) end(ctx context.Context, rollback bool) error {
	conn, rng := tx.hand.conn, tx.hand.rng
	if long := tx.hand.w.cfg.Long; long > 0 && rng.IntN(10) == 0 {
		sleep(ctx, long)
	}
	if tx.prepared == "" {
		_, err := conn.Exec(ctx, "COMMIT")
		return err
	}
	if _, err := conn.Exec(ctx, "PREPARE TRANSACTION '"+tx.prepared+"'"); err != nil {
		return err
	}
	sleep(ctx, time.Duration(rng.IntN(20))*time.Millisecond) // others commit meanwhile
	return tx.second(ctx, rollback)
}

func (tx *transaction) second(ctx context.Context, rollback bool) error {
	what := "COMMIT"
	if rollback {
		what = "ROLLBACK"
	}
	_, err := tx.hand.conn.Exec(ctx, what+" PREPARED '"+tx.prepared+"'")
	return err
}

func (tx *transaction) snapshot() map[*key]int64 {
	seqs := make(map[*key]int64, len(tx.seqs))
	for k, seq := range tx.seqs {
		seqs[k] = seq
	}
	return seqs
}

// piece inserts some events in one of several ways, and their ledger rows.
func (tx *transaction) piece(ctx context.Context) error {
	rng, cfg := tx.hand.rng, tx.hand.w.cfg
	n := 1 + rng.IntN(5)
	if rng.IntN(50) == 0 {
		n = 100 + rng.IntN(400)
	}
	first := len(tx.events)
	for range n {
		tx.events = append(tx.events, tx.newEvent())
	}
	events := tx.events[first:]
	var ids [][16]byte
	var keys, payloads []string
	var seqs []int64
	var ords []int32
	for _, e := range events {
		ids, keys, seqs, ords, payloads = append(ids, e.id), append(keys, e.key.name), append(seqs, e.seq), append(ords, e.ord), append(payloads, e.payload)
	}
	table := identifier(cfg.Table)
	var batch pgx.Batch
	switch how := rng.IntN(3); {
	case how == 0 && n < 100:
		for i := range events {
			batch.Queue("INSERT INTO "+table.Sanitize()+" (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, $2, $3, $4, $5::text::jsonb)",
				ids[i], cfg.Type, keys[i], "Written", payloads[i])
		}
	case how == 1:
		batch.Queue("INSERT INTO "+table.Sanitize()+` (id, aggregate_type, aggregate_id, event_type, payload)
			SELECT id, $1, key, $2, payload::jsonb FROM unnest($3::uuid[], $4::text[], $5::text[]) AS e (id, key, payload)`,
			cfg.Type, "Written", ids, keys, payloads)
	default:
		_, err := tx.hand.conn.CopyFrom(ctx, table, []string{"id", "aggregate_type", "aggregate_id", "event_type", "payload"},
			pgx.CopyFromSlice(n, func(i int) ([]any, error) {
				return []any{ids[i], cfg.Type, keys[i], "Written", []byte(payloads[i])}, nil
			}))
		if err != nil {
			return err
		}
	}
	batch.Queue(insertLedger, ids, keys, seqs, ords, payloads)
	return tx.hand.conn.SendBatch(ctx, &batch).Close()
}

// awkward is part of some bodies: characters that JSON, UTF-8 and shells treat specially.
const awkward = "\"quoted\" \\ back\u2028slash\ttab\n{né 北京 🎈}'%$1"

func (tx *transaction) newEvent() event {
	h := tx.hand
	k := h.keys[h.rng.IntN(len(h.keys))]
	if _, touched := tx.seqs[k]; !touched {
		tx.seqs[k] = k.seq
	}
	tx.seqs[k]++
	tx.ord++
	e := event{id: uuid.Must(uuid.NewV7()), key: k, seq: tx.seqs[k], ord: tx.ord}
	body := strings.Repeat(string('a'+rune(h.rng.IntN(26))), h.rng.IntN(2*h.w.cfg.Body+1))
	if h.rng.IntN(4) == 0 {
		body += awkward
	}
	sum := sha256.Sum256([]byte(body))
	payload, err := json.Marshal(Payload{ID: e.id, Key: k.name, Seq: e.seq, Body: body, Sum: hex.EncodeToString(sum[:])})
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	e.payload = string(payload)
	return e
}

// Payload is the JSON of a Writer's events. It contains a checksum, for consumers that have no ledger.
type Payload struct {
	ID   uuid.UUID `json:"id"`
	Key  string    `json:"key"`
	Seq  int64     `json:"seq"`
	Body string    `json:"body"`
	Sum  string    `json:"sha256"` // of Body, in hexadecimal
}
