package app_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/page"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

// site is a server like those of our programs, with a route of each kind.
type site struct {
	*testing.T
	address           string
	handling, longest atomic.Int64 // handlers of /body and /large; the most at once
}

func openSite(t *testing.T) *site {
	t.Helper()
	s := &site{T: t}
	reg, mux := app.NewRegistry(), http.NewServeMux()
	app.OpsRoutes(mux, reg, func(context.Context) error { return nil })
	count := func(handle http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			s.longest.Store(max(s.longest.Load(), s.handling.Add(1)))
			defer s.handling.Add(-1)
			handle(w, r)
		}
	}
	mux.HandleFunc("POST /body", count(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, "the body did not come in time", http.StatusRequestTimeout)
		}
	}))
	mux.HandleFunc("GET /large", count(func(w http.ResponseWriter, _ *http.Request) {
		for range 1000 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}))
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("secret of go1.26 in /src/main.go") })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- app.Serve(ctx, ln, app.Instrument(reg, mux), zerolog.Nop()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// connect opens a connection and sends the text.
func (s *site) connect(text string) net.Conn {
	s.Helper()
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = c.Close() })
	_, _ = io.WriteString(c, text)
	return c
}

// say sends the text and returns the whole answer, until the server closes the connection.
func (s *site) say(text string) string {
	s.Helper()
	c := s.connect(text)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	said, _ := io.ReadAll(c)
	return string(said)
}

// mustAnswerOperators sends a request like a probe's, on a new connection.
func (s *site) mustAnswerOperators() {
	s.Helper()
	for _, path := range []string{"/livez", "/readyz", "/metrics"} {
		client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		res, err := client.Get("http://" + s.address + path)
		if err != nil {
			s.Errorf("a probe is not answered: %v", err)
			continue
		}
		_ = res.Body.Close()
		if res.StatusCode != 200 {
			s.Errorf("%s: %s", path, res.Status)
		}
	}
}

func TestSlowClientsAreCutOff(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	for name, c := range map[string]struct {
		begin, go_on string
		within       time.Duration // limits are a tenth in tests
	}{
		"nothing":            {"", "", 2 * time.Second},
		"headers, drop wise": {"GET /livez HTTP/1.1\r\nHost: a\r\n", "A: b\r\n", 2 * time.Second},
		"a body, drop wise":  {"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", "a", 3 * time.Second},
		"a body of GET":      {"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", "a", 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			c, begun, conn := c, time.Now(), s.connect(c.begin)
			go func() { // the connection's end ends it
				for c.go_on != "" {
					time.Sleep(20 * time.Millisecond)
					if _, err := io.WriteString(conn, c.go_on); err != nil {
						return
					}
				}
			}()
			_ = conn.SetReadDeadline(begun.Add(10 * time.Second))
			_, _ = io.Copy(io.Discard, conn)
			if took := time.Since(begun); took > c.within {
				t.Errorf("it was cut off after %s, want %s", took, c.within)
			}
		})
	}
	t.Run("idle", func(t *testing.T) {
		begun, conn := time.Now(), s.connect("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
		_ = conn.SetReadDeadline(begun.Add(20 * time.Second))
		_, _ = io.Copy(io.Discard, conn)
		if took := time.Since(begun); took > 12*time.Second {
			t.Errorf("an idle connection was kept for %s", took)
		}
	})
}

func TestAReaderThatNeverReadsHoldsNoHandler(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	for range 20 {
		s.connect("GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
	}
	cdctest.Eventually(t, 10*time.Second, func() error {
		if s.longest.Load() == 0 || s.handling.Load() > 0 {
			return fmt.Errorf("%d handlers write", s.handling.Load())
		}
		return nil
	})
}

// TestIdleConnectionsKeepNobodyOut: neither do silent connections, nor those that never finish their headers.
func TestIdleConnectionsKeepNobodyOut(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"silent": "", "in the headers": "GET /livez HTTP/1.1\r\nHost: a\r\n"} {
		t.Run(name, func(t *testing.T) {
			s := openSite(t)
			const many = 1300
			conns := make([]net.Conn, many)
			for i := range conns {
				conns[i] = s.connect(text)
			}
			s.mustAnswerOperators()
			closed, patience := 0, time.Now().Add(cdctest.Patience(10*time.Second))
			for _, c := range conns[:many-1000] {
				_ = c.SetReadDeadline(patience)
				if _, err := c.Read(make([]byte, 1)); err != nil && !isTimeout(err) {
					closed++
				}
			}
			if closed < many-1000 {
				t.Errorf("%d of the %d that are too many were closed", closed, many-1000)
			}
			_ = conns[many-1].SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := conns[many-1].Read(make([]byte, 1)); !isTimeout(err) {
				t.Errorf("the newest was closed: %v", err)
			}
		})
	}
}

