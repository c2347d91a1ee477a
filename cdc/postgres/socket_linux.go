package postgres

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// near is the longest round trip with which a closed window costs nothing: it is open again before the server has
	// a full window more.
	near = 200 * time.Microsecond
	// shutBuffer is the SO_RCVBUF of a window that should be closed most of the time. The kernel doubles it.
	shutBuffer = 64 << 10
	// wideWindow is the size to which a window is opened; autotuning may raise it further.
	wideWindow = 1 << 20
)

// kernel holds what walpost uses of a Linux socket.
type kernel struct {
	raw   syscall.RawConn // nil: not TCP
	timer *os.File        // nil: time.Sleep
	high  bool            // the low-water mark is high: fewer bytes do not wake the process
	shut  bool            // walpost has set the receive buffer, and it is small

	p   []byte // of the present receive
	n   int
	err error
	try func(fd uintptr) bool // bound once
}

func newSocket(conn net.Conn) *socket {
	s := &socket{Conn: conn}
	s.try = s.attempt
	if c, ok := conn.(*net.TCPConn); ok {
		s.raw, _ = c.SyscallConn()
	}
	if fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err == nil {
		s.timer = os.NewFile(uintptr(fd), "timer")
	}
	return s
}

// receive reads the available bytes, or waits for some.
func (s *socket) receive(p []byte) (int, error) {
	if s.raw == nil {
		return s.Conn.Read(p)
	}
	s.p, s.n, s.err = p, 0, nil
	if err := s.raw.Read(s.try); err != nil {
		return 0, err
	}
	s.p = nil
	return s.n, s.err
}

// waiting returns how many bytes a read would find, if that is known.
func (s *socket) waiting() (bytes int) {
	if s.raw == nil {
		return 0
	}
	_ = s.raw.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ); err == nil {
			bytes = n
		}
	})
	return bytes
}

// attempt reads once without waiting. Before the process waits for the first byte, attempt lowers the mark.
func (s *socket) attempt(fd uintptr) bool {
	for {
		n, err := unix.Read(int(fd), s.p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN && s.high:
			s.mark(fd, 1)
			continue
		case err == unix.EAGAIN:
			return false
		case err != nil:
			s.err = &net.OpError{Op: "read", Net: s.RemoteAddr().Network(), Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError("read", err)}
		case n == 0:
			s.err = io.EOF
		default:
			s.n = n
		}
		return true
	}
}

// mark sets SO_RCVLOWAT: the kernel reports the socket as readable only from this number of bytes on (socket(7); TCP
// honours it for poll since Linux 4.18). It is a hint: if setting it fails the relay is only slower.
func (s *socket) mark(fd uintptr, bytes int) {
	_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes)
	s.high = bytes > 1
}

// rest waits for d. Without the mark every packet would wake a thread of Go's poller, and the walsender would pay for
// waking it. time.Sleep is too coarse: a process with nothing else to do waits in whole milliseconds
// (runtime.netpoll).
func (s *socket) rest(d time.Duration) {
	if s.raw != nil && !s.high {
		_ = s.raw.Control(func(fd uintptr) { s.mark(fd, readChunk/2) })
	}
	if s.timer == nil {
		time.Sleep(d)
		return
	}
	c, err := s.timer.SyscallConn()
	if err == nil {
		var refused error
		err = c.Control(func(fd uintptr) {
			refused = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
		})
		err = cmp.Or(err, refused)
	}
	var expirations [8]byte
	if err == nil {
		_, err = s.timer.Read(expirations[:])
	}
	if err != nil {
		time.Sleep(d)
	}
}

// keepShut makes the receive buffer small if the server is near, and returns the window that results, and a
// description of the connection for the log. Call it after connect: before it, the buffer would decide the
// connection's window scale for good. It sets SO_RCVLOWAT afterwards: with a buffer that the kernel sizes,
// SO_RCVLOWAT would raise the window.
func (s *socket) keepShut() (window int, wire string) {
	if s.raw == nil {
		return 0, s.RemoteAddr().Network()
	}
	_ = s.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		trip := time.Duration(info.Min_rtt) * time.Microsecond
		if trip > 0 && trip < near { // 0: the kernel does not know
			s.shut = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, shutBuffer) == nil
		}
		buffer, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
		if s.shut && buffer < shutBuffer { // net.core.rmem_max allows no more, and that is too little to rest on
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0)
			s.shut = false
		}
		clamp, _ := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP)
		if s.shut {
			window = min(clamp, buffer/2)
		}
		wire = fmt.Sprintf("tcp, round trip %s, receive buffer %d, window clamp %d", trip, buffer, clamp)
	})
	return window, wire
}

// openWindow lets autotuning size the buffer again (SO_BUF_LOCK, since Linux 5.15), for the rest of the connection.
// Autotuning grows a buffer only when more is read in a round trip than in any before, and a full window never has
// more. A mark of the size of the wider window makes room for it (tcp_set_rcvlowat).
func (s *socket) openWindow() {
	if !s.shut {
		return
	}
	s.shut = false
	_ = s.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0)
		s.mark(fd, wideWindow)
		s.mark(fd, 1)
	})
}

// Close also closes the timer.
func (s *socket) Close() error {
	if s.timer != nil {
		_ = s.timer.Close()
	}
	return s.Conn.Close()
}
