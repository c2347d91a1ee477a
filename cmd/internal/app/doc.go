// Package app holds the parts that the programs of this repository share: the life of a process from its first signal
// to its exit code, a logger, the operator's HTTP routes and a server that stops gracefully.
//
// It is the only package that uses signals, the exit code and zerolog's global settings; all packages below it take a
// context and a logger. A main function only calls app.Main(run), so that tests can call run in their process.
package app
