package main

import (
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

func TestRowsTravelFromInitToTopic(t *testing.T) {
	s := newStage(t)
	t.Log(s.must("init"))
	r := s.start()
	r.says(10*time.Second, `"streaming"`)
	s.insert(10)
	records := cdctest.Consume(t, s.brokers, s.topic, 10*time.Second, cdctest.AtLeast(10))
	t.Logf("%s %s %v", records[0].Key, records[0].Value, records[0].Headers)
	s.confirmed(10 * time.Second)
	if err := r.stop(); err != nil {
		t.Fatalf("asked to stop, the relay ended with %v", err)
	}
	t.Log(s.must("status"))
	t.Log(r.log)
}
