package cdc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// world is one history of a PostgreSQL, a Kafka and the relays between them, in virtual time. Everything in it
// follows from its seed: each call into the world takes a random time that only it takes, so no two things happen at
// once, and each goroutine draws from a separate source.
type world struct {
	mu          sync.Mutex
	rng         *rand.Rand
	exactlyOnce bool

	pg    simPostgres
	kafka simKafka

	relays []*simRelay
	// a relay published after another had taken over: in at-least-once a stale run may arrive out of order
	late     bool
	unclean  bool         // a window failed or a relay was killed: Kafka may be ahead of the state record
	hostile  []string     // hostile acts that the relay did not see; from the first on it may halt
	phantoms map[int]bool // rows that a failover took back
	violated []string
}

func newWorld(seed uint64, exactlyOnce bool) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 1)), exactlyOnce: exactlyOnce, phantoms: map[int]bool{}}
	w.pg = simPostgres{id: "7", timeline: 1, end: 100, slot: true, confirmed: 100, persisted: 100, fingerprint: 1, sent: map[LSN]bool{}}
	w.kafka.durable = map[int]bool{}
	w.kafka.records = []simState{{State: State{Version: StateVersion, Pipeline: "p", SystemID: "7", Timeline: 1, Covered: 100, Fingerprint: "1", Instance: "init"}}}
	return w
}

func (w *world) violate(format string, args ...any) {
	if len(w.violated) < 10 {
		w.violated = append(w.violated, fmt.Sprintf(format, args...))
	}
}

func chance(rng *rand.Rand, percent int) bool { return rng.IntN(100) < percent }

// branch returns a random source for one goroutine.
func branch(rng *rand.Rand) *rand.Rand { return rand.New(rand.NewPCG(rng.Uint64(), 3)) }

// simTx is a committed transaction. Its number gives its place among all transactions ever committed, in any history.
type simTx struct {
	start, end LSN
	xid        uint32
	at         time.Time
	rows       []int // numbers, which order all rows ever committed
	keys       []byte
	hidden     bool // the publication did not carry the table at this point
	excused    bool // a hostile act moved the slot past it, or took it back with a backup
}

type simPostgres struct {
	id          string
	timeline    int32
	past        []PastTimeline
	pids        uint32
	life        int
	wal         []*simTx
	end         LSN
	xid         uint32
	rows        int
	down        time.Time // the server is down until then
	slot        bool
	confirmed   LSN
	persisted   LSN // the LSN that a crash goes back to
	owner       *simStream
	fingerprint int
	hides       bool
	sent        map[LSN]bool // LSNs that may be confirmed: ends of commits, and keepalives
	checked     int          // index in wal: confirmed, and checked to be durable
}

func (p *simPostgres) identity(pid uint32) Identity {
	return Identity{PID: pid, SystemID: p.id, Timeline: p.timeline, History: slices.Clone(p.past)}
}

// commit appends a transaction. mu must be held. Half of all commits begin exactly where the one before ended.
func (w *world) commit(rows int) {
	p := &w.pg
	if chance(w.rng, 50) {
		p.end += LSN(8 * (1 + w.rng.IntN(10)))
	}
	p.xid++
	tx := &simTx{start: p.end, end: p.end + LSN(8*(1+w.rng.IntN(4))), xid: p.xid, at: time.Now(), hidden: p.hides}
	for range rows {
		p.rows++
		tx.rows = append(tx.rows, p.rows)
		tx.keys = append(tx.keys, byte('a'+w.rng.IntN(5)))
	}
	p.end = tx.end
	p.wal = append(p.wal, tx)
	w.arrive()
}

// arrive wakes the streams that wait for WAL.
func (w *world) arrive() {
	if o := w.pg.owner; o != nil {
		signal(o.arrived)
	}
}

// cut ends the replication connection.
func (w *world) cut() {
	if o := w.pg.owner; o != nil {
		o.cut = true
		w.pg.owner = nil
		signal(o.arrived)
	}
}

