package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/kafka"
)

func TestMain(m *testing.M) { cdctest.Main(m) }

type stage struct {
	cfg   config.Config
	topic string
	sink  *kafka.Sink
	admin *kafka.Admin
}

func newStage(t *testing.T, brokers []string) *stage {
	t.Helper()
	s := &stage{cfg: config.Default()}
	s.cfg.Pipeline = cdctest.Name(t, "p")
	s.topic = s.cfg.Pipeline + ".order"
	s.cfg.Kafka.Brokers, s.cfg.Kafka.Replication = brokers, 1
	s.sink = kafka.NewSink(s.cfg, []string{s.topic}, zerolog.Nop(), kgo.MetadataMinAge(100*time.Millisecond))
	admin, err := s.sink.Admin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.admin = admin
	t.Cleanup(func() {
		for _, plan := range admin.Topics() {
			_ = admin.Delete(context.Background(), plan.Name)
		}
		admin.Close()
	})
	return s
}

// create creates the topics of the plan.
func (s *stage) create(t *testing.T) *stage {
	t.Helper()
	for _, plan := range s.admin.Topics() {
		if _, err := s.admin.Create(t.Context(), plan); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *stage) open(t *testing.T) cdc.Publisher {
	t.Helper()
	p, err := s.sink.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func (s *stage) records(from, n int) []cdc.Record {
	records := make([]cdc.Record, n)
	for i := range records {
		id := fmt.Appendf(nil, "%d", from+i)
		records[i] = cdc.Record{Row: &cdc.Row{ID: id}, Topic: s.topic, Key: fmt.Appendf(nil, "k%d", (from+i)%5), Value: id, Headers: []cdc.Header{{Key: "id", Value: id}}}
	}
	return records
}

func TestPublishTellsEachRecordsPlace(t *testing.T) {
	s := newStage(t, cdctest.Kafka(t)).create(t)
	p := s.open(t)
	for window := range 3 {
		records := s.records(100*window, 100)
		if err := p.Publish(t.Context(), records, &cdc.State{Version: 1, Covered: cdc.LSN(window)}); err != nil {
			t.Fatal(err)
		}
		at := map[string]string{}
		for _, r := range cdctest.ReadAll(t, s.cfg.Kafka.Brokers, s.topic) {
			at[string(r.Value)] = fmt.Sprintf("%d/%d", r.Partition, r.Offset)
		}
		for _, r := range records {
			if want := fmt.Sprintf("%d/%d", r.Partition, r.Offset); at[string(r.Value)] != want {
				t.Fatalf("record %s is at %s, Publish said %s", r.Value, at[string(r.Value)], want)
			}
		}
	}
	st, err := p.State(t.Context())
	if err != nil || st == nil || st.Covered != 2 {
		t.Errorf("state %+v, %v", st, err)
	}
}

// TestPlacedRecords publishes records whose route chose partition and timestamp, among others, and checks that a
// partition that the topic does not have is rejected, also after partitions were added.
func TestPlacedRecords(t *testing.T) {
	s := newStage(t, cdctest.Kafka(t)).create(t)
	p := s.open(t)
	records := s.records(0, 30)
	at := time.UnixMilli(1553460779123)
	for i := range records {
		if r := &records[i]; i%2 == 0 {
			r.Placed, r.Partition, r.Timestamp = true, int32(i/2%3), at.Add(time.Duration(i)*time.Millisecond)
		}
		if err := p.Check(t.Context(), &records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Publish(t.Context(), records, nil); err != nil {
		t.Fatal(err)
	}
	byHash := map[string]int32{}
	for _, r := range cdctest.ReadAll(t, s.cfg.Kafka.Brokers, s.topic) {
		i, err := strconv.Atoi(string(r.Value))
		if err != nil {
			t.Fatal(err)
		}
		if records[i].Placed && (r.Partition != int32(i/2%3) || !r.Timestamp.Equal(records[i].Timestamp)) {
			t.Errorf("placed record %d: partition %d at %s", i, r.Partition, r.Timestamp)
		}
		if !records[i].Placed {
			if was, ok := byHash[string(r.Key)]; ok && was != r.Partition || time.Since(r.Timestamp).Abs() > time.Hour {
				t.Errorf("record %d of key %s: partition %d, another is in %d; at %s", i, r.Key, r.Partition, was, r.Timestamp)
			}
			byHash[string(r.Key)] = r.Partition
		}
	}
	r := s.records(0, 1)[0]
	for _, partition := range []int32{-1, 3} {
		r.Placed, r.Partition = true, partition
		var rejected *cdc.RejectedError
		if err := p.Check(t.Context(), &r); !errors.As(err, &rejected) || rejected.Class != cdc.BadPartition {
			t.Errorf("partition %d of 3: %v", partition, err)
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(s.cfg.Kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreatePartitions(t.Context(), 1, s.topic); err != nil {
		t.Fatal(err)
	}
	cdctest.Eventually(t, 10*time.Second, func() error { return p.Check(t.Context(), &r) })
}

// TestEveryPromiseIsChecked makes one partition fail: Publish must not report the window as durable, and must name
// the topic.
func TestEveryPromiseIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		err     *kerr.Error
		refused bool
		says    string
	}{
		"one that another session may fix": {kerr.TopicAuthorizationFailed, false, "grant Write on topic"},
		"one that the row is to blame for": {kerr.MessageTooLarge, true, ""},
		"one that a clock is to blame for": {kerr.InvalidTimestamp, false, "the clock of this machine says 2"},
	} {
		t.Run(name, func(t *testing.T) {
			cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cluster.Close)
			s := newStage(t, cluster.Brokers()).create(t)
			p := s.open(t)
			if err := p.Publish(t.Context(), s.records(0, 10), nil); err != nil {
				t.Fatal(err)
			}
			hits := 0
			cluster.Cluster().ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.Cluster().KeepControl()
				produce := req.(*kmsg.ProduceRequest)
				resp := produce.ResponseKind().(*kmsg.ProduceResponse)
				failed := false
				for _, topic := range produce.Topics {
					rt := kmsg.NewProduceResponseTopic()
					rt.Topic, rt.TopicID = topic.Topic, topic.TopicID
					for _, part := range topic.Partitions {
						rp := kmsg.NewProduceResponseTopicPartition()
						rp.Partition = part.Partition
						if part.Partition == 1 {
							rp.ErrorCode, failed = c.err.Code, true
						}
						rt.Partitions = append(rt.Partitions, rp)
					}
					resp.Topics = append(resp.Topics, rt)
				}
				hits++
				return resp, nil, failed
			})
			err = p.Publish(t.Context(), s.records(100, 20), nil)
			if err == nil || errors.As(err, new(*cdc.RejectedError)) != c.refused || !strings.Contains(err.Error(), s.topic) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%d produce requests, one partition refused: %v", hits, err)
			}
		})
	}
}

func TestCheckRefusesBeforeProducing(t *testing.T) {
	s := newStage(t, cdctest.Kafka(t)).create(t)
	p := s.open(t)
	r := s.records(0, 1)[0]
	if err := p.Check(t.Context(), &r); err != nil {
		t.Fatal(err)
	}
	var refused *cdc.RejectedError
	// The topic never rejects a record that Check accepts, and the reverse, around the limit.
	for size := 1048588 - 400; size < 1048588; size++ {
		r.Value = make([]byte, size)
		err := p.Check(t.Context(), &r)
		if err != nil {
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), "max.message.bytes") {
				t.Error(err)
			}
			break
		}
		if size%25 == 0 {
			if err := p.Publish(t.Context(), []cdc.Record{r}, nil); err != nil {
				t.Fatalf("Check let %d bytes through: %v", size, err)
			}
		}
	}
	if refused == nil {
		t.Error("a record of the topic's own limit was let through")
	}
	var halt *cdc.HaltError
	r = s.records(0, 1)[0]
	r.Topic = s.topic + ".none"
	if err := p.Check(t.Context(), &r); !errors.As(err, &halt) || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("a topic that is missing: %v", err)
	}
}

