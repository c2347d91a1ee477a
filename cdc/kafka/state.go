package kafka

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/internal/failpoint"
)

// listEnd is how far to read: to the last stable offset, or to the end, which waits for open transactions to be ended.
type listEnd func(*kadm.Client, context.Context, ...string) (kadm.ListedOffsets, error)

// readState reads the state topic from its beginning (it is compacted and small) and returns the record that holds; nil
// when there is no topic or no record.
func (s *Sink) readState(ctx context.Context, list listEnd) (*cdc.State, error) {
	name := s.cfg.StateTopic()
	client, err := s.client(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: {0: kgo.NewOffset().AtStart()}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that the last offset is seen, whatever stands there
	)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if err := s.ping(ctx, client); err != nil {
		return nil, err
	}
	found, err := describeTopic(ctx, client, name)
	if err != nil || found == nil {
		return nil, err
	}
	if err := checkStateTopic(name, found); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	offsets, err := list(kadm.NewClient(client), ctx, name)
	if err != nil {
		return nil, fmt.Errorf("ask for the end of %s: %w", name, err)
	}
	end, ok := offsets.Lookup(name, 0)
	if !ok || end.Err != nil {
		return nil, fmt.Errorf("ask for the end of %s: %w", name, end.Err)
	}
	if err := failpoint.Hit("state_read"); err != nil {
		return nil, err
	}
	var states []*cdc.State
	for next := int64(0); next < end.Offset; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		for _, r := range fetches.Records() {
			next = r.Offset + 1
			if r.Attrs.IsControl() || r.Value == nil {
				continue // the end of a transaction, or an old session's tombstone
			}
			st := new(cdc.State)
			if err := json.Unmarshal(r.Value, st); err != nil {
				return nil, &cdc.Halt{
					Found: fmt.Sprintf("the record at offset %d of %s cannot be read: %v", r.Offset, name, err),
					Means: "the delivered position is not certain",
					Run:   "find out who writes to this topic; it is the relay's own",
				}
			}
			states = append(states, st)
		}
	}
	return cdc.NewestState(states), nil
}

func checkStateTopic(name string, t *topic) error {
	if t.partitions != 1 {
		return &cdc.Halt{Found: fmt.Sprintf("topic %s has %d partitions", name, t.partitions), Means: "the order of state records would be lost", Run: "delete it, then `walpost init --remove` and `walpost init` begin anew"}
	}
	if policy, known := t.config["cleanup.policy"]; known && policy != "compact" {
		return &cdc.Halt{Found: fmt.Sprintf("topic %s has cleanup.policy=%s", name, policy), Means: "Kafka would delete the delivered position after a while", Run: "set it: kafka-configs.sh --alter --topic " + name + " --add-config cleanup.policy=compact"}
	}
	return nil
}
