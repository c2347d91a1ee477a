package kafka_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/kafka"
)

// deadStage returns a stage with a dead letter topic, on a separate cluster.
func deadStage(t *testing.T) (*stage, *devenv.Kafka) {
	t.Helper()
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	s := &stage{cfg: config.Default()}
	s.cfg.Pipeline, s.cfg.Poison.Policy = cdctest.Name(t, "p"), config.PolicyDeadLetter
	s.topic = s.cfg.Pipeline + ".order"
	s.cfg.Kafka.Brokers, s.cfg.Kafka.Replication = cluster.Brokers(), 1
	s.sink = kafka.NewSink(s.cfg, []string{s.topic}, zerolog.Nop(), kgo.MetadataMinAge(100*time.Millisecond))
	if s.admin, err = s.sink.Admin(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.admin.Close)
	return s.create(t), cluster
}

// put writes dead letters as a client of Kafka; nil is a tombstone.
func (s *stage) put(t *testing.T, values map[string]*string, keys ...string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.cfg.Kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, key := range keys {
		r := &kgo.Record{Topic: s.cfg.DeadLetterTopic(), Key: []byte(key)}
		if v := values[key]; v != nil {
			r.Value = []byte(*v)
		}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilledRedriveIsNotDoubled ends a redrive between its records and the end of its transaction. A read_committed
// reader sees nothing of it, the dead letter still exists, and the next redrive publishes it once.
func TestKilledRedriveIsNotDoubled(t *testing.T) {
	s, cluster := deadStage(t)
	value := `{"version":1,"lsn":"0/1","seq":1,"payload":"{}"}`
	s.put(t, map[string]*string{"0/1/1/e1": &value}, "0/1/1/e1")
	lost := true
	cluster.Cluster().ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.Cluster().KeepControl()
		return nil, errors.New("killed"), lost
	})
	resolve := func() error {
		redrive, err := s.sink.Redrive(t.Context(), false)
		if err != nil {
			return err
		}
		defer redrive.Close()
		entries, err := s.sink.Entries(t.Context())
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := redrive.Resolve(t.Context(), s.records(1, 1), []string{e.Key}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := resolve(); err == nil {
		t.Fatal("the end of the transaction was not lost")
	}
	if n := len(cdctest.ReadAll(t, s.cfg.Kafka.Brokers, s.topic)); n != 0 {
		t.Errorf("a reader sees %d records of a redrive that was killed", n)
	}
	lost = false
	for range 2 {
		if err := resolve(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(cdctest.ReadAll(t, s.cfg.Kafka.Brokers, s.topic)); n != 1 {
		t.Errorf("%d records, want 1", n)
	}
	if entries, err := s.sink.Entries(t.Context()); len(entries) != 0 || err != nil {
		t.Errorf("%d left, %v", len(entries), err)
	}
}

// TestSecondRedriveFencesTheFirst: what the first redrive has read may no longer be true.
func TestSecondRedriveFencesTheFirst(t *testing.T) {
	s, _ := deadStage(t)
	first, err := s.sink.Redrive(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := s.sink.Redrive(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := first.Resolve(t.Context(), s.records(0, 1), []string{"k"}); err == nil {
		t.Error("two redrives at once")
	}
	if err := second.Resolve(t.Context(), s.records(0, 1), []string{"k"}); err != nil {
		t.Error(err)
	}
	if n := len(cdctest.ReadAll(t, s.cfg.Kafka.Brokers, s.topic)); n != 1 {
		t.Errorf("%d records, want 1", n)
	}
}

// TestDeadLettersAfterCompaction: reading ends even if the end of the topic was compacted away.
func TestDeadLettersAfterCompaction(t *testing.T) {
	s, cluster := deadStage(t)
	garbage := "no dead letter"
	var keys []string
	for i := range 50 {
		keys = append(keys, fmt.Sprintf("k%d", i%5))
	}
	s.put(t, map[string]*string{"k1": &garbage}, append(keys, "k1")...)
	cluster.Cluster().Compact()
	unresolved := s.sink.Unresolved()
	for range 2 {
		if n, err := unresolved.Count(t.Context()); n != 1 || err != nil {
			t.Errorf("%d unresolved, %v", n, err)
		}
	}
	s.put(t, nil, "k1")
	cluster.Cluster().Compact()
	if n, err := unresolved.Count(t.Context()); n != 0 || err != nil {
		t.Errorf("%d unresolved, %v", n, err)
	}
	if entries, err := s.sink.Entries(t.Context()); len(entries) != 0 || err != nil {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	// Nothing is left before the end, and reading does not wait for it.
	client, err := kgo.NewClient(kgo.SeedBrokers(s.cfg.Kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(t.Context(), s.cfg.DeadLetterTopic())
	if err != nil {
		t.Fatal(err)
	}
	if deleted, err := kadm.NewClient(client).DeleteRecords(t.Context(), ends.Offsets()); err != nil || deleted.Error() != nil {
		t.Fatal(err, deleted.Error())
	}
	if entries, err := s.sink.Entries(t.Context()); len(entries) != 0 || err != nil {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

// TestCheckKnowsWhatABrokerReads: a request has a limit that does not depend on the topic's.
func TestCheckKnowsWhatABrokerReads(t *testing.T) {
	s, _ := deadStage(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(s.cfg.Kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	limit := "200000000"
	if _, err := kadm.NewClient(client).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &limit}}, s.topic); err != nil {
		t.Fatal(err)
	}
	r := s.records(0, 1)[0]
	r.Value = make([]byte, 65<<20)
	if err := s.open(t).Check(t.Context(), &r); !errors.As(err, new(*cdc.RejectedError)) {
		t.Errorf("65 MiB in one request: %v", err)
	}
}

// TestWhatIsNoDeadLetterIsShown: a record that another program wrote is not silently left out.
func TestWhatIsNoDeadLetterIsShown(t *testing.T) {
	s, _ := deadStage(t)
	garbage, newer := "no dead letter", `{"version": 99}`
	s.put(t, map[string]*string{"a": &garbage, "b": &newer}, "a", "b")
	entries, err := s.sink.Entries(t.Context())
	if err != nil || len(entries) != 2 || entries[0].Err == nil || entries[1].Err == nil || entries[0].Letter != nil {
		t.Errorf("%+v, %v", entries, err)
	}
	p := s.open(t)
	n := 0
	if next, err := p.DeadLetters(t.Context(), 0, func(string, []cdc.Header) { n++ }); n != 2 || next != 2 || err != nil {
		t.Errorf("%d records up to %d, %v", n, next, err)
	}
	if next, err := p.DeadLetters(t.Context(), 9, func(string, []cdc.Header) { t.Error("a record beyond the end") }); next != 2 || err != nil {
		t.Errorf("beyond the end: %d, %v", next, err)
	}
}
