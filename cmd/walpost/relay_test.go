package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/pipeline"
)

// TestRowsTravelFromInitToTopic is the whole way, as README tells it.
func TestRowsTravelFromInitToTopic(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.MustRun("init")
	r := s.StartRelay()
	r.WaitForLog(30*time.Second, `"wire":"tcp, round trip `)
	if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("a streaming relay is not ready: %s", ready)
	}
	s.InsertRows(10)
	records := cdctest.Consume(t, s.Brokers, s.Topic, 30*time.Second, cdctest.AtLeast(10))
	for _, r := range records {
		for _, h := range []string{"id", "type", "lsn", "seq", "source", "created_at"} {
			if e2e.Header(r, h) == "" {
				t.Errorf("record %s has no header %s", r.Key, h)
			}
		}
	}
	s.WaitUntilConfirmed(30 * time.Second)
	if metrics := r.Get(t, "/metrics"); !strings.Contains(metrics, `walpost_rows_published_total{pipeline="`+s.Name+`"} 10`) {
		t.Errorf("metrics do not count 10 rows:\n%s", metrics)
	}
	var running pipeline.Status
	if err := json.Unmarshal([]byte(s.Status("--json")), &running); err != nil {
		t.Fatal(err)
	}
	if !running.Slot.Active || len(running.Blocked) > 0 || running.State == nil {
		t.Errorf("status of a running relay: %+v", running)
	}
	if err := r.Stop(); err != nil {
		t.Fatalf("asked to stop, the relay ended with %v", err)
	}
	s.InsertRows(1000)
	if status := s.Status(); !strings.Contains(status, "not active") || !strings.Contains(status, "start `walpost relay`") || strings.Contains(status, "lag        0 B") {
		t.Errorf("status of a stopped relay with rows behind it:\n%s", status)
	}
}
