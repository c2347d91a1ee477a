package cdctest

import "testing"

// Long skips a test with -short, the developer's fast loop. why says why the test is slow. CI never uses -short.
func Long(t testing.TB, why string) {
	t.Helper()
	if testing.Short() {
		t.Skip("not with -short: " + why)
	}
}
