package pipeline

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walpost/walpost/cdc"
)

// TestLatenciesAreExactToATenth compares the quantiles with those of the sorted numbers.
func TestLatenciesAreExactToATenth(t *testing.T) {
	var l latencies
	var all []time.Duration
	for range 10_000 {
		d := time.Duration(rand.ExpFloat64() * float64(20*time.Millisecond))
		if d < 5*time.Microsecond { // the classes of a few microseconds are coarser
			continue
		}
		all = append(all, d)
		l.add(d, 1)
	}
	slices.Sort(all)
	for _, share := range []float64{0.01, 0.5, 0.99, 1} {
		want := all[min(int(share*float64(len(all))), len(all)-1)]
		if got := l.quantile(share); got == nil || *got < want*85/100 || *got > want*115/100 {
			t.Errorf("the quantile %v of latencies is %v, want %v", share, got, want)
		}
	}
	var none latencies
	none.add(-time.Second, 3) // clocks differ
	none.add(300*time.Hour, 1)
	if got := none.quantile(0.5); got == nil || *got > 2*time.Microsecond {
		t.Errorf("latencies below zero are %v", got)
	}
}

// TestHistoryHasAnHour: points come every 15 s and the oldest go; rows, latency and lag are those of the point.
func TestHistoryHasAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &history{}
		var role atomic.Value
		role.Store(cdc.Streaming)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			h.run(ctx, func() (cdc.Role, error) { return role.Load().(cdc.Role), nil })
			close(ended)
		}()
		last := func() Point {
			synctest.Wait()
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.points[len(h.points)-1]
		}
		time.Sleep(time.Second)
		records := make([]cdc.Record, 30)
		for i := range records {
			commit := cdc.LSN(100 + 10*(i/10)) // three commits of ten rows
			records[i].Row = &cdc.Row{Position: cdc.Position{Commit: commit}, CommitTime: time.Now().Add(-40 * time.Millisecond)}
		}
		records[29].Row.CommitTime = time.Time{}
		h.look(130, time.Now())
		time.Sleep(20 * time.Millisecond)
		h.arrived(records, time.Hour)
		time.Sleep(100 * time.Millisecond)
		h.covered(130)
		time.Sleep(14 * time.Second)
		p := last()
		if p.Rows != 2 || p.P50 == nil || *p.P50 < 50*time.Millisecond || *p.P50 > 70*time.Millisecond || *p.P99 > 70*time.Millisecond {
			t.Errorf("30 rows in 15 s, each 60 ms after its commit: %+v", p)
		}
		if p.Lag == nil || *p.Lag != 120*time.Millisecond {
			t.Errorf("the WAL's end was durable after 120 ms: %v", p.Lag)
		}
		time.Sleep(pointEvery)
		if p = last(); p.Rows != 0 || p.P50 != nil || p.Lag == nil || *p.Lag != 0 {
			t.Errorf("nothing happened: %+v", p)
		}
		h.look(500, time.Now()) // Kafka is away: looks go on, nothing is durable
		time.Sleep(40 * time.Second)
		if p = last(); p.Lag == nil || *p.Lag < 29*time.Second || *p.Lag > 40*time.Second {
			t.Errorf("nothing is durable for 40 s: %v", p.Lag)
		}
		h.covered(500)
		role.Store(cdc.Retrying) // nobody looks any more
		time.Sleep(time.Minute)
		if p = last(); p.Lag == nil || *p.Lag < time.Minute {
			t.Errorf("the relay retries for a minute: %v", p.Lag)
		}
		role.Store(cdc.Standby)
		time.Sleep(pointEvery)
		if p = last(); p.Lag != nil {
			t.Errorf("another relay delivers: %v", p.Lag)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := len(h.points); n != points || h.points[0].At.Before(time.Now().Add(-time.Hour-time.Minute)) {
			t.Errorf("%d points, the first at %s", n, h.points[0].At)
		}
		stop()
		<-ended
	})
}

// TestHistoryKnowsWhenAPositionWasTheEnd checks the age of positions.
func TestHistoryKnowsWhenAPositionWasTheEnd(t *testing.T) {
	h := &history{}
	began := time.Date(2026, 11, 30, 8, 0, 0, 0, time.UTC)
	for i := range 1000 {
		h.look(cdc.LSN(100+10*i), began.Add(time.Duration(i)*5*time.Second))
	}
	end, now := cdc.LSN(100+10*999), began.Add(999*5*time.Second)
	if len(h.ends) > lookPoints {
		t.Errorf("%d looks are kept", len(h.ends))
	}
	for lsn, want := range map[cdc.LSN]time.Duration{end: 0, end + 7: 0, end - 10: 5 * time.Second, end - 15: 10 * time.Second, end - 6000: 3000 * time.Second} {
		if got := h.behind(lsn, end, now); got == nil || *got != want {
			t.Errorf("%s is %v behind %s, want %s", lsn, got, end, want)
		}
	}
	if got := h.behind(100, end, now); got != nil {
		t.Errorf("a position from before the first look is %s behind", got)
	}
	h.connect()
	if got := h.behind(end-10, end, now); got != nil {
		t.Errorf("another server has other positions: %s", got)
	}
}

// TestChangesAreShort: twenty changes are kept, and a relay that tries again and again makes one.
func TestChangesAreShort(t *testing.T) {
	h := &history{}
	for range 100 {
		h.change(cdc.Retrying, errors.New("reset"))
	}
	if n := len(h.changes); n != 1 || h.changes[0].Why.Found != "reset" {
		t.Errorf("a hundred retries are %d changes", n)
	}
	h.change(cdc.Halted, &cdc.HaltError{Found: "found", Means: "means", Run: "run"})
	if why := h.changes[1].Why; why == nil || *why != (Blocker{"found", "means", "run"}) {
		t.Errorf("a halt is %+v", why)
	}
	for range 100 {
		h.change(cdc.Streaming, nil)
		h.change(cdc.Standby, cdc.ErrSlotInUse)
	}
	if n := len(h.changes); n != changes || h.changes[n-1].Role != cdc.Standby || h.changes[n-1].Why != nil {
		t.Errorf("%d changes, the last %+v", n, h.changes[n-1])
	}
}

// TestHistoryAllocatesNothing: the relay's goroutines write it for each read and each window.
func TestHistoryAllocatesNothing(t *testing.T) {
	m := newMetrics("orders", watched{}, prometheus.NewPedanticRegistry())
	o := m.observer()
	records := make([]cdc.Record, 5000)
	for i := range records {
		records[i].Row = &cdc.Row{Position: cdc.Position{Commit: cdc.LSN(i / 10)}, CommitTime: time.Now()}
	}
	if n := testing.AllocsPerRun(100, func() {
		o.Received(7, 5000, 0, 0, 1<<20)
		o.Published(records, time.Millisecond)
	}); n != 0 {
		t.Errorf("a window allocates %v times", n)
	}
}

// BenchmarkHistory measures what the page costs per row of a full window: ns/op divided by 5000.
func BenchmarkHistory(b *testing.B) {
	for name, rows := range map[string]int{"1 row a commit": 1, "10 rows a commit": 10} {
		b.Run(name, func(b *testing.B) {
			h := &history{}
			records := make([]cdc.Record, 5000)
			for i := range records {
				records[i].Row = &cdc.Row{Position: cdc.Position{Commit: cdc.LSN(i / rows)}, CommitTime: time.Now()}
			}
			b.ReportAllocs()
			for b.Loop() {
				h.arrived(records, time.Millisecond)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(records)), "ns/row")
		})
	}
}