// TestAnOpenPageOutlivesTheTimeLimits: the server's limits for a request would end the stream of a page.
func TestAnOpenPageOutlivesTheTimeLimits(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- app.Serve(ctx, ln, page.Handler(ctx, []*pipeline.Pipeline{}, page.Options{Every: 100 * time.Millisecond}), zerolog.Nop())
	}()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://" + ln.Addr().String() + "/live")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	began, lines := time.Now(), bufio.NewScanner(answer.Body)
	for time.Since(began) < 3*time.Second { // the limits are one second in these tests
		if !lines.Scan() {
			t.Fatalf("the stream ended after %s: %v", time.Since(began), lines.Err())
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("an open page held the end up: %v", err)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// TestSlowBodiesKeepNoOperatorOut: the largest number of requests is reading bodies, and more arrive.
func TestSlowBodiesKeepNoOperatorOut(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	for range 1100 {
		s.connect("POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\na")
	}
	s.mustAnswerOperators()
	if most := s.longest.Load(); most > 250 || most < 100 {
		t.Errorf("%d handlers ran at once, want at most 250", most)
	}
	if said := s.say("POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"); !strings.Contains(said, "503 ") || !strings.Contains(said, "too many requests at once: try again") {
		t.Errorf("one too many was answered %q", said)
	}
}

// TestAnswersTellNothingOfTheProgram: not even the answers that net/http writes itself.
func TestAnswersTellNothingOfTheProgram(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	for text, status := range map[string]string{
		"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                     "404 ",
		"GET /panic HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                       "",
		"POST /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n": "405 ",
		"GET /debug/pprof/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                "404 ",
		"GET / HTTP/1.1\r\n\r\n":            "400 ",
		"nonsense\r\n\r\n":                  "400 ",
		"GET / HTTP/3.0\r\nHost: a\r\n\r\n": "505 ",
		"GET / HTTP/1.1\r\nHost: a\r\nA: " + strings.Repeat("a", 30<<10) + "\r\n\r\n":                        "431 ",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: nonsense\r\n\r\n":                                  "501 ",
		"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                                        "200 ",
		"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                             "307 ",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                                         "",
		"CONNECT host:1 HTTP/1.1\r\nHost: host:1\r\nConnection: close\r\n\r\n":                               "404 ",
		"TRACE / HTTP/1.1\r\nHost: a\r\nCookie: " + cdctest.Canary + "\r\nConnection: close\r\n\r\n":         "404 ",
		"GET /%zz HTTP/1.1\r\nHost: a\r\nAuthorization: " + cdctest.Canary + "\r\nConnection: close\r\n\r\n": "400 ",
	} {
		said := s.say(text)
		if !strings.HasPrefix(strings.TrimPrefix(said, "HTTP/1.1 "), status) {
			t.Errorf("%.40q is answered %.60q, want %s", text, said, status)
		}
		cdctest.NoSecret(t, "an answer", said)
		for _, word := range []string{"server:", "go1", "golang", "goroutine", ".go", "walpost", "x-powered-by"} {
			if bytes.Contains(bytes.ToLower([]byte(said)), []byte(word)) {
				t.Errorf("the answer to %.40q has %q: %s", text, word, said)
			}
		}
	}
}

func TestPprofIsOnLoopbackAndOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	for address, says := range map[string]string{
		"0.0.0.0:0": "is not on loopback", ":0": "is not on loopback", "[::]:0": "is not on loopback", "192.0.2.1:6060": "is not on loopback", "6060": "not an address",
		"127.0.0.1:none": "not an address", "127.0.0.1": "not an address",
	} {
		if p, err := app.ListenPprof("--pprof (TEST_PPROF)", address); err == nil || !strings.HasPrefix(err.Error(), "--pprof (TEST_PPROF): ") || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, %v", address, p, err)
		}
	}
	none, err := app.ListenPprof("", "")
	if err != nil || none.Serve(t.Context(), zerolog.Nop()) != nil || none.Close() != nil {
		t.Errorf("none asked for: %v", err)
	}
	p, err := app.ListenPprof("", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var log cdctest.Log
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, zerolog.New(&log)) }()
	cdctest.Eventually(t, 10*time.Second, func() error {
		if !strings.Contains(log.String(), "serving profiles") {
			return fmt.Errorf("it does not serve: %s", log.String())
		}
		return nil
	})
	_, rest, _ := strings.Cut(log.String(), `"address":"`)
	address, _, _ := strings.Cut(rest, `"`)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(path, host string) (int, string) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+path, nil)
		req.Host = host
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(body)
	}
	for path, want := range map[string]int{"/debug/pprof/": 200, "/debug/pprof/goroutine?debug=2": 200, "/debug/pprof/heap": 200, "/debug/pprof/cmdline": 404, "/metrics": 404, "/debug/vars": 404} {
		if status, _ := get(path, ""); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	if status, _ := get("/debug/pprof/", "evil.example"); status != 403 {
		t.Errorf("under another name it is answered %d", status)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
