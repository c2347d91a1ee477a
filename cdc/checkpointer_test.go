package cdc

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestStateRecordIsWrittenInTime(t *testing.T) {
	start := time.Now()
	one := []Row{{Position: Position{100, 1}, Payload: []byte("x")}}
	big := []Row{{Position: Position{100, 1}, Payload: make([]byte, stateBytes)}}
	for _, c := range []struct {
		name string
		do   func(*checkpointer)
		at   time.Duration // since the last record
		due  bool
	}{
		{"nothing moved", func(*checkpointer) {}, time.Hour, false},
		{"covered moved without rows, soon after a record", func(p *checkpointer) { p.done(nil, 200, start) }, stateEvery / 2, false},
		{"covered moved without rows, a second after", func(p *checkpointer) { p.done(nil, 200, start) }, stateEvery, true},
		{"rows, and nothing for 50 ms", func(p *checkpointer) { p.done(one, 0, start.Add(100*time.Millisecond)) }, 150 * time.Millisecond, true},
		{"rows, and nothing for less", func(p *checkpointer) { p.done(one, 0, start.Add(100*time.Millisecond)) }, 140 * time.Millisecond, false},
		{"rows keep coming for a second", func(p *checkpointer) { p.done(one, 0, start.Add(990*time.Millisecond)) }, stateEvery, true},
		{"16 MB of rows", func(p *checkpointer) { p.done(big, 0, start) }, 0, true},
		{"the server asks", func(p *checkpointer) { p.done(nil, 200, start); p.askedFor = true }, stateOnReply, true},
		{"the server asks again at once", func(p *checkpointer) { p.done(nil, 200, start); p.askedFor = true }, stateOnReply / 2, false},
		{"the server asks and nothing moved", func(p *checkpointer) { p.askedFor = true }, time.Hour, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newCheckpointer(&State{Covered: 50}, start)
			c.do(p)
			due, wait := p.due(start.Add(c.at))
			if due != c.due {
				t.Errorf("due: %v, want %v (wait %s)", due, c.due, wait)
			}
			if !due && p.moved() && wait <= 0 {
				t.Error("not due, and no time to ask again")
			}
		})
	}
}

func TestCoveredNeverDecreases(t *testing.T) {
	p := newCheckpointer(&State{Covered: 50}, time.Now())
	if p.done(nil, 40, time.Now()); p.next.Covered != 50 {
		t.Errorf("covered went back to %s", p.next.Covered)
	}
}

func TestStateRecordIsReadBackAndReadable(t *testing.T) {
	st := State{
		Version: 1, Pipeline: "orders", SystemID: "7", Timeline: 1, Covered: 0x10000001f, CommitLSN: 0x16B3748, Ordinal: 3,
		LastXID: 700, LastCommitTime: time.Unix(1, 5000).UTC(), Fingerprint: "f", Instance: "i", Epoch: 4, Time: time.Unix(2, 0).UTC(),
	}
	b, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `"covered":"1/1F"`) || !strings.Contains(string(b), `"commit_lsn":"0/16B3748"`) {
		t.Errorf("LSNs are not as PostgreSQL writes them: %s", b)
	}
	var back State
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, st) {
		t.Errorf("read back %+v, %v", back, err)
	}
	for name, bad := range map[string]string{
		"a newer version": strings.Replace(string(b), `"version":1`, `"version":3`, 1),
		"no version":      `{}`,
		"a broken LSN":    strings.Replace(string(b), "1/1F", "1F", 1),
		"no JSON":         "hello",
	} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

// TestNewestStateIgnoresAFrozenRelay: a record that a replaced relay writes under its old epoch does not count, even
// if it covers more.
func TestNewestStateIgnoresAFrozenRelay(t *testing.T) {
	old := &State{Epoch: 3, Covered: 900}
	first := &State{Epoch: 4, Covered: 500}
	further := &State{Epoch: 4, Covered: 600}
	within := &State{Epoch: 4, Covered: 600, CommitLSN: 650, Ordinal: 2}
	if got := NewestState([]*State{first, within, further, old}); got != within {
		t.Errorf("newest is %+v", got)
	}
	if NewestState(nil) != nil {
		t.Error("a state out of nothing")
	}
}
