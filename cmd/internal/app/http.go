package app

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

// limits is the unit of a client's time limits. Tests shorten it.
var limits = time.Second

// shutdownTimeout is how long running requests may still take after the signal to stop.
const shutdownTimeout = 10 * time.Second

// readyTimeout is shorter than the usual timeouts of probes, so that a probe gets the reason and not a closed
// connection.
const readyTimeout = 2 * time.Second

// NewRegistry returns a registry with the metrics of the Go runtime and of the process.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// OpsRoutes adds the routes for operators. GET /livez answers 200 while the process can answer at all. GET /readyz
// calls ready with a context of two seconds, and answers 503 with the error's text if it returns one. GET /metrics
// answers with the registry's metrics.
func OpsRoutes(mux *http.ServeMux, reg *prometheus.Registry, ready func(context.Context) error) {
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "alive")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := ready(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
}

// Instrument returns next with metrics of its answers, by the pattern that http.ServeMux chose and by status. Paths
// without a pattern are counted under "none", so that a scanner cannot create series.
func Instrument(reg prometheus.Registerer, next http.Handler) http.Handler {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "http_requests_total", Help: "Requests that were answered, by route and status.",
	}, []string{"route", "status"})
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_request_duration_seconds", Help: "Time from a request's headers to the end of its answer, by route.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"route"})
	reg.MustRegister(requests, duration)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(recorder, r)
		route := r.Pattern
		if route == "" || route == "/" {
			route = "none"
		}
		requests.WithLabelValues(route, strconv.Itoa(recorder.status)).Inc()
		duration.WithLabelValues(route).Observe(time.Since(start).Seconds())
	})
}

// statusRecorder remembers the status of an answer.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader writes the header and remembers the status.
func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap returns the writer below, for http.ResponseController.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Serve answers requests on ln until ctx ends, then lets the running requests finish and returns nil. It closes ln. The
// contexts of requests do not end with ctx, so a transaction that began before the stop is finished. Slow clients are
// cut off, and cannot keep a new client out: see crowd.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, log zerolog.Logger) error {
	crowd := newCrowd()
	server := &http.Server{
		Handler:           crowd.handler(h),
		ConnState:         crowd.state,
		ConnContext:       crowd.context,
		ReadHeaderTimeout: 5 * limits,
		ReadTimeout:       10 * limits,
		WriteTimeout:      10 * limits,
		IdleTimeout:       60 * limits,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          stdlog.New(log, "", 0), // mainly for the panics of handlers
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	log.Info().Stringer("address", ln.Addr()).Msg("serving HTTP")

	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	log.Info().AnErr("cause", context.Cause(ctx)).Msg("stopping HTTP")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := server.Shutdown(grace)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests were still running %s after the stop and were cut off: %w", shutdownTimeout, err), server.Close())
	}
	<-served
	return err
}
