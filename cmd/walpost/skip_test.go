package main

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestSkipMovesNoSlotWithoutItsRecord: Kafka refuses the state record, and the slot stays, or nobody would know what
// was skipped.
func TestSkipMovesNoSlotWithoutItsRecord(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	s := newTestbedOn(t, cdctest.Database(t), cluster.Brokers())
	s.MustRun("init")
	r := s.StartRelay()
	s.InsertRows(3)
	s.WaitUntilConfirmed(20 * time.Second)
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.InsertRows(5)
	slot := func() string {
		return s.Query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot())
	}
	end, before := s.Query("SELECT pg_current_wal_flush_lsn()::text"), slot()
	refusal := cluster.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "walpost.state." + s.Name, Err: kerr.TopicAuthorizationFailed, Count: -1})
	s.MustRefuse("write the state record", "skip", "--to", end)
	if now := slot(); now != before {
		t.Errorf("the slot was moved from %s to %s, and no record says so", before, now)
	}
	refusal.Remove()
	s.MustRun("skip", "--to", end)
	if now := slot(); now != end {
		t.Errorf("the slot is at %s, skipped to %s", now, end)
	}
}
