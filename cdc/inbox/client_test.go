package inbox

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestCallbacksHaveTheClient: the consumer knows its client before that client joins the group. Once it did not, and
// the first assignment of a fast group ended the process.
func TestCallbacksHaveTheClient(t *testing.T) {
	c := &Consumer{cfg: Config{Brokers: []string{"127.0.0.1:1"}, Topic: "topic", Group: "group"}.withDefaults()}
	known := false
	client, err := c.cfg.client(append(c.options(), kgo.WithHooks(newClient(func(client *kgo.Client) { known = c.client == client })))...)
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	if !known {
		t.Error("the client joins its group before the consumer knows it")
	}
}

// TestPollError: an error about the group names no topic, and one about the whole topic no partition.
func TestPollError(t *testing.T) {
	at := func(topic string, partition int32) kgo.Fetches {
		return kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: topic, Partitions: []kgo.FetchPartition{{Partition: partition, Err: errors.New("no")}}}}}}
	}
	for _, c := range []struct {
		fetches kgo.Fetches
		says    string
	}{
		{kgo.NewErrFetch(errors.New("no")), "no"},
		{at("orders", -1), "fetch from orders: no"},
		{at("orders", 0), "fetch from orders, partition 0: no"},
	} {
		if err := pollError(c.fetches); err == nil || err.Error() != c.says {
			t.Errorf("got %v, want %q", err, c.says)
		}
	}
}
