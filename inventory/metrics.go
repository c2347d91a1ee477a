package inventory

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what the consumer and the HTTP routes did since the process began.
type Metrics struct {
	applied    *prometheus.CounterVec
	duplicates prometheus.Counter
	skipped    prometheus.Counter
	malformed  prometheus.Counter
	shortages  prometheus.Counter
	movements  *prometheus.CounterVec
	partitions prometheus.Gauge
	lag        *prometheus.GaugeVec
}

// NewMetrics registers the metrics with reg, once per registry.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	counterVec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, v := range values {
			c.WithLabelValues(v) // so that it reads 0 before the first one
		}
		reg.MustRegister(c)
		return c
	}
	m := &Metrics{
		applied:    counterVec("inventory_events_applied_total", "Events applied for the first time, by type.", "type", OrderPaid, OrderCancelled),
		duplicates: counter("inventory_events_duplicate_total", "Deliveries of an event that was in the inbox already."),
		skipped:    counter("inventory_events_skipped_total", "Events of a type that moves no stock."),
		malformed:  counter("inventory_events_malformed_total", "Events that can never be applied, recorded in malformed_events."),
		shortages:  counter("inventory_shortages_total", "Order lines that could not be served."),
		movements:  counterVec("inventory_stock_movements_total", "Movements recorded, by reason.", "reason", Sold, Returned, Shortage, Set),
		partitions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "inventory_consumer_partitions", Help: "Partitions this process reads."}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "inventory_consumer_lag", Help: "Records between the committed offset and the end of the log, by partition this process reads.",
		}, []string{"topic", "partition"}),
	}
	reg.MustRegister(m.partitions, m.lag)
	return m
}

func (m *Metrics) observe(eventType string, done Applied) {
	if done.Duplicate {
		m.duplicates.Inc()
		return
	}
	m.applied.WithLabelValues(eventType).Inc()
	for _, movement := range done.Movements {
		m.moved(movement.Reason)
	}
}

func (m *Metrics) moved(reason string) {
	m.movements.WithLabelValues(reason).Inc()
	if reason == Shortage {
		m.shortages.Inc()
	}
}

func (m *Metrics) setLag(topic string, partition int32, lag int64) {
	m.lag.WithLabelValues(topic, strconv.Itoa(int(partition))).Set(float64(lag))
}

func (m *Metrics) forgetLag(topic string, partition int32) {
	m.lag.DeleteLabelValues(topic, strconv.Itoa(int(partition)))
}
