package cdc

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// act is one event of a history, at a time after the one before.
type act struct {
	after time.Duration
	what  string
	n     int
}

func (a act) String() string { return fmt.Sprintf("%v %s(%d)", a.after, a.what, a.n) }

// acts lists the possible events with their frequencies. hostile lists the acts of others that the relay does not
// see.
var acts = []struct {
	what string
	odds int
}{
	{"commit", 40},
	{"foreign WAL", 8},
	{"fail windows", 8},
	{"kafka away", 3},
	{"cut", 5},
	{"checkpoint", 4},
	{"crash", 3},
	{"kill", 5},
	{"stop", 4},
	{"start", 8},
	{"freeze", 3},
	{"failover", 2},
}

var hostile = []string{"advance", "re-create", "drop", "hide", "other server", "restore", "lose state"}

// simHistory returns a random history. One in four contains a hostile act.
func simHistory(rng *rand.Rand) []act {
	sum := 0
	for _, a := range acts {
		sum += a.odds
	}
	var h []act
	for range 5 + rng.IntN(40) {
		n := rng.IntN(sum)
		i := 0
		for ; n >= acts[i].odds; i++ {
			n -= acts[i].odds
		}
		after := time.Duration(rng.Int64N(int64(20 * time.Millisecond)))
		if rng.IntN(5) == 0 {
			after = time.Duration(rng.Int64N(int64(3 * time.Second)))
		}
		h = append(h, act{after, acts[i].what, 1 + rng.IntN(6)})
	}
	if rng.IntN(4) == 0 {
		h[rng.IntN(len(h))].what = hostile[rng.IntN(len(hostile))]
	}
	return h
}

// do carries out an act.
func (w *world) do(t *testing.T, a act) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &w.pg
	alive := slices.DeleteFunc(slices.Clone(w.relays), func(r *simRelay) bool { return r.dead })
	switch a.what {
	case "commit":
		w.commit(a.n)
	case "foreign WAL":
		p.end += LSN(100 * a.n)
		w.arrive()
	case "fail windows":
		w.kafka.fail = a.n % 3
	case "kafka away":
		w.kafka.down = time.Now().Add(time.Duration(a.n*a.n*a.n) * time.Second)
	case "cut":
		w.cut()
	case "checkpoint":
		p.persisted = p.confirmed
	case "crash":
		w.lose()
		p.down = time.Now().Add(time.Duration(a.n) * 100 * time.Millisecond)
		p.confirmed = p.persisted
		p.checked = 0
	case "kill":
		if len(alive) > 0 {
			r := alive[a.n%len(alive)]
			r.dead, w.unclean = true, true
			w.cutIf(r)
			r.cancel()
		}
	case "stop":
		if len(alive) > 0 {
			alive[a.n%len(alive)].cancel()
		}
	case "start":
		if len(alive) < 2 {
			w.start(t)
		}
	case "freeze":
		if len(alive) > 0 {
			r := alive[a.n%len(alive)]
			r.thaws = time.Now().Add(time.Duration(a.n) * time.Second)
			w.cutIf(r) // the server closed its connection
		}
	case "failover":
		if len(w.hostile) == 0 { // it would undo the transactions that show another history
			w.failover(a.n - 1)
		}
	default:
		w.hostile = append(w.hostile, a.what)
		w.behindItsBack(a)
	}
}

func (w *world) cutIf(r *simRelay) {
	if w.pg.owner != nil && w.pg.owner.relay == r {
		w.cut()
	}
}

// failover promotes a standby that has not received the last transactions.
func (w *world) failover(lost int) {
	p := &w.pg
	w.lose()
	back := p.tail(lost)
	for _, tx := range p.wal[back:] {
		for _, row := range tx.rows {
			w.phantoms[row] = true
		}
	}
	if back < len(p.wal) {
		p.end, p.xid = p.wal[back].start, p.wal[back].xid-1
	}
	p.past = append(slices.Clone(p.past), PastTimeline{p.timeline, p.end})
	p.timeline++
	w.unclean = true
	w.kafka.last = Position{}
	p.sent[p.end] = true // the end of the history that both timelines share
	p.wal = slices.Clone(p.wal[:back])
	p.confirmed = min(p.persisted, p.end)
	p.persisted, p.checked = p.confirmed, 0
}

// tail returns the index in the WAL of the last n transactions, but none from before the last promotion.
func (p *simPostgres) tail(n int) int {
	at := len(p.wal)
	for ; n > 0 && at > 0 && (len(p.past) == 0 || p.wal[at-1].start >= p.past[len(p.past)-1].End); n-- {
		at--
	}
	return at
}

