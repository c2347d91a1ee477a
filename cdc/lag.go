package cdc

import (
	"sync"
	"time"
)

const lagLooks = 64 // that are remembered; of more, every second is forgotten, and only every second of those to come is taken

// Lag knows at what time a position was the end of the WAL. It is told of looks at the server, with the server's clock.
type Lag struct {
	mu      sync.Mutex
	ends    []walEnd // that were not covered yet, in order
	every   int      // one look in this many is remembered
	looks   int
	current time.Time
}

const (
	walPage  = 8192    // of the WAL, as PostgreSQL is built everywhere
	halfDone = 1 << 20 // no record that is not complete is larger, but for a message or a row that is just being written
)

// reached says that covered is the end of the WAL as far as anybody can read it. Beside an open transaction the server flushes whole pages:
// the last of them ends inside a record of which nothing can be sent before its rest is flushed, half a minute later.
func reached(covered, end LSN) bool {
	return covered >= end || end%walPage == 0 && end-covered < halfDone
}

type walEnd struct {
	lsn LSN
	at  time.Time
}

// Look remembers where the WAL ended.
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

// Behind is for how long what lies behind confirmed has waited, when the WAL ends at end; current is the newest time up to which all is
// delivered. False when that is not known.
func Behind(confirmed, end LSN, current, now time.Time) (time.Duration, bool) {
	if reached(confirmed, end) {
		return 0, true
	}
	return max(now.Sub(current), 0), !current.IsZero()
}

// Current is the last time at which the WAL ended at or before covered: what was written until then is delivered. Zero when no look says so.
func (l *Lag) Current(covered LSN) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ends) > 0 && reached(covered, l.ends[0].lsn) {
		l.current, l.ends = l.ends[0].at, l.ends[1:]
	}
	return l.current
}

// Current is the newest time, by the server's clock, of which the record knows that all that was written until then is delivered.
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
