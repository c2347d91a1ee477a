package main

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

// TestGroupTakesOverPipelineByPipeline has two processes with the same two pipelines. Each pipeline is streamed by one of them and
// stood by for by the other. The first loses the database of one pipeline and that one alone changes hands; then it is killed, and the
// second has both. Nothing is missing in either.
func TestGroupTakesOverPipelineByPipeline(t *testing.T) {
	t.Parallel()
	a := newStage(t)
	b := stageOn(t, cdctest.Database(t), a.brokers)
	second := together(t, a, b)
	second.must("init")
	u, err := url.Parse(b.admin)
	if err != nil {
		t.Fatal(err)
	}
	cable := cdctest.StartProxy(t, u.Host, nil)
	straight := b.env["WALPOST_SOURCE_URL"]
	b.env["WALPOST_SOURCE_URL"] = cable.URL(t, straight)
	first := together(t, a, b)
	b.env["WALPOST_SOURCE_URL"] = straight

	one := first.spawn()
	one.becomes(a, cdc.Streaming)
	one.becomes(b, cdc.Streaming)
	two := second.spawn()
	two.becomes(a, cdc.Standby)
	two.becomes(b, cdc.Standby)
	if ready := two.get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("who stands by is not ready: %s", ready)
	}
	writers := []*cdctest.Writer{cdctest.StartWriter(t, cdctest.WriterConfig{URL: a.admin, Rate: 60}), cdctest.StartWriter(t, cdctest.WriterConfig{URL: b.admin, Rate: 60})}

	cable.Down()
	two.becomes(b, cdc.Streaming)
	one.becomes(b, cdc.Retrying)
	b.arrives(b.one())
	a.arrives(a.one())
	if mine, its := one.roles()[a.pipeline], two.roles()[a.pipeline]; mine != cdc.Streaming || its != cdc.Standby {
		t.Errorf("pipeline %s, which lost nothing, is %s in the first process and %s in the second", a.pipeline, mine, its)
	}
	cable.Up()
	one.becomes(b, cdc.Standby)

	one.kill()
	two.becomes(a, cdc.Streaming)
	three := first.spawn()
	three.becomes(a, cdc.Standby)
	three.becomes(b, cdc.Standby)
	for i, s := range []*stage{a, b} {
		ledger := writers[i].Stop()
		s.confirmed(time.Minute)
		cdctest.Collect(t, s.brokers, s.topic, ledger, time.Minute)
	}
}