// behindItsBack carries out a hostile act, which loses rows silently unless the relay compares.
func (w *world) behindItsBack(a act) {
	p := &w.pg
	w.lose()
	skip := func(upTo LSN) {
		for _, tx := range p.wal {
			if p.confirmed <= tx.start && tx.start < upTo {
				tx.excused = true
			}
		}
		p.confirmed, p.persisted = max(p.confirmed, upTo), max(p.persisted, upTo)
	}
	switch a.what {
	case "advance", "re-create":
		w.commit(a.n)
		skip(p.end)
		p.sent[p.end] = true
	case "drop":
		p.slot = false
	case "hide":
		p.hides = true
		p.fingerprint++
		w.commit(a.n)
		p.hides = false
		p.fingerprint++
	case "other server":
		p.id += "1"
	case "restore": // restores a snapshot that has since written beyond the relay's position
		back := p.tail(2 * a.n)
		if st := w.kafka.newest(); st.Ordinal == 0 && st.Skipped > 0 {
			return // a failover took the last row back, and none came since: nothing is left that shows this history
		}
		for _, tx := range p.wal[back:] {
			tx.excused = true
			for _, row := range tx.rows {
				w.kafka.durable[row] = true // rows of the old history, which are not checked
			}
		}
		if back == len(p.wal) {
			return
		}
		p.end, p.xid = p.wal[back].start, p.wal[back].xid-1
		p.wal = slices.Clone(p.wal[:back])
		p.confirmed = min(p.persisted, p.end)
		p.persisted, p.checked = p.confirmed, 0
		for range a.n {
			w.commit(1 + w.rng.IntN(3))
		}
	case "lose state":
		w.kafka.records = w.kafka.records[:1+w.rng.IntN(len(w.kafka.records))]
	}
}

// start starts a relay. mu must be held.
func (w *world) start(t *testing.T) *simRelay {
	cfg := options()
	cfg.ExactlyOnce, cfg.DeadLetters = w.exactlyOnce, "walpost.dlq.p"
	cfg.WindowRows, cfg.WindowBytes = 1+w.rng.IntN(8), 4<<10
	cfg.StatusInterval = []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second}[w.rng.IntN(3)]
	cfg.QueueTimeout = time.Duration(1+w.rng.IntN(20)) * time.Second
	ctx, cancel := context.WithCancel(context.Background())
	r := &simRelay{w: w, starts: branch(w.rng), cancel: cancel, ended: make(chan error, 1)}
	r.relay = NewRelay(cfg, r, r, simRoute{}, Observer{Role: func(role Role, err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		r.role, r.halted = role, r.halted || role == Halted
		if role == Halted && len(w.hostile) == 0 {
			w.violate("halted, although nobody did anything: %v", err)
		}
	}})
	r.relay.instance = fmt.Sprint(len(w.relays))
	r.relay.jitter = branch(w.rng)
	w.relays = append(w.relays, r)
	go func() {
		err := r.relay.Run(ctx)
		w.mu.Lock()
		if st := w.kafka.newest(); err == nil && !r.dead && !w.late && !w.unclean && len(w.hostile) == 0 && len(w.relays) == 1 && st.Last().Compare(w.kafka.last) < 0 {
			w.violate("stopped when asked, and the last published row is not in the state record: %v, the state record says %v", w.kafka.last, st.Last())
		}
		r.dead = true
		w.mu.Unlock()
		r.ended <- err
	}()
	return r
}

// simulate runs one history and returns the violations.
func simulate(t *testing.T, seed uint64, exactlyOnce bool, h []act) (violated []string) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(seed, exactlyOnce)
		w.mu.Lock()
		w.start(t)
		w.mu.Unlock()
		for _, a := range h {
			time.Sleep(a.after + time.Duration(w.rng.Int64N(1000)))
			w.do(t, a)
		}
		w.settle(t)
		violated = w.violated
	})
	return violated
}

