package app

import (
	"strings"
	"unicode"
)

// Line returns what somebody else wrote, a key or an id, as one short line without control characters, which would command the
// terminal.
func Line(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > 160 {
		s = s[:157] + "..."
	}
	return s
}
