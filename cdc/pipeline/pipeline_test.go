package pipeline_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
)

func TestMain(m *testing.M) { cdctest.Main(m) }

// shop is a prepared pipeline with its database, topic and relays.
type shop struct {
	*testing.T
	cfg   config.Config
	topic string
}

func newShop(t *testing.T) *shop {
	t.Helper()
	cfg := config.Default()
	cfg.Pipeline = cdctest.Name(t, "library")
	cfg.Source.URL = cdctest.Database(t)
	cfg.Source.Slot = strings.ReplaceAll(cfg.Pipeline, "-", "_")
	cfg.Kafka.Brokers = cdctest.Kafka(t)
	cfg.Kafka.Topic = cfg.Pipeline + ".{aggregate_type}"
	cfg.Kafka.AggregateTypes = []string{"order"}
	cfg.Kafka.Replication = 1
	p, err := pipeline.New(cfg, pipeline.Options{})
	if err == nil {
		_, err = p.Init(t.Context(), pipeline.InitOptions{AdminURL: cfg.Source.URL})
	}
	if err != nil {
		t.Fatal(err)
	}
	return &shop{T: t, cfg: cfg, topic: cfg.Pipeline + ".order"}
}

// writes commits an event, and waits until the topic has as many events as were written.
func (s *shop) writes(all *[]string) {
	s.Helper()
	conn, err := pgx.Connect(s.Context(), s.cfg.Source.URL)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	id := uuid.NewString()
	if _, err := conn.Exec(s.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'order', 'k', 'OrderPaid', '{}')`, id); err != nil {
		s.Fatal(err)
	}
	*all = append(*all, id)
	records := cdctest.Consume(s, s.cfg.Kafka.Brokers, s.topic, time.Minute, cdctest.AtLeast(len(*all)))
	if got := ids(records); strings.Join(got, " ") != strings.Join(*all, " ") {
		s.Fatalf("written were %v, and the topic has %v", *all, got)
	}
}

func ids(records []*kgo.Record) (ids []string) {
	for _, r := range records {
		for _, h := range r.Headers {
			if h.Key == "id" {
				ids = append(ids, string(h.Value))
			}
		}
	}
	return ids
}

// run runs a relay until stop, which returns what Run did.
func run(ctx context.Context, r *pipeline.Pipeline) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

func (s *shop) becomes(r *pipeline.Pipeline, want cdc.Role) {
	s.Helper()
	cdctest.Eventually(s, time.Minute, func() error {
		if is, why := r.Role(); is != want || r.Status(s.Context()).Role != want {
			return fmt.Errorf("the relay is %s (%w), its status says %s, want %s", is, why, r.Status(s.Context()).Role, want)
		}
		return nil
	})
}

// TestRelayStartsAndStopsInAProcess runs a relay, stops it, and runs it again, and then another one of the same
// pipeline. Nothing is missing, nothing arrives twice, and TestMain checks that no goroutine is left.
func TestRelayStartsAndStopsInAProcess(t *testing.T) {
	s, reg := newShop(t), prometheus.NewRegistry()
	var log bytes.Buffer
	first, err := pipeline.New(s.cfg, pipeline.Options{Log: zerolog.New(zerolog.SyncWriter(&log)), Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	if role, err := first.Role(); role != cdc.Starting || err != nil || first.Ready(t.Context()) == nil {
		t.Errorf("before it runs it is %s, %v, ready", role, err)
	}
	var written []string
	for range 2 {
		stop := run(t.Context(), first)
		s.writes(&written)
		s.becomes(first, cdc.Streaming)
		if err := first.Ready(t.Context()); err != nil {
			t.Errorf("it streams and is not ready: %v", err)
		}
		if err := stop(); err != nil {
			t.Errorf("stopped with %v", err)
		}
		if err := first.Ready(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "stopped") {
			t.Errorf("stopped, its readiness is %v", err)
		}
	}
	if n, err := testutil.GatherAndCount(reg, "walpost_rows_published_total", "walpost_role"); err != nil || n != 1+len(cdc.Roles) || first.Status(t.Context()).Published != 2 {
		t.Errorf("%d metrics (%v) of %d rows", n, err, first.Status(t.Context()).Published)
	}

	if _, err := pipeline.New(s.cfg, pipeline.Options{Log: zerolog.Nop(), Registerer: reg}); err == nil || !errors.As(err, new(prometheus.AlreadyRegisteredError)) || !strings.Contains(err.Error(), "another registry") {
		t.Errorf("a second relay with the metrics of the first: %v", err)
	}
	other, err := pipeline.New(s.cfg, pipeline.Options{Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t.Context(), other)
	s.writes(&written)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if records := cdctest.ReadAll(t, s.cfg.Kafka.Brokers, s.topic); len(records) != len(written) {
		t.Errorf("%d events are %d records", len(written), len(records))
	}
	if text := log.String(); strings.Count(text, `"message":"streaming"`) != 2 || strings.Count(text, `"message":"stopped"`) != 2 || !strings.Contains(text, s.cfg.Pipeline) {
		t.Errorf("the log it was given has:\n%s", text)
	}
}

// TestRelaysOfAProcessStandByForEachOther: the slot is the lock also within a process.
func TestRelaysOfAProcessStandByForEachOther(t *testing.T) {
	cdctest.Long(t, "waits for relays to take over")
	s := newShop(t)
	var relays [2]*pipeline.Pipeline
	var stops [2]func() error
	for i := range relays {
		var err error
		if relays[i], err = pipeline.New(s.cfg, pipeline.Options{Log: zerolog.Nop(), Registerer: prometheus.NewRegistry()}); err != nil {
			t.Fatal(err)
		}
		stops[i] = run(t.Context(), relays[i])
		s.becomes(relays[i], []cdc.Role{cdc.Streaming, cdc.Standby}[i])
		if err := relays[i].Ready(t.Context()); err != nil {
			t.Errorf("relay %d is not ready: %v", i, err)
		}
	}
	var written []string
	for i := range relays {
		s.writes(&written)
		if err := stops[i](); err != nil {
			t.Errorf("relay %d stopped with %v", i, err)
		}
	}
}

// TestWrongConfigurationIsAnError: New returns the error, and Run does not fail later.
func TestWrongConfigurationIsAnError(t *testing.T) {
	cfg := config.Default()
	cfg.Pipeline = "Orders"
	r, err := pipeline.New(cfg, pipeline.Options{Log: zerolog.Nop(), Registerer: prometheus.NewRegistry()})
	if r != nil || err == nil {
		t.Fatalf("got %v, %v", r, err)
	}
	for _, want := range []string{"pipeline", "source.url", "kafka.brokers", "kafka.aggregate_types"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in: %v", want, err)
		}
	}
}
