package inventory

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/walpost/walpost/cdc/inbox"
)

// Metrics counts events of the consumer and the HTTP routes since the process began.
type Metrics struct {
	inbox     *inbox.Metrics
	shortages prometheus.Counter
	movements *prometheus.CounterVec
}

// NewMetrics registers the metrics with reg, once per registry.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		inbox:     inbox.NewMetrics(reg, "inventory", handled...),
		shortages: prometheus.NewCounter(prometheus.CounterOpts{Name: "inventory_shortages_total", Help: "Order lines that could not be served."}),
		movements: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "inventory_stock_movements_total", Help: "Stock movements recorded, by reason."}, []string{"reason"}),
	}
	for _, reason := range []string{Sold, Returned, Shortage, Set} {
		m.movements.WithLabelValues(reason) // so that it reads 0 before the first one
	}
	reg.MustRegister(m.shortages, m.movements)
	return m
}

func (m *Metrics) moved(reason string) {
	m.movements.WithLabelValues(reason).Inc()
	if reason == Shortage {
		m.shortages.Inc()
	}
}
