package pipeline

import (
	"context"
	"errors"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walpost/walpost/cdc"
)

const (
	pointEvery = 15 * time.Second
	soonest    = 5 * time.Second // a shorter point would be too inexact
	points     = int(time.Hour / pointEvery)
	lookPoints = 720 // an hour of looks, each 5 s
	changes    = 20
)

// Point is what a relay did in 15 s. A number that is not known is missing.
type Point struct {
	At   time.Time // end of the 15 s
	Rows float64   // durable rows a second
	// P50 and P99 are the latency of those rows: from the commit, by the server's clock, until Kafka has the row, by this
	// process's clock. They are exact to a tenth.
	P50, P99 *time.Duration
	Lag      *time.Duration // age of the oldest WAL that is not delivered; with polling, of the oldest pending row
}

// Change is a change of the relay's role, with its cause.
type Change struct {
	At   time.Time
	Role cdc.Role
	Why  *Blocker // missing if nothing is wrong
}

// history has what a relay did in the last hour. The relay's goroutines write it without allocation.
type history struct {
	received, published atomic.Uint64 // LSNs

	mu        sync.Mutex
	began     time.Time             // of the present point
	rows      int64                 // in the present point
	latencies latencies             // of those rows
	points    []Point               // the oldest first
	changes   []Change              // the oldest first
	ends      []walEnd              // ends of the WAL at the last looks, the oldest first
	awaited   walEnd                // the end of the WAL at the oldest look whose rows are not all durable; by this process's clock
	cleared   time.Time             // time of the newest look whose rows are all durable, by this process's clock
	lag       time.Duration         // longest time from a look until its rows were durable, in the present point
	pending   func() *time.Duration // with polling: age of the oldest pending row, nil if it is not known
}

// latencies counts rows by latency. A class is a quarter of a power of two, in microseconds.
type latencies struct {
	classes [160]uint32
	n       int64
}

// add counts rows with this latency.
func (l *latencies) add(d time.Duration, rows int) {
	us := uint64(max(d.Microseconds(), 1))
	power := bits.Len64(us) - 1
	quarter := (us << 2 >> power) & 3
	class := min(power<<2|int(quarter), len(l.classes)-1)
	l.classes[class] += uint32(rows)
	l.n += int64(rows)
}

// quantile returns the latency that this share of the rows did not exceed; nil without rows.
func (l *latencies) quantile(share float64) *time.Duration {
	if l.n == 0 {
		return nil
	}
	rank, below := int64(math.Ceil(share*float64(l.n))), int64(0)
	for class, n := range l.classes {
		if below += int64(n); below >= rank {
			us := math.Exp2(float64(class>>2)) * (1 + (float64(class&3)+0.5)/4)
			d := time.Duration(us * float64(time.Microsecond))
			return &d
		}
	}
	return nil
}

// arrived records that records are durable now. took is the time since the first of them came, which counts for rows without a
// commit time.
func (h *history) arrived(records []cdc.Record, took time.Duration) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rows += int64(len(records))
	for i := 0; i < len(records); {
		first := records[i].Row
		n := 1
		for i+n < len(records) && records[i+n].Row.Commit == first.Commit { // rows of one commit have one latency
			n++
		}
		latency := took
		if !first.CommitTime.IsZero() {
			latency = now.Sub(first.CommitTime)
		}
		h.latencies.add(latency, n)
		i += n
	}
	if len(records) > 0 {
		h.reach(records[len(records)-1].Row.Commit, now)
	}
}

// connect forgets the positions of the last session: another server may have other ones.
func (h *history) connect() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.received.Store(0)
	h.published.Store(0)
	h.ends = h.ends[:0]
}

// covered records that everything up to an LSN is durable.
func (h *history) covered(lsn cdc.LSN) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reach(lsn, time.Now())
}

// reach does what covered does. The caller holds the lock.
func (h *history) reach(lsn cdc.LSN, now time.Time) {
	if uint64(lsn) > h.published.Load() {
		h.published.Store(uint64(lsn))
	}
	if h.awaited.at.IsZero() {
		return
	}
	if _, reached := cdc.Behind(lsn, h.awaited.lsn, time.Time{}, time.Time{}); reached {
		h.lag, h.cleared, h.awaited = max(h.lag, now.Sub(h.awaited.at)), h.awaited.at, walEnd{}
	}
}

