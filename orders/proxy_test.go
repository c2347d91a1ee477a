package orders_test

import (
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
)

// cut is a place at which a connection to PostgreSQL can be lost around a COMMIT.
type cut int

const (
	none   cut = iota
	before     // the server never sees the COMMIT
	during     // the server gets the COMMIT and perhaps never reads it; the client does not wait for the outcome
	after      // the server has committed and the client gets no answer
	cuts
)

func (c cut) String() string { return [...]string{"none", "before", "during", "after"}[c] }

// cutter decides at each COMMIT on the wire whether and where the connection is lost.
type cutter struct {
	next func() cut // called at each COMMIT

	mu      sync.Mutex
	pending map[int64]bool // connections whose COMMIT must not be answered
	hits    [cuts]int
}

// startProxy starts a proxy between a client and PostgreSQL that cuts connections as next says, and returns the URL
// that leads through it.
func startProxy(t *testing.T, databaseURL string, next func() cut) (*cutter, string) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{next: next, pending: map[int64]bool{}}
	return c, cdctest.StartProxy(t, u.Host, c.pass).URL(t, databaseURL)
}

func (c *cutter) counts() [cuts]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits
}

func (c *cutter) pass(f cdctest.Frame) cdctest.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case f.FromServer && f.Type == 'C' && c.pending[f.Conn]:
		c.hits[after]++
		return cdctest.Lose
	case f.FromServer || f.Type != 'Q' || !strings.EqualFold(string(f.Bytes[5:len(f.Bytes)-1]), "commit"):
		return cdctest.Pass
	}
	switch where := c.next(); where {
	case before:
		c.hits[before]++
		return cdctest.Lose
	case during:
		c.hits[during]++
		return cdctest.Last
	case after:
		c.pending[f.Conn] = true
	}
	return cdctest.Pass
}
