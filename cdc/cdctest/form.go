package cdctest

import (
	"os"
	"time"
)

// LongForm reports whether WALPOST_TEST_LONG asks for the long form of the suite.
func LongForm() bool { return os.Getenv("WALPOST_TEST_LONG") != "" }

// Patience returns how long a test waits for something that should take less than d. In the long form that is four
// times as long: programs with the race detector, their servers and a Kafka broker share the machine, and a limit that
// is too short fails a test although the relay is right.
func Patience(d time.Duration) time.Duration {
	if LongForm() {
		return 4 * d
	}
	return d
}
