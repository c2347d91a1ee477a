// Package failpoint names the instants of a relay's life at which tests kill it, freeze it, delay it or make it fail.
//
// Without the build tag failpoints [Hit] is empty and inlined away: a production binary holds neither names nor the
// variable. With it, WALPOST_FAILPOINT says what happens where, as name:action@n, several separated by commas. The n-th
// time (the first without @n) the relay passes the point it says so on standard error, and then
//
//	kill     ends by SIGKILL
//	stop     freezes itself by SIGSTOP; SIGCONT lets it go on
//	sleep=d  waits, 500ms for example
//	error    fails with an error that names the point
package failpoint
