package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/kafka"
)

// fake returns a Kafka whose answers a test may change.
func fake(t *testing.T) *kfake.Cluster {
	t.Helper()
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster.Cluster()
}

// answer makes requests of a kind fail with an error that a service returns.
func answer[R kmsg.Response](cluster *kfake.Cluster, key kmsg.Key, change func(req kmsg.Request, resp R) bool) {
	cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(R)
		return resp, nil, change(req, resp)
	})
}

// lacks makes a Kafka that does not know a request.
func lacks(cluster *kfake.Cluster, key kmsg.Key) {
	answer(cluster, kmsg.ApiVersions, func(_ kmsg.Request, resp *kmsg.ApiVersionsResponse) bool {
		kversion.Stable().EachMaxKeyVersion(func(k, v int16) {
			if k != int16(key) {
				resp.ApiKeys = append(resp.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: k, MaxVersion: v})
			}
		})
		return true
	})
}

// TestServicesThatRefuseTopics: a service may refuse a topic's tuning; it may not refuse what the topic needs, and
// then the error names the key to change.
func TestServicesThatRefuseTopics(t *testing.T) {
	for name, c := range map[string]struct {
		refuses string // the setting in a refused request; empty means each request
		with    *kerr.Error
		says    string // empty if the topics are created nevertheless
	}{
		"the cleaner's ratio":          {"min.cleanable.dirty.ratio", kerr.PolicyViolation, ""},
		"the segment's size":           {"segment.bytes", kerr.InvalidConfig, ""},
		"compaction":                   {"cleanup.policy", kerr.PolicyViolation, "source.kind: polling works without it"},
		"records of that size":         {"max.message.bytes", kerr.InvalidConfig, "lower source.max_row_bytes"},
		"the retention":                {"retention.ms", kerr.InvalidConfig, "set kafka.retention"},
		"too many replicas":            {"", kerr.InvalidReplicationFactor, "set kafka.replication"},
		"too many partitions":          {"retention.ms", kerr.InvalidPartitions, "set kafka.partitions"},
		"everybody":                    {"segment.bytes", kerr.TopicAuthorizationFailed, "grant Create on topic"},
		"everybody, for a cluster's":   {"", kerr.ClusterAuthorizationFailed, "grant Create on topic"},
		"the request, of each version": {"", kerr.UnsupportedVersion, "create it by hand with these settings"},
		"the request":                  {"", nil, "create it by hand with these settings"},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := fake(t)
			s := newStage(t, cluster.ListenAddrs())
			s.cfg.Poison.Policy = config.PolicyDeadLetter
			if c.with == nil {
				lacks(cluster, kmsg.CreateTopics)
			}
			answer(cluster, kmsg.CreateTopics, func(req kmsg.Request, resp *kmsg.CreateTopicsResponse) bool {
				asked := req.(*kmsg.CreateTopicsRequest).Topics[0]
				if c.refuses != "" && !slices.ContainsFunc(asked.Configs, func(has kmsg.CreateTopicsRequestTopicConfig) bool { return has.Name == c.refuses }) {
					return false
				}
				answer := kmsg.NewCreateTopicsResponseTopic()
				answer.Topic, answer.ErrorCode = asked.Topic, c.with.Code
				resp.Topics = append(resp.Topics, answer)
				return true
			})
			admin, err := kafka.NewSink(s.cfg, []string{s.topic}, zerolog.Nop()).Admin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer admin.Close()
			failed, said := "", ""
			for _, plan := range admin.Topics() {
				refused, err := admin.Create(t.Context(), plan)
				if err != nil {
					failed += err.Error() + "\n"
				}
				said += refused
			}
			if (failed == "") != (c.says == "") || !strings.Contains(failed, c.says) || c.with != nil && !strings.Contains(failed+said, c.with.Message) {
				t.Errorf("creating the topics: %q, and said: %q; want %q", failed, said, c.says)
			}
		})
	}
}

