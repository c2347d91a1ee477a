package app

import (
	"context"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/rs/zerolog"
)

// Pprof serves Go's profiles of this process. A nil Pprof serves none.
type Pprof struct{ ln net.Listener }

// ListenPprof listens on address, which must be on loopback: profiles show the insides of a process and cost it time.
// setting is the name of the setting in errors. An empty address returns nil, and is no error.
func ListenPprof(setting, address string) (*Pprof, error) {
	if address == "" {
		return nil, nil
	}
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %q is not an address to listen on: write it as in 127.0.0.1:6060", setting, address)
	}
	if !at.IP.IsLoopback() {
		return nil, fmt.Errorf("%s: %s is not on loopback, so other machines could read the profiles: write it as in 127.0.0.1:6060, and reach it through ssh -L or kubectl port-forward", setting, address)
	}
	ln, err := net.ListenTCP("tcp", at)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot listen on %s: %w: choose a free address", setting, address, err)
	}
	return &Pprof{ln}, nil
}

// Close stops listening, if Serve was not called.
func (p *Pprof) Close() error {
	if p == nil {
		return nil
	}
	return p.ln.Close()
}

// Serve serves profiles until ctx ends, and then cuts off a running one. It serves no /debug/pprof/cmdline, because a
// command line can hold passwords.
func (p *Pprof) Serve(ctx context.Context, log zerolog.Logger) error {
	if p == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	server := &http.Server{
		Handler: local(mux), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: 16 << 10, // no WriteTimeout: the request says how long a profile takes
		ErrorLog: stdlog.New(log, "", 0),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	log.Info().Stringer("address", p.ln.Addr()).Msg("serving profiles")
	if err := server.Serve(p.ln); ctx.Err() == nil {
		return fmt.Errorf("serve profiles on %s: %w", p.ln.Addr(), err)
	}
	return nil
}

// local refuses requests with a host name other than loopback's, because a foreign page can make a browser on this
// machine send them.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if host != "localhost" && !net.ParseIP(host).IsLoopback() {
			http.Error(w, "profiles are for this machine only: open http://127.0.0.1", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
