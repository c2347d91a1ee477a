//go:build !failpoints

package failpoint

// Hit does nothing: it has the points only with the build tag failpoints.
func Hit(string) error { return nil }
