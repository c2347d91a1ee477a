package inbox

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestCallbacksHaveTheClient: the consumer knows its client before that joins the group. It did not, and the first assignment of a group that
// was fast ended the process.
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