// settle ends all faults, gives a new relay time, and checks all rows.
func (w *world) settle(t *testing.T) {
	w.mu.Lock()
	w.kafka.fail, w.kafka.down, w.pg.down = 0, time.Time{}, time.Time{}
	for _, r := range w.relays {
		r.thaws = time.Time{}
		r.cancel()
	}
	w.mu.Unlock()
	for _, r := range w.relays {
		<-r.ended
	}
	w.mu.Lock()
	last := w.start(t)
	w.mu.Unlock()
	var missing string
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		w.mu.Lock()
		missing = w.missing()
		done := last.role == Halted || (missing == "" && w.pg.confirmed >= w.pg.end)
		w.mu.Unlock()
		if done {
			break
		}
	}
	last.cancel()
	err := <-last.ended
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case last.halted:
	case missing != "":
		w.violate("I7: %s, and the relay has not halted", missing)
	case w.pg.confirmed < w.pg.end:
		w.violate("the slot stays at %s, the WAL ends at %s (%v)", w.pg.confirmed, w.pg.end, err)
	}
	w.order()
}

// missing returns a sentence about a row that is not in Kafka. mu must be held.
func (w *world) missing() string {
	for _, tx := range w.pg.wal {
		for _, row := range tx.rows {
			if !w.kafka.durable[row] {
				return fmt.Sprintf("row %d of the commit at %s is not in kafka (hidden %v, slot moved past it %v)", row, tx.start, tx.hidden, tx.excused)
			}
		}
	}
	return ""
}

// order checks I3 and I9. If the state topic has lost its tail, it can only check that repeats are runs. mu must be
// held.
func (w *world) order() {
	if len(w.hostile) > 0 {
		return
	}
	for part, log := range w.kafka.logs {
		var firsts []int
		at := map[int]int{}
		last := -1 // index of the last record among the first appearances
		for _, r := range log {
			if !r.tx.durable() || w.phantoms[r.row] {
				continue
			}
			place, again := at[r.row]
			switch {
			case again && w.exactlyOnce:
				w.violate("I9: row %d twice in partition %d", r.row, part)
			case w.late: // in at-least-once
			case again && place > last+1:
				w.violate("I3: a replay in partition %d leaves out rows before %d", part, r.row)
			case !again && last != len(firsts)-1:
				w.violate("I3: row %d is new in partition %d while a replay is not at its end", r.row, part)
			case !again && len(firsts) > 0 && r.row < firsts[len(firsts)-1]:
				w.violate("I3: row %d comes after %d in partition %d", r.row, firsts[len(firsts)-1], part)
			}
			if !again {
				place = len(firsts)
				at[r.row] = place
				firsts = append(firsts, r.row)
			}
			last = place
		}
	}
}

// shrink removes from a history the acts that it does not need to fail.
func shrink(t *testing.T, seed uint64, exactlyOnce bool, h []act, violated []string) ([]act, []string) {
	for size := len(h) / 2; size > 0; size /= 2 {
		for at := 0; at+size <= len(h); {
			shorter := slices.Concat(h[:at], h[at+size:])
			if v := simulate(t, seed, exactlyOnce, shorter); len(v) > 0 {
				h, violated = shorter, v
			} else {
				at += size
			}
		}
	}
	return h, violated
}

// TestSimulation runs WALPOST_SIM_SEEDS histories (2,000, or 200 with -short) in each mode, from seed
// WALPOST_SIM_SEED on (default: random).
func TestSimulation(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // goroutines that are ready run in the same order each time
	seeds, first := 2000, rand.Uint64N(1<<40)
	if testing.Short() {
		seeds = 200
	}
	if n, err := strconv.Atoi(os.Getenv("WALPOST_SIM_SEEDS")); err == nil {
		seeds = n
	}
	if n, err := strconv.ParseUint(os.Getenv("WALPOST_SIM_SEED"), 10, 64); err == nil {
		first = n
	}
	began := time.Now()
	did := map[string]int{}
	for i := range seeds {
		seed := first + uint64(i)
		for _, exactlyOnce := range []bool{false, true} {
			h := simHistory(rand.New(rand.NewPCG(seed, 0)))
			for _, a := range h {
				did[a.what]++
			}
			if violated := simulate(t, seed, exactlyOnce, h); len(violated) > 0 {
				short, violated := shrink(t, seed, exactlyOnce, h, violated)
				var lines []string
				for _, a := range short {
					lines = append(lines, a.String())
				}
				t.Fatalf("WALPOST_SIM_SEED=%d, exactly once %t: %d acts, shrunk to\n\t%s\nviolate\n\t%s", seed, exactlyOnce, len(h),
					strings.Join(lines, "\n\t"), strings.Join(violated, "\n\t"))
			}
		}
	}
	took := time.Since(began)
	t.Logf("%d histories from seed %d, %.0f a second", 2*seeds, first, float64(2*seeds)/took.Seconds())
	for _, what := range slices.Sorted(maps.Keys(did)) {
		t.Logf("%6d %s", did[what], what)
	}
}
