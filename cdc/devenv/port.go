package devenv

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
)

// FreePort returns a loopback port that nothing listens on, and that no stopped server of this package will use again.
// The port lies below the range from which systems take local ports for outgoing connections, so a server can be
// restarted on it later.
func FreePort() (int, error) {
	port, kept, err := keepPort()
	if err != nil {
		return 0, err
	}
	return port, kept.Close()
}

// keepPort does the same as FreePort, and reserves the port in all processes until kept is closed.
func keepPort() (port int, kept io.Closer, err error) {
	const low, high, attempts = 15000, 30000, 100
	for range attempts {
		port = low + rand.IntN(high-low)
		if kept, err = keep(port); err != nil {
			continue
		}
		var ln net.Listener
		if ln, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, kept, ln.Close()
		}
		_ = kept.Close()
	}
	return 0, nil, errors.Join(errors.New("no free port on 127.0.0.1"), err)
}
