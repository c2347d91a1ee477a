package faults

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// limitSessions applies settings that end idle sessions of applications, here for the relay's role in this database.
func limitSessions(s *e2e.Pipeline) {
	s.T.Helper()
	settings := map[string]string{
		"statement_timeout": "1500ms", "lock_timeout": "1500ms", "idle_in_transaction_session_timeout": "1500ms", "idle_session_timeout": "1500ms",
		"default_transaction_read_only": "on", "default_transaction_isolation": "serializable", "client_min_messages": "error",
	}
	if s.Query("SELECT (current_setting('server_version_num')::int >= 170000)::text") == "true" {
		settings["transaction_timeout"] = "1500ms"
	}
	for name, value := range settings {
		s.Exec(fmt.Sprintf("ALTER ROLE relay_%s IN DATABASE %s SET %s = '%s'", s.Slot(), s.Query("SELECT quote_ident(current_database())"), name, value))
	}
}

// hygienic runs fault 50: a transaction takes longer than each of the timeouts, because Kafka pauses in its middle.
func hygienic(s *trial) {
	s.prepare(setup{env: map[string]string{"WALPOST_WINDOW_ROWS": "1000"}, load: cdctest.WriterConfig{Rate: 10}})
	limitSessions(s.Pipeline)
	r := s.startStreaming()
	s.insertWithLedger("big", 20_000, 2000) // more than sockets hold
	cdctest.Consume(s.t, s.Brokers, s.Topic, 30*time.Second, cdctest.AtLeast(1000))
	s.kafkaProxy.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{Stalled: true})
	time.Sleep(4 * time.Second)
	s.kafkaProxy.Set(cdctest.Wire{}, cdctest.Wire{})
	s.endFault()
	s.wantNoDuplicates(s.finish())
	r.MustBeUndisturbed()
}

// pollingHygienic runs fault 51: the same as 50 for a relay that keeps the order, and is idle between two looks, and
// for one that keeps a transaction open while Kafka pauses.
func pollingHygienic(of *trial) {
	of.t.Run("key", func(t *testing.T) {
		t.Parallel()
		pollHygienic(t, of.program(), map[string]string{"WALPOST_SOURCE_POLLING_INTERVAL": "3s"})
	})
	of.t.Run("none", func(t *testing.T) {
		t.Parallel()
		pollHygienic(t, of.program(), map[string]string{"WALPOST_SOURCE_POLLING_ORDER": "none"})
	})
}

func pollHygienic(t *testing.T, program e2e.Program, env map[string]string) {
	s := e2e.NewPolled(t, program)
	for k, v := range env {
		s.Env[k] = v
	}
	s.MustRun("init")
	limitSessions(s)
	kf := cdctest.StartKafkaProxy(t, s.Brokers, nil)
	s.Env["WALPOST_KAFKA_BROKERS"] = strings.Join(kf.Brokers(), ",")
	r := s.StartRelay()
	r.WaitForLog(time.Minute, `"streaming"`)
	s.InsertRows(10)
	cdctest.Consume(t, s.Brokers, s.Topic, 30*time.Second, cdctest.AtLeast(10))
	kf.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{Stalled: true})
	s.InsertRows(500)
	time.Sleep(4 * time.Second)
	kf.Set(cdctest.Wire{}, cdctest.Wire{})
	s.WaitUntilPolled()
	if n := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); n != 510 {
		t.Errorf("%d records of 510 rows", n)
	}
	r.MustBeUndisturbed()
}

// namespace is a network that is reached over one link. It has a name and two addresses. A command in it resolves the
// name there.
type namespace struct {
	t      *testing.T
	name   string // of the network namespace
	prefix string // of its addresses
	hosts  string // file

	down  atomic.Bool // new connections are closed at once
	mu    sync.Mutex
	conns map[net.Conn]bool
}

const namespaceHost = "postgres.walpost.test"