// TestKafkaThatHasLess: services support a part of Kafka's protocol. If a missing part is needed, the error names it
// with the way out; otherwise it is not needed.
func TestKafkaThatHasLess(t *testing.T) {
	refuse := func(with *kerr.Error) func(*kfake.Cluster) {
		return func(cluster *kfake.Cluster) {
			answer(cluster, kmsg.InitProducerID, func(_ kmsg.Request, resp *kmsg.InitProducerIDResponse) bool {
				resp.ErrorCode = with.Code
				return true
			})
		}
	}
	missing := func(key kmsg.Key) func(*kfake.Cluster) {
		return func(cluster *kfake.Cluster) { lacks(cluster, key) }
	}
	coordinator := func(with *kerr.Error) func(*kfake.Cluster) {
		return func(cluster *kfake.Cluster) {
			answer(cluster, kmsg.FindCoordinator, func(req kmsg.Request, resp *kmsg.FindCoordinatorResponse) bool {
				resp.ErrorCode = with.Code
				for _, key := range req.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
					resp.Coordinators = append(resp.Coordinators, kmsg.FindCoordinatorResponseCoordinator{Key: key, ErrorCode: with.Code})
				}
				return true
			})
		}
	}
	const (
		noTransactions = "this Kafka has no transactions (InitProducerID with a transactional id): delivery: exactly_once is not possible; nothing is published, and nothing is lost; set delivery: at_least_once"
		noIDs          = "this Kafka gives no producer ids (InitProducerID): a record that is sent again could be stored twice"
	)
	for name, c := range map[string]struct {
		once  bool
		is    func(*kfake.Cluster)
		halts bool
		says  string // empty if it works
	}{
		"settings are not shown":                     {is: missing(kmsg.DescribeConfigs)},
		"settings are not shown, exactly once":       {is: missing(kmsg.DescribeConfigs), once: true},
		"no producer ids":                            {is: missing(kmsg.InitProducerID), halts: true, says: noIDs},
		"producer ids of no version":                 {is: refuse(kerr.UnsupportedVersion), halts: true, says: noIDs},
		"no right to producer ids":                   {is: refuse(kerr.ClusterAuthorizationFailed), says: "grant IdempotentWrite on the cluster"},
		"no transactions, at least once":             {is: coordinator(kerr.InvalidRequest)},
		"no transactions and no producer ids":        {is: missing(kmsg.InitProducerID), once: true, halts: true, says: noTransactions},
		"no transactions, refused as a version":      {is: refuse(kerr.UnsupportedVersion), once: true, halts: true, says: noTransactions},
		"no transactions, refused as a request":      {is: refuse(kerr.InvalidRequest), once: true, halts: true, says: noTransactions},
		"no coordinators of that kind":               {is: coordinator(kerr.InvalidRequest), once: true, halts: true, says: noTransactions},
		"no request for coordinators":                {is: missing(kmsg.FindCoordinator), once: true, halts: true, says: noTransactions},
		"no replicas for the coordinator":            {is: coordinator(kerr.CoordinatorNotAvailable), once: true, says: "transaction.state.log.replication.factor"},
		"a transaction may not take so long":         {is: refuse(kerr.InvalidTransactionTimeout), once: true, says: "lower kafka.transaction_timeout (30s)"},
		"no right to the transactional id":           {is: refuse(kerr.TransactionalIDAuthorizationFailed), once: true, says: "grant Write on transactional id"},
		"batches may not be compressed in that way":  {is: produceError(kerr.UnsupportedCompressionType), says: "does not take kafka.compression: none: set another, or none"},
		"records of more than 1 MB, and unknown why": {is: produceError(kerr.MessageTooLarge), says: "kafka rejects its record for topic"},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := fake(t)
			s := newStage(t, cluster.ListenAddrs()).create(t)
			c.is(cluster)
			if c.once {
				s.cfg.Delivery = config.ExactlyOnce
			}
			sink := kafka.NewSink(s.cfg, []string{s.topic}, zerolog.Nop(), kgo.RequestRetries(1))
			p, err := sink.Open(t.Context())
			if err == nil {
				defer p.Close()
				err = p.Publish(t.Context(), s.records(0, 1), nil)
			}
			if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || errors.As(err, new(*cdc.HaltError)) != c.halts) {
				t.Errorf("got %v, want %q, a halt: %t", err, c.says, c.halts)
			}
		})
	}

	t.Run("what cannot be seen is not said to be right", func(t *testing.T) {
		cluster := fake(t)
		s := newStage(t, cluster.ListenAddrs()).create(t)
		lacks(cluster, kmsg.DescribeConfigs)
		admin, err := kafka.NewSink(s.cfg, []string{s.topic}, zerolog.Nop()).Admin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		_, drift, err := admin.Missing(t.Context(), admin.Topics()[0])
		if said := strings.Join(drift, ", "); err != nil || said != "a cleanup.policy that Kafka does not show to walpost: check that it is compact" {
			t.Errorf("drift %q, %v", said, err)
		}
	})
	t.Run("topics may not be deleted", func(t *testing.T) {
		cluster := fake(t)
		s := newStage(t, cluster.ListenAddrs()).create(t)
		answer(cluster, kmsg.DeleteTopics, func(req kmsg.Request, resp *kmsg.DeleteTopicsResponse) bool {
			topic := kmsg.NewDeleteTopicsResponseTopic()
			topic.Topic, topic.ErrorCode = &s.topic, kerr.TopicDeletionDisabled.Code
			resp.Topics = append(resp.Topics, topic)
			return true
		})
		if err := s.admin.Delete(t.Context(), s.topic); err == nil || !strings.Contains(err.Error(), "delete it by hand") {
			t.Error(err)
		}
	})
}

