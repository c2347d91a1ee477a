package kafka_test

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
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

// onceStage returns a stage that publishes exactly once.
func onceStage(t *testing.T, brokers []string) *stage {
	t.Helper()
	s := newStage(t, brokers).create(t)
	s.cfg.Delivery = config.ExactlyOnce
	s.sink = kafka.NewSink(s.cfg, []string{s.topic}, zerolog.Nop(), kgo.MetadataMinAge(100*time.Millisecond))
	return s
}

// committed returns the values that a read_committed consumer sees, sorted.
func (s *stage) committed(t *testing.T) []string {
	t.Helper()
	var values []string
	for _, r := range cdctest.ReadAll(t, s.cfg.Kafka.Brokers, s.topic) {
		values = append(values, string(r.Value))
	}
	slices.Sort(values)
	return values
}

func TestRowsAndStateRecordAreOne(t *testing.T) {
	s := onceStage(t, cdctest.Kafka(t))
	p := s.open(t)
	if err := p.Publish(t.Context(), s.records(0, 3), &cdc.State{Version: 1, Covered: 7}); err != nil {
		t.Fatal(err)
	}
	st, err := p.State(t.Context())
	if err != nil || st == nil || st.Covered != 7 {
		t.Fatalf("state %+v, %v", st, err)
	}
	if got := s.committed(t); len(got) != 3 {
		t.Errorf("committed %v", got)
	}
}

