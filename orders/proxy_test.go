package orders_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// cut is a place at which a connection to PostgreSQL can be lost around a COMMIT.
type cut int

const (
	none   cut = iota
	before     // the server never sees the COMMIT
	during     // the server gets the COMMIT and perhaps never reads it; nobody waits for what comes of it
	after      // the server has committed and the client is not told
	cuts
)

func (c cut) String() string { return [...]string{"none", "before", "during", "after"}[c] }

// proxy stands between a client and PostgreSQL and understands so much of their protocol that it can cut at a COMMIT.
type proxy struct {
	target   string
	listener net.Listener
	next     func() cut // asked at each COMMIT

	wg    sync.WaitGroup
	mu    sync.Mutex
	conns map[net.Conn]bool
	hits  [cuts]int
}

// startProxy returns a proxy to the server of a database URL, and the URL through it.
func startProxy(t *testing.T, databaseURL string, next func() cut) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: u.Host, listener: listener, next: next, conns: map[net.Conn]bool{}}
	u.Host = listener.Addr().String()
	p.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p, u.String()
}

func (p *proxy) counts() [cuts]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits
}

func (p *proxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = true, true
	p.mu.Unlock()
	var once sync.Once
	end := func() {
		once.Do(func() {
			_ = client.Close()
			_ = server.Close()
			p.mu.Lock()
			delete(p.conns, client)
			delete(p.conns, server)
			p.mu.Unlock()
		})
	}
	swallow := make(chan struct{}) // closed when the answer to a COMMIT must not reach the client
	var answers sync.WaitGroup
	answers.Go(func() {
		defer end()
		for {
			m, err := readMessage(server, 1)
			if err != nil {
				return
			}
			select {
			case <-swallow:
				if m[0] == 'C' {
					p.hit(after)
					return
				}
			default:
				if _, err := client.Write(m); err != nil {
					return
				}
			}
		}
	})
	p.ask(client, server, swallow)
	end()
	answers.Wait()
}

// ask carries the client's messages and ends when the connection is to be cut, or has been.
func (p *proxy) ask(client, server net.Conn, swallow chan struct{}) {
	for head := 0; ; head = 1 { // the first message has no type
		m, err := readMessage(client, head)
		if err != nil {
			return
		}
		where := none
		if head == 1 && m[0] == 'Q' && strings.EqualFold(string(m[5:len(m)-1]), "commit") {
			where = p.next()
		}
		switch where {
		case before:
			p.hit(before)
			return
		case during:
			p.hit(during)
			_, _ = server.Write(m)
			_ = server.(*net.TCPConn).SetLinger(rand.IntN(2) - 1) // a reset, which may outrun the COMMIT, or a proper end
			return
		case after:
			close(swallow)
		}
		if _, err := server.Write(m); err != nil {
			return
		}
	}
}

func (p *proxy) hit(where cut) {
	p.mu.Lock()
	p.hits[where]++
	p.mu.Unlock()
}

// readMessage reads a message: head bytes of type, four of length that count themselves, and the rest.
func readMessage(r io.Reader, head int) ([]byte, error) {
	m := make([]byte, head+4)
	if _, err := io.ReadFull(r, m); err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint32(m[head:]))
	if length < 4 || length > 1<<24 {
		return nil, fmt.Errorf("a message of %d bytes", length)
	}
	m = append(m, make([]byte, length-4)...)
	_, err := io.ReadFull(r, m[head+4:])
	return m, err
}
