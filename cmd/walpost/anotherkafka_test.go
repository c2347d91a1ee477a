package main

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestAnotherKafka moves a pipeline to another cluster and back: with a complete copy of the topics, with an old copy,
// and without one. The state record names its cluster, so that the relay never takes a copy for the original. With the
// commands that the halts print, no row is missing.
func TestAnotherKafka(t *testing.T) {
	t.Parallel()
	cluster := func(id string) []string {
		k, err := devenv.StartKafka(devenv.KafkaConfig{ClusterID: id})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(k.Close)
		return k.Brokers()
	}
	first, second, third := cluster("first"), cluster("second"), cluster("third")
	s := newTestbedOn(t, cdctest.Database(t), first)
	s.Env["WALPOST_DELIVERY"] = "exactly_once"
	s.MustRun("init")
	deliver := func(n, want int) {
		t.Helper()
		r := s.StartRelay()
		s.InsertRows(n)
		s.WaitUntilConfirmed(20 * time.Second)
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
		if is := len(s.EventIDs()); is != want {
			t.Fatalf("%d events in %s, want %d", is, s.Env["WALPOST_KAFKA_BROKERS"], want)
		}
	}
	to := func(brokers []string) {
		s.Brokers, s.Env["WALPOST_KAFKA_BROKERS"] = brokers, strings.Join(brokers, ",")
	}
	says := func(text string) {
		t.Helper()
		r := s.StartRelay()
		r.WaitForLog(20*time.Second, `"halted"`)
		r.WaitForLog(3*time.Second, text)
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	halts := func(text string) {
		t.Helper()
		before := len(cdctest.ReadAll(t, s.Brokers, s.Topic))
		says(text)
		if after := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); after != before {
			t.Errorf("the halted relay published %d records", after-before)
		}
	}
	deliver(10, 10)

	// A copy that is complete, and then rows that it does not get.
	copyTopics(t, first, second, "walpost.state."+s.Name, s.Topic)
	to(second)
	halts("the state record was written to Kafka cluster first, but was read from cluster second")
	s.MustRefuse("point kafka.brokers back", "init")
	s.MustRefuse("point kafka.brokers back", "skip", "--to", "0/1")
	to(first)
	deliver(10, 20)
	to(second)
	halts("but was read from cluster second")
	out := s.MustRun("adopt")
	for _, text := range []string{"Kafka cluster second in place of first", "the state record covers", "may be missing in Kafka"} {
		if !strings.Contains(out, text) {
			t.Errorf("adopt of a copy that was left behind does not say %q:\n%s", text, out)
		}
	}
	s.MustRun(append(strings.Fields(e2e.PrintedReplay.FindStringSubmatch(out)[1]), "--admin-url", s.AdminURL)...)
	deliver(5, 25)
	if is := s.StateRecord().Cluster; is != "second" {
		t.Errorf("the record is of cluster %s", is)
	}

	// Back, where the record is of before.
	to(first)
	halts("has confirmed")
	out = s.MustRun("adopt")
	s.MustRun(append(strings.Fields(e2e.PrintedReplay.FindStringSubmatch(out)[1]), "--admin-url", s.AdminURL)...)
	deliver(5, 30)

	// An empty cluster: the slot says where to go on.
	to(third)
	says("no state record for pipeline")
	s.MustRefuse("`walpost adopt` continues from its position", "init")
	s.MustRun("adopt")
	s.MustRun("init")
	deliver(5, 5)
	if records := len(cdctest.ReadAll(t, third, s.Topic)); records != 5 {
		t.Errorf("%d records, want each of 5 once", records)
	}

	// More partitions there: status says so, and the next session.
	client, err := kgo.NewClient(kgo.SeedBrokers(third...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreatePartitions(t.Context(), 3, s.Topic); err != nil {
		t.Fatal(err)
	}
	const moved = "and had 3: most keys have moved to another partition"
	if out := s.Status(); !strings.Contains(out, moved) {
		t.Errorf("status does not say %q:\n%s", moved, out)
	}
	s.StartRelay().WaitForLog(20*time.Second, moved)
}

// copyTopics copies the present contents of topics, as a mirror does.
func copyTopics(t *testing.T, from, to []string, topics ...string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(to...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, topic := range topics {
		partitions, policy := int32(1), "compact"
		if !strings.HasPrefix(topic, "walpost.") {
			partitions, policy = 3, "delete"
		}
		if _, err := kadm.NewClient(client).CreateTopic(t.Context(), partitions, 1, map[string]*string{"cleanup.policy": &policy}, topic); err != nil {
			t.Fatal(err)
		}
		for _, r := range cdctest.ReadAll(t, from, topic) {
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