// TestRelayCreatesTopics checks a record of a topic that Kafka does not have: it is created if the configuration says so,
// with the partitions of the configuration, and a Kafka that refuses halts the relay.
func TestRelayCreatesTopics(t *testing.T) {
	s := newStage(t, cdctest.Kafka(t)).create(t)
	s.cfg.Kafka.CreateTopics, s.cfg.Kafka.Partitions = true, 5
	s.sink = kafka.NewSink(s.cfg, nil, zerolog.Nop(), kgo.MetadataMinAge(100*time.Millisecond))
	p := s.open(t)
	record := s.records(0, 1)
	record[0].Topic = s.topic + ".new"
	t.Cleanup(func() { _ = s.admin.Delete(context.Background(), record[0].Topic) })
	if err := p.Check(t.Context(), &record[0]); err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(t.Context(), record, nil); err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(s.cfg.Kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	topics, err := kadm.NewClient(client).ListTopics(t.Context(), record[0].Topic)
	if err != nil || len(topics[record[0].Topic].Partitions) != 5 {
		t.Errorf("%v, %v", topics, err)
	}

	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	cluster.Cluster().ControlKey(int16(kmsg.CreateTopics), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.Cluster().KeepControl()
		resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, topic := range req.(*kmsg.CreateTopicsRequest).Topics {
			one := kmsg.NewCreateTopicsResponseTopic()
			one.Topic, one.ErrorCode = topic.Topic, kerr.TopicAuthorizationFailed.Code
			resp.Topics = append(resp.Topics, one)
		}
		return resp, nil, true
	})
	s.cfg.Kafka.Brokers = cluster.Brokers()
	s.sink = kafka.NewSink(s.cfg, nil, zerolog.Nop(), kgo.MetadataMinAge(100*time.Millisecond))
	var halt *cdc.HaltError
	if err := s.open(t).Check(t.Context(), &record[0]); !errors.As(err, &halt) || !strings.Contains(halt.Run, "kafka-topics.sh") {
		t.Errorf("a Kafka that refuses: %v", err)
	}
}

