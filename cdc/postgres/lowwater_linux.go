package postgres

import (
	"net"
	"syscall"
)

// setLowWater sets SO_RCVLOWAT: the kernel reports the socket as readable only from so many bytes on (socket(7); TCP honours it
// for poll since Linux 4.18). It is a hint: where it fails the relay is only slower.
func setLowWater(conn net.Conn, bytes int) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, bytes)
	})
}
