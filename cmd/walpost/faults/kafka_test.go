package faults

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/config"
)

// takeKafkaAway runs fault 6: Kafka is away for longer than queue_timeout.
func takeKafkaAway(s *trial) {
	s.prepare(setup{server: true, env: map[string]string{"WALPOST_QUEUE_TIMEOUT": "2s", "WALPOST_WINDOW_ROWS": "200"}})
	r := s.startMeasured()
	s.waitForCommits(500)
	s.kafkaProxy.Down()
	away := time.After(kafkaAway())
	s.WaitForSlot(20*time.Second, "NOT active")
	memory := r.Memory()
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
			if s.Query("SELECT active::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()) == "true" {
				s.t.Fatal("the replication connection was opened again before Kafka answered")
			}
		}
	}
	if now := r.Memory(); now > memory+64<<20 {
		s.t.Errorf("the relay grew from %d to %d MiB while Kafka was away", memory>>20, now>>20)
	}
	s.kafkaProxy.Up()
	s.endFault()
	s.finish()
}

func kafkaAway() time.Duration {
	if cdctest.LongForm() {
		return time.Minute
	}
	return 6 * time.Second
}

// slowKafkaDown runs fault 7: requests that take long, then little bandwidth. PostgreSQL waits, and keeps the
// connection.
func slowKafkaDown(s *trial) {
	s.prepare(setup{options: "-c wal_sender_timeout=1s", env: map[string]string{"WALPOST_WINDOW_ROWS": "50"}})
	r := s.startStreaming()
	s.waitUntilDelivered()
	s.kafkaProxy.Set(cdctest.Wire{Delay: 3 * time.Second}, cdctest.Wire{}) // longer than wal_sender_timeout
	time.Sleep(5 * time.Second)
	s.kafkaProxy.Set(cdctest.Wire{Bandwidth: 50_000}, cdctest.Wire{Bandwidth: 50_000})
	time.Sleep(3 * time.Second)
	s.kafkaProxy.Set(cdctest.Wire{}, cdctest.Wire{})
	s.endFault()
	s.wantNoDuplicates(s.finish())
	if log := r.Log.String(); strings.Contains(log, "starting over") {
		s.t.Errorf("a slow Kafka ended a session:\n%s", log)
	}
}

// moveLeaders runs fault 8: partitions change their leaders all the time, and brokers leave and join.
func moveLeaders(s *trial) {
	s.prepare(setup{kfake: 3})
	s.startStreaming()
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
	s.endFault()
	s.wantNoDuplicates(s.finish())
}

// loseFrames makes the proxy lose one answer (or request) of each kind, again and again.
func (s *trial) loseFrames(every int64, fromServer bool, keys ...kmsg.Key) (lost *atomic.Int64) {
	lost = new(atomic.Int64)
	var seen atomic.Int64
	s.kafkaProxy = cdctest.StartKafkaProxy(s.t, s.Brokers, func(f cdctest.Frame) cdctest.Verdict {
		for _, key := range keys {
			if f.FromServer == fromServer && f.API == int16(key) && seen.Add(1)%every == 0 {
				lost.Add(1)
				return cdctest.Lose
			}
		}
		return cdctest.Pass
	})
	s.Env["WALPOST_KAFKA_BROKERS"] = strings.Join(s.kafkaProxy.Brokers(), ",")
	return lost
}

// loseProduceAnswers runs fault 9: appended records look lost, and are sent again.
func loseProduceAnswers(s *trial) {
	s.prepare(setup{})
	lost := s.loseFrames(10, true, kmsg.Produce)
	s.startStreaming()
	s.waitForLosses(lost, 5)
	s.endFault()
	s.wantNoDuplicates(s.finish())
}

// waitForLosses waits until n frames are lost.
func (s *trial) waitForLosses(lost *atomic.Int64, n int64) {
	s.t.Helper()
	cdctest.Eventually(s.t, 40*time.Second, func() error {
		if have := lost.Load(); have < n {
			return fmt.Errorf("%d frames lost, want %d", have, n)
		}
		return nil
	})
}

// loseEndAnswers runs fault 10: a commit with an unknown outcome, carried out or not. At least once has no
// transactions; there the lost answer is the one that gives the producer its id.
func loseEndAnswers(s *trial) {
	// a window that is confirmed too early is confirmed before the next window
	s.prepare(setup{load: cdctest.WriterConfig{Rate: 8}})
	every, key := int64(4), kmsg.EndTxn
	if s.mode == config.AtLeastOnce {
		every, key = 2, kmsg.InitProducerID
	}
	for _, applied := range []bool{true, false} {
		lost := s.loseFrames(every, applied, key)
		if s.mode == config.AtLeastOnce {
			for lost.Load() == 0 {
				s.startStreaming().Kill()
			}
			continue
		}
		r := s.startStreaming()
		s.waitForLosses(lost, 4)
		r.Kill()
	}
	s.loseFrames(1, true)
	s.endFault()
	s.startStreaming()
	s.finish()
}

