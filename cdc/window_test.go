package cdc

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
	"time"
)

func row(i, size int) *Row {
	payload := bytes.Repeat([]byte{byte('a' + i%26)}, size)
	return &Row{ID: fmt.Appendf(nil, "%d", i), Payload: payload, Further: [][]byte{nil, payload[:size/2], {}}, Former: [][]byte{payload[:size/3]}}
}

// TestWindowKeepsItsRowsAndItsSize fills windows with rows of many sizes: the rows keep their content, and the memory
// returns to the configured size once an oversized row is gone.
func TestWindowKeepsItsRowsAndItsSize(t *testing.T) {
	const maxRows, maxBytes = 10, 1 << 10
	w := newWindow(maxRows, maxBytes)
	for round := range 20 {
		added := 0
		for i := range 100 {
			if !w.add(row(i, (i*37+round)%300)) {
				break
			}
			added++
		}
		if added == 0 || added > maxRows || len(w.slab) > maxBytes {
			t.Fatalf("round %d: %d rows, %d bytes", round, added, len(w.slab))
		}
		for i := range w.Rows {
			want := row(i, (i*37+round)%300)
			if got := &w.Rows[i]; !bytes.Equal(got.ID, want.ID) || !bytes.Equal(got.Payload, want.Payload) || !reflect.DeepEqual(got.Further, want.Further) || !reflect.DeepEqual(got.Former, want.Former) {
				t.Fatalf("round %d: row %d was changed by a later one", round, i)
			}
		}
		w.reset()
	}
	if !w.add(row(0, 10*maxBytes)) {
		t.Error("an empty window did not take an oversized row")
	}
	if w.add(row(1, 1)) {
		t.Error("a window with an oversized row took another")
	}
	if w.reset(); cap(w.slab) != maxBytes {
		t.Errorf("after an oversized row the window keeps %d bytes", cap(w.slab))
	}
	if w.add(&Row{ID: []byte("x")}); w.Rows[0].Headers != nil {
		t.Error("NULL became an empty value")
	}
}

func TestWindowsAreReusedWithoutAllocating(t *testing.T) {
	w := newWindow(100, 1<<16)
	r := row(1, 400)
	if n := testing.AllocsPerRun(10, func() {
		for range 100 {
			w.add(r)
		}
		w.reset()
	}); n > 0 {
		t.Errorf("%v allocations per window", n)
	}
}

func TestQueueTakesWindowsInTime(t *testing.T) {
	const pace, age = 2 * time.Millisecond, 5 * time.Millisecond
	put := func(n int) func(*Window) (bool, error) {
		return func(w *Window) (bool, error) {
			for i := range n {
				if !w.add(row(i, 10)) {
					return false, nil
				}
			}
			return true, nil
		}
	}
	now := time.Now()
	for _, c := range []struct {
		name      string
		busy      bool
		rows      int
		lastTaken time.Duration // before now
		since     time.Duration // of the first row, before now
		drain     bool
		taken     bool
	}{
		{name: "quiet after a silence: at once", rows: 1, lastTaken: time.Second, taken: true},
		{name: "quiet within the pace: not yet", rows: 1, lastTaken: pace / 2},
		{name: "quiet, full: at once", rows: 8, lastTaken: 0, taken: true},
		{name: "quiet, more than fits: at once", rows: 9, lastTaken: 0, taken: true},
		{name: "busy and small: never", busy: true, rows: 1, lastTaken: time.Second},
		{name: "busy and old: now", busy: true, rows: 1, lastTaken: 0, since: age, taken: true},
		{name: "busy and full: now", busy: true, rows: 8, lastTaken: 0, taken: true},
		{name: "draining: now", busy: true, rows: 1, lastTaken: 0, drain: true, taken: true},
		{name: "nothing there: nothing", lastTaken: time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := newQueue(newWindow(8, 1<<10))
			if _, err := q.fill(c.busy, put(c.rows)); err != nil {
				t.Fatal(err)
			}
			q.filling.since = now.Add(-c.since)
			w, wait := q.take(newWindow(8, 1<<10), now, now.Add(-c.lastTaken), pace, age, c.drain)
			if (w != nil) != c.taken {
				t.Errorf("taken: %v, want %v", w != nil, c.taken)
			}
			if w == nil && c.rows > 0 && (wait <= 0 || wait > age) {
				t.Errorf("not taken, and to be asked again in %s", wait)
			}
		})
	}
}
