package inbox

import (
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the Prometheus metrics of a Consumer.
type Metrics struct {
	types []string

	applied                          *prometheus.CounterVec
	refused                          *prometheus.CounterVec
	duplicates, skipped, held        prometheus.Counter
	retries, fenced                  prometheus.Counter
	partitions, blocked, retrying    prometheus.Gauge
	parked, parkedKeys, oldestParked prometheus.Gauge
	lag                              *prometheus.GaugeVec
	gone                             *prometheus.CounterVec
}

// NewMetrics registers the metrics with reg, once per registry, under names that begin with prefix. Events of types
// that are not given are counted together, as "other".
func NewMetrics(reg prometheus.Registerer, prefix string, types ...string) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	counterVec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, []string{label})
		for _, v := range values {
			c.WithLabelValues(v) // so that it reads 0 before the first one
		}
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &Metrics{
		types:        types,
		applied:      counterVec("_events_applied_total", "Events applied for the first time, by type.", "type", types...),
		duplicates:   counter("_events_duplicate_total", "Deliveries of an event that was in the inbox already."),
		skipped:      counter("_events_skipped_total", "Events of a type that is known and not handled."),
		refused:      counterVec("_events_parked_total", "Events that cannot be applied and were parked, by policy.", "policy", string(ParkKey), string(Skip)),
		held:         counter("_events_held_total", "Events that were parked because an earlier event of their key is parked."),
		retries:      counter("_retries_total", "Times an event could not be applied and was left to be tried again."),
		fenced:       counter("_fenced_total", "Transactions refused because another process had claimed the partition."),
		partitions:   gauge("_consumer_partitions", "Partitions this process reads."),
		blocked:      gauge("_partitions_blocked", "Partitions of this process that halt at an event which can never be applied."),
		retrying:     gauge("_partitions_retrying", "Partitions of this process that wait before they try an event again."),
		parked:       gauge("_parked_events", "Events in the database that are parked and neither redriven nor dropped."),
		parkedKeys:   gauge("_parked_keys", "Keys that hold their later events, because one is parked."),
		oldestParked: gauge("_oldest_parked_seconds", "How long the oldest parked event has been parked; 0 without one."),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: prefix + "_consumer_lag", Help: "Records between the committed offset and the end of the log, by partition this process reads.",
		}, []string{"topic", "partition"}),
	}
	m.gone = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "_records_gone_total", Help: "Records that left the topic before they were applied, by partition.",
	}, []string{"topic", "partition"})
	reg.MustRegister(m.lag, m.gone)
	return m
}

func (m *Metrics) label(eventType string) string {
	if slices.Contains(m.types, eventType) {
		return eventType
	}
	return "other"
}

func (m *Metrics) setLag(topic string, partition int32, lag int64) {
	m.lag.WithLabelValues(topic, strconv.Itoa(int(partition))).Set(float64(lag))
}

func (m *Metrics) countGone(topic string, partition int32, n int64) {
	m.gone.WithLabelValues(topic, strconv.Itoa(int(partition))).Add(float64(n))
}

func (m *Metrics) forgetLag(topic string, partition int32) {
	m.lag.DeleteLabelValues(topic, strconv.Itoa(int(partition)))
}
