package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
)

// TestEndsOfCertificatesAreAnnounced: the metric has the end of each client certificate, Kafka's and both of PostgreSQL's, and the log has
// one line for each. The certificates are read before the client connects, so the test needs no server.
func TestEndsOfCertificatesAreAnnounced(t *testing.T) {
	ours, until := cdctest.NewAuthority(t, "ours", time.Time{}), time.Now().Add(48*time.Hour).Truncate(time.Second)
	shown := func(name string) (cdctest.Pair, string) {
		pair := ours.Issue(t, cdctest.Certificate{Name: name, Until: until})
		q := url.Values{"sslmode": {"verify-full"}, "sslrootcert": {ours.File}, "sslcert": {pair.CertFile}, "sslkey": {pair.KeyFile}}
		return pair, "postgres://" + name + "@127.0.0.1:1/shop?" + q.Encode()
	}
	for _, kind := range []config.Kind{config.KindWAL, config.KindPolling} {
		for _, cleanup := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, cleanup.url %t", kind, cleanup), func(t *testing.T) {
				cfg := config.Default()
				cfg.Pipeline, cfg.Source.Kind = "shop", kind
				cfg.Kafka.Brokers, cfg.Kafka.AggregateTypes, cfg.Kafka.TLS = []string{"127.0.0.1:1"}, []string{"order"}, true
				client, _ := shown("client")
				cfg.Kafka.TLSCertFile, cfg.Kafka.TLSKeyFile = client.CertFile, client.KeyFile
				_, cfg.Source.URL = shown("relay")
				if cleanup {
					_, cfg.Cleanup.URL = shown("cleaner")
				}
				var log cdctest.Log
				reg := prometheus.NewRegistry()
				p, err := New(cfg, Options{Log: zerolog.New(&log), Registerer: reg})
				if err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if l := p.metrics.asked.ask(nil); l.kafkaErr == nil {
						t.Error("kafka answers")
					}
					if _, err := p.source.Cleaner(t.Context(), p.cleaner()); err == nil {
						t.Error("postgresql answers")
					}
				}
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { defer close(ended); _ = p.Run(ctx) }()
				cdctest.Eventually(t, 10*time.Second, func() error {
					if _, err := p.Role(); err == nil {
						return errors.New("the relay has not tried to connect")
					}
					return nil
				})
				stop()
				<-ended
				want := map[string]string{"kafka.tls_cert_file": "client", "source.url: sslcert": "relay", "cleanup.url: sslcert": "cleaner"}
				if !cleanup {
					delete(want, "cleanup.url: sslcert")
				}
				ends := map[string]float64{}
				families, err := reg.Gather()
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range families {
					if f.GetName() == "walpost_certificate_expires_timestamp_seconds" {
						for _, m := range f.GetMetric() {
							ends[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
						}
					}
				}
				if len(ends) != len(want) {
					t.Errorf("the metric has %v", ends)
				}
				for key, name := range want {
					if ends[key] != float64(until.Unix()) {
						t.Errorf("%s: the metric says %v, want %v", key, ends[key], until.Unix())
					}
					line := fmt.Sprintf(`"pipeline":"shop","key":%q,"expires":%q,"message":"the certificate CN=%s expires in 47h0m0s: renew it"`, key, until.UTC().Format(time.RFC3339), name)
					if n := strings.Count(log.String(), line); n != 1 {
						t.Errorf("the log has %d times %s:\n%s", n, line, log.String())
					}
				}
			})
		}
	}
}
