//go:build !linux

package postgres

import (
	"net"
	"time"
)

// kernel is empty: only Linux has the needed socket options.
type kernel struct{}

func newSocket(conn net.Conn) *socket { return &socket{Conn: conn} }

func (s *socket) receive(p []byte) (int, error) { return s.Conn.Read(p) }

func (s *socket) waiting() int { return 0 }

func (s *socket) rest(d time.Duration) { time.Sleep(d) }

func (s *socket) keepShut() (window int, wire string) { return 0, s.RemoteAddr().Network() }

func (s *socket) openWindow() {}