// lose ends all connections, because this server no longer exists.
func (w *world) lose() {
	w.cut()
	w.pg.life++
}

// simRelay is one relay process.
type simRelay struct {
	w      *world
	relay  *Relay
	cancel context.CancelFunc
	ended  chan error
	dead   bool      // killed: its calls have no effect
	thaws  time.Time // frozen until then
	owns   bool      // its present stream was started …
	since  time.Time // … then
	starts *rand.Rand
	role   Role
	halted bool
}

var errSimKilled = errors.New("killed")

// enter waits while the process is frozen, and returns an error once it was killed. A process calls it whenever it
// reaches into the world.
func (r *simRelay) enter(rng *rand.Rand, upTo time.Duration) error {
	time.Sleep(time.Duration(1 + rng.Int64N(int64(upTo))))
	for {
		r.w.mu.Lock()
		wait, dead := time.Until(r.thaws), r.dead
		r.w.mu.Unlock()
		if dead {
			return errSimKilled
		}
		if wait <= 0 {
			return nil
		}
		time.Sleep(wait)
	}
}

func (r *simRelay) Preflight(context.Context) (uint32, error) {
	if err := r.enter(r.starts, 2*time.Millisecond); err != nil {
		return 0, err
	}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if time.Now().Before(r.w.pg.down) {
		return 0, errors.New("postgres does not answer")
	}
	return 0, nil
}

func (r *simRelay) Connect(ctx context.Context, _ uint32) (Stream, Identity, error) {
	if _, err := r.Preflight(ctx); err != nil {
		return nil, Identity{}, err
	}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.owns = false
	r.w.pg.pids++
	pid := r.w.pg.pids
	return &simStream{pid: pid, life: r.w.pg.life, relay: r, rng: branch(r.starts), arrived: make(chan struct{}, 1), wake: make(chan struct{}, 1)}, r.w.pg.identity(pid), nil
}

func (r *simRelay) Facts(ctx context.Context) (Facts, error) {
	if _, err := r.Preflight(ctx); err != nil {
		return Facts{}, err
	}
	r.w.mu.Lock()
	p := &r.w.pg
	f := Facts{
		Identity:    Identity{Timeline: p.timeline},
		Slot:        SlotFacts{Name: "s", Exists: p.slot, Active: p.owner != nil, ConfirmedFlush: p.confirmed, WALStatus: "reserved"},
		WALEnd:      p.end,
		Fingerprint: fmt.Sprint(p.fingerprint),
	}
	if p.owner != nil {
		f.Slot.ActivePID = p.owner.pid
	}
	r.w.mu.Unlock()
	return f, r.enter(r.starts, 2*time.Millisecond)
}

// simStream is a walsender and the connection to it.
type simStream struct {
	pid     uint32
	life    int
	relay   *simRelay
	rng     *rand.Rand
	arrived chan struct{}
	wake    chan struct{}

	started bool
	cut     bool
	at      int       // next transaction in the WAL
	sent    LSN       // everything before it was sent
	pending []Message // of the transaction that is being sent
	buf     []Message // received
}

func (s *simStream) Start(context.Context) error {
	if err := s.relay.enter(s.rng, 2*time.Millisecond); err != nil {
		return err
	}
	w := s.relay.w
	w.mu.Lock()
	defer w.mu.Unlock()
	switch p := &w.pg; {
	case time.Now().Before(p.down), s.life != p.life:
		return errors.New("connection lost")
	case !p.slot:
		return &HaltError{Found: "no slot"}
	case p.owner != nil:
		return fmt.Errorf("start: %w", ErrSlotInUse)
	default:
		p.owner, s.started, s.relay.owns, s.relay.since = s, true, true, time.Now()
		s.at = slices.IndexFunc(p.wal, func(tx *simTx) bool { return tx.start >= p.confirmed })
		if s.at < 0 {
			s.at = len(p.wal)
		}
		s.sent = p.confirmed - min(p.confirmed, LSN(s.rng.IntN(200))) // the walsender reads again from restart_lsn
	}
	return nil
}

