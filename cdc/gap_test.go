package cdc

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestGapsEndWithCompleteReplays: a gap stays until replays that were complete cover its time, together.
func TestGapsEndWithCompleteReplays(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 11, 22, 10, minute, 0, 0, time.UTC) }
	adopt := Decision{Command: "adopt", From: "0/10", To: "0/20", Missing: &Missing{From: at(10), To: at(20), Run: "`walpost replay`"}}
	replay := func(from, to int, complete bool) Decision {
		return Decision{Command: "replay", From: at(from).In(time.FixedZone("", 3600)).Format(time.RFC3339Nano), To: at(to).Format(time.RFC3339Nano), Complete: complete}
	}
	for name, c := range map[string]struct {
		decisions []Decision
		gaps      int
	}{
		"none":                          {nil, 0},
		"an adoption without a gap":     {[]Decision{{Command: "adopt", From: "0/0", To: "0/0"}}, 0},
		"an adoption":                   {[]Decision{adopt}, 1},
		"replayed":                      {[]Decision{adopt, replay(10, 20, true)}, 0},
		"replayed before":               {[]Decision{replay(10, 20, true), adopt}, 1},
		"replayed, but not all":         {[]Decision{adopt, replay(10, 20, false)}, 1},
		"the end is missing":            {[]Decision{adopt, replay(5, 19, true)}, 1},
		"the beginning is missing":      {[]Decision{adopt, replay(11, 30, true)}, 1},
		"in two parts, the later first": {[]Decision{adopt, replay(15, 25, true), replay(9, 16, true)}, 0},
		"two parts with a hole":         {[]Decision{adopt, replay(9, 14, true), replay(15, 25, true)}, 1},
		"two adoptions":                 {[]Decision{adopt, replay(10, 20, true), adopt}, 1},
		"a replay of an older walpost":  {[]Decision{adopt, {Command: "replay", From: "yesterday", To: "now", Complete: true}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := json.Marshal(c.decisions) // as the state topic keeps them
			if err != nil {
				t.Fatal(err)
			}
			var kept []Decision
			if err := json.Unmarshal(text, &kept); err != nil {
				t.Fatal(err)
			}
			gaps := Gaps(kept)
			if len(gaps) != c.gaps {
				t.Fatalf("%d gaps, want %d: %v", len(gaps), c.gaps, gaps)
			}
			for _, g := range gaps {
				if g.Range != (Range{0x10, 0x20}) || g.Run != adopt.Missing.Run {
					t.Errorf("%+v", g)
				}
			}
		})
	}
}

// TestRowsLeftBehindAreReplayedAfterTheirTransaction: a replay of the first printed range does not cover rows of a
// transaction that was open meanwhile.
func TestRowsLeftBehindAreReplayedAfterTheirTransaction(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 5, time.UTC)
	st, f := &State{CheckedAt: now.Add(-time.Hour)}, &Facts{Time: now}
	m := LeftBehind(st, f, nil)
	if want := "`walpost replay --from 2026-11-22T08:59:00Z --to 2026-11-22T10:00:01Z`"; m.Run != want || clock(m.From) != "2026-11-22T08:59:00Z" || clock(m.To) != "2026-11-22T10:00:01Z" {
		t.Errorf("%+v, want %s", m, want)
	}
	open := LeftBehind(st, f, []Transaction{{PID: 7}})
	first := []Decision{{Command: "replay", From: clock(m.From), To: clock(m.To), Complete: true}}
	if !strings.HasSuffix(open.Run, "--to now`, after the end of the transaction of pid 7") || covered(open, first) || !covered(m, first) {
		t.Errorf("%+v", open)
	}
}
