package app

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestProgress prints nothing for two seconds, then a line every ten seconds, or on a terminal one line that it rewrites.
func TestProgress(t *testing.T) {
	var out strings.Builder
	at := time.Now()
	p := &Progress{out: &out, now: func() time.Time { return at }}
	work := func(seconds int) string {
		out.Reset()
		p.Begin()
		for i := range seconds * 10 {
			at = at.Add(100 * time.Millisecond)
			p.At(int64(i+1)*10, 4000, "rows")
		}
		p.Close()
		return out.String()
	}
	if said := work(1); said != "" {
		t.Errorf("a short work prints %q", said)
	}
	if said, want := work(30), "200 of 4000 rows, 100 rows/s, 38 s left\n1200 of 4000 rows, 100 rows/s, 28 s left\n2200 of 4000 rows, 100 rows/s, 18 s left\n"; said != want {
		t.Errorf("it prints\n%swant\n%s", said, want)
	}
	p.terminal = true
	if said := work(1); said != "" {
		t.Errorf("a short work prints %q on a terminal", said)
	}
	if said, want := work(2), "\r200 of 4000 rows, 100 rows/s, 38 s left\x1b[K\r\x1b[K"; said != want {
		t.Errorf("on a terminal it prints %q, want %q", said, want)
	}
	if said := work(4); strings.Count(said, "left\x1b[K") != 11 || strings.Contains(said, "\n") {
		t.Errorf("on a terminal it prints %q", said)
	}
	work(0)
	at = at.Add(time.Minute)
	p.At(1, 2, "rows")
	fmt.Fprintln(p.Beside(&out), "redriven")
	if said, want := out.String(), "\r1 of 2 rows, 0.017 rows/s, 1m left\x1b[K\r\x1b[Kredriven\n"; said != want {
		t.Errorf("beside other output: %q, want %q", said, want)
	}
}
