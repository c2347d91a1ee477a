package cdctest_test

import (
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
)

func TestCollectWaitsForTheLedgerAndReadsTheReplayBehindIt(t *testing.T) {
	brokers, topic := cdctest.Kafka(t), cdctest.Name(t, "collected")
	cdctest.CreateTopic(t, brokers, topic, partitions)
	ledger, records := deliver(600)
	its, _ := of(1, records)
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	send := func(records []*kgo.Record) {
		t.Helper()
		for _, r := range records {
			client.Produce(t.Context(), &kgo.Record{Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers}, nil)
		}
		if err := client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	send(records[:599])
	if got := cdctest.Check(ledger, cdctest.Collect(t, brokers, topic, ledger, 300*time.Millisecond)); got.Missing.Count != len(ledger.Events)-599 {
		t.Errorf("with 599 of %d sent: %d missing", len(ledger.Events), got.Missing.Count)
	}
	send(slices.Concat(records[599:], its[len(its)-20:]))
	report := cdctest.Check(ledger, cdctest.Collect(t, brokers, topic, ledger, 20*time.Second))
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Duplicates != 20 || report.Replays != 1 {
		t.Errorf("%d duplicates in %d replays, want 20 in 1", report.Duplicates, report.Replays)
	}
}
