package cdc

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// golden returns state records as each version wrote them, with their meaning.
func golden() map[string]State {
	at := func(s string) time.Time {
		t, _ := time.Parse(time.RFC3339Nano, s)
		return t
	}
	v1 := State{
		Version: 1, Pipeline: "orders", SystemID: "7551234567890123456", Timeline: 1, Covered: 0x1020F8BD0, CommitLSN: 0x20F8840, Ordinal: 1,
		LastXID: 741, LastCommitTime: at("2026-11-22T07:29:54.882278Z"), Fingerprint: "publication 16397/726 entry 16398/727 table 16385 public.outbox",
		Instance: "70a0c8abf2b5-1-a0e482bb", Epoch: 2, Time: at("2026-11-22T07:29:55.1Z"),
	}
	v2 := v1
	v2.Version, v2.Slot, v2.Timeline, v2.Skipped, v2.Checked, v2.CheckedAt = 2, "walpost", 2, 0x20F8000, 0x1020F8BC0, at("2026-11-22T07:29:54.9Z")
	v2.Halt = &HaltRecord{Found: "f", Means: "m", Run: "r", Risk: Range{0x10, 0x20}, History: true, Latched: true, At: v1.Time}
	v2.Phantoms = &Phantoms{Range: Range{0x30, 0x40}, Timeline: 1, Rows: 5, AtLeast: true, At: at("2026-11-22T07:00:00Z")}
	return map[string]State{"testdata/state-v1.json": v1, "testdata/state-v2.json": v2}
}

// TestGoldenStateRecords: records of earlier versions are always read, this version's format does not change without
// a new number, and a newer version gets a clear error.
func TestGoldenStateRecords(t *testing.T) {
	for file, want := range golden() {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var st State
		if err := json.Unmarshal(text, &st); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if !reflect.DeepEqual(st, want) {
			t.Errorf("%s is read as\n%+v, want\n%+v", file, st, want)
		}
		if want.Version != StateVersion {
			continue
		}
		if b, err := json.Marshal(want); err != nil || string(b) != strings.TrimSpace(string(text)) {
			t.Errorf("version %d is written as\n%s, want\n%s", StateVersion, b, text)
		}
	}
	for text, want := range map[string]string{
		`{"version": 3, "covered": ["a shape we do not know"]}`:   "version 3, this walpost reads up to 2: run walpost in the newer version, which wrote it",
		`{"version": 3, "walpost": "v2.1.0", "epoch": "a shape"}`: "version 3, this walpost reads up to 2: run walpost v2.1.0, which wrote it, or a newer one",
	} {
		if err := json.Unmarshal([]byte(text), new(State)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestParseLSN(t *testing.T) {
	if lsn, err := ParseLSN("1/16b3748"); err != nil || lsn != 0x1016B3748 {
		t.Errorf("%s, %v", lsn, err)
	}
	for _, bad := range []string{"", "16B3748", "0/16B3748zzz", "0x1/2", "1/2/3", "0/123456789", " 0/1", "-1/2", "0/"} {
		if lsn, err := ParseLSN(bad); err == nil {
			t.Errorf("%q was taken for %s", bad, lsn)
		}
	}
}

// TestDeliveredInCountsAPartOfATransaction: only rows of a transaction that the range has and the record covers in part.
func TestDeliveredInCountsAPartOfATransaction(t *testing.T) {
	for commit, want := range map[LSN]int64{0: 0, 0x0f: 0, 0x10: 3, 0x1f: 3, 0x20: 0} {
		if got := (&State{CommitLSN: commit, Ordinal: 3}).DeliveredIn(Range{0x10, 0x20}); got != want {
			t.Errorf("last commit %s: %d delivered rows, want %d", commit, got, want)
		}
	}
}
