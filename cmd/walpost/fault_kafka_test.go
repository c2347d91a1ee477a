package main

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
)

// kafkaDown is fault 6: Kafka is away for longer than queue_timeout.
func kafkaDown(s *scene) {
	s.build(set{server: true, env: map[string]string{"WALPOST_QUEUE_TIMEOUT": "2s", "WALPOST_WINDOW_ROWS": "200"}})
	r := s.child()
	s.grows(500)
	s.kf.Down()
	away := time.After(kafkaAway())
	s.eventually(20*time.Second, "NOT active")
	memory := r.memory()
	s.sampler.Pause()
	s.oracle.Rest()
	began := time.Now()
	if err := s.server.Stop(timeout(s.t, time.Minute), "fast"); err != nil {
		s.t.Fatalf("PostgreSQL could not be stopped while Kafka was away: %v", err)
	}
	s.t.Logf("PostgreSQL stopped in %s while Kafka was away", time.Since(began).Round(time.Millisecond))
	if err := s.server.Start(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.sampler.Resume()
	for outage := true; outage; {
		select {
		case <-away:
			outage = false
		case <-time.After(100 * time.Millisecond):
			if s.query("SELECT active::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"]) == "true" {
				s.t.Fatal("the replication connection was opened again before Kafka answered")
			}
		}
	}
	if now := r.memory(); now > memory+64<<20 {
		s.t.Errorf("the relay grew from %d to %d MiB while Kafka was away", memory>>20, now>>20)
	}
	s.kf.Up()
	s.fixed()
	s.settle()
}

func kafkaAway() time.Duration {
	if long() {
		return time.Minute
	}
	return 6 * time.Second
}

// kafkaSlow is fault 7: requests that take long, then little bandwidth. PostgreSQL waits, and does not lose patience.
func kafkaSlow(s *scene) {
	s.build(set{options: "-c wal_sender_timeout=1s", env: map[string]string{"WALPOST_WINDOW_ROWS": "50"}})
	r := s.run()
	s.flows()
	s.kf.Set(cdctest.Wire{Delay: 3 * time.Second}, cdctest.Wire{}) // longer than wal_sender_timeout
	time.Sleep(5 * time.Second)
	s.kf.Set(cdctest.Wire{Bandwidth: 50_000}, cdctest.Wire{Bandwidth: 50_000})
	time.Sleep(3 * time.Second)
	s.kf.Set(cdctest.Wire{}, cdctest.Wire{})
	s.fixed()
	s.once(s.settle())
	if log := r.log.String(); strings.Contains(log, "starting over") {
		s.t.Errorf("a slow Kafka ended a session:\n%s", log)
	}
}

