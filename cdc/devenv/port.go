package devenv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// FreePort returns a loopback port that nothing listens on. It lies below the range from which systems take the local
// ports of outgoing connections, so a server can be restarted on it later.
func FreePort() (int, error) {
	const low, high, attempts = 15000, 30000, 100
	var last error
	for range attempts {
		port := low + rand.IntN(high-low)
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			last = err
			continue
		}
		return port, ln.Close()
	}
	return 0, errors.Join(errors.New("no free port on 127.0.0.1"), last)
}
