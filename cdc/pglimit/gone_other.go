//go:build !linux

package pglimit

import (
	"net"
	"time"
)

// setGoneAfter does nothing where there is no TCP_USER_TIMEOUT: the keepalive alone notices.
func setGoneAfter(net.Conn, time.Duration) {}
