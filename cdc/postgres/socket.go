package postgres

import "net"

// socket is the replication connection below TLS. It reads ahead, because TLS asks for one small record after the
// other.
type socket struct {
	net.Conn
	kernel

	received int // total bytes received
	buf      []byte
	r, w     int
}

// buffered reports whether received bytes are not read yet.
func (s *socket) buffered() bool { return s.r < s.w }

func (s *socket) Read(p []byte) (int, error) {
	if s.r == s.w {
		if len(p) >= readChunk/4 {
			n, err := s.receive(p)
			s.received += n
			return n, err
		}
		if s.buf == nil {
			s.buf = make([]byte, readChunk)
		}
		n, err := s.receive(s.buf)
		s.received += n
		s.r, s.w = 0, n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, s.buf[s.r:s.w])
	s.r += n
	return n, nil
}
