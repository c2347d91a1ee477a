package identity

import (
	"fmt"
	"io"
)

// Secret is a word that nothing prints: fmt, JSON, YAML and logs show *** in its place.
type Secret string

// Reveal returns the word.
func (s Secret) Reveal() string { return string(s) }

// String returns ***, or nothing for an empty Secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// Format writes what String returns, for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText returns what String returns.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
