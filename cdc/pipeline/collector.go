package pipeline

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/polling"
)

const (
	askEvery  = 5 * time.Second
	askWithin = 3 * time.Second // under a scrape's own timeout
)

// watched is what Status and metrics ask beside the relay. What a pipeline has not is nil.
type watched struct {
	slot  string
	facts interface { // how the slot stands
		Facts(ctx context.Context) (cdc.Facts, error)
	}
	table interface { // how a polled table stands
		Backlog(ctx context.Context) (polling.Backlog, error)
	}
	letters interface { // how many dead letters are unresolved
		Count(ctx context.Context) (int, error)
	}
}

// asked are the metrics that PostgreSQL and Kafka know and the relay does not, or not while it is halted: they are
// asked for when somebody scrapes, and not more often than every few seconds. What cannot be asked is left out.
type asked struct {
	lag, seconds, retained, lost, unresolved   *prometheus.Desc
	pending, oldest, failed, heldKeys, horizon *prometheus.Desc

	watched

	looks     cdc.Lag
	delivered atomic.Pointer[time.Time] // up to when all is delivered, as the relay knows

	mu   sync.Mutex
	at   time.Time
	last []prometheus.Metric
}

func newAsked(labels prometheus.Labels, of watched) *asked {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, labels) }
	return &asked{
		watched:    of,
		lag:        desc("walpost_slot_lag_bytes", "WAL between what is confirmed to the slot and its end, whoever wrote it; also while no relay streams."),
		seconds:    desc("walpost_lag_seconds", "For how long WAL has been there that is not confirmed to the slot; 0 when all is. Left out while it is not known, never 0 while something is stuck."),
		retained:   desc("walpost_slot_retained_bytes", "WAL that the server keeps for the slot; also while no relay streams."),
		lost:       desc("walpost_slot_lost", "1 when the server has removed WAL that was not delivered, or there is no slot."),
		pending:    desc("walpost_pending_rows", "Polling: rows of the table that are pending."),
		oldest:     desc("walpost_oldest_pending_seconds", "Polling: for how long the oldest pending row has been there; 0 without one."),
		failed:     desc("walpost_failed_rows", "Polling: rows that were refused so often that they wait for walpost dlq."),
		heldKeys:   desc("walpost_held_keys", "Polling: keys whose later rows wait for a failed one."),
		horizon:    prometheus.NewDesc("walpost_horizon_seconds", "Polling: for how long the transaction has been open that rows wait for, by its process; for how long they have waited, where that may not be seen. Left out when none wait.", []string{"pid"}, labels),
		unresolved: desc("walpost_dead_letters_unresolved", "Dead letters that are neither redriven nor dropped."),
	}
}

func (a *asked) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{a.lag, a.seconds, a.retained, a.lost, a.unresolved, a.pending, a.oldest, a.failed, a.heldKeys, a.horizon} {
		ch <- d
	}
}

func (a *asked) Collect(ch chan<- prometheus.Metric) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.at) > askEvery {
		a.last = a.ask()
		a.at = time.Now()
	}
	for _, m := range a.last {
		ch <- m
	}
}

// knows takes down up to when all is delivered, as a session says.
func (a *asked) knows(at time.Time) {
	if last := a.delivered.Load(); last == nil || at.After(*last) {
		a.delivered.Store(&at)
	}
}

// behind is for how long what is not confirmed has waited. Each question is a look, so that it is known of a relay too
// that does not stream.
func (a *asked) behind(f *cdc.Facts) (time.Duration, bool) {
	a.looks.Look(f.WALEnd, f.Time)
	at := a.looks.Current(f.Slot.ConfirmedFlush)
	if relay := a.delivered.Load(); relay != nil && relay.After(at) {
		at = *relay
	}
	return cdc.Behind(f.Slot.ConfirmedFlush, f.WALEnd, at, f.Time)
}

func (a *asked) ask() (metrics []prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	gauge := func(desc *prometheus.Desc, value float64) {
		metrics = append(metrics, prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value))
	}
	if a.facts != nil {
		if f, err := a.facts.Facts(ctx); err == nil {
			if f.Slot.Lost() {
				gauge(a.lost, 1)
			} else {
				gauge(a.lost, 0)
				gauge(a.lag, max(0, float64(f.WALEnd)-float64(f.Slot.ConfirmedFlush)))
				if behind, known := a.behind(&f); known {
					gauge(a.seconds, behind.Seconds())
				}
				gauge(a.retained, max(0, float64(f.WALEnd)-float64(f.Slot.RestartLSN)))
			}
		}
	}
	if a.table != nil {
		if b, err := a.table.Backlog(ctx); err == nil {
			gauge(a.pending, float64(b.Pending))
			gauge(a.oldest, b.OldestSeconds)
			gauge(a.failed, float64(b.Failed))
			gauge(a.heldKeys, float64(b.HeldKeys))
			if b.Horizon != nil {
				metrics = append(metrics, prometheus.MustNewConstMetric(a.horizon, prometheus.GaugeValue, b.Horizon.Seconds, strconv.Itoa(int(b.Horizon.PID))))
			}
		}
	}
	if a.letters != nil {
		if n, err := a.letters.Count(ctx); err == nil {
			gauge(a.unresolved, float64(n))
		}
	}
	return metrics
}
