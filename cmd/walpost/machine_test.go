package main

import (
	"net"
	"os"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	want := stat{parent: 4242, own: cpu{170 * ms, 30 * ms}, children: cpu{50 * ms, 20 * ms}}
	for _, name := range []string{"postgres", "postgres: walsender", "a) S 1 (b", "((", "))", ""} {
		got, err := parseStat("12 (" + name + ") S 4242 12 12 0 -1 4194560 900 0 0 0 17 3 5 2 20 0 1 0 3381 238518272 5120 18446744073709551615\n")
		if err != nil || got != want {
			t.Errorf("program %q: %+v, %v; want %+v", name, got, err, want)
		}
	}
	for _, line := range []string{"", "12 (postgres) S 4242 12", "12 postgres S 4242 12 12 0 -1 4194560 900 0 0 0 17 3 5 2 20", "12 (postgres) S 4242 12 12 0 -1 4194560 900 0 0 0 x 3 5 2 20"} {
		if got, err := parseStat(line); err == nil {
			t.Errorf("line %q: %+v and no error", line, got)
		}
	}
}

func TestParseSteal(t *testing.T) {
	t.Parallel()
	cpus, steal := parseSteal("cpu  1348837 30176 614305 597 15 0 27684 471 0 0\ncpu0 1 2 3 300 10 0 0 237 0 0\ncpu1 1 2 3 297 5 0 0 234 0 0\nintr 8 9 10 11 12 13 14 15 16 17\n")
	if cpus != 2 || steal != 4710*time.Millisecond {
		t.Errorf("%d CPUs that others had for %s, want 2 and 4.71s", cpus, steal)
	}
}

func TestListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if pid := listener(l.Addr().String()); pid != os.Getpid() {
		t.Errorf("process %d listens on our port, and we are %d", pid, os.Getpid())
	}
	if pid := listener("127.0.0.1:1"); pid != 0 {
		t.Errorf("process %d listens on port 1", pid)
	}
}

func TestSpan(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values []float64
		want   span
	}{
		{[]float64{3}, span{3, 3, 3}},
		{[]float64{4, 1}, span{1, 2.5, 4}},
		{[]float64{9, 1, 4}, span{1, 4, 9}},
		{[]float64{9, 1, 4, 6}, span{1, 5, 9}},
		{nil, span{}},
	} {
		if got := spanOf(c.values); got != c.want {
			t.Errorf("%v: %v, want %v", c.values, got, c.want)
		}
	}
}

func TestThousands(t *testing.T) {
	t.Parallel()
	for n, want := range map[float64]string{0: "0", 999.4: "999", 999.5: "1,000", 187_654: "187,654", 1_000_000: "1,000,000"} {
		if got := thousands(n); got != want {
			t.Errorf("%v: %s, want %s", n, got, want)
		}
	}
}
