package pipeline_test

import (
	"context"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/pipeline"
)

// TestLongVerbsSayHowFarTheyAre: a replay and a cleanup report what is done of what there is, up to the end.
func TestLongVerbsSayHowFarTheyAre(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, "it needs PostgreSQL")
	s := newShop(t)
	s.cfg.Window.Rows, s.cfg.Cleanup.Retention = 2, 0
	p, err := pipeline.New(s.cfg, pipeline.Options{})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t.Context(), p)
	s.becomes(p, cdc.Streaming)
	var ids []string
	for range 5 {
		s.writes(&ids)
	}
	var replayed []int64
	if _, err := p.Replay(t.Context(), pipeline.ReplayOptions{
		AdminURL: s.cfg.Source.URL, From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour), DryRun: true,
		Progress: func(r pipeline.Replayed) { replayed = append(replayed, r.Published, r.Rows) },
	}); err != nil || len(replayed) != 8 || replayed[1] != 5 || replayed[2] != 2 || replayed[6] != 5 {
		t.Errorf("the replay says %v, %v", replayed, err)
	}
	var steps []pipeline.Step
	cleaned, err := p.Cleanup(context.WithoutCancel(t.Context()), pipeline.CleanupOptions{Progress: func(s pipeline.Step) { steps = append(steps, s) }})
	if err != nil || cleaned.Rows != 5 || len(steps) != 1 || steps[0].Done != steps[0].Total || steps[0].Total != 1 {
		t.Errorf("the cleanup says %+v, %+v, %v", steps, cleaned, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
