//go:build !linux

package postgres

import "net"

// setLowWater does nothing where TCP does not honour the mark for poll.
func setLowWater(net.Conn, int) {}