// produce appends what the walsender has to send, a few messages at a time. mu must be held.
func (s *simStream) produce() {
	w := s.relay.w
	p := &w.pg
	keepalive := func(lsn LSN) {
		p.sent[lsn] = true
		s.buf = append(s.buf, Message{Kind: Keepalive, LSN: lsn, ReplyRequested: chance(s.rng, 30)})
	}
	for range 1 + s.rng.IntN(12) {
		if chance(s.rng, 10) {
			keepalive(s.sent) // inside a transaction its LSN is before the transaction
		}
		if len(s.pending) > 0 {
			m := s.pending[0]
			s.pending = s.pending[1:]
			if m.Kind == Commit {
				s.sent = max(s.sent, m.LSN)
				p.sent[m.LSN] = true
			}
			s.buf = append(s.buf, m)
			continue
		}
		if s.at == len(p.wal) {
			if s.sent < p.end {
				s.sent = p.end
				keepalive(s.sent)
			}
			return
		}
		tx := p.wal[s.at]
		s.at++
		if tx.hidden {
			continue
		}
		s.pending = append(s.pending, Message{Kind: Begin, LSN: tx.start, Row: Row{XID: tx.xid, CommitTime: tx.at}})
		for i, n := range tx.rows {
			s.pending = append(s.pending, Message{Kind: Insert, Row: Row{ID: fmt.Append(nil, n), AggregateID: tx.keys[i : i+1]}})
		}
		s.pending = append(s.pending, Message{Kind: Commit, LSN: tx.end})
	}
}

func (s *simStream) Fill(deadline time.Time) (int, error) {
	if err := s.relay.enter(s.rng, 500*time.Microsecond); err != nil {
		return 0, err
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	w := s.relay.w
	for {
		w.mu.Lock()
		if s.cut {
			w.mu.Unlock()
			return 0, errors.New("connection lost")
		}
		had := len(s.buf)
		s.produce()
		n := 100 * (len(s.buf) - had)
		if n > 0 && chance(s.rng, 30) {
			n = smallestFull // a busy relay must be as correct as a quiet one
		}
		w.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-s.arrived:
		case <-s.wake:
			return 0, nil
		case <-timer.C:
			return 0, nil
		}
	}
}

func (s *simStream) Rest(d time.Duration) { time.Sleep(d) }

func (s *simStream) Waiting() int { return 0 }

func (s *simStream) OpenWindow() {}

func (s *simStream) Next(m *Message) (bool, error) {
	if len(s.buf) == 0 {
		return false, nil
	}
	*m, s.buf = s.buf[0], s.buf[1:]
	return true, nil
}

// Status moves the slot, and checks the promises about confirming.
func (s *simStream) Status(confirmed LSN, _ bool) error {
	if err := s.relay.enter(s.rng, 100*time.Microsecond); err != nil {
		return err
	}
	w := s.relay.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.cut || !s.started {
		return errors.New("connection lost")
	}
	p := &w.pg
	if confirmed <= p.confirmed {
		return nil
	}
	if !slices.ContainsFunc(w.kafka.records, func(st simState) bool { return st.tx.durable() && st.Covered >= confirmed }) {
		w.violate("I2: confirmed %s, and no durable state record covers it", confirmed)
	}
	if !p.sent[confirmed] {
		w.violate("I2: confirmed %s, which is no commit's end and no keepalive's", confirmed)
	}
	p.confirmed = confirmed
	for ; p.checked < len(p.wal) && p.wal[p.checked].end <= confirmed; p.checked++ {
		tx := p.wal[p.checked]
		for _, row := range tx.rows {
			if !tx.hidden && !tx.excused && !w.kafka.durable[row] {
				w.violate("I1: confirmed %s, row %d of the commit at %s is not in kafka", confirmed, row, tx.start)
			}
		}
	}
	return nil
}

