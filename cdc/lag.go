package cdc

import (
	"sync"
	"time"
)

const lagLooks = 64 // that are remembered; of more, every second is forgotten

// Lag knows at what time a position was the end of the WAL. It is told of looks at the server, with the server's clock.
type Lag struct {
	mu      sync.Mutex
	ends    []walEnd // that were not covered yet, in order
	current time.Time
}

type walEnd struct {
	lsn LSN
	at  time.Time
}

// Look remembers where the WAL ended.
func (l *Lag) Look(end LSN, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ends = append(l.ends, walEnd{end, at}); len(l.ends) > lagLooks {
		kept := l.ends[:0]
		for i := 0; i < len(l.ends); i += 2 {
			kept = append(kept, l.ends[i])
		}
		l.ends = kept
	}
}

// Current is the last time at which the WAL ended at or before covered: what was written until then is delivered. Zero when no look says so.
func (l *Lag) Current(covered LSN) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ends) > 0 && l.ends[0].lsn <= covered {
		l.current, l.ends = l.ends[0].at, l.ends[1:]
	}
	return l.current
}