// newNamespace makes a namespace, and needs root. Nothing listens at its addresses yet.
func newNamespace(t *testing.T) *namespace {
	t.Helper()
	tag := fmt.Sprintf("wp%08x", rand.Uint32())
	i := &namespace{t: t, name: tag, prefix: fmt.Sprintf("10.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 8*rand.IntN(32)), hosts: filepath.Join(t.TempDir(), "hosts"), conns: map[net.Conn]bool{}}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", tag).Run() }) // this also removes the link
	i.run("ip", "netns", "add", tag)
	i.run("ip", "link", "add", tag+"a", "type", "veth", "peer", "name", tag+"b", "netns", tag)
	i.run("ip", "addr", "add", i.addr(1)+"/29", "dev", tag+"a")
	i.run("ip", "link", "set", tag+"a", "up")
	for n := 2; n <= 3; n++ {
		i.run("ip", "-n", tag, "addr", "add", i.addr(n)+"/29", "dev", tag+"b")
	}
	i.run("ip", "-n", tag, "link", "set", tag+"b", "up")
	i.resolveTo(2)
	return i
}

func (i *namespace) run(command ...string) {
	i.t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		i.t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
}

func (i *namespace) addr(n int) string {
	var last int
	base := i.prefix[:strings.LastIndexByte(i.prefix, '.')+1]
	if _, err := fmt.Sscan(i.prefix[len(base):], &last); err != nil {
		i.t.Fatal(err)
	}
	return fmt.Sprint(base, last+n)
}

// resolveTo sets the address of the host.
func (i *namespace) resolveTo(n int) {
	i.t.Helper()
	if err := os.WriteFile(i.hosts, []byte("127.0.0.1 localhost\n"+i.addr(n)+" "+namespaceHost+"\n"), 0o644); err != nil {
		i.t.Fatal(err)
	}
}

// dropPackets makes an address answer nothing, not even that it does not exist; passPackets ends that.
func (i *namespace) dropPackets(n int) {
	i.t.Helper()
	i.run("ip", "netns", "exec", i.name, "iptables", "-A", "INPUT", "-d", i.addr(n), "-j", "DROP")
	i.run("ip", "netns", "exec", i.name, "iptables", "-A", "OUTPUT", "-s", i.addr(n), "-j", "DROP")
}

func (i *namespace) passPackets(n int) {
	i.t.Helper()
	i.run("ip", "netns", "exec", i.name, "iptables", "-D", "INPUT", "-d", i.addr(n), "-j", "DROP")
	i.run("ip", "netns", "exec", i.name, "iptables", "-D", "OUTPUT", "-s", i.addr(n), "-j", "DROP")
}

// closeConnections closes all connections as a stopping server does.
func (i *namespace) closeConnections() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for c := range i.conns {
		_ = c.Close()
	}
}

// forward forwards a port of both addresses to the target, and returns the port.
func (i *namespace) forward(target string) (port string) {
	i.t.Helper()
	listener, err := i.listen()
	if err != nil {
		i.t.Fatal(err)
	}
	var all sync.WaitGroup
	i.t.Cleanup(func() {
		_ = listener.Close()
		i.closeConnections()
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			if i.down.Load() {
				_ = client.Close()
				continue
			}
			// as a server notices that its client is gone
			if raw, err := client.(*net.TCPConn).SyscallConn(); err == nil {
				_ = raw.Control(func(fd uintptr) {
					for option, n := range map[int]int{syscall.TCP_KEEPIDLE: 2, syscall.TCP_KEEPINTVL: 1, syscall.TCP_KEEPCNT: 3, 0x12: 3000} { // TCP_USER_TIMEOUT
						_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, option, n)
					}
				})
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			i.mu.Lock()
			i.conns[client], i.conns[server] = true, true
			i.mu.Unlock()
			for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
				all.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					_ = client.Close()
					_ = server.Close()
				})
			}
		}
	})
	_, port, _ = net.SplitHostPort(listener.Addr().String())
	return port
}

// listen opens a listener in the namespace: a socket stays in the namespace in which it was opened.
func (i *namespace) listen() (listener net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // without unlocking: the thread ends with the goroutine
		var ns *os.File
		if ns, err = os.Open("/run/netns/" + i.name); err != nil {
			return
		}
		defer func() { _ = ns.Close() }()
		const setns, newNet = 308, 0x40000000 // x86-64
		trap := uintptr(setns)
		if runtime.GOARCH == "arm64" {
			trap = 268
		}
		if _, _, errno := syscall.RawSyscall(trap, ns.Fd(), newNet, 0); errno != 0 {
			err = errno
			return
		}
		listener, err = net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			return
		}
	}()
	<-done
	return listener, err
}

