package cdctest

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Proxy forwards between clients and a server, or the brokers of a cluster, on loopback. It knows the frames of their
// protocol, and disturbs the connection as the test says.
type Proxy struct {
	t     testing.TB
	kafka bool
	pass  func(Frame) Verdict
	group sync.WaitGroup

	mu       sync.Mutex
	fronts   map[string]net.Listener // by the server's address
	first    []string                // addresses to give to clients
	pairs    map[*pair]struct{}
	wires    [2]Wire // to the server, to the client
	changed  chan struct{}
	count    int64
	down     bool
	finished bool
}

// Frame is one message on the wire.
type Frame struct {
	Conn       int64 // the connection's number
	FromServer bool
	Type       byte  // PostgreSQL's message type; 0 for a client's first
	API        int16 // Kafka's API key of the request, or of the request that this answers
	Bytes      []byte
}

// Verdict decides about a frame.
type Verdict int

// Pass forwards a frame. Lose drops it and closes the connection; for an answer this means that the client does not
// learn of an applied request. Last forwards the frame and resets the connection; the reset may arrive first.
const (
	Pass Verdict = iota
	Lose
	Last
)

// Wire describes how one direction of every connection behaves. The zero value forwards bytes at once.
type Wire struct {
	Stalled   bool          // nothing is read: the sender blocks when its buffers are full
	Swallowed bool          // everything is read and nothing is forwarded, not even the end of the connection; afterwards the connection is reset
	Chunk     int           // the most bytes in one write
	Split     bool          // each frame is written in two parts; the offset grows by one from frame to frame
	Bandwidth int           // bytes a second
	Delay     time.Duration // before each frame
}

// StartProxy forwards connections to a PostgreSQL at target, a host:port, until the test ends. pass decides about each
// frame before it is forwarded; several goroutines call it, and it must not block. A nil pass forwards every frame. The
// proxy declines TLS for the server.
func StartProxy(t testing.TB, target string, pass func(Frame) Verdict) *Proxy {
	t.Helper()
	return start(t, []string{target}, false, pass)
}

// StartKafkaProxy forwards to the brokers of a cluster. It rewrites the addresses in the brokers' answers, so that a
// client that is given Brokers reaches all brokers through the proxy only, also brokers that join later.
func StartKafkaProxy(t testing.TB, brokers []string, pass func(Frame) Verdict) *Proxy {
	t.Helper()
	return start(t, brokers, true, pass)
}

func start(t testing.TB, targets []string, kafka bool, pass func(Frame) Verdict) *Proxy {
	t.Helper()
	if pass == nil {
		pass = func(Frame) Verdict { return Pass }
	}
	p := &Proxy{t: t, kafka: kafka, pass: pass, fronts: map[string]net.Listener{}, pairs: map[*pair]struct{}{}, changed: make(chan struct{})}
	for _, target := range targets {
		addr, err := p.front(target)
		if err != nil {
			t.Fatal(err)
		}
		p.first = append(p.first, addr)
	}
	t.Cleanup(func() {
		p.mu.Lock()
		p.finished = true
		for _, listener := range p.fronts {
			_ = listener.Close()
		}
		p.mu.Unlock()
		p.Set(Wire{}, Wire{})
		p.Down()
		p.group.Wait()
	})
	return p
}

