package cdctest

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Link is a network inside this machine. A packet to Peer crosses it and arrives at Host as if Peer had sent it.
type Link struct {
	Host string // the address for servers to listen on
	Peer string // the address for clients to connect to

	device string
	thread atomic.Int32 // the thread that forwards packets; 0 if the kernel forwards
}

// delayed is the number of packets that a link with a delay holds. More packets wait in the device's queue, which has
// the same length.
const delayed = 8192

// Delayed returns a link on which a packet takes half of roundTrip, in order. A packet is lost only if a queue is full;
// Dropped counts that. It needs root; without root the test is skipped. The link ends with the test.
//
// The link is a TUN device: the kernel hands over a packet from Host to Peer, and gets it back later with the addresses
// swapped, as a packet from Peer to Host. Answers take the same way. The checksums stay right, because a sum does not
// depend on the order of its parts.
func Delayed(t testing.TB, mtu int, roundTrip time.Duration) *Link {
	t.Helper()
	tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("a network with a delay is a TUN device, and that takes root: open /dev/net/tun: %v", err)
	}
	closeTun := func() { _ = unix.Close(tun) } // this removes the device too
	l, err := newDevice(tun, mtu)
	if err != nil {
		closeTun()
		t.Fatalf("make a TUN device: %v", err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		closeTun()
		t.Fatalf("make an eventfd: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.forward(tun, stop, mtu, roundTrip/2) }()
	t.Cleanup(func() {
		_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		if err := <-ended; err != nil {
			t.Errorf("forward packets: %v", err)
		}
		_ = unix.Close(stop)
		closeTun()
	})
	return l
}

// newDevice creates a TUN device with two addresses from the range for benchmarks. The kernel numbers the devices, so
// no two test processes have the same.
func newDevice(tun, mtu int) (*Link, error) {
	device, err := unix.NewIfreq("wpdelay%d")
	if err != nil {
		return nil, err
	}
	device.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, device); err != nil {
		return nil, fmt.Errorf("TUNSETIFF: %w", err)
	}
	l := &Link{device: device.Name()}
	n, err := strconv.ParseUint(strings.TrimPrefix(l.device, "wpdelay"), 10, 8)
	if err != nil {
		return nil, fmt.Errorf("number the addresses of %s: %w", l.device, err)
	}
	host, peer := netip.AddrFrom4([4]byte{198, 18, byte(n), 1}), netip.AddrFrom4([4]byte{198, 18, byte(n), 2})
	l.Host, l.Peer = host.String(), peer.String()

	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(socket) }()
	for _, step := range []struct {
		name    string
		request uint
		set     func(*unix.Ifreq) error
	}{
		{"SIOCSIFMTU", unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(uint32(mtu)); return nil }},
		{"SIOCSIFTXQLEN", unix.SIOCSIFTXQLEN, func(r *unix.Ifreq) error { r.SetUint32(delayed); return nil }},
		{"SIOCSIFADDR", unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(host.AsSlice()) }},
		{"SIOCSIFDSTADDR", unix.SIOCSIFDSTADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(peer.AsSlice()) }},
		{"SIOCSIFFLAGS", unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP); return nil }},
	} {
		request, err := unix.NewIfreq(l.device)
		if err == nil {
			err = step.set(request)
		}
		if err == nil {
			err = unix.IoctlIfreq(socket, step.request, request)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return l, nil
}

// forward carries packets until stop is readable. It locks its thread: a thread waits more precisely than Go's timers.
func (l *Link) forward(tun, stop, mtu int, delay time.Duration) error {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and the timer slack with it
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set the timer slack: %w", err)
	}
	l.thread.Store(int32(unix.Gettid()))

	type packet struct {
		due   time.Duration // since began
		bytes []byte
	}
	began, slab := time.Now(), make([]byte, delayed*mtu)
	var packets [delayed]packet // a ring: the packets from first up to last wait
	for first, last := 0, 0; ; {
		now := time.Since(began)
		for ; first < last && packets[first%delayed].due <= now; first++ {
			if _, err := unix.Write(tun, packets[first%delayed].bytes); err != nil {
				return fmt.Errorf("write a packet: %w", err)
			}
		}
		wait := []unix.PollFd{{Fd: int32(stop), Events: unix.POLLIN}}
		if last-first < delayed {
			slot := last % delayed
			bytes := slab[slot*mtu : (slot+1)*mtu]
			n, err := unix.Read(tun, bytes)
			if err == nil {
				if bytes[0]>>4 == 4 { // the kernel says hello in IPv6 too
					var source [4]byte
					copy(source[:], bytes[12:])
					copy(bytes[12:], bytes[16:20])
					copy(bytes[16:], source[:])
					packets[slot] = packet{time.Since(began) + delay, bytes[:n]}
					last++
				}
				continue
			}
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("read a packet: %w", err)
			}
			wait = append(wait, unix.PollFd{Fd: int32(tun), Events: unix.POLLIN})
		}
		var within *unix.Timespec
		if first < last {
			left := unix.NsecToTimespec(max(0, packets[first%delayed].due-time.Since(began)).Nanoseconds())
			within = &left
		}
		if _, err := unix.Ppoll(wait, within, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for packets: %w", err)
		}
		if wait[0].Revents != 0 {
			return nil
		}
	}
}

// CPU returns the CPU time of the link's thread, or 0 if the kernel forwards. The thread does a part of the kernel's
// work for the receivers.
func (l *Link) CPU() time.Duration {
	thread := l.thread.Load()
	if thread == 0 {
		return 0
	}
	var used unix.Timespec
	if err := unix.ClockGettime(^thread<<3|6, &used); err != nil { // CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED
		return 0
	}
	return time.Duration(used.Nano())
}

// Congestion sets the congestion control of new connections on the link.
func (l *Link) Congestion(t testing.TB, control string) {
	t.Helper()
	if out, err := exec.Command("ip", "route", "replace", l.Peer, "dev", l.device, "src", l.Host, "congctl", control).CombinedOutput(); err != nil {
		t.Fatalf("set the congestion control to %s: %v\n%s", control, err, bytes.TrimSpace(out))
	}
}

// Forget deletes the kernel's metrics of connections that have ended, if there are any.
func (l *Link) Forget() { _ = exec.Command("ip", "tcp_metrics", "delete", l.Peer).Run() }

// Dropped returns the number of packets that were lost because a queue was full.
func (l *Link) Dropped() (n int) {
	for _, counter := range []string{"tx_dropped", "rx_dropped"} {
		text, _ := os.ReadFile("/sys/class/net/" + l.device + "/statistics/" + counter)
		dropped, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		n += dropped
	}
	return n
}