// TestWrittenStateCanBeReadByTheNext: the records of a transaction whose end was answered may still be unreadable,
// here because another client has a transaction open before them. A relay that starts when the command has ended must
// not find the record before.
func TestWrittenStateCanBeReadByTheNext(t *testing.T) {
	s := onceStage(t, cdctest.Kafka(t))
	admin, err := s.sink.Admin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	other, err := kgo.NewClient(kgo.SeedBrokers(s.cfg.Kafka.Brokers...), kgo.TransactionalID(s.cfg.Pipeline+".other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := other.ProduceSync(t.Context(), &kgo.Record{Topic: s.cfg.StateTopic(), Key: []byte("other"), Value: []byte("{}")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- admin.WriteState(t.Context(), &cdc.State{Version: 1, Covered: 7}) }()
	for behind := false; !behind; { // the record is in the topic, and cannot be read yet
		select {
		case err := <-written:
			t.Fatalf("the command ended with %v while its record could not be read", err)
		case <-time.After(50 * time.Millisecond):
		}
		offsets, err := kadm.NewClient(other).ListEndOffsets(t.Context(), s.cfg.StateTopic())
		if err != nil {
			t.Fatal(err)
		}
		offset, _ := offsets.Lookup(s.cfg.StateTopic(), 0)
		behind = offset.Offset >= 3 // the other client's record, this one's, and the end of this transaction
	}
	if st, err := s.sink.Peek(t.Context()); err != nil || st != nil {
		t.Fatalf("state %+v, %v", st, err)
	}
	select {
	case err := <-written:
		t.Fatalf("the command ended with %v while its record could not be read", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := other.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if st, err := s.sink.Peek(t.Context()); err != nil || st == nil || st.Covered != 7 {
		t.Errorf("state %+v, %v", st, err)
	}
}

// TestWindowThatFailsInPartIsAborted: the client itself would commit the records that succeeded.
func TestWindowThatFailsInPartIsAborted(t *testing.T) {
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	s := onceStage(t, cluster.Brokers())
	p := s.open(t)
	if err := p.Publish(t.Context(), s.records(0, 10), &cdc.State{Version: 1, Covered: 1}); err != nil {
		t.Fatal(err)
	}
	records := s.records(10, 10)
	records[7].Value = make([]byte, 2<<20) // the client's own limit fails this one promise and no other
	if err := p.Publish(t.Context(), records, &cdc.State{Version: 1, Covered: 2}); err == nil {
		t.Fatal("a window with a failed promise was called durable")
	}
	if got := s.committed(t); len(got) != 10 {
		t.Errorf("%d records are committed, want the 10 of the first window: %v", len(got), got)
	}
	next := s.open(t)
	if st, err := next.State(t.Context()); err != nil || st.Covered != 1 {
		t.Errorf("state %+v, %v", st, err)
	}
}

// TestFrozenRelayIsFenced lets a second client take over while the first is publishing a window.
func TestFrozenRelayIsFenced(t *testing.T) {
	s := onceStage(t, cdctest.Kafka(t))
	zombie := s.open(t)
	if err := zombie.Publish(t.Context(), s.records(0, 1), &cdc.State{Version: 1, Epoch: 1, Covered: 1}); err != nil {
		t.Fatal(err)
	}
	successor := s.open(t)
	if err := zombie.Publish(t.Context(), s.records(1, 1), &cdc.State{Version: 1, Epoch: 1, Covered: 2}); err == nil {
		t.Error("the fenced relay published")
	}
	if st, err := successor.State(t.Context()); err != nil || st.Covered != 1 {
		t.Errorf("state %+v, %v", st, err)
	}
	if err := successor.Publish(t.Context(), s.records(2, 1), &cdc.State{Version: 1, Epoch: 2, Covered: 2}); err != nil {
		t.Error(err)
	}
	if got := strings.Join(s.committed(t), " "); got != "0 2" {
		t.Errorf("committed: %s", got)
	}
}

// TestOpenTransactionOfADeadRelayIsEnded: a relay that takes over does not wait for the broker's timeout, and the
// early look does not wait at all.
func TestOpenTransactionOfADeadRelayIsEnded(t *testing.T) {
	s := onceStage(t, cdctest.Kafka(t))
	first := s.open(t)
	if err := first.Publish(t.Context(), s.records(0, 1), &cdc.State{Version: 1, Epoch: 1, Covered: 1}); err != nil {
		t.Fatal(err)
	}
	dead, err := kgo.NewClient(kgo.SeedBrokers(s.cfg.Kafka.Brokers...), kgo.TransactionalID(s.cfg.TransactionalID()))
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	if err := dead.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{s.topic, s.cfg.StateTopic()} {
		if err := dead.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte("9/dead"), Value: []byte(`{"version":1,"epoch":9,"covered":"0/9","commit_lsn":"0/9"}`)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if st, err := s.sink.Peek(t.Context()); err != nil || st.Covered != 1 {
		t.Errorf("the early look: %+v, %v", st, err)
	}
	successor := s.open(t)
	if st, err := successor.State(t.Context()); err != nil || st.Covered != 1 {
		t.Errorf("state %+v, %v", st, err)
	}
	if took := time.Since(began); took > cdctest.Patience(5*time.Second) {
		t.Errorf("taking over took %s", took)
	}
	if got := s.committed(t); len(got) != 1 {
		t.Errorf("committed %v", got)
	}
}

// TestEndWhoseAnswerIsLostEndsTheSession: applied or not, Publish must neither report the window as durable nor try
// again.
func TestEndWhoseAnswerIsLostEndsTheSession(t *testing.T) {
	for name, answer := range map[string]func(*kmsg.EndTxnResponse) error{
		"an unknown error": func(r *kmsg.EndTxnResponse) error {
			r.ErrorCode = kerr.UnknownServerError.Code
			return nil
		},
		"a coordinator that is not there yet": func(r *kmsg.EndTxnResponse) error {
			r.ErrorCode = kerr.CoordinatorLoadInProgress.Code
			return nil
		},
		"the connection is cut": func(*kmsg.EndTxnResponse) error { return errors.New("cut") },
	} {
		t.Run(name, func(t *testing.T) {
			cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cluster.Close)
			s := onceStage(t, cluster.Brokers())
			p := s.open(t)
			if err := p.Publish(t.Context(), s.records(0, 1), &cdc.State{Version: 1, Covered: 1}); err != nil {
				t.Fatal(err)
			}
			var ends atomic.Int64
			cluster.Cluster().ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.Cluster().KeepControl()
				ends.Add(1)
				resp := req.ResponseKind().(*kmsg.EndTxnResponse)
				if err := answer(resp); err != nil {
					return nil, err, true
				}
				return resp, nil, true
			})
			if err := p.Publish(t.Context(), s.records(1, 1), &cdc.State{Version: 1, Covered: 2}); err == nil {
				t.Error("the end of the transaction was not confirmed, and the window was called durable")
			}
			if n := ends.Load(); n != 1 {
				t.Errorf("the transaction was ended %d times", n)
			}
		})
	}
}

// TestRefusedTransactionalIDSaysWhatToDo: each cause has another advice.
func TestRefusedTransactionalIDSaysWhatToDo(t *testing.T) {
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	s := onceStage(t, cluster.Brokers())
	for err, says := range map[*kerr.Error]string{
		kerr.TransactionalIDAuthorizationFailed: "grant Write on transactional id",
		kerr.InvalidTransactionTimeout:          "kafka.transaction_timeout",
		kerr.UnknownServerError:                 "run Kafka 4.0.1 or later",
	} {
		cluster.Cluster().ControlKey(int16(kmsg.InitProducerID), func(req kmsg.Request) (kmsg.Response, error, bool) {
			resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
			resp.ErrorCode = err.Code
			return resp, nil, true
		})
		_, got := s.sink.Open(t.Context())
		if got == nil || !errors.Is(got, err) || !strings.Contains(got.Error(), says) {
			t.Errorf("%s: %v, want it to say %q", err.Message, got, says)
		}
	}
}
