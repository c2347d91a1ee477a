package main

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

// TestGroupTakesOverPipelineByPipeline has two processes with the same two pipelines. One of them streams each
// pipeline, and the other stands by. The first loses the database of one pipeline, and only that pipeline changes to
// the second. Then the first is killed, and the second streams both. No row is missing in either.
func TestGroupTakesOverPipelineByPipeline(t *testing.T) {
	t.Parallel()
	a := newTestbed(t)
	b := newTestbedOn(t, cdctest.Database(t), a.Brokers)
	second := together(t, a, b)
	second.MustRun("init")
	u, err := url.Parse(b.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	cable := cdctest.StartProxy(t, u.Host, nil)
	straight := b.Env["WALPOST_SOURCE_URL"]
	b.Env["WALPOST_SOURCE_URL"] = cable.URL(t, straight)
	first := together(t, a, b)
	b.Env["WALPOST_SOURCE_URL"] = straight

	one := first.SpawnRelay()
	waitForRole(one, a, cdc.Streaming)
	waitForRole(one, b, cdc.Streaming)
	two := second.SpawnRelay()
	waitForRole(two, a, cdc.Standby)
	waitForRole(two, b, cdc.Standby)
	if ready := two.Get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("who stands by is not ready: %s", ready)
	}
	writers := []*cdctest.Writer{cdctest.StartWriter(t, cdctest.WriterConfig{URL: a.AdminURL, Rate: 60}), cdctest.StartWriter(t, cdctest.WriterConfig{URL: b.AdminURL, Rate: 60})}

	cable.Down()
	waitForRole(two, b, cdc.Streaming)
	waitForRole(one, b, cdc.Retrying)
	b.WaitForEvent(b.InsertRow())
	a.WaitForEvent(a.InsertRow())
	if mine, its := roles(one)[a.Name], roles(two)[a.Name]; mine != cdc.Streaming || its != cdc.Standby {
		t.Errorf("pipeline %s, which lost nothing, is %s in the first process and %s in the second", a.Name, mine, its)
	}
	cable.Up()
	waitForRole(one, b, cdc.Standby)

	one.Kill()
	waitForRole(two, a, cdc.Streaming)
	three := first.SpawnRelay()
	waitForRole(three, a, cdc.Standby)
	waitForRole(three, b, cdc.Standby)
	for i, s := range []*testbed{a, b} {
		ledger := writers[i].Stop()
		s.WaitUntilConfirmed(time.Minute)
		cdctest.Collect(t, s.Brokers, s.Topic, ledger, time.Minute)
	}
}
