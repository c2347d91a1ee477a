package cdctest

import (
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Proxy stands between a client and a server on loopback and breaks the wire where the test says.
type Proxy struct {
	listener net.Listener
	target   string
	pass     func(fromServer bool, chunk []byte) bool
	group    sync.WaitGroup

	mu    sync.Mutex
	pairs map[*pair]struct{}
	down  bool
}

// pair is a client's connection and the one it led to.
type pair struct{ client, server net.Conn }

func (p *pair) close() { _ = errors.Join(p.client.Close(), p.server.Close()) }

// StartProxy forwards connections to target, a host:port, until the test ends. Before a chunk of bytes goes on, pass
// decides: false closes its connection, both ways, and the chunk is lost; to block in it stalls this direction. It is
// called from several goroutines. Nil lets everything through.
func StartProxy(t testing.TB, target string, pass func(fromServer bool, chunk []byte) bool) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if pass == nil {
		pass = func(bool, []byte) bool { return true }
	}
	p := &Proxy{listener: listener, target: target, pass: pass, pairs: map[*pair]struct{}{}}
	p.group.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.Down()
		p.group.Wait()
	})
	return p
}

// Addr is where clients connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL leads a connection string through the proxy.
func (p *Proxy) URL(t testing.TB, through string) string {
	t.Helper()
	u, err := url.Parse(through)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = p.Addr()
	return u.String()
}

// Cut closes every open connection; new ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for open := range p.pairs {
		open.close()
	}
}

// Down is Cut, and closes new connections at once, until Up.
func (p *Proxy) Down() { p.set(true) }

// Up ends Down.
func (p *Proxy) Up() { p.set(false) }

func (p *Proxy) set(down bool) {
	p.mu.Lock()
	p.down = down
	p.mu.Unlock()
	if down {
		p.Cut()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.group.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	server, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		_ = client.Close()
		return
	}
	both := &pair{client, server}
	defer both.close()
	p.mu.Lock()
	down := p.down
	p.pairs[both] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.pairs, both)
		p.mu.Unlock()
	}()
	if down {
		return
	}
	var group sync.WaitGroup
	group.Go(func() { p.forward(both, server, client, false) })
	group.Go(func() { p.forward(both, client, server, true) })
	group.Wait()
}

func (p *Proxy) forward(both *pair, to io.Writer, from io.Reader, fromServer bool) {
	defer both.close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !p.pass(fromServer, buf[:n]) {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