// leadersMove is fault 8: partitions change their leaders all the time, and brokers leave and join.
func leadersMove(s *scene) {
	s.build(set{kfake: 3})
	s.run()
	cluster := s.kfake.Cluster()
	for i := range 30 {
		switch i {
		case 10:
			if err := cluster.RemoveNode(2); err != nil {
				s.t.Fatal(err)
			}
		case 20:
			if _, _, err := cluster.AddNode(2, 0); err != nil {
				s.t.Fatal(err)
			}
		default:
			cluster.ShufflePartitionLeaders()
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.fixed()
	s.once(s.settle())
}

// loses has the proxy lose one answer (or request) of each kind, again and again.
func (s *scene) loses(every int64, fromServer bool, keys ...kmsg.Key) (lost *atomic.Int64) {
	lost = new(atomic.Int64)
	var seen atomic.Int64
	s.kf = cdctest.StartKafkaProxy(s.t, s.brokers, func(f cdctest.Frame) cdctest.Verdict {
		for _, key := range keys {
			if f.FromServer == fromServer && f.API == int16(key) && seen.Add(1)%every == 0 {
				lost.Add(1)
				return cdctest.Lose
			}
		}
		return cdctest.Pass
	})
	s.env["WALPOST_KAFKA_BROKERS"] = strings.Join(s.kf.Brokers(), ",")
	return lost
}

// produceAnswerLost is fault 9: what was appended looks lost, and is sent again.
func produceAnswerLost(s *scene) {
	s.build(set{})
	lost := s.loses(10, true, kmsg.Produce)
	s.run()
	s.until(lost, 5)
	s.fixed()
	s.once(s.settle())
}

// until waits for so many lost frames.
func (s *scene) until(lost *atomic.Int64, n int64) {
	s.t.Helper()
	cdctest.Eventually(s.t, 40*time.Second, func() error {
		if have := lost.Load(); have < n {
			return fmt.Errorf("%d frames lost, want %d", have, n)
		}
		return nil
	})
}

// endAnswerLost is fault 10: a commit whose fate nobody knows, carried out or not. At least once knows no transactions; there
// it is the answer that gives the producer its id.
func endAnswerLost(s *scene) {
	s.build(set{load: cdctest.WriterConfig{Rate: 8}}) // what is confirmed too early is confirmed before the next window
	every, key := int64(4), kmsg.EndTxn
	if s.mode == atLeastOnce {
		every, key = 2, kmsg.InitProducerID
	}
	for _, applied := range []bool{true, false} {
		lost := s.loses(every, applied, key)
		if s.mode == atLeastOnce {
			for lost.Load() == 0 {
				s.child().kill()
			}
			continue
		}
		r := s.child()
		s.until(lost, 4)
		r.kill()
	}
	s.loses(1, true)
	s.fixed()
	s.run()
	s.settle()
}

// refuses makes the in-process Kafka answer requests with an error, so many times.
func (s *scene) refuses(err *kerr.Error, count int, keys ...kmsg.Key) {
	s.t.Helper()
	h := s.kfake.Cluster().Fault(kfake.Fault{Keys: keys, Err: err, Count: count})
	if werr := h.Wait(timeout(s.t, 40*time.Second), count); werr != nil {
		s.t.Fatalf("%s was answered %d times, want %d: %v", err.Message, h.Hits(), count, werr)
	}
	h.Remove()
}

// replicasMissing is fault 11: what passes.
func replicasMissing(s *scene) {
	s.build(set{kfake: 1})
	s.run()
	for _, err := range []*kerr.Error{kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut, kerr.KafkaStorageError, kerr.NotLeaderForPartition} {
		s.refuses(err, 3, kmsg.Produce)
		s.flows()
	}
	if n := s.doubles(); n > 0 {
		s.t.Errorf("%d duplicates, and everything was tried again in place", n)
	}
	// This ends the session, and hits rows whose window's state record is taken.
	for range 3 {
		h := s.kfake.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: s.topic, Err: kerr.CorruptMessage, When: func(r kmsg.Request) bool {
			return len(r.(*kmsg.ProduceRequest).Topics) > 1
		}})
		if err := h.Wait(timeout(s.t, 40*time.Second), 1); err != nil {
			s.t.Fatal(err)
		}
		s.flows()
	}
	s.fixed()
	s.settle()
}

// topicDeleted is fault 12.
func topicDeleted(s *scene) {
	s.build(set{})
	r := s.child()
	first := s.writer.Stop()
	s.flows()
	admin, _ := s.admins()
	s.sampler.Stop()
	if _, err := admin.DeleteTopic(s.t.Context(), s.topic); err != nil {
		s.t.Fatal(err)
	}
	s.write(cdctest.WriterConfig{Events: 300, Rate: 200})
	ledger := s.writer.Wait()
	cdctest.Eventually(s.t, 60*time.Second, func() error {
		if ready := r.get(s.t, "/readyz"); !strings.HasPrefix(ready, "503") {
			return errors.New("ready, and its topic is gone")
		}
		return nil
	})
	if topics, err := admin.ListTopics(s.t.Context(), s.topic); err != nil || topics.Has(s.topic) {
		s.t.Errorf("the relay made the topic again: %v, %v", topics, err)
	}
	cdctest.CreateTopic(s.t, s.brokers, s.topic, 3)
	s.fixed()
	s.confirmed(90 * time.Second)
	s.back = time.Since(s.healed)
	gone := len(first.Events)
	ledger.Events = ledger.Events[gone:] // by transaction, and the first writer had ended
	report := s.check(ledger)
	s.once(report)
}

func (s *scene) admins() (*kadm.Client, *kgo.Client) {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(client.Close)
	return kadm.NewClient(client), client
}

