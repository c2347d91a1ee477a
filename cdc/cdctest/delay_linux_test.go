//go:build network

package cdctest_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/walpost/walpost/cdc/cdctest"
)

func TestDelayedKeepsBytesAndTime(t *testing.T) {
	for _, mtu := range []int{1500, 9000} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			const roundTrip = 5 * time.Millisecond
			link := cdctest.Delayed(t, mtu, roundTrip)
			client := echo(t, link)
			info := tcpInfo(t, client)
			if rtt := time.Duration(info.Min_rtt) * time.Microsecond; rtt < roundTrip || rtt > roundTrip+500*time.Microsecond {
				t.Errorf("a round trip takes %v, not %v", rtt, roundTrip)
			}
			if info.Pmtu != uint32(mtu) {
				t.Errorf("an MTU of %d, not %d", info.Pmtu, mtu)
			}
			if n := link.Dropped(); n > 0 {
				t.Errorf("%d packets were dropped", n)
			}
			if link.CPU() <= 0 {
				t.Error("the link used no CPU")
			}
		})
	}
}

// echo sends 8 MB through the link, compares the bytes that return, and returns the connection.
func echo(t *testing.T, link *cdctest.Link) *net.TCPConn {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(link.Host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(link.Peer, port), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := conn.(*net.TCPConn)
	_ = client.SetDeadline(time.Now().Add(time.Minute))

	sent := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(sent)
	var received []byte
	var group errgroup.Group
	group.Go(func() error {
		server, err := listener.Accept()
		if err != nil {
			return err
		}
		defer func() { _ = server.Close() }()
		_, err = io.Copy(server, server)
		return err
	})
	group.Go(func() error {
		if _, err := client.Write(sent); err != nil {
			return err
		}
		return client.CloseWrite()
	})
	group.Go(func() (err error) {
		received, err = io.ReadAll(client)
		return err
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sent, received) {
		t.Fatalf("%d bytes came back, not the %d that were sent", len(received), len(sent))
	}
	return client
}

func tcpInfo(t *testing.T, conn *net.TCPConn) (info *unix.TCPInfo) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if control := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); control != nil || err != nil {
		t.Fatal(control, err)
	}
	return info
}
