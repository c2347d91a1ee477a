package kafka

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
)

// TestACommandsPublishingHasALimit: a command's publishing has a limit if Kafka answers requests but takes no
// records; the relay's has none.
func TestACommandsPublishingHasALimit(t *testing.T) {
	t.Parallel()
	brokers := cdctest.Kafka(t)
	proxy := cdctest.StartKafkaProxy(t, brokers, func(f cdctest.Frame) cdctest.Verdict {
		if f.API == 0 { // Produce
			return cdctest.Lose
		}
		return cdctest.Pass
	})
	cfg := config.Default()
	cfg.Pipeline, cfg.Kafka.Brokers, cfg.Kafka.Replication = cdctest.Name(t, "limits"), proxy.Brokers(), 1
	sink := NewSink(cfg, nil, zerolog.Nop())
	admin, err := sink.Admin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	for _, plan := range admin.Topics() {
		if _, err := admin.Create(t.Context(), plan); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = admin.Delete(context.Background(), cfg.StateTopic()) }()
	for name, open := range map[string]func(context.Context) (cdc.Publisher, error){"a decision": admin.OpenFenced, "a replay": func(ctx context.Context) (cdc.Publisher, error) { return sink.OpenReplay(ctx, false) }, "the relay": sink.Open} {
		t.Run(name, func(t *testing.T) {
			pub, err := open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer pub.Close()
			p, ok := pub.(*publisher)
			if !ok {
				t.Fatalf("a %T", pub)
			}
			if name == "the relay" {
				if p.within != 0 {
					t.Errorf("the relay gives up after %s", p.within)
				}
				return
			}
			if p.within != publishWithin {
				t.Errorf("it may take %s", p.within)
			}
			p.within = 500 * time.Millisecond
			err = p.Publish(t.Context(), nil, &cdc.State{Version: cdc.StateVersion, Pipeline: cfg.Pipeline})
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "kafka has not taken it within 500ms") {
				t.Errorf("got %v", err)
			}
		})
	}
	ended, end := context.WithCancelCause(t.Context())
	end(errors.New("enough"))
	if _, err := sink.Peek(ended); err == nil || strings.Contains(err.Error(), "answers") || !strings.Contains(err.Error(), "enough") {
		t.Errorf("a question that was given up: %v", err)
	}
}