// front listens for connections to target and returns the address.
func (p *Proxy) front(target string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if listener := p.fronts[target]; listener != nil {
		return listener.Addr().String(), nil
	}
	if p.finished {
		return "", net.ErrClosed
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	p.fronts[target] = listener
	p.group.Go(func() { p.accept(listener, target) })
	return listener.Addr().String(), nil
}

// Addr returns the address that clients connect to.
func (p *Proxy) Addr() string { return p.first[0] }

// Brokers returns the addresses for a Kafka client.
func (p *Proxy) Brokers() []string { return p.first }

// URL returns a connection string that leads through the proxy.
func (p *Proxy) URL(t testing.TB, through string) string {
	t.Helper()
	u, err := url.Parse(through)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = p.Addr()
	return u.String()
}

// Set changes the behaviour of open and new connections. Two zero values end the fault.
func (p *Proxy) Set(toServer, toClient Wire) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wires = [2]Wire{toServer, toClient}
	for open := range p.pairs {
		if open.lost.Load() && !toServer.Swallowed && !toClient.Swallowed {
			open.close()
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Cut closes every open connection; new ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for open := range p.pairs {
		open.close()
	}
}

// Down closes every connection, and each new one at once, until Up.
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

func (p *Proxy) accept(listener net.Listener, target string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		p.group.Go(func() { p.serve(client, target) })
	}
}

// pair is a client's connection together with its connection to the server.
type pair struct {
	number         int64
	client, server net.Conn
	closed         chan struct{}
	once           sync.Once
	lost           atomic.Bool // something was swallowed

	mu    sync.Mutex
	asked map[int32]kafkaRequest // by correlation id
}

type kafkaRequest struct{ api, version int16 }

func (c *pair) close() {
	c.once.Do(func() {
		close(c.closed)
		_ = errors.Join(c.client.Close(), c.server.Close())
	})
}

func (p *Proxy) serve(client net.Conn, target string) {
	server, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		_ = client.Close()
		return
	}
	both := &pair{client: client, server: server, closed: make(chan struct{}), asked: map[int32]kafkaRequest{}}
	defer both.close()
	p.mu.Lock()
	down := p.down
	p.count++
	both.number = p.count
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

// forward carries frames in one direction until the connection is closed, by either end or the proxy.
func (p *Proxy) forward(both *pair, to, from net.Conn, fromServer bool) {
	defer both.close()
	r, w := bufio.NewReaderSize(from, 64<<10), bufio.NewWriterSize(to, 64<<10)
	read := p.postgres(both, r, fromServer)
	if p.kafka {
		read = p.kafkaFrame(both, r, fromServer)
	}
	for n := 0; ; n++ {
		frame, err := read()
		wire, changed := p.wire(fromServer)
		for (wire.Stalled && err == nil) || (wire.Swallowed && err != nil) {
			select { // the end of a half-open connection is not forwarded either
			case <-changed:
				wire, changed = p.wire(fromServer)
				if err != nil {
					return
				}
			case <-both.closed:
				return
			}
		}
		if wire.Swallowed {
			both.lost.Store(true)
			continue
		}
		if err != nil {
			return
		}
		frame.Conn = both.number
		verdict := p.pass(frame)
		ok := verdict != Lose && wire.carry(w, frame.Bytes, n, changed, both.closed)
		if !ok || verdict == Last || r.Buffered() == 0 {
			ok = w.Flush() == nil && ok
		}
		if verdict == Last {
			_ = to.(*net.TCPConn).SetLinger(0)
		}
		if !ok || verdict == Last {
			return
		}
	}
}

func (p *Proxy) wire(toClient bool) (Wire, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if toClient {
		return p.wires[1], p.changed
	}
	return p.wires[0], p.changed
}

// carry writes the n-th frame of its direction as wire describes, until wire changes. It reports false if the
// connection is closed.
func (wire Wire) carry(w *bufio.Writer, b []byte, n int, changed, closed <-chan struct{}) bool {
	if wire.Delay > 0 {
		pause(wire.Delay, changed, closed)
	}
	if wire.Split {
		at := n % len(b)
		_, _ = w.Write(b[:at])
		if w.Flush() != nil {
			return false
		}
		time.Sleep(100 * time.Microsecond) // so that the reader gets the first part alone
		b = b[at:]
	}
	for chunk := cmp.Or(wire.Chunk, len(b)); (wire.Chunk > 0 || wire.Bandwidth > 0) && len(b) > 0; b = b[min(chunk, len(b)):] {
		if wire.Bandwidth > 0 {
			chunk = min(chunk, max(wire.Bandwidth/100, 1))
		}
		part := b[:min(chunk, len(b))]
		if _, err := w.Write(part); err != nil || w.Flush() != nil {
			return false
		}
		if wire.Bandwidth > 0 && !pause(time.Duration(len(part))*time.Second/time.Duration(wire.Bandwidth), changed, closed) {
			wire.Bandwidth = 0
		}
	}
	_, err := w.Write(b)
	return err == nil
}

// pause reports false if the pause was interrupted.
func pause(d time.Duration, changed, closed <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-changed:
	case <-closed:
	}
	return false
}

