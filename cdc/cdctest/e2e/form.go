package e2e

import (
	"os"
	"strconv"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
)

// Kills returns how often a test kills relays: WALPOST_KILLS, or the default of the suite's form.
func Kills() int {
	if n, err := strconv.Atoi(os.Getenv("WALPOST_KILLS")); err == nil {
		return n
	}
	if cdctest.LongForm() {
		return 15
	}
	if testing.Short() {
		return 2
	}
	return 5
}
