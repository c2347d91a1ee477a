// Package failpoint names the instants of a relay's life at which tests kill it, freeze it, delay it or make it fail.
//
// Without the build tag failpoints [Hit] is empty and inlined away: a production binary has neither the names nor the
// variable. With the tag, WALPOST_FAILPOINT says what happens at which point, as name:action@n, several separated by
// commas. The n-th time that the relay passes the point (the first without @n), the point reports that on standard
// error, and then
//
//	kill     kills the relay with SIGKILL
//	stop     freezes it with SIGSTOP; SIGCONT lets it continue
//	sleep=d  waits, 500ms for example
//	error    fails with an error that names the point
package failpoint