// answerWithError makes the in-process Kafka answer requests with an error, count times.
func (s *trial) answerWithError(err *kerr.Error, count int, keys ...kmsg.Key) {
	s.t.Helper()
	h := s.kfake.Cluster().Fault(kfake.Fault{Keys: keys, Err: err, Count: count})
	if werr := h.Wait(timeout(s.t, 40*time.Second), count); werr != nil {
		s.t.Fatalf("%s was answered %d times, want %d: %v", err.Message, h.Hits(), count, werr)
	}
	h.Remove()
}

// refuseForReplicas runs fault 11: errors that pass.
func refuseForReplicas(s *trial) {
	s.prepare(setup{kfake: 1})
	s.startStreaming()
	for _, err := range []*kerr.Error{kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut, kerr.KafkaStorageError, kerr.NotLeaderForPartition} {
		s.answerWithError(err, 3, kmsg.Produce)
		s.waitUntilDelivered()
	}
	if n := s.countDuplicates(); n > 0 {
		s.t.Errorf("%d duplicates, and everything was tried again in place", n)
	}
	// This error ends the session, and hits rows whose window's state record Kafka has taken.
	for range 3 {
		h := s.kfake.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: s.Topic, Err: kerr.CorruptMessage, When: func(r kmsg.Request) bool {
			return len(r.(*kmsg.ProduceRequest).Topics) > 1
		}})
		if err := h.Wait(timeout(s.t, 40*time.Second), 1); err != nil {
			s.t.Fatal(err)
		}
		s.waitUntilDelivered()
	}
	s.endFault()
	s.finish()
}

// deleteTopic runs fault 12.
func deleteTopic(s *trial) {
	s.prepare(setup{})
	r := s.startStreaming()
	first := s.writer.Stop()
	s.waitUntilDelivered()
	admin, _ := s.kafkaClients()
	s.sampler.Stop()
	if _, err := admin.DeleteTopic(s.t.Context(), s.Topic); err != nil {
		s.t.Fatal(err)
	}
	s.startWriter(cdctest.WriterConfig{Events: 300, Rate: 200})
	ledger := s.writer.Wait()
	cdctest.Eventually(s.t, 60*time.Second, func() error {
		if ready := r.Get(s.t, "/readyz"); !strings.HasPrefix(ready, "503") {
			return errors.New("ready, and its topic is gone")
		}
		return nil
	})
	if topics, err := admin.ListTopics(s.t.Context(), s.Topic); err != nil || topics.Has(s.Topic) {
		s.t.Errorf("the relay made the topic again: %v, %v", topics, err)
	}
	cdctest.CreateTopic(s.t, s.Brokers, s.Topic, 3)
	s.endFault()
	s.WaitUntilConfirmed(90 * time.Second)
	s.recovery = time.Since(s.faultEnded)
	gone := len(first.Events)
	ledger.Events = ledger.Events[gone:] // by transaction, and the first writer had ended
	report := s.checkTopic(ledger)
	s.wantNoDuplicates(report)
}

func (s *trial) kafkaClients() (*kadm.Client, *kgo.Client) {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(client.Close)
	return kadm.NewClient(client), client
}

// revokeKafkaRights runs fault 14: the relay loses the right to write, and gets it back.
func revokeKafkaRights(s *trial) {
	s.prepare(setup{kfake: 1})
	s.startStreaming()
	s.waitUntilDelivered()
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
			s.Exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", s.Slot())
		}
		if c.err == kerr.TransactionalIDAuthorizationFailed && s.mode == config.AtLeastOnce {
			h.Remove() // at least once has no transactional id
			continue
		}
		if err := h.Wait(timeout(s.t, 40*time.Second), 1); err != nil {
			s.t.Fatalf("%s: never asked: %v", c.err.Message, err)
		}
		s.waitForCommits(50)
		h.Remove()
		s.endFault()
		s.WaitUntilConfirmed(60 * time.Second)
	}
	s.finish()
}

// fenceProducer runs fault 15: Kafka does not know the producer's id, epoch or sequence, or a transaction has timed
// out.
func fenceProducer(s *trial) {
	s.prepare(setup{kfake: 1})
	s.startStreaming()
	s.waitUntilDelivered()
	for _, err := range []*kerr.Error{kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch} {
		s.answerWithError(err, 1, kmsg.Produce)
		s.waitUntilDelivered()
	}
	if s.mode == config.ExactlyOnce {
		for _, err := range []*kerr.Error{kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidTxnState, kerr.UnknownServerError} {
			s.answerWithError(err, 1, kmsg.EndTxn)
			s.waitUntilDelivered()
		}
		thief, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...), kgo.TransactionalID("walpost."+s.Name))
		if err != nil {
			s.t.Fatal(err)
		}
		if _, _, err := thief.ProducerID(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
		thief.Close()
		s.waitForCommits(50)
	}
	s.endFault()
	s.finish()
}

