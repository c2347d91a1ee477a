package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/internal/failpoint"
)

// stateLog is the content of the state topic: the records of all sessions that were not tombstoned, and the
// operators' decisions, oldest first.
type stateLog struct {
	states    []*cdc.State
	decisions []cdc.Decision
	whole     bool // it was read from its beginning
}

// Decisions returns the operators' decisions, oldest first.
func (s *Sink) Decisions(ctx context.Context) ([]cdc.Decision, error) {
	log, err := s.readLog(ctx, true, math.MaxInt64)
	return log.decisions, err
}

// stateTail is how many offsets at the end of the state topic a session reads. The valid record is among the last
// ones: in exactly-once no former session can write after it, and in at-least-once a former session that has lost the
// slot writes at most a few more. The topic itself can be large: if the service does not allow its tuning, the
// markers of transactions stay a day, and if no cleaner runs they stay.
const stateTail = 2000

// readState returns the end of the state topic: if stable, up to its first open transaction, else up to its end,
// which waits until the open transactions have ended. If there is no topic it returns nothing.
func (s *Sink) readState(ctx context.Context, stable bool) (stateLog, error) {
	log, err := s.readLog(ctx, stable, stateTail)
	if err == nil && len(log.states) == 0 && !log.whole {
		return s.readLog(ctx, stable, math.MaxInt64)
	}
	return log, err
}

// readLog reads at most the last most offsets of the state topic.
func (s *Sink) readLog(ctx context.Context, stable bool, most int64) (log stateLog, err error) {
	name := s.cfg.StateTopic()
	r, err := s.reader(name, 0)
	if err != nil {
		return log, err
	}
	defer r.close()
	if _, err := s.ping(ctx, r.client); err != nil {
		return log, err
	}
	found, err := s.describeTopic(ctx, r.client, name, "Read", "Write")
	if err != nil || found == nil {
		return log, err
	}
	if err := checkStateTopic(name, found); err != nil {
		return log, err
	}
	end, err := r.end(ctx, stable)
	if err != nil {
		return log, err
	}
	if err := failpoint.Hit("state_read"); err != nil {
		return log, err
	}
	from := max(0, end-most)
	log.whole = from == 0
	r.begin(from)
	var unreadable error
	err = r.readTo(ctx, end, func(r *kgo.Record) {
		if unreadable == nil {
			unreadable = log.add(r, found.cluster)
		}
	})
	return log, errors.Join(unreadable, err)
}

// add adds a record that was read from a cluster.
func (l *stateLog) add(r *kgo.Record, cluster string) error {
	key := string(r.Key)
	switch {
	case r.Value == nil: // an old session's tombstone
		l.states = slices.DeleteFunc(l.states, func(st *cdc.State) bool { return st.Key() == key })
		return nil
	case strings.HasPrefix(key, cdc.DecisionPrefix):
		var d cdc.Decision
		if json.Unmarshal(r.Value, &d) == nil { // decisions are only shown
			l.decisions = append(l.decisions, d)
		}
		return nil
	}
	st := new(cdc.State)
	if err := json.Unmarshal(r.Value, st); err != nil {
		return &cdc.HaltError{
			Found: fmt.Sprintf("the record at offset %d of %s cannot be read: %v", r.Offset, r.Topic, err),
			Means: "the delivered position is not certain",
			Run:   "if a newer walpost wrote it, run that version; if another program did, stop it and delete the topic (only the relay uses it); then `walpost adopt` continues from the slot's position: nothing is lost, some rows may come again",
		}
	}
	st.ReadFrom = cluster
	if r.Attrs.TimestampType() == 1 {
		st.Appended = r.Timestamp
	}
	l.states = append(l.states, st)
	return nil
}

// newest returns the valid state record; nil if there is none.
func (l *stateLog) newest() *cdc.State { return cdc.NewestState(l.states) }

const maxStale = 100 // tombstones in one window

// stale returns the keys of sessions before the newest one. They are not needed any more, and each session leaves
// one.
func (l *stateLog) stale() (keys []string) {
	newest := l.newest()
	for _, st := range l.states {
		if st.Epoch < newest.Epoch {
			keys = append(keys, st.Key())
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	return keys[:min(len(keys), maxStale)]
}

func checkStateTopic(name string, t *topic) error {
	if t.partitions != 1 {
		return &cdc.HaltError{Found: fmt.Sprintf("topic %s has %d partitions", name, t.partitions), Means: "the order of state records would be lost", Run: "delete it, then `walpost adopt` creates it again and continues from the slot's position"}
	}
	if policy, known := t.config["cleanup.policy"]; known && policy != "compact" {
		return &cdc.HaltError{Found: fmt.Sprintf("topic %s has cleanup.policy=%s", name, policy), Means: "Kafka would delete the delivered position after a while", Run: "set it: kafka-configs.sh --alter --topic " + name + " --add-config cleanup.policy=compact"}
	}
	return nil
}
