package cdctest

import (
	"bytes"
	"sync"
)

// longestForm is larger than the length of each form of the Canary.
const longestForm = 64

// Log is a log that a test can read while a program writes it. The zero Log is empty. A Log that contains the Canary
// fails the run.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer

	awaited string
	then    func()
}

// Write appends to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.then != nil && bytes.Contains(p, []byte(l.awaited)) {
		l.then()
		l.then = nil
	}
	before := max(0, l.text.Len()-longestForm) // a form may arrive in two parts
	_, _ = l.text.Write(p)
	if line := Leak(string(l.text.Bytes()[before:])); line != "" {
		note(line)
	}
	return len(p), nil
}

// On makes the writer call f, once, before its next write that contains text. f must not use the log.
func (l *Log) On(text string, f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.awaited, l.then = text, f
}

// String returns the text that was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