// postgres returns a function that reads messages: a type, and a length that includes itself. A client's first message
// has no type.
func (p *Proxy) postgres(both *pair, r *bufio.Reader, fromServer bool) func() (Frame, error) {
	const sslRequest, gssRequest = 80877103, 80877104
	head := 1
	if !fromServer {
		head = 0
	}
	return func() (Frame, error) {
		for {
			b, err := readFrame(r, head, 0)
			if err != nil {
				return Frame{}, err
			}
			if head == 1 {
				return Frame{FromServer: fromServer, Type: b[0], Bytes: b}, nil
			}
			if code := binary.BigEndian.Uint32(b[4:]); code == sslRequest || code == gssRequest {
				if _, err := both.client.Write([]byte{'N'}); err != nil {
					return Frame{}, err
				}
				continue
			}
			head = 1
			return Frame{Bytes: b}, nil
		}
	}
}

// kafkaFrame returns a function that reads requests or answers: a length, then for a request API key, version and
// correlation id, and for an answer the correlation id.
func (p *Proxy) kafkaFrame(both *pair, r *bufio.Reader, fromServer bool) func() (Frame, error) {
	return func() (Frame, error) {
		b, err := readFrame(r, 0, 4)
		if err != nil {
			return Frame{}, err
		}
		both.mu.Lock()
		defer both.mu.Unlock()
		if !fromServer {
			asked := kafkaRequest{int16(binary.BigEndian.Uint16(b[4:])), int16(binary.BigEndian.Uint16(b[6:]))}
			both.asked[int32(binary.BigEndian.Uint32(b[8:]))] = asked
			return Frame{API: asked.api, Bytes: b}, nil
		}
		id := int32(binary.BigEndian.Uint32(b[4:]))
		asked, known := both.asked[id]
		if !known {
			return Frame{}, fmt.Errorf("an answer to request %d, which was not asked", id)
		}
		delete(both.asked, id)
		b, err = p.rewrite(asked, b)
		return Frame{FromServer: true, API: asked.api, Bytes: b}, err
	}
}

// readFrame reads head bytes of type, four bytes of length, which counts itself but not uncounted bytes, and the rest.
func readFrame(r io.Reader, head, uncounted int) ([]byte, error) {
	b := make([]byte, head+4)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint32(b[head:])) + uncounted
	if length < 4 || length > 1<<30 {
		return nil, fmt.Errorf("a message of %d bytes", length)
	}
	b = append(b, make([]byte, length-4)...)
	_, err := io.ReadFull(r, b[head+4:])
	return b, err
}

// rewrite replaces the brokers' addresses in an answer by the proxy's.
func (p *Proxy) rewrite(asked kafkaRequest, b []byte) ([]byte, error) {
	switch kmsg.Key(asked.api) {
	case kmsg.Produce, kmsg.Fetch, kmsg.Metadata, kmsg.FindCoordinator:
	default:
		return b, nil
	}
	resp := kmsg.ResponseForKey(asked.api)
	resp.SetVersion(asked.version)
	head := 8
	if resp.IsFlexible() {
		head++ // no tags
	}
	if err := resp.ReadFrom(b[head:]); err != nil {
		return nil, fmt.Errorf("read an answer of kafka: %w", err)
	}
	var err error
	move := func(host *string, port *int32) {
		if *host == "" {
			return // no coordinator yet
		}
		addr, ferr := p.front(net.JoinHostPort(*host, strconv.Itoa(int(*port))))
		if ferr != nil {
			err = ferr
			return
		}
		var text string
		*host, text, _ = net.SplitHostPort(addr)
		n, _ := strconv.Atoi(text)
		*port = int32(n)
	}
	switch r := resp.(type) {
	case *kmsg.MetadataResponse:
		for i := range r.Brokers {
			move(&r.Brokers[i].Host, &r.Brokers[i].Port)
		}
	case *kmsg.FindCoordinatorResponse:
		move(&r.Host, &r.Port)
		for i := range r.Coordinators {
			move(&r.Coordinators[i].Host, &r.Coordinators[i].Port)
		}
	case *kmsg.ProduceResponse:
		for i := range r.Brokers {
			move(&r.Brokers[i].Host, &r.Brokers[i].Port)
		}
	case *kmsg.FetchResponse:
		for i := range r.Brokers {
			move(&r.Brokers[i].Host, &r.Brokers[i].Port)
		}
	}
	b = resp.AppendTo(b[:head:head])
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b, err
}