func TestOpenNamesWhatIsMissing(t *testing.T) {
	s := newStage(t, cdctest.Kafka(t))
	var halt *cdc.HaltError
	if _, err := s.sink.Open(t.Context()); !errors.As(err, &halt) || !strings.Contains(err.Error(), s.topic) || !strings.Contains(err.Error(), "walpost init") {
		t.Errorf("without its topic: %v", err)
	}
	if st, err := s.sink.Peek(t.Context()); st != nil || err != nil {
		t.Errorf("without a state topic: %v, %v", st, err)
	}
	s.cfg.Kafka.Brokers = []string{"127.0.0.1:1"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := kafka.NewSink(s.cfg, nil, zerolog.Nop()).Peek(ctx); err == nil || errors.As(err, &halt) || !strings.Contains(err.Error(), "kafka.brokers") {
		t.Errorf("without a broker: %v, want an error that is tried again and names the key", err)
	}
}

// TestStateTopicIsGuarded: a state topic that would lose the position is a HaltError, never a start from zero.
func TestStateTopicIsGuarded(t *testing.T) {
	brokers := cdctest.Kafka(t)
	value := func(s string) *string { return &s }
	for name, c := range map[string]struct {
		partitions int32
		config     map[string]*string
		write      string
		says       string
	}{
		"two partitions":  {2, map[string]*string{"cleanup.policy": value("compact")}, "", "2 partitions"},
		"deleted by time": {1, map[string]*string{"cleanup.policy": value("delete")}, "", "cleanup.policy=delete"},
		"garbage":         {1, map[string]*string{"cleanup.policy": value("compact")}, "hello", "cannot be read"},
		"a newer version": {1, map[string]*string{"cleanup.policy": value("compact")}, `{"version": 99, "covered": "0/1", "commit_lsn": "0/0"}`, "newer walpost"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, brokers)
			client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if _, err := kadm.NewClient(client).CreateTopic(t.Context(), c.partitions, 1, c.config, s.cfg.StateTopic()); err != nil {
				t.Fatal(err)
			}
			if c.write != "" {
				cdctest.Eventually(t, 30*time.Second, func() error {
					return client.ProduceSync(t.Context(), &kgo.Record{Topic: s.cfg.StateTopic(), Key: []byte("k"), Value: []byte(c.write)}).FirstErr()
				})
			}
			var halt *cdc.HaltError
			cdctest.Eventually(t, 30*time.Second, func() error {
				_, err := s.sink.Peek(t.Context())
				if !errors.As(err, &halt) || !strings.Contains(err.Error(), c.says) {
					return fmt.Errorf("%v, want a Halt that says %q", err, c.says)
				}
				return nil
			})
		})
	}
}

func TestDriftIsReported(t *testing.T) {
	s := newStage(t, cdctest.Kafka(t)).create(t)
	for _, plan := range s.admin.Topics() {
		if missing, drift, err := s.admin.Missing(t.Context(), plan); missing || len(drift) > 0 || err != nil {
			t.Errorf("%s as it was made: %v, %v, %v", plan.Name, missing, drift, err)
		}
		plan.Partitions++
		plan.Config = map[string]string{"retention.ms": "5"}
		if _, drift, _ := s.admin.Missing(t.Context(), plan); len(drift) != 2 {
			t.Errorf("%s: drift %v", plan.Name, drift)
		}
	}
}

