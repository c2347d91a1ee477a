//go:build !linux

package pglimit

import (
	"net"
	"time"
)

// setGoneAfter does nothing on systems without TCP_USER_TIMEOUT. There only the keepalive notices a vanished peer.
func setGoneAfter(net.Conn, time.Duration) {}
