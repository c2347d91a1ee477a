package main

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// shares returns the partitions of each member of the group.
func (s *service) shares() (shares [][]int32) {
	s.Helper()
	groups, err := kadm.NewClient(s.client).DescribeGroups(s.Context(), s.group)
	if err != nil {
		s.Fatal(err)
	}
	for _, member := range groups[s.group].Members {
		if assigned, ok := member.Assigned.AsConsumer(); ok {
			for _, topic := range assigned.Topics {
				shares = append(shares, topic.Partitions)
			}
		}
	}
	return shares
}

// waitForShares waits until n members share all three partitions and each has at least one.
func (s *service) waitForShares(members int) {
	s.Helper()
	cdctest.Eventually(s, time.Minute, func() error {
		shares := s.shares()
		all := slices.Sorted(slices.Values(slices.Concat(shares...)))
		if len(shares) != members || !slices.Equal(all, []int32{0, 1, 2}) {
			return fmt.Errorf("%d members are to share the three partitions, and it is %v", members, shares)
		}
		return nil
	})
}

// TestScaledByPartitions runs three processes on three partitions, each with one, and kills one under load: the others
// take over its partition, and every event is applied once.
func TestScaledByPartitions(t *testing.T) {
	cdctest.Long(t, "runs several processes")
	t.Parallel()
	s := newService(t)
	if _, err := s.conn.Exec(t.Context(), `INSERT INTO stock VALUES ('tea', 100000)`); err != nil {
		t.Fatal(err)
	}
	env, processes := s.env, make([]*child, 3)
	for i := range processes {
		port, err := devenv.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		s.env = maps.Clone(env)
		s.env["INVENTORY_HTTP"] = fmt.Sprintf("127.0.0.1:%d", port)
		processes[i] = s.start()
	}
	s.waitForShares(3)

	var events int64
	pay := func(n int) {
		for range n {
			s.client.Produce(t.Context(), s.event("OrderPaid", uuid.NewString(), map[string]int{"tea": 1}), nil)
			events++
		}
		if err := s.client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pay(1000)
	s.waitApplied(50)
	if err := processes[0].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = processes[0].Wait()
	pay(300) // to all three partitions
	s.waitForShares(2)
	s.waitApplied(events)
	s.waitForShares(2)
	if owners := s.number(`SELECT count(DISTINCT owner) FROM inbox_partitions`); owners != 2 {
		t.Errorf("the database knows %d owners of the partitions, want 2", owners)
	}
	if available, applied := s.number(`SELECT available FROM stock`), s.number(`SELECT count(*) FROM inbox`); available != 100000-events || applied != events {
		t.Errorf("%d events: %d applied, %d in stock", events, applied, available)
	}
	for _, p := range processes[1:] {
		s.terminate(p)
	}
}