// TestRequestsThatAServiceTakes: a service that closes the connection at a larger request would close it at each
// attempt.
func TestRequestsThatAServiceTakes(t *testing.T) {
	const takes = 1046528 // Event Hubs, as documented
	largest := 0
	var mu sync.Mutex
	proxy := cdctest.StartKafkaProxy(t, fake(t).ListenAddrs(), func(f cdctest.Frame) cdctest.Verdict {
		mu.Lock()
		defer mu.Unlock()
		if f.API == int16(kmsg.Produce) && !f.FromServer {
			largest = max(largest, len(f.Bytes))
		}
		if len(f.Bytes) > takes {
			return cdctest.Lose
		}
		return cdctest.Pass
	})
	s := newStage(t, proxy.Brokers()).create(t)
	s.cfg.Kafka.MaxRequestBytes = 1_000_000
	p, err := kafka.NewSink(s.cfg, []string{s.topic}, zerolog.Nop()).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	records := s.records(0, 40)
	for i := range records {
		records[i].Value = make([]byte, 100_000)
	}
	ctx, cancel := context.WithTimeout(t.Context(), cdctest.Patience(10*time.Second))
	defer cancel()
	if err := p.Publish(ctx, records, &cdc.State{Version: cdc.StateVersion}); err != nil {
		t.Errorf("a window of 4 MB, with requests of up to %d bytes: %v", largest, err)
	}
	records[0].Value = make([]byte, 1_000_000)
	if err := p.Check(t.Context(), &records[0]); !errors.As(err, new(*cdc.RejectedError)) || !strings.Contains(err.Error(), "kafka.max_request_bytes allows 995904") {
		t.Errorf("a record that no request holds: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if largest > 1_000_000 || largest < 900_000 {
		t.Errorf("the largest request has %d bytes", largest)
	}
}

// produceError makes Kafka reject each batch.
func produceError(with *kerr.Error) func(*kfake.Cluster) {
	return func(cluster *kfake.Cluster) {
		answer(cluster, kmsg.Produce, func(req kmsg.Request, resp *kmsg.ProduceResponse) bool {
			for _, topic := range req.(*kmsg.ProduceRequest).Topics {
				rt := kmsg.NewProduceResponseTopic()
				rt.Topic, rt.TopicID = topic.Topic, topic.TopicID
				for _, part := range topic.Partitions {
					rp := kmsg.NewProduceResponseTopicPartition()
					rp.Partition, rp.ErrorCode = part.Partition, with.Code
					rt.Partitions = append(rt.Partitions, rp)
				}
				resp.Topics = append(resp.Topics, rt)
			}
			return true
		})
	}
}

// TestKafkaThatLetsNobodyIn: a Kafka that answers, but does not accept the login, does not have to be started.
func TestKafkaThatLetsNobodyIn(t *testing.T) {
	locked := func(answers func(*kfake.Cluster)) func(*testing.T) string {
		return func(t *testing.T) string {
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "walpost", "secret"), kfake.Superuser("PLAIN", "walpost", "secret"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cluster.Close)
			if answers != nil {
				answers(cluster)
			}
			return cluster.ListenAddrs()[0]
		}
	}
	wrong := locked(func(cluster *kfake.Cluster) {
		answer(cluster, kmsg.SASLAuthenticate, func(_ kmsg.Request, resp *kmsg.SASLAuthenticateResponse) bool {
			resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
			return true
		})
	})
	other := locked(func(cluster *kfake.Cluster) {
		answer(cluster, kmsg.SASLHandshake, func(_ kmsg.Request, resp *kmsg.SASLHandshakeResponse) bool {
			resp.ErrorCode, resp.SupportedMechanisms = kerr.UnsupportedSaslMechanism.Code, []string{"AWS_MSK_IAM"}
			return true
		})
	})
	encrypted := func(t *testing.T) string {
		server := httptest.NewTLSServer(nil)
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	plain := func(t *testing.T) string {
		server := httptest.NewServer(nil)
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	alert := func(t *testing.T) string { // as Java's TLS answers to what is not TLS
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 512))
				_, _ = conn.Write([]byte{21, 3, 3, 0, 2, 2, 70})
				_ = conn.Close()
			}
		}()
		t.Cleanup(func() { _ = listener.Close(); <-ended })
		return listener.Addr().String()
	}
	const oneSide = "ends the connection: TLS on one side only (kafka.tls is false), or another login than it wants (kafka.sasl.mechanism is %q)"
	for name, c := range map[string]struct {
		kafka     func(*testing.T) string
		mechanism identity.Mechanism
		tls       bool
		says      string // empty if the login is accepted
	}{
		"the right login":                 {kafka: locked(nil), mechanism: identity.ScramSHA256},
		"a wrong password":                {kafka: wrong, mechanism: identity.ScramSHA256, says: `refuses the login of user "walpost": correct kafka.sasl.username and kafka.sasl.password`},
		"a wrong password, plain":         {kafka: wrong, mechanism: identity.Plain, says: `refuses the login of user "walpost"`},
		"a service that wants IAM":        {kafka: other, mechanism: identity.ScramSHA512, says: "does not take the login kafka.sasl.mechanism: scram-sha-512: name one that it takes; it takes aws-msk-iam"},
		"a login that is cut off":         {kafka: locked(nil), mechanism: identity.ScramSHA512, says: fmt.Sprintf(oneSide, identity.ScramSHA512)},
		"no login where one is wanted":    {kafka: locked(nil), says: fmt.Sprintf(oneSide, "")},
		"no TLS where it is wanted":       {kafka: encrypted, says: fmt.Sprintf(oneSide, "")},
		"no TLS, answered by an alert":    {kafka: alert, says: fmt.Sprintf(oneSide, "")},
		"TLS where there is none":         {kafka: plain, tls: true, says: "TLS on one side only (kafka.tls is true)"},
		"a certificate that nobody knows": {kafka: encrypted, tls: true, says: "has a certificate of an authority that this machine does not know"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config.Default()
			cfg.Pipeline, cfg.Kafka.Brokers, cfg.Kafka.TLS = "login", []string{c.kafka(t)}, c.tls
			cfg.Kafka.SASL = identity.SASL{Mechanism: c.mechanism, Username: "walpost", Password: "secret"}
			_, err := kafka.NewSink(cfg, nil, zerolog.Nop(), kgo.RequestRetries(0)).Peek(t.Context())
			if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "start Kafka") || strings.Contains(err.Error(), "secret")) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

