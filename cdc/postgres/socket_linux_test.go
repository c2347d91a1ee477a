package postgres

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/walpost/walpost/cdc/cdctest"
)

// sockets returns the two ends of a connection: the relay's and the server's.
func sockets(t testing.TB, network, address string) (*socket, net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := newSocket(c)
	t.Cleanup(func() { _, _ = s.Close(), server.Close() })
	return s, server
}

func (s *socket) option(t *testing.T, level, name int) (value int) {
	t.Helper()
	err := s.raw.Control(func(fd uintptr) {
		var err error
		if value, err = unix.GetsockoptInt(int(fd), level, name); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// TestOneByteWakes: after a rest, during which only a full chunk would wake the process, a reader still gets the
// first byte when it arrives, and the bytes that arrived during the rest at once.
func TestOneByteWakes(t *testing.T) {
	for _, network := range []struct{ name, address string }{{"tcp", "127.0.0.1:0"}, {"unix", t.TempDir() + "/s"}} {
		for _, secret := range []bool{false, true} {
			t.Run(network.name+map[bool]string{true: "/tls"}[secret], func(t *testing.T) {
				s, server := sockets(t, network.name, network.address+map[bool]string{true: "t"}[secret && network.name == "unix"])
				var client net.Conn = s
				if secret {
					client, server = encrypted(t, s, server)
				}
				s.keepShut()
				p := make([]byte, readChunk)
				for i := range 3 {
					_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
					s.rest(time.Millisecond)
					if i < 2 && network.name == "tcp" {
						if mark := s.option(t, unix.SOL_SOCKET, unix.SO_RCVLOWAT); mark < 1<<10 {
							t.Errorf("while it rests %d bytes wake it", mark)
						}
					}
					write := func() {
						if _, err := server.Write([]byte{byte(i)}); err != nil {
							t.Error(err)
						}
					}
					if i == 1 {
						write()
					} else {
						time.AfterFunc(20*time.Millisecond, write)
					}
					if n, err := client.Read(p); n != 1 || err != nil || p[0] != byte(i) {
						t.Fatalf("read %d: %d bytes, %v", i, n, err)
					}
				}
				_ = client.SetReadDeadline(time.Now().Add(time.Millisecond))
				if n, err := client.Read(p); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("nothing comes: %d bytes, %v", n, err)
				}
				_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
				_ = server.Close()
				if n, err := client.Read(p); n != 0 || !errors.Is(err, io.EOF) {
					t.Errorf("the server closed: %d bytes, %v", n, err)
				}
			})
		}
	}
}

// encrypted puts TLS between the two.
func encrypted(t *testing.T, client, server net.Conn) (c, s net.Conn) {
	t.Helper()
	own := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
	its := cdctest.NewAuthority(t, "authority", time.Time{}).Issue(t, cdctest.Certificate{Name: "postgres"})
	certificate, err := tls.LoadX509KeyPair(its.CertFile, its.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	theirs := tls.Server(server, &tls.Config{Certificates: []tls.Certificate{certificate}})
	ended := make(chan error, 1)
	go func() { ended <- theirs.Handshake() }()
	if err := errors.Join(own.Handshake(), <-ended); err != nil {
		t.Fatal(err)
	}
	return own, theirs
}

// TestFillCountsTheWire: with TLS the window is filled by TLS records, which are larger than their content.
func TestFillCountsTheWire(t *testing.T) {
	s, server := sockets(t, "tcp", "127.0.0.1:0")
	client, server := encrypted(t, s, server)
	const records, size = 50, 100
	for range records {
		if _, err := server.Write(frameOf('d', make([]byte, size-5))); err != nil {
			t.Fatal(err)
		}
	}
	st := newStream(defaults(), client, newDecoder(defaults(), 7))
	wire := 0
	for st.w < records*size {
		n, err := st.Fill(time.Now().Add(10 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		wire += n
	}
	if wire < records*(size+20) {
		t.Errorf("%d bytes over the wire for %d in %d records", wire, st.w, records)
	}
}

// TestReset: an error names both addresses, as those of the net package do.
func TestReset(t *testing.T) {
	s, server := sockets(t, "tcp", "127.0.0.1:0")
	if err := server.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	_, err := s.Read(make([]byte, readChunk))
	if !errors.Is(err, unix.ECONNRESET) || !strings.Contains(err.Error(), s.RemoteAddr().String()) {
		t.Errorf("the server reset it: %v", err)
	}
}

// TestWindowIsKeptShut: near the server the receive buffer stays small, however much waits in it, until it is opened.
func TestWindowIsKeptShut(t *testing.T) {
	s, server := sockets(t, "tcp", "127.0.0.1:0")
	for range 20 { // as a login does: the shortest round trip counts, on a busy machine too
		_, err := s.Write([]byte{0})
		if _, readErr := io.ReadFull(server, make([]byte, 1)); err != nil || readErr != nil {
			t.Fatal(err, readErr)
		}
	}
	if window, wire := s.keepShut(); window < 32<<10 || window > 64<<10 || !strings.HasPrefix(wire, "tcp, round trip ") || !strings.Contains(wire, "receive buffer 131072") {
		t.Errorf("window %d, %q", window, wire)
	}
	if n := s.option(t, unix.SOL_SOCKET, unix.SO_BUF_LOCK); n&unix.SOCK_RCVBUF_LOCK == 0 {
		t.Error("autotuning may enlarge the buffer")
	}
	ended := make(chan error, 1)
	sent := bytes.Repeat([]byte("walpost "), 4<<20)
	go func() {
		_, err := server.Write(sent)
		ended <- err
	}()
	p := make([]byte, readChunk)
	got, largest := 0, 0
	read := func() {
		s.rest(time.Millisecond)
		_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := s.Read(p)
		if err != nil || !bytes.Equal(p[:n], sent[got:got+n]) {
			t.Fatalf("%d bytes behind %d, %v", n, got, err)
		}
		got += n
		largest = max(largest, n)
	}
	for got < 8<<20 {
		read()
	}
	if largest > 128<<10 {
		t.Errorf("%d bytes in one read of a window that is kept shut", largest)
	}
	s.openWindow()
	for got < len(sent) {
		read()
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if largest <= 128<<10 {
		t.Errorf("at most %d bytes in one read after the window was opened", largest)
	}
}

// BenchmarkRest compares how late a rest of 200 µs ends with time.Sleep's, in a process that does nothing else.
func BenchmarkRest(b *testing.B) {
	s, _ := sockets(b, "tcp", "127.0.0.1:0")
	const asked = 200 * time.Microsecond
	for _, c := range []struct {
		name string
		rest func(time.Duration)
	}{{"timer", s.rest}, {"time.Sleep", time.Sleep}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				c.rest(asked)
			}
			b.ReportMetric(float64((b.Elapsed()/time.Duration(b.N) - asked).Microseconds()), "µs-late")
		})
	}
}