// look records a look at the server.
func (h *history) look(end cdc.LSN, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); h.awaited.at.IsZero() {
		h.awaited = walEnd{end, now}
		h.reach(cdc.LSN(h.published.Load()), now)
	}
	if h.ends = append(h.ends, walEnd{end, at}); len(h.ends) > lookPoints {
		h.ends = slices.Delete(h.ends, 0, lookPoints/8)
	}
}

// behind returns how long ago, at most, the WAL after an LSN was written; nil if no look was early enough.
func (h *history) behind(lsn cdc.LSN, end cdc.LSN, now time.Time) *time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	var d time.Duration
	if lsn >= end {
		return &d
	}
	for _, e := range slices.Backward(h.ends) {
		if e.lsn <= lsn {
			d = max(now.Sub(e.at), 0)
			return &d
		}
	}
	return nil
}

// change records a role.
func (h *history) change(role cdc.Role, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := Change{At: time.Now().UTC(), Role: role}
	if err != nil && !(role == cdc.Standby && errors.Is(err, cdc.ErrSlotInUse)) {
		why := blocker(err)
		c.Why = &why
	}
	if last := len(h.changes) - 1; role == cdc.Retrying && last >= 0 && h.changes[last].Role == role && h.changes[last].same(&c) {
		h.changes[last].At = c.At // the relay tries again and again: one line
		return
	}
	if h.changes = append(h.changes, c); len(h.changes) > changes {
		h.changes = slices.Delete(h.changes, 0, 1)
	}
}

// same reports whether two changes have the same cause.
func (c *Change) same(o *Change) bool {
	return c.Why == nil && o.Why == nil || c.Why != nil && o.Why != nil && *c.Why == *o.Why
}

// run adds a point every 15 s until ctx ends.
func (h *history) run(ctx context.Context, role func() (cdc.Role, error)) {
	h.mu.Lock()
	h.began = time.Now()
	h.mu.Unlock()
	tick := time.NewTicker(pointEvery)
	defer tick.Stop()
	for {
		select {
		case at := <-tick.C:
			is, _ := role()
			h.point(at, is)
		case <-ctx.Done():
			return
		}
	}
}

// point ends the present point.
func (h *history) point(at time.Time, role cdc.Role) {
	var pending *time.Duration
	if h.pending != nil {
		pending = h.pending()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.present(at, role)
	if h.pending != nil {
		p.Lag = pending
	}
	if h.points = append(h.points, p); len(h.points) > points {
		h.points = slices.Delete(h.points, 0, 1)
	}
	h.rows, h.latencies, h.lag, h.began = 0, latencies{}, 0, at
}

// present returns the present point, as far as it has come. The caller holds the lock.
func (h *history) present(at time.Time, role cdc.Role) Point {
	p := Point{At: at.UTC(), P50: h.latencies.quantile(0.5), P99: h.latencies.quantile(0.99)}
	if took := at.Sub(h.began).Seconds(); took > 0 {
		p.Rows = float64(h.rows) / took
	}
	switch lag := h.lag; {
	case h.pending != nil || role == cdc.Standby || h.cleared.IsZero():
	case !h.awaited.at.IsZero():
		lag = max(lag, at.Sub(h.awaited.at))
		p.Lag = &lag
	case role != cdc.Streaming: // nobody looks, so nothing newer is known to be durable
		lag = max(lag, at.Sub(h.cleared))
		p.Lag = &lag
	default:
		p.Lag = &lag
	}
	return p
}

// History returns what the relay of this process did in the last hour, the oldest point first. The last point may be shorter than the others.
func (p *Pipeline) History() []Point {
	h := &p.metrics.history
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.Clone(h.points)
	if now := time.Now(); !h.began.IsZero() && now.Sub(h.began) >= soonest {
		all = append(all, h.present(now, p.metrics.role()))
	}
	return all
}

// Changes returns the last changes of the relay's role in this process, the oldest first.
func (p *Pipeline) Changes() []Change {
	h := &p.metrics.history
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.changes)
}
