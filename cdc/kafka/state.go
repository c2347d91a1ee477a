package kafka

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/internal/failpoint"
)

// listEnd is how far to read: to the last stable offset, or to the end, which waits for open transactions to be ended.
type listEnd func(*kadm.Client, context.Context, ...string) (kadm.ListedOffsets, error)

// readState returns the state record that holds; nil when there is no topic or no record.
func (s *Sink) readState(ctx context.Context, end listEnd) (*cdc.State, error) {
	states, _, err := s.readTopic(ctx, end)
	return cdc.NewestState(states), err
}

// Decisions returns what operators decided, oldest first.
func (s *Sink) Decisions(ctx context.Context) ([]cdc.Decision, error) {
	_, decisions, err := s.readTopic(ctx, (*kadm.Client).ListCommittedOffsets)
	return decisions, err
}

// readTopic reads the state topic from its beginning: it is compacted and small.
func (s *Sink) readTopic(ctx context.Context, list listEnd) (states []*cdc.State, decisions []cdc.Decision, err error) {
	name := s.cfg.StateTopic()
	client, err := s.client(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: {0: kgo.NewOffset().AtStart()}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that the last offset is seen, whatever stands there
	)
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	if err := s.ping(ctx, client); err != nil {
		return nil, nil, err
	}
	found, err := describeTopic(ctx, client, name)
	if err != nil || found == nil {
		return nil, nil, err
	}
	if err := checkStateTopic(name, found); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	start, err := edge(ctx, client, name, (*kadm.Client).ListStartOffsets)
	if err != nil {
		return nil, nil, err
	}
	end, err := edge(ctx, client, name, list)
	if err != nil {
		return nil, nil, err
	}
	if err := failpoint.Hit("state_read"); err != nil {
		return nil, nil, err
	}
	for next := start; next < end; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", name, err)
		}
		for _, r := range fetches.Records() {
			next = r.Offset + 1
			if r.Attrs.IsControl() || r.Value == nil {
				continue // the end of a transaction, or an old session's tombstone
			}
			if strings.HasPrefix(string(r.Key), cdc.DecisionPrefix) {
				var d cdc.Decision
				if json.Unmarshal(r.Value, &d) == nil { // they are only told
					decisions = append(decisions, d)
				}
				continue
			}
			st := new(cdc.State)
			if err := json.Unmarshal(r.Value, st); err != nil {
				return nil, nil, &cdc.Halt{
					Found: fmt.Sprintf("the record at offset %d of %s cannot be read: %v", r.Offset, name, err),
					Means: "the delivered position is not certain",
					Run:   "if a newer walpost wrote it, run that one; if somebody else did, stop them, delete the topic (it is the relay's own), and `walpost adopt` goes on from where the slot stands: nothing is lost, some rows may come again",
				}
			}
			states = append(states, st)
		}
	}
	return states, decisions, nil
}

// edge is the first or the last offset of the state topic.
func edge(ctx context.Context, client *kgo.Client, name string, list listEnd) (int64, error) {
	offsets, err := list(kadm.NewClient(client), ctx, name)
	if err != nil {
		return 0, fmt.Errorf("ask for the ends of %s: %w", name, err)
	}
	at, ok := offsets.Lookup(name, 0)
	if !ok || at.Err != nil {
		return 0, fmt.Errorf("ask for the ends of %s: %w", name, at.Err)
	}
	return at.Offset, nil
}

func checkStateTopic(name string, t *topic) error {
	if t.partitions != 1 {
		return &cdc.Halt{Found: fmt.Sprintf("topic %s has %d partitions", name, t.partitions), Means: "the order of state records would be lost", Run: "delete it, and `walpost adopt` makes it anew and goes on from where the slot stands"}
	}
	if policy, known := t.config["cleanup.policy"]; known && policy != "compact" {
		return &cdc.Halt{Found: fmt.Sprintf("topic %s has cleanup.policy=%s", name, policy), Means: "Kafka would delete the delivered position after a while", Run: "set it: kafka-configs.sh --alter --topic " + name + " --add-config cleanup.policy=compact"}
	}
	return nil
}
