package kafka_test

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/devenv"
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

// TestServicesThatRefuseSettings: what a topic is only better with may be refused; what it needs may not.
func TestServicesThatRefuseSettings(t *testing.T) {
	for name, c := range map[string]struct {
		refuses string
		with    *kerr.Error
		fails   bool
	}{
		"the cleaner's ratio":  {"min.cleanable.dirty.ratio", kerr.PolicyViolation, false},
		"the segment's size":   {"segment.bytes", kerr.InvalidConfig, false},
		"the cleanup's policy": {"cleanup.policy", kerr.PolicyViolation, true},
		"the retention":        {"retention.ms", kerr.InvalidConfig, true},
		"everybody":            {"segment.bytes", kerr.TopicAuthorizationFailed, true},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := fake(t)
			s := newStage(t, cluster.ListenAddrs())
			cluster.ControlKey(int16(kmsg.CreateTopics), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				asked := req.(*kmsg.CreateTopicsRequest).Topics[0]
				if !slices.ContainsFunc(asked.Configs, func(c2 kmsg.CreateTopicsRequestTopicConfig) bool { return c2.Name == c.refuses }) {
					return nil, nil, false
				}
				resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
				answer := kmsg.NewCreateTopicsResponseTopic()
				answer.Topic, answer.ErrorCode = asked.Topic, c.with.Code
				resp.Topics = append(resp.Topics, answer)
				return resp, nil, true
			})
			failed, said := "", ""
			for _, plan := range s.admin.Topics() {
				refused, err := s.admin.Create(t.Context(), plan)
				if err != nil {
					failed = err.Error()
				}
				said += refused
			}
			if c.fails != (failed != "") || c.fails && (!strings.Contains(failed, c.with.Message) || !strings.Contains(failed, "by hand with these settings")) {
				t.Errorf("creating the topics: %q", failed)
			}
			if !c.fails && !strings.Contains(said, c.with.Message) {
				t.Errorf("it is not said that settings were refused: %q", said)
			}
		})
	}
}

// TestAdvertisedListenersThatLeadNowhere: the seed answers, and gives out addresses where nobody is.
func TestAdvertisedListenersThatLeadNowhere(t *testing.T) {
	for name, c := range map[string]struct {
		hosts []string // that are given out; empty is the real one
		says  string
	}{
		"a name that nobody knows":            {[]string{"kafka.invalid"}, "its brokers are at kafka.invalid:9092, and none of these answers: set advertised.listeners"},
		"an address where nobody is":          {[]string{"127.0.0.1"}, "its brokers are at 127.0.0.1:9092"},
		"all of several":                      {[]string{"kafka-1.invalid", "kafka-2.invalid"}, "its brokers are at kafka-1.invalid:9092, kafka-2.invalid:9092"},
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
					b.NodeID, b.Host, b.Port = int32(100+i), host, 9092
					if host == "" {
						h, port, _ := net.SplitHostPort(seed)
						n, _ := net.LookupPort("tcp", port)
						b.NodeID, b.Host, b.Port = 0, h, int32(n)
					}
					resp.Brokers = append(resp.Brokers, b)
				}
				return resp, nil, true
			})
			_, err := kafka.NewSink(s.cfg, nil, kgo.RequestRetries(0)).Peek(t.Context())
			if named := err != nil && strings.Contains(err.Error(), "advertised.listeners"); named != (c.says != "") || c.says != "" && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want an error that says %q", err, c.says)
			}
		})
	}
}
