package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"

	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/page"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

type relayCmd struct{}

// setMemoryLimit limits the heap of the process. A test's process holds many relays, brokers and the tests: there it does nothing.
var setMemoryLimit = debug.SetMemoryLimit

// Run relays:
//
//	WAL ──▶ cdc/postgres ──▶ cdc (windows) ──▶ cdc/route ──▶ cdc/kafka ──▶ topics and state record
//	 ▲                                                                        │
//	 └──────────────── the slot's confirmed_flush_lsn ◀───────────────────────┘
func (*relayCmd) Run(p *process) error {
	log, logErr := app.NewLogger(p.stderr, p.cli.LogLevel, p.cli.LogFormat)
	log = log.With().Str("service", "walpost").Logger()
	p.warn = func(said string) { log.Warn().Msg(said) }
	cfgs, err := p.configs()
	if err := errors.Join(err, logErr); err != nil {
		return err
	}
	if p.getenv("GOMEMLIMIT") == "" {
		// The live heap is a few windows. Without a limit the garbage collector lets the heap grow to twice that.
		setMemoryLimit(memoryLimit(cfgs))
	}
	address := cfgs[0].HTTP // all pipelines have the same one
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("http: cannot listen on %s: %w: choose a free address", address, err)
	}
	profiles, err := app.ListenPprof("pprof (WALPOST_PPROF)", cfgs[0].Pprof)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	reg := app.NewRegistry()
	relays, err := pipeline.NewGroup(cfgs, pipeline.Options{Log: log, Registerer: reg})
	if err != nil {
		return errors.Join(err, ln.Close(), profiles.Close())
	}
	// The relays drain first; the page, /status and /readyz answer until they have.
	serving, done := context.WithCancel(context.WithoutCancel(p.ctx))
	mux := http.NewServeMux()
	app.OpsRoutes(mux, reg, relays.Ready)
	relays.Routes(mux)
	mux.Handle("/", page.Of(serving, relays, cfgs[0].Page, ln.Addr()))
	group, ctx := errgroup.WithContext(p.ctx)
	group.Go(func() error {
		defer done()
		return relays.Run(ctx)
	})
	group.Go(func() error { return app.Serve(serving, ln, mux, log) })
	group.Go(func() error { return profiles.Serve(serving, log) })
	return group.Wait()
}

// memoryLimit returns the soft limit of the heap: 16 MiB for the process, and per pipeline 8 MiB and six windows.
func memoryLimit(cfgs []config.Config) int64 {
	limit := int64(16 << 20)
	for i := range cfgs {
		limit += 8<<20 + 6*int64(cfgs[i].Window.Bytes)
	}
	return limit
}