// revoked is fault 14: the relay may no longer write, and then may again.
func revoked(s *scene) {
	s.build(set{kfake: 1})
	s.child()
	s.flows()
	for _, c := range []struct {
		err  *kerr.Error
		keys []kmsg.Key
	}{
		{kerr.TopicAuthorizationFailed, []kmsg.Key{kmsg.Produce, kmsg.AddPartitionsToTxn}},
		{kerr.ClusterAuthorizationFailed, []kmsg.Key{kmsg.InitProducerID}},
		{kerr.TransactionalIDAuthorizationFailed, []kmsg.Key{kmsg.InitProducerID, kmsg.EndTxn}},
	} {
		h := s.kfake.Cluster().Fault(kfake.Fault{Keys: c.keys, Err: c.err, Count: -1})
		if c.keys[0] == kmsg.InitProducerID {
			s.exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", s.env["WALPOST_SOURCE_SLOT"])
		}
		if c.err == kerr.TransactionalIDAuthorizationFailed && s.mode == atLeastOnce {
			h.Remove() // it has none
			continue
		}
		if err := h.Wait(timeout(s.t, 40*time.Second), 1); err != nil {
			s.t.Fatalf("%s: never asked: %v", c.err.Message, err)
		}
		s.grows(50)
		h.Remove()
		s.fixed()
		s.confirmed(60 * time.Second)
	}
	s.settle()
}

// fenced is fault 15: the producer's id, epoch or sequence is not what Kafka knows, and a transaction that timed out.
func fenced(s *scene) {
	s.build(set{kfake: 1})
	s.run()
	s.flows()
	for _, err := range []*kerr.Error{kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch} {
		s.refuses(err, 1, kmsg.Produce)
		s.flows()
	}
	if s.mode == exactlyOnce {
		for _, err := range []*kerr.Error{kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidTxnState, kerr.UnknownServerError} {
			s.refuses(err, 1, kmsg.EndTxn)
			s.flows()
		}
		thief, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.TransactionalID("walpost."+s.pipeline))
		if err != nil {
			s.t.Fatal(err)
		}
		if _, _, err := thief.ProducerID(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
		thief.Close()
		s.grows(50)
	}
	s.fixed()
	s.settle()
}

// coordinators is fault 16: coordinators move, and are busy.
func coordinators(s *scene) {
	s.build(set{kfake: 3})
	s.run()
	cluster := s.kfake.Cluster()
	for i := range 30 {
		cluster.RehashCoordinators()
		if s.mode == exactlyOnce && i%5 == 0 {
			s.refuses(kerr.ConcurrentTransactions, 2, kmsg.EndTxn, kmsg.InitProducerID, kmsg.AddPartitionsToTxn)
			s.refuses(kerr.CoordinatorLoadInProgress, 2, kmsg.EndTxn, kmsg.InitProducerID, kmsg.AddPartitionsToTxn)
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.fixed()
	s.settle()
}

// spread is fault 17: partitions are added under load. A key may go on in another partition.
func spread(s *scene) {
	s.build(set{})
	s.spread = true
	s.run()
	s.grows(300)
	admin, _ := s.admins()
	if _, err := admin.UpdatePartitions(s.t.Context(), 7, s.topic); err != nil {
		s.t.Fatal(err)
	}
	s.grows(1000)
	s.fixed()
	s.once(s.settle())
}

// stateTopic is fault 18: the state topic is not what the relay left.
func stateTopic(s *scene) {
	put := func(value string) func(*kadm.Client, *kgo.Client, string) error {
		return func(_ *kadm.Client, client *kgo.Client, topic string) error {
			return client.ProduceSync(s.t.Context(), &kgo.Record{Topic: topic, Key: []byte("9/x"), Value: []byte(value)}).FirstErr()
		}
	}
	for _, c := range []struct {
		name string
		does func(admin *kadm.Client, client *kgo.Client, topic string) error
		says string
	}{
		{"garbage", put("garbage"), "cannot be read"},
		{"a newer version", put(`{"version": 99}`), "version 99"},
		{"truncated", func(admin *kadm.Client, _ *kgo.Client, topic string) error {
			return truncate(s.t.Context(), admin, topic)
		}, "no state record"},
		{"deleted", func(admin *kadm.Client, _ *kgo.Client, topic string) error {
			_, err := admin.DeleteTopic(s.t.Context(), topic)
			return err
		}, "no state record"},
	} {
		s.build(set{quiet: true})
		r := s.run()
		s.insert(20)
		s.confirmed(20 * time.Second)
		if err := r.stop(); err != nil {
			s.t.Fatal(err)
		}
		admin, client := s.admins()
		if err := c.does(admin, client, "walpost.state."+s.pipeline); err != nil {
			s.t.Fatalf("%s: %v", c.name, err)
		}
		s.stays(func() { s.halts(s.start(), c.says) })
	}
}
