package plain_test

import (
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/plain"
)

func TestLine(t *testing.T) {
	for given, want := range map[string]string{
		"plain, ünd 한국":         "plain, ünd 한국",
		"\x1b[31mred\x1b[0m":    `\x1b[31mred\x1b[0m`,
		"a\nb\tc\r":             `a\nb\tc\r`,
		"\u009b31m":             `\u009b31m`,
		"\xff\x00":              `\xff\x00`,
		"user\u202egnp.exe":     `user\u202egnp.exe`,
		"a\u2066b\u2069\u200f":  `a\u2066b\u2069\u200f`,
		"zero\u200bwidth\ufeff": `zero\u200bwidth\ufeff`,
		"line\u2028end":         `line\u2028end`,
		"<script>&amp;":         "<script>&amp;",
		"":                      "",

		strings.Repeat("x", 160):   strings.Repeat("x", 160),
		strings.Repeat("x", 161):   strings.Repeat("x", 159) + "…",
		strings.Repeat("ü", 1<<20): strings.Repeat("ü", 159) + "…",
	} {
		if got := plain.Line(given); got != want {
			t.Errorf("%.200q is shown as %q, want %q", given, got, want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0 rows", 1: "1 row", 2: "2 rows"} {
		if got := plain.Count(n, "row", "rows"); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestSizeAndDuration(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 10239: "10239 B", 10 << 10: "10 KiB", 12 << 20: "12 MiB", 9 << 30: "9216 MiB", 10 << 40: "10 TiB"} {
		if got := plain.Size(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0 s", -time.Microsecond: "0 ms", 3 * time.Millisecond: "3 ms", 4200 * time.Millisecond: "4.2 s", 42 * time.Second: "42 s", 200 * time.Second: "3m20s",
		5 * time.Hour: "5h", 5*time.Hour + 10*time.Minute: "5h10m", 292 * time.Hour: "12d4h", -3 * time.Second: "-3.0 s",
	} {
		if got := plain.Duration(d); got != want {
			t.Errorf("%s is %q, want %q", time.Duration(d), got, want)
		}
	}
}
