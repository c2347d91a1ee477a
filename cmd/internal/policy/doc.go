// Package policy holds the rules of the house that only tests can keep: who may import whom, and that every package says
// its one idea.
package policy
