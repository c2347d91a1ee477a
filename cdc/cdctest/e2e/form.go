package e2e

import (
	"os"
	"strconv"
	"testing"
)

// LongForm reports whether WALPOST_TEST_LONG asks for the long form of the suite.
func LongForm() bool { return os.Getenv("WALPOST_TEST_LONG") != "" }

// Kills returns how often a test kills relays: WALPOST_KILLS, or what the form of the suite asks for.
func Kills() int {
	if n, err := strconv.Atoi(os.Getenv("WALPOST_KILLS")); err == nil {
		return n
	}
	if LongForm() {
		return 15
	}
	if testing.Short() {
		return 2
	}
	return 5
}
