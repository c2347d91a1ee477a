package pipeline_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
)

// TestNothingShowsASecretThatItHolds: it prints the values that contain a configuration, too.
func TestNothingShowsASecretThatItHolds(t *testing.T) {
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.URL, cfg.Source.Kind = "orders", "postgres://walpost:"+cdctest.Canary+"@127.0.0.1:1/orders", config.KindPolling
	cfg.Cleanup.URL = cfg.Source.URL
	cfg.Kafka.Brokers, cfg.Kafka.AggregateTypes = []string{"127.0.0.1:1"}, []string{"order"}
	cfg.Kafka.SASL = identity.SASL{Mechanism: identity.Plain, Username: "walpost", Password: cdctest.Canary}
	logs := zerolog.Nop()
	p, err := pipeline.New(cfg, pipeline.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{
		cfg, cfg.Kafka, cfg.Kafka.Kafka, cfg.Kafka.SASL, p, postgres.NewSource("orders", cfg.Source, logs), kafka.NewSink(cfg, nil, logs), polling.NewOutbox("orders", cfg.Source, logs),
		polling.New(cfg, nil, cdc.Observer{}, logs), identity.NewLogin(cfg.Kafka.Kafka, nil, identity.Keys, logs), identity.NewPostgres("source.url", cfg.Source.URL, logs),
	} {
		for _, shown := range []any{v, []any{v}, map[string]any{"a": v}, struct{ V any }{v}} {
			text, _ := json.Marshal(shown)
			cdctest.NoSecret(t, fmt.Sprintf("%T", v), fmt.Sprintf("%v %+v %#v %s %x %s", shown, shown, shown, shown, shown, text))
		}
	}
}
