package cdc

import "time"

// breath decides how long the reader lets the socket fill before it reads again. A walsender that has to wake a sleeping
// reader for every row costs both sides more than the row does; a reader that takes gulps makes PostgreSQL faster.
//
// Quiet: at most one gulp with rows per pace; after a silence the first row goes at once, although the Begin before it came
// in a packet of its own. Busy (several full gulps in a row, left
// only after several short ones: one short read after a gulp must not end it, or it falls back to a wake-up per packet):
// a pause before each read.
type breath struct {
	pace time.Duration
	last time.Time // of the last gulp with rows
	busy bool
	run  int // gulps in a row that speak for the other state
}

const (
	gulpFull  = 32 << 10 // bytes; a quiet stream of small rows stays far below it in one pace
	gulpShort = 4 << 10
	busyAfter = 3
	quietAt   = 20
	busyPause = 2 * time.Millisecond
	busyWait  = time.Millisecond // for the first bytes after the pause; fewer than a gulp do not wake us
)

func (b *breath) pause(now time.Time) time.Duration {
	if b.busy {
		return busyPause
	}
	return b.last.Add(b.pace).Sub(now)
}

func (b *breath) took(n, rows int, now time.Time) {
	if rows > 0 {
		b.last = now
	}
	against := n >= gulpFull
	limit := busyAfter
	if b.busy {
		against, limit = n < gulpShort, quietAt
	}
	if !against {
		b.run = 0
		return
	}
	if b.run++; b.run >= limit {
		b.busy, b.run = !b.busy, 0
	}
}
