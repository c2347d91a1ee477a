package pipeline

import (
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/plain"
)

const (
	catchUpEvery = 10 * time.Second // time between two log lines of a relay that catches up
	nearEnd      = 16 << 20         // bytes of WAL behind the end with which a relay has caught up
)

// catchUp logs how a relay catches up after its start. It uses the positions of the looks at the server, a few a minute.
type catchUp struct {
	log zerolog.Logger
	now func() time.Time

	mu sync.Mutex // the role changes on another goroutine than that of the looks
	catching
}

// catching is the state of a catchUp in one session.
type catching struct {
	streaming   bool
	from        cdc.LSN // where the relay stood at the first look; 0 before it
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
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.streaming {
		return
	}
	now := c.now()
	if c.from == 0 {
		c.from, c.began, c.told = covered, now, now
	}
	switch {
	case end < covered+nearEnd:
		if c.said {
			c.log.Info().Msgf("caught up: %s of WAL in %s", plain.Size(int64(covered-c.from)), plain.Duration(now.Sub(c.began)))
		}
		c.streaming = false
	case now.Sub(c.told) >= catchUpEvery:
		c.told, c.said = now, true
		c.log.Info().Msg("catching up: " + plain.Progress(int64(covered-c.from), int64(end-c.from), plain.Bytes, now.Sub(c.began)))
	}
}
