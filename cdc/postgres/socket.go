package postgres

import "net"

// socket is the replication connection below TLS. It reads ahead, because TLS asks for one small record after the other.
type socket struct {
	net.Conn
	kernel

	buf  []byte
	r, w int
}

// buffered is how many bytes were received and not yet read.
func (s *socket) buffered() int { return s.w - s.r }

func (s *socket) Read(p []byte) (int, error) {
	if s.r == s.w {
		if len(p) >= gulp/4 {
			return s.receive(p)
		}
		if s.buf == nil {
			s.buf = make([]byte, gulp)
		}
		n, err := s.receive(s.buf)
		s.r, s.w = 0, n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, s.buf[s.r:s.w])
	s.r += n
	return n, nil
}
