package cdctest_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
)

// TestSamplerSeesWhatWasConfirmedTooEarly plays a relay that first confirms published events, and then events that were
// not published.
func TestSamplerSeesWhatWasConfirmedTooEarly(t *testing.T) {
	url := cdctest.Database(t)
	cdctest.CreateOutbox(t, url, "outbox")
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	slot := cdctest.SlotName(t, "relay")
	if _, err := conn.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot); err != nil {
		t.Fatal(err)
	}
	brokers, topic := cdctest.Kafka(t), cdctest.Name(t, "sampled")
	cdctest.CreateTopic(t, brokers, topic, partitions)
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	oracle := cdctest.StartOracle(t, url, "public.outbox")
	confirm := func(publish bool) {
		t.Helper()
		cdctest.StartWriter(t, cdctest.WriterConfig{URL: url, Events: 100}).Wait()
		if publish {
			for _, r := range decode(t, conn, slot) {
				client.Produce(t.Context(), &kgo.Record{Key: r.Key, Value: r.Value, Headers: r.Headers}, nil)
			}
			if err := client.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := conn.Exec(t.Context(), "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", slot); err != nil {
			t.Fatal(err)
		}
	}
	for _, published := range []bool{true, false} {
		watched := &notFailing{TB: t}
		confirm(published)
		sampler := cdctest.StartSampler(watched, cdctest.SamplerConfig{URL: url, Slot: slot, Oracle: oracle, Brokers: brokers, Topics: []string{topic}})
		cdctest.Eventually(t, 20*time.Second, func() error {
			if sampler.Samples() == 0 {
				return errors.New("no sample")
			}
			return nil
		})
		sampler.Stop()
		if said := watched.said != ""; said == published || said && !strings.Contains(watched.said, "I8") {
			t.Errorf("published: %t, and the sampler says %q", published, watched.said)
		}
	}
}

// notFailing records the errors with which a test would fail.
type notFailing struct {
	testing.TB
	said string
}

func (n *notFailing) Error(args ...any) {
	n.said = strings.TrimSpace(strings.ReplaceAll(args[0].(error).Error(), "\n", " "))
}
