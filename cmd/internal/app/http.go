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

// limits is the unit of what a client may take. Tests have less patience.
var limits = time.Second

// shutdownTimeout is how long requests that are being served may still take once the process is asked to stop.
const shutdownTimeout = 10 * time.Second

// readyTimeout is under the timeouts of the probes people configure, so that they get the sentence and not a hang-up.
const readyTimeout = 2 * time.Second

// NewRegistry has the Go runtime's and the process's own metrics.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// OpsRoutes adds what an operator asks a process: GET /livez answers 200 while the process can answer at all, GET /readyz asks
// ready and says 503 and the error's sentence when it is not, GET /metrics is the registry. ready gets a context of two seconds.
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

// Instrument counts and times what next answers, by the pattern that http.ServeMux chose and by status. A path no pattern knows
// is counted under "none", so that a scanner cannot make series.
func Instrument(reg prometheus.Registerer, next http.Handler) http.Handler {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "http_requests_total", Help: "Requests answered, by route and status.",
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

type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Serve answers on ln until ctx ends, then lets the requests in progress finish and returns nil. It closes ln. Requests do not
// see the end of ctx: a transaction that began before a stop is finished, not torn. A slow client is cut off, and however many there are,
// a new one is answered: see crowd.
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
		ErrorLog:          stdlog.New(log, "", 0), // a handler's panic, above all
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	log.Info().Stringer("address", ln.Addr()).Msg("serving HTTP")

	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	log.Info().AnErr("cause", context.Cause(ctx)).Msg("stopping")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := server.Shutdown(grace)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests were still being answered %s after the stop: %w", shutdownTimeout, err), server.Close())
	}
	<-served
	return err
}