// command returns the command of a process that resolves the namespace's name.
func (i *namespace) command(binary string, args ...string) *exec.Cmd {
	return exec.Command("unshare", append([]string{"--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, i.hosts, binary}, args...)...)
}

// urlThrough returns a URL that leads to the namespace's name.
func (i *namespace) urlThrough(source, port, more string) string {
	i.t.Helper()
	u, err := url.Parse(source)
	if err != nil {
		i.t.Fatal(err)
	}
	u.Host = net.JoinHostPort(namespaceHost, port)
	q := u.Query()
	if more != "" {
		q.Set("options", more)
	}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	return u.String()
}

// moveTwice moves a relay's server. The server stops, and is at another address when it is back, while the old
// address answers nothing. Then it vanishes without closing connections, and is at the first address again.
func (i *namespace) moveTwice(r *e2e.Relay, flows func()) {
	i.t.Helper()
	i.down.Store(true)
	i.closeConnections()
	r.WaitForLog(15*time.Second, "starting over")
	i.dropPackets(2)
	i.down.Store(false)
	time.Sleep(2 * time.Second)            // a client asks for the address that is gone
	i.waitUntilMoved(r, 3, 45*time.Second) // 15 s on an otherwise idle machine
	flows()
	i.passPackets(2)
	i.dropPackets(3)
	i.waitUntilMoved(r, 2, 60*time.Second) // it takes 30 s to notice
	flows()
}

// waitUntilMoved gives the server another address, and waits until the relay streams from there.
func (i *namespace) waitUntilMoved(r *e2e.Relay, n int, within time.Duration) {
	i.t.Helper()
	before := strings.Count(r.Log.String(), `"streaming"`)
	i.resolveTo(n)
	began := time.Now()
	cdctest.Eventually(i.t, within, func() error {
		if strings.Count(r.Log.String(), `"streaming"`) == before {
			return fmt.Errorf("the relay does not stream %s after the server had its new address", time.Since(began).Round(time.Second))
		}
		return nil
	})
	i.t.Logf("address %d: back after %s", n, time.Since(began).Round(100*time.Millisecond))
}

// moved runs fault 52.
func moved(s *trial) {
	if os.Getuid() != 0 {
		s.reportNotRun("network namespaces take root")
		return
	}
	s.prepare(setup{})
	i := newNamespace(s.t)
	s.Env["WALPOST_SOURCE_URL"] = i.urlThrough(s.Env["WALPOST_SOURCE_URL"], i.forward(s.pgAddress), "-c wal_sender_timeout=3s")
	r := s.waitUntilStreaming(s.StartCommand(i.command(s.walpost(), "relay")))
	i.moveTwice(r, func() { s.waitForCommits(20); s.waitUntilDelivered() })
	s.endFault()
	s.finish()
}

// pollingMoved runs fault 53: the same as 52 for a relay that polls.
func pollingMoved(of *trial) {
	if os.Getuid() != 0 {
		of.reportNotRun("network namespaces take root")
		return
	}
	s := e2e.NewPolled(of.t, of.program())
	s.MustRun("init")
	u, err := url.Parse(s.Env["WALPOST_SOURCE_URL"])
	if err != nil {
		of.t.Fatal(err)
	}
	i := newNamespace(of.t)
	s.Env["WALPOST_SOURCE_URL"] = i.urlThrough(s.Env["WALPOST_SOURCE_URL"], i.forward(u.Host), "")
	w := cdctest.StartWriter(of.t, cdctest.WriterConfig{URL: s.AdminURL, Rate: 30})
	r := s.StartCommand(i.command(of.walpost(), "relay"))
	r.WaitForLog(time.Minute, `"streaming"`)
	i.moveTwice(r, func() {})
	s.CheckPolled(w.Stop())
}
