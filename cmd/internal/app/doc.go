// Package app is what the servers of this repository share: a process from its first signal to its exit code, a logger, the
// operator's HTTP routes and a listener that stops gracefully.
//
// It is the only package that touches signals, the exit code and zerolog's global settings; everything below it takes a context
// and a logger. A main package does nothing but app.Main(run), so that tests call run in their own process.
package app
