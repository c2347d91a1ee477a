package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"sync"
	texttemplate "text/template"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/page"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

// relayFile is the configuration of the relay's process, and of the walpost commands that the demo prints.
var relayFile = texttemplate.Must(texttemplate.New("").Parse(`# The relay of the demo, which removes this file when it ends.
http: {{.HTTP}}
page: {rows: true}
shutdown_timeout: 2s
poison: {policy: dead_letter}
kafka: {brokers: ["{{.Kafka}}"], replication: 1}
pipelines:
  - pipeline: orders
    source: {url: "{{.Orders}}", status_interval: 100ms} # the default of a second would make the demo slow to watch
    kafka: {aggregate_types: [order]}
  - pipeline: inventory
    source: {url: "{{.Inventory}}", slot: ` + inventorySlot + `, status_interval: 100ms}
    kafka: {aggregate_types: [stock]}
`))

// loadRelay reads the file and no environment: variables for another relay must not change the demo's.
func loadRelay(file string) ([]config.Config, error) {
	return config.Load(file, func(string) string { return "" })
}

// runRelay runs the relay's process: two pipelines from two WALs to Kafka, each independent of the other. It drains and
// returns when stdin ends, which it also does when the demo dies. Ctrl-C does not end it, because the demo checks first
// that everything has arrived.
func runRelay(ctx context.Context, with parts, file string, log zerolog.Logger) error {
	log = log.With().Str("service", "walpost").Logger()
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	cfgs, err := loadRelay(file)
	if err != nil {
		return err
	}
	reg, mux := app.NewRegistry(), http.NewServeMux()
	relays, err := with.relay(cfgs, pipeline.Options{Log: log, Registerer: reg})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", cfgs[0].HTTP)
	if err != nil {
		return fmt.Errorf("the relay cannot listen: %w", err)
	}
	app.OpsRoutes(mux, reg, relays.Ready)
	relays.Routes(mux)
	serving, done := context.WithCancel(context.WithoutCancel(ctx)) // it answers until the relays have drained
	mux.Handle("/", page.Of(serving, relays, cfgs[0].Page, ln.Addr()))

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer done()
		return relays.Run(ctx)
	})
	group.Go(func() error { return app.Serve(serving, ln, mux, log) })
	return group.Wait()
}

// relayPause is the time from the relay's death to its next start.
const relayPause = 5 * time.Second

// relayProcess keeps a relay running: this program in a second process, so that it can be killed like any other.
type relayProcess struct {
	command func() *exec.Cmd
	front   *front
	say     func(format string, args ...any)
	again   chan struct{} // starts a relay that is down, without the pause

	mu  sync.Mutex
	cmd *exec.Cmd // nil while it is down
}

// run starts the relay, and starts it again whenever a signal has killed it. When ctx ends it lets the relay drain.
func (r *relayProcess) run(ctx context.Context) error {
	for {
		cmd := r.command()
		stdin, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return fmt.Errorf("start the relay: %w", err)
		}
		r.set(cmd)
		r.front.show("")
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ctx.Done():
			r.front.show("The demo is ending.")
			late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
			defer late.Stop()
			_ = stdin.Close()
			if err := <-ended; err != nil {
				return fmt.Errorf("stop the relay: %w", err)
			}
			return nil
		case err := <-ended:
			r.set(nil)
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != -1 {
				return fmt.Errorf("the relay's process ended: %w", cmpError(err, errors.New("exit code 0")))
			}
		}
		r.front.show("The relay is down: it was killed. The demo starts it again in a few seconds.")
		select {
		case <-ctx.Done():
			return nil
		case <-r.again:
		case <-time.After(relayPause):
		}
		r.say("\nThe relay starts again. It asks Kafka what is durable, and PostgreSQL for everything after that.")
	}
}

func cmpError(err, or error) error {
	if err != nil {
		return err
	}
	return or
}

func (r *relayProcess) set(cmd *exec.Cmd) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cmd = cmd
}

// kill kills the relay's process with SIGKILL and returns its id. If the relay is down, kill returns 0.
func (r *relayProcess) kill() (pid int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil {
		return 0, nil
	}
	return r.cmd.Process.Pid, r.cmd.Process.Kill()
}

// start starts a relay that is down.
func (r *relayProcess) start() {
	select {
	case r.again <- struct{}{}:
	default: // it runs
	}
}

// front serves the relay's page at an address that outlives the relay. While no relay answers, it says why.
type front struct {
	ctx   context.Context // ends requests that follow the relay's events for ever
	proxy *httputil.ReverseProxy

	mu   sync.Mutex
	says string // the reason why no relay answers; empty: ask the relay
}

func newFront(ctx context.Context) *front {
	return &front{ctx: ctx, says: "PostgreSQL, Kafka and the services are starting."}
}

// show sets the sentence to show in place of the relay's page; empty: the page itself.
func (f *front) show(sentence string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.says = sentence
}

// pass sets the address of the relay.
func (f *front) pass(address string) {
	f.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: address})
			r.Out.Host = r.In.Host
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			unavailable(w, "The relay does not answer yet.")
		},
	}
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	says := f.says
	f.mu.Unlock()
	if says != "" {
		unavailable(w, says)
		return
	}
	answer := http.NewResponseController(w)
	_, _ = answer.SetReadDeadline(time.Time{}), answer.SetWriteDeadline(time.Time{}) // a page that follows the relay stays open
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(f.ctx, cancel)()
	f.proxy.ServeHTTP(w, r.WithContext(ctx))
}

var unavailablePage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="1"><title>walpost</title></head>
<body><p>{{.}} This page loads again by itself.</p></body></html>
`))

// unavailable answers with one sentence, which the browser asks for again until the relay's page is there.
func unavailable(w http.ResponseWriter, sentence string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'")
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = unavailablePage.Execute(w, sentence)
}

// listen returns the listener of the relay's page: at the address, or without one at the usual port if that is free.
func listen(address string) (net.Listener, error) {
	const usual = "127.0.0.1:7171"
	if address != "" {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("--http: %w: choose a free address", err)
		}
		return ln, nil
	}
	ln, err := net.Listen("tcp", usual)
	if err != nil {
		ln, err = net.Listen("tcp", "127.0.0.1:0")
	}
	return ln, err
}

// writeRelayFile writes the relay's configuration.
func writeRelayFile(file, http, kafka, orders, inventory string) error {
	var text bytes.Buffer
	if err := relayFile.Execute(&text, map[string]string{"HTTP": http, "Kafka": kafka, "Orders": orders, "Inventory": inventory}); err != nil {
		return err
	}
	return os.WriteFile(file, text.Bytes(), 0o600)
}
