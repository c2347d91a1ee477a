package cdc

import (
	"sync"
	"time"
)

// lagLooks is the number of looks that are remembered. When there are more, every second one is forgotten, and from then
// on only every second new one is kept.
const lagLooks = 64

// Lag records at what time, by the server's clock, a position was the end of the WAL. Each look at the server adds
// one.
type Lag struct {
	mu      sync.Mutex
	ends    []walEnd // not covered yet, in order
	every   int      // one look in this many is remembered
	looks   int
	current time.Time
}

const (
	walPage  = 8192    // of the WAL, with PostgreSQL's usual build
	halfDone = 1 << 20 // an incomplete record is never larger, except a message or a row that is just being written
)

// reached reports whether covered is the end of the WAL as far as a reader can get. While a transaction is open the
// server flushes whole pages: the last page ends inside a record, and the server can send nothing of that record
// before its rest is flushed, half a minute later.
func reached(covered, end LSN) bool {
	return covered >= end || end%walPage == 0 && end-covered < halfDone
}

type walEnd struct {
	lsn LSN
	at  time.Time
}

// Look records where the WAL ended at a time.
func (l *Lag) Look(end LSN, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ends) == 0 {
		l.every, l.looks = 1, 0
	}
	if l.looks++; l.looks%l.every != 0 {
		return
	}
	if l.ends = append(l.ends, walEnd{end, at}); len(l.ends) > lagLooks {
		kept := l.ends[:0]
		for i := 0; i < len(l.ends); i += 2 {
			kept = append(kept, l.ends[i])
		}
		l.ends, l.every = kept, 2*l.every
	}
}

// Behind returns how long the WAL after confirmed has waited, if the WAL ends at end; current is the newest time up
// to which everything is delivered. It returns false if that is not known.
func Behind(confirmed, end LSN, current, now time.Time) (time.Duration, bool) {
	if reached(confirmed, end) {
		return 0, true
	}
	return max(now.Sub(current), 0), !current.IsZero()
}

// Current returns the last time at which the WAL ended at or before covered: everything written until then is
// delivered. It returns zero if no look found such an end.
func (l *Lag) Current(covered LSN) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ends) > 0 && reached(covered, l.ends[0].lsn) {
		l.current, l.ends = l.ends[0].at, l.ends[1:]
	}
	return l.current
}

// Current returns the newest time, by the server's clock, up to which everything written is delivered according to
// the record.
func (s *State) Current() time.Time {
	at := s.CurrentAt
	if s.Checked > 0 && s.Checked <= s.Covered && s.CheckedAt.After(at) {
		at = s.CheckedAt
	}
	if s.LastCommitTime.After(at) {
		at = s.LastCommitTime
	}
	return at
}