// TestAdvertisedListenersThatLeadNowhere: the seed answers, and advertises addresses at which nothing listens.
func TestAdvertisedListenersThatLeadNowhere(t *testing.T) {
	for name, c := range map[string]struct {
		hosts []string // advertised hosts; empty means the real one
		says  string
	}{
		"a name that nobody knows":            {[]string{"kafka.invalid"}, "its brokers are at kafka.invalid:1, and none of these answers: set advertised.listeners"},
		"an address where nobody is":          {[]string{"127.0.0.1"}, "its brokers are at 127.0.0.1:1"},
		"all of several":                      {[]string{"kafka-1.invalid", "kafka-2.invalid"}, "its brokers are at kafka-1.invalid:1, kafka-2.invalid:1"},
		"one of two, which is a broker's own": {[]string{"kafka.invalid", ""}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := fake(t)
			seed := cluster.ListenAddrs()[0]
			s := newStage(t, []string{seed})
			cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				resp := req.ResponseKind().(*kmsg.MetadataResponse)
				for i, host := range c.hosts {
					b := kmsg.NewMetadataResponseBroker()
					b.NodeID, b.Host, b.Port = int32(100+i), host, 1
					if host == "" {
						h, port, _ := net.SplitHostPort(seed)
						n, _ := net.LookupPort("tcp", port)
						b.NodeID, b.Host, b.Port = 0, h, int32(n)
					}
					resp.Brokers = append(resp.Brokers, b)
				}
				return resp, nil, true
			})
			_, err := kafka.NewSink(s.cfg, nil, zerolog.Nop(), kgo.RequestRetries(0)).Peek(t.Context())
			if named := err != nil && strings.Contains(err.Error(), "advertised.listeners"); named != (c.says != "") || c.says != "" && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want an error that says %q", err, c.says)
			}
		})
	}
}
