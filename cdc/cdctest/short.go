package cdctest

import "testing"

// Long skips a test with -short, the loop in which one programs, and says why it takes long. CI never runs with -short.
func Long(t testing.TB, why string) {
	t.Helper()
	if testing.Short() {
		t.Skip("not with -short: " + why)
	}
}
