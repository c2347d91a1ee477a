package console

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walpost/walpost/cdc"
)

const (
	askEvery  = 5 * time.Second
	askWithin = 3 * time.Second // under a scrape's own timeout
)

// Facts reads how the slot stands.
type Facts interface {
	Facts(ctx context.Context) (cdc.Facts, error)
}

// asked are the metrics that PostgreSQL and Kafka know and the relay does not, or not while it is halted: they are asked for when
// somebody scrapes, and not more often than every few seconds. What cannot be asked is left out.
type asked struct {
	lag, retained, lost, unresolved *prometheus.Desc

	facts   Facts   // nil where nobody asks
	letters Counter // nil where no row is put aside

	mu   sync.Mutex
	at   time.Time
	last []prometheus.Metric
}

func newAsked(labels prometheus.Labels) *asked {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, labels) }
	return &asked{
		lag:        desc("walpost_slot_lag_bytes", "WAL between what is confirmed to the slot and its end, whoever wrote it; also while no relay streams."),
		retained:   desc("walpost_slot_retained_bytes", "WAL that the server keeps for the slot; also while no relay streams."),
		lost:       desc("walpost_slot_lost", "1 when the server has removed WAL that was not delivered, or there is no slot."),
		unresolved: desc("walpost_dead_letters_unresolved", "Dead letters that are neither redriven nor dropped."),
	}
}

func (a *asked) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{a.lag, a.retained, a.lost, a.unresolved} {
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
				gauge(a.retained, max(0, float64(f.WALEnd)-float64(f.Slot.RestartLSN)))
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
