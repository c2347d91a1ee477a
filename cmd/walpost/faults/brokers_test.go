//go:build brokers

package faults

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
)

func init() {
	for i := range faults {
		if f := brokerFaults[faults[i].number]; f != nil {
			faults[i].run = f
		}
	}
	newCluster = startCluster
}

var brokerFaults = map[int]func(*trial){43: leaderKilled, 44: brokerPaused, 45: notInSync, 46: brokerDiskFull}

// realBroker is one of three real brokers.
type realBroker struct{ addr, pidFile, data string }

func (b *realBroker) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile(b.pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("%s to a broker: %v", sig, err)
	}
}

// realCluster is three real brokers, which one fault at a time uses.
type realCluster struct {
	mu      sync.Mutex
	brokers []realBroker
}

// startCluster returns a function that starts the cluster at its first call.
func startCluster(t *testing.T) func() any {
	return sync.OnceValue(func() any {
		cmd := exec.Command("../../../.ci/kafka/start", "3")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			panic(err)
		}
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		})
		c := &realCluster{}
		for lines := bufio.NewScanner(out); len(c.brokers) < 3 && lines.Scan(); {
			f := strings.Fields(lines.Text())
			c.brokers = append(c.brokers, realBroker{f[0], f[1], f[2]})
		}
		if len(c.brokers) < 3 {
			panic("three brokers did not start")
		}
		return c
	})
}

// prepareOnThreeBrokers prepares a trial on three brokers, with three replicas of everything, and a relay that has
// delivered something.
func (s *trial) prepareOnThreeBrokers() *realCluster {
	s.t.Helper()
	c := s.cluster().(*realCluster)
	c.mu.Lock()
	s.t.Cleanup(c.mu.Unlock)
	var addrs []string
	for _, b := range c.brokers {
		addrs = append(addrs, b.addr)
	}
	cdctest.Eventually(s.t, time.Minute, func() error { // the fault before this one is over
		client, err := kgo.NewClient(kgo.SeedBrokers(addrs...))
		if err != nil {
			return err
		}
		defer client.Close()
		resp, err := kmsg.NewPtrMetadataRequest().RequestWith(s.t.Context(), client)
		if err != nil {
			return err
		}
		for _, topic := range resp.Topics {
			for _, p := range topic.Partitions {
				if len(p.ISR) < 3 {
					return fmt.Errorf("%s has %d replicas in sync", *topic.Topic, len(p.ISR))
				}
			}
		}
		if len(resp.Brokers) < 3 {
			return fmt.Errorf("%d brokers", len(resp.Brokers))
		}
		return nil
	})
	s.prepare(setup{brokers: addrs, env: map[string]string{"WALPOST_KAFKA_REPLICATION": "3"}})
	s.startStreaming()
	s.waitUntilDelivered()
	return c
}

// leader returns the broker that leads the topic's first partition.
func (c *realCluster) leader(s *trial) *realBroker {
	s.t.Helper()
	admin, _ := s.kafkaClients()
	meta, err := admin.Metadata(s.t.Context(), s.Topic)
	if err != nil {
		s.t.Fatal(err)
	}
	id := meta.Topics[s.Topic].Partitions[0].Leader
	for _, b := range meta.Brokers {
		for i := range c.brokers {
			if b.NodeID == id && c.brokers[i].addr == fmt.Sprintf("%s:%d", b.Host, b.Port) {
				return &c.brokers[i]
			}
		}
	}
	s.t.Fatalf("no broker leads partition 0: %+v", meta.Topics)
	return nil
}

// leaderKilled runs fault 43.
func leaderKilled(s *trial) {
	c := s.prepareOnThreeBrokers()
	for range 2 {
		c.leader(s).signal(s.t, syscall.SIGKILL)
		s.endFault()
		s.waitForCommits(100)
		s.WaitUntilConfirmed(time.Minute)
		time.Sleep(6 * time.Second) // it comes back, and gets its partitions again
	}
	s.wantNoDuplicates(s.finish())
}

// brokerPaused runs fault 44.
func brokerPaused(s *trial) {
	c := s.prepareOnThreeBrokers()
	s.whileFrozen(c.leader(s), func() {
		time.Sleep(8 * time.Second) // longer than its session
		s.waitForCommits(100)
	})
	s.endFault()
	s.wantNoDuplicates(s.finish())
}

// whileFrozen calls f while a broker is frozen, and thaws the broker even if f fails.
func (s *trial) whileFrozen(b *realBroker, f func()) {
	s.t.Helper()
	b.signal(s.t, syscall.SIGSTOP)
	defer b.signal(s.t, syscall.SIGCONT)
	f()
}

// notInSync runs fault 45: three replicas must be in sync, and one is paused.
func notInSync(s *trial) {
	c := s.prepareOnThreeBrokers()
	admin, _ := s.kafkaClients()
	want := "3"
	resp, err := admin.AlterTopicConfigs(s.t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "min.insync.replicas", Value: &want}}, s.Topic)
	if err != nil || resp[0].Err != nil {
		s.t.Fatal(err, resp)
	}
	lead := c.leader(s)
	for i := range c.brokers {
		if b := &c.brokers[i]; b != lead {
			s.whileFrozen(b, func() {
				time.Sleep(8 * time.Second)
				s.waitForCommits(100)
				end := s.Query("SELECT pg_current_wal_lsn()::text")
				time.Sleep(2 * time.Second)
				if s.Query("SELECT (confirmed_flush_lsn >= $1::text::pg_lsn)::text FROM pg_replication_slots WHERE slot_name = $2", end, s.Slot()) == "true" {
					s.t.Error("rows were confirmed with too few replicas in sync")
				}
			})
			break
		}
	}
	s.endFault()
	s.wantNoDuplicates(s.finish())
}

// brokerDiskFull runs fault 46.
func brokerDiskFull(s *trial) {
	c := s.prepareOnThreeBrokers()
	b := &c.brokers[2]
	var disk syscall.Statfs_t
	if err := syscall.Statfs(b.data, &disk); err != nil {
		s.t.Fatal(err)
	}
	if disk.Blocks*uint64(disk.Bsize) > 1<<30 {
		s.reportNotRun("mounting a small file system takes root")
		return
	}
	filler := filepath.Join(b.data, "filler")
	out, _ := exec.Command("dd", "if=/dev/zero", "of="+filler, "bs=64k").CombinedOutput()
	if !strings.Contains(string(out), "No space left") {
		s.t.Fatalf("the disk did not become full: %s", out)
	}
	s.waitForCommits(1000)
	time.Sleep(6 * time.Second)
	if err := os.Remove(filler); err != nil {
		s.t.Fatal(err)
	}
	s.endFault()
	s.wantNoDuplicates(s.finish())
}
