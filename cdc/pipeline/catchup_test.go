package pipeline

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/polling"
)

// TestCatchingUpIsLogged every ten seconds with rate and time left, until the relay is near the end of the WAL, and once in a
// session. A relay that is near the end within ten seconds logs nothing.
func TestCatchingUpIsLogged(t *testing.T) {
	t.Parallel()
	const mib = cdc.LSN(1 << 20)
	var log bytes.Buffer
	at := time.Now()
	c := &catchUp{log: zerolog.New(&log), now: func() time.Time { return at }}
	look := func(after time.Duration, covered, end cdc.LSN) {
		at = at.Add(after)
		c.looked(covered*mib, end*mib)
	}
	said := func(want ...string) {
		t.Helper()
		var lines []string
		for line := range strings.Lines(log.String()) {
			lines = append(lines, strings.TrimSuffix(strings.TrimPrefix(line, `{"level":"info","message":"`), "\"}\n"))
		}
		if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
			t.Errorf("the log has\n%s\nwant\n%s", got, strings.Join(want, "\n"))
		}
		log.Reset()
	}
	look(0, 100, 1000)
	look(time.Minute, 200, 1000)
	said() // it does not stream
	c.role(cdc.Streaming)
	look(0, 100, 1000)
	look(5*time.Second, 200, 1000)
	said()
	look(5*time.Second, 300, 1000)
	look(5*time.Second, 400, 1000)
	look(5*time.Second, 500, 1300)
	said("catching up: 200 MiB of 900 MiB, 20 MiB/s, 35 s left", "catching up: 400 MiB of 1200 MiB, 20 MiB/s, 40 s left")
	look(40*time.Second, 1295, 1300)
	said("caught up: 1195 MiB of WAL in 1m")
	look(time.Minute, 1300, 2000)
	said() // it is late for another reason: status and metrics show it
	c.role(cdc.Retrying)
	c.role(cdc.Streaming)
	look(0, 1300, 1310)
	look(time.Minute, 1300, 2000)
	said()

	c.rows = true
	c.role(cdc.Retrying)
	c.role(cdc.Streaming)
	count := func(after time.Duration, published, pending int64) {
		at = at.Add(after)
		c.counted(published, pending)
	}
	count(0, 0, polling.CountsTo) // as many as are counted: the end is not known
	count(15*time.Second, 30_000, polling.CountsTo)
	count(15*time.Second, 60_000, 40_000)
	count(20*time.Second, 99_990, 999)
	said("catching up: 30000 rows, 2000 rows/s", "catching up: 60000 of 100000 rows, 2000 rows/s, 20 s left", "caught up: 99990 rows in 50 s")
	count(time.Minute, 99_990, 5000)
	said()
}
