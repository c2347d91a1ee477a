// Package policy holds the rules of the project that only tests can keep: which package may import which, that every
// package states its one idea, and that pages, alerts and schemas agree with the code.
package policy