// useUpEpoch runs fault 65: the epoch of the relay's producer id reaches its end.
func useUpEpoch(s *trial) {
	if s.mode == config.AtLeastOnce {
		s.reportNotRun("no transaction raises an epoch")
		return
	}
	// the epoch of a producer id's last transaction, and the number of transactions before it
	const last, before = math.MaxInt16 - 1, 6
	s.prepare(setup{quiet: true, env: map[string]string{"WALPOST_WINDOW_ROWS": "1"}})
	points := []string{"before_end_txn", "after_end_txn", "after_begin_txn"}
	if s.kfake == nil {
		points = points[:1] // a real broker takes minutes to use up an id
	}
	for i, point := range points {
		s.raiseEpoch(last - before - 1) // the session raises it once more
		if i == 0 {
			s.startLoad(cdctest.WriterConfig{Rate: 2})
		}
		r := s.startWithFailpoints(fmt.Sprintf("%s:kill@%d", point, before+1))
		r.WaitForLog(30*time.Second, "failpoint "+point+": kill")
		r.WaitUntilEnded(10 * time.Second)
		s.startStreaming()
		s.waitForCommits(50)
		s.waitUntilDelivered()
		s.relays[len(s.relays)-1].Kill()
	}
	s.startStreaming()
	s.endFault()
	s.finish()
	epochs := map[int64]int16{} // the highest of each producer id
	for _, r := range cdctest.ReadAll(s.t, s.Brokers, s.Topic) {
		epochs[r.ProducerID] = max(epochs[r.ProducerID], r.ProducerEpoch)
	}
	s.t.Logf("the highest epochs of producer ids: %v", epochs)
	if ids := slices.Collect(maps.Values(epochs)); len(ids) != len(points)+1 || slices.Max(ids) < last-2 || slices.Max(ids) > last || slices.Min(ids) > last/2 {
		s.t.Errorf("no producer id was used up: %v", epochs)
	}
}

// raiseEpoch takes the relay's transactional id again and again, which raises its epoch each time.
func (s *trial) raiseEpoch(to int16) {
	s.t.Helper()
	_, client := s.kafkaClients()
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID, req.TransactionTimeoutMillis = kmsg.StringPtr("walpost."+s.Name), 60_000
	ctx := timeout(s.t, 5*time.Minute) // a real broker takes 2 ms for each
	for epoch := int16(0); epoch != to; {
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil && !errors.Is(err, kerr.ConcurrentTransactions) {
			s.t.Fatal(err)
		}
		epoch = resp.ProducerEpoch
	}
}

// moveCoordinators runs fault 16: coordinators move, and are busy.
func moveCoordinators(s *trial) {
	s.prepare(setup{kfake: 3})
	s.startStreaming()
	cluster := s.kfake.Cluster()
	for i := range 30 {
		cluster.RehashCoordinators()
		if s.mode == config.ExactlyOnce && i%5 == 0 {
			s.answerWithError(kerr.ConcurrentTransactions, 2, kmsg.EndTxn, kmsg.InitProducerID, kmsg.AddPartitionsToTxn)
			s.answerWithError(kerr.CoordinatorLoadInProgress, 2, kmsg.EndTxn, kmsg.InitProducerID, kmsg.AddPartitionsToTxn)
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.endFault()
	s.finish()
}

// addPartitions runs fault 17: partitions are added under load. A key may continue in another partition.
func addPartitions(s *trial) {
	s.prepare(setup{})
	s.partitionsAdded = true
	s.startStreaming()
	s.waitForCommits(300)
	admin, _ := s.kafkaClients()
	if _, err := admin.UpdatePartitions(s.t.Context(), 7, s.Topic); err != nil {
		s.t.Fatal(err)
	}
	s.waitForCommits(1000)
	s.endFault()
	s.wantNoDuplicates(s.finish())
}

// spoilStateTopic runs fault 18: the state topic is not as the relay left it.
func spoilStateTopic(s *trial) {
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
			return e2e.Truncate(s.t.Context(), admin, topic)
		}, "no state record"},
		{"deleted", func(admin *kadm.Client, _ *kgo.Client, topic string) error {
			_, err := admin.DeleteTopic(s.t.Context(), topic)
			return err
		}, "no state record"},
	} {
		s.prepare(setup{quiet: true})
		r := s.startStreaming()
		s.InsertRows(20)
		s.WaitUntilConfirmed(20 * time.Second)
		if err := r.Stop(); err != nil {
			s.t.Fatal(err)
		}
		admin, client := s.kafkaClients()
		if err := c.does(admin, client, "walpost.state."+s.Name); err != nil {
			s.t.Fatalf("%s: %v", c.name, err)
		}
		s.wantNothingMoved(func() { s.waitUntilHalted(s.StartRelay(), c.says) })
	}
}
