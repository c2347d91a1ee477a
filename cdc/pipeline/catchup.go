package pipeline

import (
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cdc/polling"
)

const (
	catchUpEvery = 10 * time.Second // time between two log lines of a relay that catches up
	nearEnd      = 16 << 20         // bytes of WAL behind the end with which a relay has caught up
	fewRows      = 1000             // pending rows with which a poller has caught up
)

// catchUp logs how a relay catches up after its start: by the positions of its looks at the server, or with polling by the
// numbers of published and pending rows, a few times a minute.
type catchUp struct {
	log  zerolog.Logger
	now  func() time.Time
	rows bool // it polls

	mu sync.Mutex // the role changes on another goroutine than that of the looks
	catching
}

// catching is the state of a catchUp in one session.
type catching struct {
	streaming   bool
	from        int64 // where the relay stood at the first look
	began, told time.Time
	said        bool
}

// role begins when the relay streams.
func (c *catchUp) role(role cdc.Role) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.catching = catching{streaming: role == cdc.Streaming}
}

// looked is called at each look, with the position up to which everything is in Kafka, and the end of the WAL.
func (c *catchUp) looked(covered, end cdc.LSN) {
	c.at(int64(covered), int64(end), end < covered+nearEnd)
}

// counted is called at each count of a polled table, with the rows that this process has published by then.
func (c *catchUp) counted(published, pending int64) {
	end := published + pending
	if pending >= polling.CountsTo {
		end = 0 // it is not known
	}
	c.at(published, end, pending < fewRows)
}

// at logs where the relay stands, and how far it is from the end. An end of 0 is not known.
func (c *catchUp) at(here, end int64, near bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.streaming {
		return
	}
	now := c.now()
	if c.began.IsZero() {
		c.from, c.began, c.told = here, now, now
	}
	done, took := here-c.from, now.Sub(c.began)
	switch {
	case near:
		if c.said {
			c.log.Info().Msgf("caught up: %s in %s", c.amount(done), plain.Duration(took))
		}
		c.streaming = false
	case now.Sub(c.told) >= catchUpEvery:
		c.told, c.said = now, true
		unit := plain.Bytes
		if c.rows {
			unit = "rows"
		}
		c.log.Info().Msg("catching up: " + plain.Progress(done, max(end-c.from, 0), unit, took))
	}
}

// amount returns the amount that the relay has caught up with.
func (c *catchUp) amount(n int64) string {
	if c.rows {
		return plain.Count(n, "row", "rows")
	}
	return plain.Size(n) + " of WAL"
}
