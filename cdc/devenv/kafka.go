package devenv

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// KafkaConfig describes an in-process Kafka. The zero value is one broker, in memory, on a free port.
type KafkaConfig struct {
	// Partitions is the default number of partitions of a topic; 0 means 3.
	Partitions int
	// Brokers is the number of brokers; 0 means one, or one per port.
	Brokers int
	// Ports fixes the brokers' ports, so that a restarted cluster has the same ones. Empty means free ports.
	Ports []int
	// DataDir keeps topics and groups over a clean restart. Empty keeps them in memory.
	DataDir string
	// SeedTopics are created at the start, each with this number of partitions.
	SeedTopics map[string]int
	// ClusterID is the cluster's id; empty means kfake's default, which all its clusters share.
	ClusterID string
	// AutoCreateTopics creates a topic when a client first asks for it.
	AutoCreateTopics bool
}

// Kafka is a running in-process cluster that speaks Kafka's protocol on 127.0.0.1. It does not replicate.
type Kafka struct {
	cluster *kfake.Cluster
	brokers []string // read once, because a closed cluster never answers
}

// StartKafka starts a cluster; it takes less than a millisecond.
func StartKafka(cfg KafkaConfig) (*Kafka, error) {
	if cfg.Partitions == 0 {
		cfg.Partitions = 3
	}
	if cfg.Brokers == 0 {
		cfg.Brokers = max(1, len(cfg.Ports))
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(cfg.Brokers),
		kfake.DefaultNumPartitions(cfg.Partitions),
		kfake.GroupMinSessionTimeout(100 * time.Millisecond), // a test that kills a consumer need not wait 6 s
	}
	if len(cfg.Ports) > 0 {
		opts = append(opts, kfake.Ports(cfg.Ports...))
	}
	if cfg.DataDir != "" {
		opts = append(opts, kfake.DataDir(cfg.DataDir))
	}
	if cfg.ClusterID != "" {
		opts = append(opts, kfake.ClusterID(cfg.ClusterID))
	}
	if cfg.AutoCreateTopics {
		opts = append(opts, kfake.AllowAutoTopicCreation())
	}
	for topic, partitions := range cfg.SeedTopics {
		opts = append(opts, kfake.SeedTopics(int32(partitions), topic))
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, fmt.Errorf("start in-process Kafka: %w", err)
	}
	return &Kafka{cluster, cluster.ListenAddrs()}, nil
}

// Brokers returns the addresses for a client.
func (k *Kafka) Brokers() []string { return k.brokers }

// Cluster returns the library's handle, for faults: moved leaders, failing requests, lost brokers.
func (k *Kafka) Cluster() *kfake.Cluster { return k.cluster }

// Close ends the cluster. Data that it held in memory is lost.
func (k *Kafka) Close() { k.cluster.Close() }
