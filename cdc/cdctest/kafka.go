package cdctest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/devenv"
)

// Kafka returns the addresses of the brokers to test with: the brokers of WALPOST_TEST_KAFKA (host:port,
// comma-separated), or an in-process cluster of this test alone. Topics are not created automatically.
func Kafka(t testing.TB) []string {
	t.Helper()
	if addrs := os.Getenv("WALPOST_TEST_KAFKA"); addrs != "" {
		return strings.Split(addrs, ",")
	}
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster.Brokers()
}

// CreateTopic creates a topic and returns when every partition has a leader. On a shared broker the topic is deleted at
// the end of the test.
func CreateTopic(t testing.TB, brokers []string, topic string, partitions int) {
	t.Helper()
	client := newClient(t, brokers)
	ctx, cancel := context.WithTimeout(t.Context(), Patience(30*time.Second))
	defer cancel()
	if _, err := kadm.NewClient(client).CreateTopic(ctx, int32(partitions), 1, nil, topic); err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
	Eventually(t, 30*time.Second, func() error { return hasLeaders(ctx, client, topic, partitions) })
	if os.Getenv("WALPOST_TEST_KAFKA") != "" {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if _, err := kadm.NewClient(client).DeleteTopic(ctx, topic); err != nil {
				t.Logf("delete topic %s: %v", topic, err)
			}
		})
	}
}

// hasLeaders asks the broker directly: kadm may answer from its cache.
func hasLeaders(ctx context.Context, client *kgo.Client, topic string, partitions int) error {
	req := kmsg.NewPtrMetadataRequest()
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	found := resp.Topics[0]
	if err := kerr.ErrorForCode(found.ErrorCode); err != nil {
		return fmt.Errorf("topic %s: %w", topic, err)
	}
	if len(found.Partitions) != partitions {
		return fmt.Errorf("topic %s has %d partitions, want %d", topic, len(found.Partitions), partitions)
	}
	for _, p := range found.Partitions {
		if p.Leader < 0 {
			return fmt.Errorf("topic %s: partition %d has no leader", topic, p.Partition)
		}
	}
	return nil
}

// Consume reads a topic from its start, committed records only, until done returns true for the records read so far. It
// fails the test if that takes longer than Patience(within).
func Consume(t testing.TB, brokers []string, topic string, within time.Duration, done func([]*kgo.Record) bool) []*kgo.Record {
	t.Helper()
	within = Patience(within)
	records, ok := consume(t, brokers, topic, within, done)
	if !ok {
		t.Fatalf("topic %s: %d records within %v do not meet the condition", topic, len(records), within)
	}
	return records
}

func consume(t testing.TB, brokers []string, topic string, within time.Duration, done func([]*kgo.Record) bool) (records []*kgo.Record, ok bool) {
	t.Helper()
	client := newClient(t, brokers, consumeAll(topic)...)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for !done(records) {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return records, false
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				records = append(records, r)
			}
		})
	}
	return records, true
}

// AtLeast returns a condition for Consume: at least n records.
func AtLeast(n int) func([]*kgo.Record) bool {
	return func(records []*kgo.Record) bool { return len(records) >= n }
}

// ReadAll reads a topic from its start to its current end, committed records only.
func ReadAll(t testing.TB, brokers []string, topic string, opts ...kgo.Opt) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience(time.Minute))
	defer cancel()
	client := newClient(t, brokers, append(consumeAll(topic), opts...)...)
	defer client.Close()
	ends, err := kadm.NewClient(client).ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		t.Fatalf("find the end of topic %s: %v", topic, err)
	}
	starts, err := kadm.NewClient(client).ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		t.Fatalf("find the start of topic %s: %v", topic, err)
	}
	open := map[int32]int64{} // the end of each partition that is not read to its end
	ends.Each(func(end kadm.ListedOffset) {
		if start, _ := starts.Lookup(topic, end.Partition); start.Offset < end.Offset {
			open[end.Partition] = end.Offset
		}
	})
	var records []*kgo.Record
	for len(open) > 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("topic %s: not read to its end within a minute; left: %v", topic, open)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, unfinished := open[r.Partition]
			if !unfinished {
				return
			}
			if !r.Attrs.IsControl() && r.Offset < end {
				records = append(records, r)
			}
			if r.Offset >= end-1 {
				delete(open, r.Partition)
			}
		})
	}
	return records
}

// consumeAll returns options that keep control records. Without them a reader never sees the end of a partition whose
// last record is a transaction marker.
func consumeAll(topic string) []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.FetchMaxWait(100 * time.Millisecond),
	}
}

// newClient returns a client that is closed at the end of the test at the latest.
func newClient(t testing.TB, brokers []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(brokers...),
		kgo.MetadataMinAge(100 * time.Millisecond),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// Evict removes all members from the group, as the broker does with a member whose session timeout has passed.
func Evict(t testing.TB, client *kgo.Client, group string) {
	t.Helper()
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = []string{group}
	described, err := describe.RequestWith(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group = group
	for _, member := range described.Groups[0].Members {
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = member.MemberID
		leave.Members = append(leave.Members, m)
	}
	if _, err := leave.RequestWith(t.Context(), client); err != nil {
		t.Fatal(err)
	}
}