func (s *simStream) Interrupt() { signal(s.wake) }

func (s *simStream) Close() error {
	w := s.relay.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pg.owner == s {
		w.pg.owner = nil
	}
	s.cut = true
	return nil
}

// simKafka has two partitions, a dead letter topic and a state topic.
type simKafka struct {
	logs    [3][]simRecord
	records []simState
	durable map[int]bool
	last    Position  // of the last durable row
	down    time.Time // does not answer before then
	fail    int       // number of the next windows that fail
	epoch   int       // of the transactional id
	open    []*simTxn
}

// simTxn is a Kafka transaction; nil for records without one.
type simTxn struct{ done, committed bool }

func (t *simTxn) durable() bool { return t == nil || t.committed }

type simRecord struct {
	row int
	tx  *simTxn
}

type simState struct {
	State
	tx *simTxn
	at time.Time
}

func (k *simKafka) delivered(rows []int, last Position) {
	for _, row := range rows {
		k.durable[row] = true
	}
	if k.last.Compare(last) < 0 {
		k.last = last
	}
}

// answers waits for Kafka, at most as long as a session's start does.
func (r *simRelay) answers(ctx context.Context) error {
	if err := r.enter(r.starts, 3*time.Millisecond); err != nil {
		return err
	}
	return r.reach(ctx, 10*time.Second)
}

func (r *simRelay) reach(ctx context.Context, within time.Duration) error {
	r.w.mu.Lock()
	away := time.Until(r.w.kafka.down)
	r.w.mu.Unlock()
	wait := time.NewTimer(min(away, within))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	if away > within {
		return errors.New("kafka does not answer")
	}
	return nil
}

func (r *simRelay) Peek(ctx context.Context) (*State, error) {
	if err := r.answers(ctx); err != nil {
		return nil, err
	}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return r.w.kafka.newest(), nil
}

// newest returns the newest durable state record. mu must be held.
func (k *simKafka) newest() *State {
	var all []*State
	for i := range k.records {
		if st := k.records[i]; st.tx.durable() {
			all = append(all, &st.State)
		}
	}
	return NewestState(all)
}

// Open returns a client, and in exactly-once fences the earlier one.
func (r *simRelay) Open(ctx context.Context) (Publisher, error) {
	if err := r.answers(ctx); err != nil {
		return nil, err
	}
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !r.owns {
		w.violate("a relay that does not own the slot fences its owner")
	}
	w.kafka.epoch++
	for _, tx := range w.kafka.open {
		tx.done = true
	}
	w.kafka.open = nil
	return &simPublisher{relay: r, rng: branch(r.starts), epoch: w.kafka.epoch}, nil
}

type simPublisher struct {
	relay  *simRelay
	rng    *rand.Rand
	epoch  int   // of the transactional id
	claim  int64 // of the session
	failed bool
}

func (p *simPublisher) State(ctx context.Context) (*State, error) { return p.relay.Peek(ctx) }

// Check rejects every thirteenth row, which becomes a dead letter.
func (p *simPublisher) Check(_ context.Context, rec *Record) error {
	if rec.Rejected == nil && number(rec.Row)%13 == 0 {
		return Reject(rec.Row, BadPayload, rec.Topic, "the number is unlucky")
	}
	return nil
}

func (p *simPublisher) Notes(*State) []string { return nil }

func (p *simPublisher) CountFrom(context.Context, LSN) (int, bool, error) { return 0, false, nil }

func (p *simPublisher) DeadLetters(context.Context, int64, func(string, []Header)) (int64, error) {
	return 0, nil
}

func number(row *Row) (n int) {
	_, _ = fmt.Sscan(string(row.ID), &n)
	return n
}

func (p *simPublisher) Close() {}

