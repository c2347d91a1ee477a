//go:build debezium

package connect

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/walpost/walpost/cdc/cdctest"
)

// Kafka returns the brokers of WALPOST_TEST_KAFKA, or starts a real Apache Kafka that ends with the test. It creates topics,
// of three partitions, for those who produce to them.
func Kafka(t testing.TB) []string {
	t.Helper()
	if addrs := os.Getenv("WALPOST_TEST_KAFKA"); addrs != "" {
		return strings.Split(addrs, ",")
	}
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "../../../.ci/kafka/start"))
	cmd.Env = append(os.Environ(), "KAFKA_CREATES_TOPICS=true")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ended, err := start(cmd, syscall.SIGTERM)
	if err != nil {
		t.Fatalf("start Kafka: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // the script ends the broker
		<-ended
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("Kafka did not start: look at the lines above: %v", err)
	}
	brokers := strings.Fields(line)
	cdctest.Eventually(t, time.Minute, func() error {
		client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
		if err != nil {
			return err
		}
		defer client.Close()
		return client.Ping(t.Context())
	})
	return brokers
}

// FakeKafka returns the broker of a Kafka in the process that Connect can use, and that creates topics with three
// partitions for those who produce to them.
func FakeKafka(t testing.TB) []string {
	t.Helper()
	// In its newer answers to these requests kfake says null where a Java client expects a list.
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.CreateTopics), 4)
	versions.SetMaxKeyVersion(int16(kmsg.DescribeTopicPartitions), -1)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(3), kfake.AllowAutoTopicCreation(), kfake.MaxVersions(versions))
	if err != nil {
		t.Fatalf("start a Kafka in the process: %v", err)
	}
	t.Cleanup(cluster.Close)
	return cluster.ListenAddrs()
}