// TestMorePartitionsAreNamed: the record has the number of partitions with which the session began. The next session
// reports another number once, and until then every check reports it.
func TestMorePartitionsAreNamed(t *testing.T) {
	s := newStage(t, cdctest.Kafka(t)).create(t)
	session := func(epoch int64) (notes []string) {
		t.Helper()
		p := s.open(t)
		st, err := p.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		notes = p.Notes(st)
		if err := p.Publish(t.Context(), nil, &cdc.State{Version: cdc.StateVersion, Pipeline: s.cfg.Pipeline, Epoch: epoch}); err != nil {
			t.Fatal(err)
		}
		return notes
	}
	look := func() []string {
		t.Helper()
		st, err := s.sink.Peek(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		partitions, err := s.sink.Ready(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return partitions.Notes(st)
	}
	if first, second := session(1), session(2); first != nil || second != nil || look() != nil {
		t.Fatalf("nothing has changed, and it says %q, %q, %q", first, second, look())
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(s.cfg.Kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	was := s.cfg.Kafka.Partitions
	if _, err := kadm.NewClient(client).CreatePartitions(t.Context(), 2, s.topic); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("topic %s has %d partitions, and had %d: most keys have moved", s.topic, was+2, was)
	for range 2 {
		if said := look(); len(said) != 1 || !strings.HasPrefix(said[0], want) {
			t.Errorf("a look says %q, want %q", said, want)
		}
	}
	if said := session(3); len(said) != 1 || !strings.HasPrefix(said[0], want) {
		t.Errorf("the session says %q, want %q", said, want)
	}
	if said := append(session(4), look()...); said != nil {
		t.Errorf("it is reported again: %q", said)
	}
	if st, err := s.sink.Peek(t.Context()); err != nil || st.Partitions[s.topic] != was+2 || st.Cluster == "" || st.Cluster != st.ReadFrom {
		t.Errorf("the record: %+v, %v", st, err)
	}
}

// TestOldSessionsLeaveNoRecords: each session writes under its own key. It removes the records of the sessions before
// the one that it follows, and that one's with its second record. The newest record and the operators' decisions
// stay.
func TestOldSessionsLeaveNoRecords(t *testing.T) {
	for _, delivery := range []config.Delivery{config.AtLeastOnce, config.ExactlyOnce} {
		t.Run(string(delivery), func(t *testing.T) {
			s := newStage(t, cdctest.Kafka(t)).create(t)
			s.cfg.Delivery = delivery
			s.sink = kafka.NewSink(s.cfg, []string{s.topic}, zerolog.Nop(), kgo.MetadataMinAge(100*time.Millisecond))
			for session := range int64(5) {
				p := s.open(t)
				st, err := p.State(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if session > 0 && st.Epoch != session-1 {
					t.Fatalf("session %d finds epoch %d", session, st.Epoch)
				}
				for written, left := range []string{"3/i 4/i", "4/i"} {
					if err := p.Publish(t.Context(), nil, &cdc.State{Version: cdc.StateVersion, Epoch: session, Instance: "i", Covered: cdc.LSN(100 - session)}); err != nil {
						t.Fatal(err)
					}
					if session < 4 {
						break
					}
					live := map[string]bool{}
					for _, r := range cdctest.ReadAll(t, s.cfg.Kafka.Brokers, s.cfg.StateTopic()) {
						if live[string(r.Key)] = r.Value != nil; r.Value == nil {
							delete(live, string(r.Key))
						}
					}
					if got := strings.Join(slices.Sorted(maps.Keys(live)), " "); got != left {
						t.Errorf("after %d records of the last session those of %s are left, want %s", written+1, got, left)
					}
				}
			}
		})
	}
}

// TestSessionReadsTheEndOfTheStateTopic: records far before the end are not read, unless no record comes after them.
func TestSessionReadsTheEndOfTheStateTopic(t *testing.T) {
	const far = 3000
	for name, c := range map[string]struct {
		before, behind string // of the many records of others
		halts          bool
		epoch          int64
	}{
		"the record stands at the end":       {before: "torn", behind: `{"version": 2, "epoch": 7}`, epoch: 7},
		"the record stands far from the end": {before: `{"version": 2, "epoch": 7}`, epoch: 7},
		"nothing that can be read":           {before: "torn", halts: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, cdctest.Kafka(t)).create(t)
			client, err := kgo.NewClient(kgo.SeedBrokers(s.cfg.Kafka.Brokers...))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			var records []*kgo.Record
			add := func(key, value string) {
				if value != "" {
					records = append(records, &kgo.Record{Topic: s.cfg.StateTopic(), Key: []byte(key), Value: []byte(value)})
				}
			}
			add("7/i", c.before)
			for i := range far {
				add(cdc.DecisionPrefix+strconv.Itoa(i), `{"command": "adopt"}`)
			}
			add("7/i", c.behind)
			if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			st, err := s.sink.Peek(t.Context())
			if errors.As(err, new(*cdc.HaltError)) != c.halts || err == nil && (st == nil || st.Epoch != c.epoch) {
				t.Errorf("%+v, %v", st, err)
			}
			if decisions, err := s.sink.Decisions(t.Context()); len(decisions) != far && err == nil {
				t.Errorf("%d decisions are returned of %d, %v", len(decisions), far, err)
			}
		})
	}
}