// Publish succeeds, or fails in one of Kafka's ways: nothing arrived, a prefix per partition arrived, or everything
// arrived and the answer was lost.
func (p *simPublisher) Publish(ctx context.Context, records []Record, st *State) error {
	r, w := p.relay, p.relay.w
	if p.failed {
		w.mu.Lock()
		w.violate("a client is used again after an error")
		w.mu.Unlock()
	}
	err := p.publish(ctx, records, st)
	p.failed = err != nil
	if err == nil {
		err = r.enter(p.rng, time.Millisecond)
	}
	return err
}

func (p *simPublisher) publish(ctx context.Context, records []Record, st *State) error {
	r, w := p.relay, p.relay.w
	patience := 24 * time.Hour
	if w.exactlyOnce {
		patience = 30 * time.Second // the transaction's timeout
	}
	if err := errors.Join(r.enter(p.rng, 4*time.Millisecond), r.reach(ctx, patience)); err != nil {
		return err
	}
	w.mu.Lock()
	k := &w.kafka
	how := 0
	if k.fail > 0 {
		k.fail--
		how = 1 + p.rng.IntN(4)
		w.unclean = true
	}
	var tx *simTxn
	if w.exactlyOnce {
		if p.epoch != k.epoch {
			w.mu.Unlock()
			return errors.New("fenced")
		}
		tx = &simTxn{}
		k.open = append(k.open, tx)
	}
	var rows []int
	var last Position
	var stopped [3]bool
	for i := range records {
		row := number(records[i].Row)
		part := int(records[i].Row.AggregateID[0]) % 2
		switch records[i].Topic {
		case "t":
		case "walpost.dlq.p":
			part = 2
		default:
			continue // the record is lost
		}
		if (how == 1 && chance(p.rng, 20)) || how == 2 {
			stopped[part] = true
		}
		if stopped[part] {
			continue
		}
		k.logs[part] = append(k.logs[part], simRecord{row, tx})
		rows = append(rows, row)
		last = records[i].Row.Position
	}
	if st != nil && (how == 0 || how > 2 || chance(p.rng, 50)) {
		w.claim(r, st)
		k.records = append(k.records, simState{*st, tx, time.Now()})
	}
	if st != nil {
		p.claim = st.Epoch
	}
	if tx == nil {
		w.late = w.late || (len(rows) > 0 && k.newest().Epoch > p.claim)
		k.delivered(rows, last)
		w.mu.Unlock()
		if how > 0 {
			return errors.New("the window failed")
		}
		return nil
	}
	w.mu.Unlock()

	// EndTxn: another relay may have replaced a frozen one since.
	if err := r.enter(p.rng, 3*time.Millisecond); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case p.epoch != k.epoch:
		return errors.New("fenced")
	case how == 1, how == 2:
		tx.done = true
		return errors.New("the window failed and was aborted")
	case how == 3:
		return errors.New("the end of the transaction is not known: it did not arrive")
	}
	tx.done, tx.committed = true, true
	k.delivered(rows, last)
	if how == 4 {
		return errors.New("the end of the transaction is not known: it was committed")
	}
	return nil
}

// claim checks the epoch and covered of a state record. mu must be held.
func (w *world) claim(r *simRelay, st *State) {
	for i := range w.kafka.records {
		other := &w.kafka.records[i]
		switch {
		case other.tx != nil && other.tx.done && !other.tx.committed:
		case other.Epoch == st.Epoch && other.Instance != st.Instance && other.at.Before(r.since) && len(w.hostile) == 0:
			w.violate("a state record under the epoch of another relay's session")
		case other.Key() == st.Key() && other.Timeline == st.Timeline && other.Covered > st.Covered:
			w.violate("covered went back from %s to %s", other.Covered, st.Covered)
		}
	}
}

type simRoute struct{}

func (simRoute) NextWindow() {}

func (simRoute) Route(row *Row, rec *Record) error {
	*rec = Record{Row: row, Topic: "t", Key: row.AggregateID}
	return nil
}
