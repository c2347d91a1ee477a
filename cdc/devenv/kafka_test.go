package devenv_test

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/devenv"
)

func startKafka(t *testing.T, cfg devenv.KafkaConfig) *devenv.Kafka {
	t.Helper()
	kafka, err := devenv.StartKafka(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	return kafka
}

func client(t *testing.T, kafka *devenv.Kafka, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(kafka.Brokers()...), kgo.MetadataMinAge(100*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestKafkaComesBackOnItsPortsWithItsData(t *testing.T) {
	port, err := devenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	cfg := devenv.KafkaConfig{Ports: []int{port}, DataDir: t.TempDir(), SeedTopics: map[string]int{"orders": 2}}
	kafka := startKafka(t, cfg)
	if want := net.JoinHostPort("127.0.0.1", strconv.Itoa(port)); len(kafka.Brokers()) != 1 || kafka.Brokers()[0] != want {
		t.Fatalf("brokers %v, want %s", kafka.Brokers(), want)
	}
	c := client(t, kafka)
	if err := c.ProduceSync(t.Context(), &kgo.Record{Topic: "orders", Value: []byte("kept")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	kafka.Close()
	kafka = startKafka(t, cfg)
	fetches := client(t, kafka, kgo.ConsumeTopics("orders"), kgo.ConsumerGroup("readers")).PollFetches(within(t, 20*time.Second))
	if got := fetches.Records(); len(got) != 1 || string(got[0].Value) != "kept" {
		t.Errorf("after a restart: %d records, %v", len(got), fetches.Errors())
	}
}

func TestKafkaMakesTopicsOnlyWhenTold(t *testing.T) {
	for _, auto := range []bool{false, true} {
		kafka := startKafka(t, devenv.KafkaConfig{Brokers: 2, Partitions: 5, AutoCreateTopics: auto})
		if len(kafka.Brokers()) != 2 {
			t.Fatalf("brokers: %v", kafka.Brokers())
		}
		c := client(t, kafka, kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(1))
		err := c.ProduceSync(t.Context(), &kgo.Record{Topic: "made", Value: []byte("v")}).FirstErr()
		if (err == nil) != auto {
			t.Errorf("auto-create %v: produce says %v", auto, err)
		}
		topics, err := kadm.NewClient(c).ListTopics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if auto && len(topics["made"].Partitions) != 5 {
			t.Errorf("made with %d partitions, want 5", len(topics["made"].Partitions))
		}
		if !auto && topics.Has("made") {
			t.Error("a topic came into being by itself")
		}
	}
}
