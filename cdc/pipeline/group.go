package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/walpost/walpost/cdc/config"
)

// Group holds the pipelines of a process. They are independent of each other.
type Group []*Pipeline

// NewGroup makes a pipeline of each configuration.
func NewGroup(cfgs []config.Config, o Options) (g Group, err error) {
	for _, cfg := range cfgs {
		p, err := newPipeline(cfg, o)
		if err != nil {
			return nil, err
		}
		g = append(g, p)
	}
	for _, p := range g { // only after all of them are valid, so that an error leaves nothing registered
		if err := p.register(o.Registerer); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Run runs all pipelines until ctx ends. It returns after all have drained, with their errors joined.
func (g Group) Run(ctx context.Context) error {
	return g.each(func(i int) error { return g[i].Run(ctx) })
}

// Ready returns nil while every pipeline is ready; otherwise an error that names each one that is not, with the reason.
func (g Group) Ready(ctx context.Context) error {
	return g.each(func(i int) error { return g[i].Ready(ctx) })
}

// each calls f for all pipelines at once, and joins the errors. If there are several pipelines, each error names its own.
func (g Group) each(f func(i int) error) error {
	errs := make([]error, len(g))
	var calls sync.WaitGroup
	for i, p := range g {
		calls.Go(func() {
			if errs[i] = f(i); errs[i] != nil && len(g) > 1 {
				errs[i] = fmt.Errorf("pipeline %s: %w", p.Name(), errs[i])
			}
		})
	}
	calls.Wait()
	return errors.Join(errs...)
}

// Status returns the status of each pipeline.
func (g Group) Status(ctx context.Context) Statuses {
	all := make(Statuses, len(g))
	_ = g.each(func(i int) error { all[i] = g[i].Status(ctx); return nil })
	return all
}

// Statuses are those of several pipelines.
type Statuses []Status

// MarshalJSON writes one status as an object, and several as a list.
func (s Statuses) MarshalJSON() ([]byte, error) {
	return oneOrList(s)
}

// Routes adds GET /status to mux.
func (g Group) Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(g.Status(r.Context()))
	})
}
