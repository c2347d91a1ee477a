package app

import (
	"strings"
	"unicode"
)

// Line returns a text that another program wrote, a key or an id, as one short line. It replaces control characters,
// which could change the terminal.
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
