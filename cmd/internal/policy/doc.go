// Package policy tests the rules of this repository: which package may import which, what a program contains, and that
// pages match the code.
package policy
