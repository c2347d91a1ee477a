// Package plain writes text and numbers for people: it makes text that somebody else wrote safe to show, and numbers short.
package plain

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// longest is the length of a Line in letters.
const longest = 160

// Line returns a text that another program wrote, a key or an id, as one short line. It writes letters that a reader cannot see as
// escapes (\n, \u202e): control characters could change a terminal, and bidi characters could turn the text around. Bytes
// that are not UTF-8 become \xff.
func Line(s string) string { return Cut(s, longest) }

// Cut returns what Line returns, with at most this many letters. It ends a longer text with an ellipsis.
func Cut(s string, letters int) string {
	var b strings.Builder
	for n := 0; s != ""; n++ {
		if n == letters-1 && utf8.RuneCountInString(head(s, 2*utf8.UTFMax)) > 1 {
			b.WriteRune('…')
			break
		}
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size <= 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unicode.IsControl(r), hidden(r):
			quoted := fmt.Sprintf("%+q", r)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteRune(r)
		}
		s = s[size:]
	}
	return b.String()
}

// head returns the first n bytes of s, or all.
func head(s string, n int) string { return s[:min(n, len(s))] }

// hidden reports whether a letter has no shape, or changes how the letters beside it are shown.
func hidden(r rune) bool {
	return unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co, unicode.Noncharacter_Code_Point)
}

// Size returns a number of bytes: 12 MiB.
func Size(n int64) string {
	for _, unit := range []struct {
		shift  int
		suffix string
	}{{40, "TiB"}, {30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n >= 10<<unit.shift {
			return fmt.Sprintf("%d %s", n>>unit.shift, unit.suffix)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// Count returns a number of things, and the word for one or for several: 1 row, 3 rows.
func Count[N int | int64](n N, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", several)
}

// Duration returns a duration in at most two units, of which the smaller is left out where it is 0: 3 ms, 4.2 s, 3m20s, 5h10m, 12d4h.
func Duration(d time.Duration) string {
	two := func(large time.Duration, a string, small time.Duration, b string) string {
		rest := d % large / small
		if rest == 0 {
			return fmt.Sprintf("%d%s", d/large, a)
		}
		return fmt.Sprintf("%d%s%d%s", d/large, a, rest, b)
	}
	const day = 24 * time.Hour
	switch {
	case d == 0:
		return "0 s"
	case d <= -time.Millisecond:
		return "-" + Duration(-d)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return two(time.Minute, "m", time.Second, "s")
	case d < day:
		return two(time.Hour, "h", time.Minute, "m")
	}
	return two(day, "d", time.Hour, "h")
}
