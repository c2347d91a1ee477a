package orders

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// newMetrics returns the counter of events that this process wrote. The number of orders is queried from the database
// at each scrape, because orders also come from psql and from before a restart.
func newMetrics(reg prometheus.Registerer, store *Store) *prometheus.CounterVec {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "orders_outbox_rows_written_total", Help: "Outbox rows committed by this process, by event type.",
	}, []string{"type"})
	for status := range next {
		events.WithLabelValues(status.event())
	}
	reg.MustRegister(events, byState{store})
	return events
}

type byState struct{ store *Store }

var byStateDesc = prometheus.NewDesc("orders_by_state", "Orders in the database, by state.", []string{"state"}, nil)

func (byState) Describe(ch chan<- *prometheus.Desc) { ch <- byStateDesc }

func (c byState) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	counts, err := c.store.CountByStatus(ctx)
	if err != nil {
		return // without an error: the other metrics matter most while the database is away, and readyz reports that
	}
	for status, n := range counts {
		ch <- prometheus.MustNewConstMetric(byStateDesc, prometheus.GaugeValue, float64(n), string(status))
	}
}
