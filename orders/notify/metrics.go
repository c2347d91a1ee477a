package notify

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the metrics of the notifications in the database, and of the attempts of this process.
type Metrics struct {
	store    *Store
	attempts *prometheus.CounterVec
}

var (
	notificationsDesc = prometheus.NewDesc("orders_notifications", "Notifications in the database, by channel and status.", []string{"channel", "status"}, nil)
	oldestDesc        = prometheus.NewDesc("orders_notifications_oldest_pending_seconds", "How long the oldest PENDING notification has been waiting, by channel; 0 without one.", []string{"channel"}, nil)
)

// NewMetrics registers the metrics with reg, once per registry.
func NewMetrics(reg prometheus.Registerer, store *Store) *Metrics {
	m := &Metrics{store, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "orders_notification_attempts_total", Help: "Attempts of this process to send a notification, by channel and outcome.",
	}, []string{"channel", "outcome"})}
	for _, channel := range []string{ChannelMail, ChannelWebhook} {
		for _, outcome := range []string{outcomeSent, outcomeDeferred, outcomeRefused} {
			m.attempts.WithLabelValues(channel, outcome) // so that it reads 0 before the first one
		}
	}
	reg.MustRegister(m.attempts, m)
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- notificationsDesc
	ch <- oldestDesc
}

// Collect queries the database. It reports nothing while the database does not answer: readyz reports that.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	counts, err := m.store.counts(ctx)
	if err != nil {
		return
	}
	for _, channel := range []string{ChannelMail, ChannelWebhook} {
		of := map[string]float64{Pending: 0, Sent: 0, Failed: 0, Suppressed: 0}
		var oldest float64
		for _, c := range counts {
			if c.channel == channel {
				of[c.status] = float64(c.n)
			}
			if c.channel == channel && c.status == Pending {
				oldest = c.oldest
			}
		}
		for status, n := range of {
			ch <- prometheus.MustNewConstMetric(notificationsDesc, prometheus.GaugeValue, n, channel, status)
		}
		ch <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, oldest, channel)
	}
}
