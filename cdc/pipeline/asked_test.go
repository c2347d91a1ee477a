package pipeline

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/polling"
)

// hanging is a server and a table that answer at once, or hang until the caller gives up.
type hanging struct {
	facts cdc.Facts
	hangs bool
	asked atomic.Int64
}

func (h *hanging) wait(ctx context.Context) error {
	if h.asked.Add(1); h.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (h *hanging) Facts(ctx context.Context) (cdc.Facts, error) { return h.facts, h.wait(ctx) }

func (h *hanging) Backlog(ctx context.Context) (polling.Backlog, error) {
	return polling.Backlog{Pending: 3}, h.wait(ctx)
}

// TestProbesAnswerWhileTheDatabaseHangs: they answer with the last look, and all of them together query the database once.
func TestProbesAnswerWhileTheDatabaseHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{}
		reg := prometheus.NewRegistry()
		m := newMetrics("orders", watched{table: h}, reg)
		m.observer().Role(cdc.Streaming, nil)
		if err := m.ready(); err != nil {
			t.Errorf("a table that answers: %v", err)
		}
		h.hangs = true
		time.Sleep(askEvery)
		began := time.Now()
		for range 10 {
			if err := m.ready(); err != nil {
				t.Errorf("the table hangs for %s: %v", time.Since(began), err)
			}
			if n, err := testutil.GatherAndCount(reg, "walpost_pending_rows"); err != nil || n != 1 {
				t.Errorf("%d metrics, %v", n, err)
			}
		}
		if took, most := time.Since(began), 20*answerWithin; took > most || answerWithin >= 100*time.Millisecond {
			t.Errorf("twenty answers took %s, want %s at most", took, most)
		}
		if n := h.asked.Load(); n != 2 {
			t.Errorf("the table was queried %d times, want twice", n)
		}
		time.Sleep(askWithin)
		if err := m.ready(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a table that has given no answer for %s: %v", time.Since(began), err)
		}
		if n, err := testutil.GatherAndCount(reg, "walpost_pending_rows"); err != nil || n != 0 {
			t.Errorf("a number that nobody knows is there: %d metrics, %v", n, err)
		}
		if s := m.status(); s.Verdict != CannotTell {
			t.Errorf("the verdict is %s: %q", s.Verdict, s.Blocked)
		}
	})
}

// TestFirstProbeWaitsForNoDatabase: a probe answers although the database hangs from the start.
func TestFirstProbeWaitsForNoDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics("orders", watched{table: &hanging{hangs: true}}, prometheus.NewRegistry())
		m.observer().Role(cdc.Streaming, nil)
		began := time.Now()
		if err := m.ready(); err != nil || time.Since(began) > answerWithin {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		time.Sleep(askWithin)
	})
}

// TestVerdict: the verdict is that of the worst cause.
func TestVerdict(t *testing.T) {
	unasked, halt := errors.New("connection refused"), &cdc.HaltError{Found: "slot lost"}
	for name, c := range map[string]struct {
		found func(s *Status)
		want  Verdict
	}{
		"nothing":                          {func(*Status) {}, Flows},
		"no error":                         {func(s *Status) { s.blocked(nil) }, Flows},
		"a server that is away":            {func(s *Status) { s.blocked(unasked) }, CannotTell},
		"a halt":                           {func(s *Status) { s.blocked(halt) }, NeedsSomeone},
		"a halt, and Kafka is away":        {func(s *Status) { s.blocked(halt); s.blocked(unasked) }, NeedsSomeone},
		"Kafka is away, and a halt":        {func(s *Status) { s.blocked(unasked); s.blocked(halt) }, NeedsSomeone},
		"no relay":                         {func(s *Status) { s.blockedBy("no relay") }, NeedsSomeone},
		"no unresolved dead letter":        {func(s *Status) { s.puts(0) }, Flows},
		"an unresolved dead letter":        {func(s *Status) { s.puts(1) }, NeedsSomeone},
		"commits that wait for the relay":  {func(s *Status) { s.waits(&cdc.Facts{Commits: &cdc.CommitWaitError{}}) }, NeedsSomeone},
		"rows that failed":                 {func(s *Status) { s.backs(&polling.Backlog{Failed: 1}) }, NeedsSomeone},
		"pending rows, which is no matter": {func(s *Status) { s.backs(&polling.Backlog{Pending: 1}) }, Flows},
	} {
		s := Status{Verdict: Flows}
		if c.found(&s); s.Verdict != c.want {
			t.Errorf("%s: %s, want %s", name, s.Verdict, c.want)
		}
	}
}

// TestRateOfTheWAL: the rate is over the last one to two hours of one server.
func TestRateOfTheWAL(t *testing.T) {
	began := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	var r rate
	for _, c := range []struct {
		after time.Duration
		end   cdc.LSN
		want  float64
	}{
		{0, 1000, 0},
		{5 * time.Second, 6000, 0}, // too soon to say
		{10 * time.Second, 11_000, 1000},
		{20 * time.Second, 11_000, 500},
		{61 * time.Minute, 11_000, 10_000 / 3660.},
		{122 * time.Minute, 11_000 + 3660, 1}, // the first hour is forgotten
		{123 * time.Minute, 500, 0},           // another server
		{124 * time.Minute, 1100, 10},
	} {
		if got := r.saw(c.end, began.Add(c.after)); got != c.want {
			t.Errorf("after %s: %v, want %v", c.after, got, c.want)
		}
	}
	safe := int64(-100)
	if left, limited := secondsLeft(10, &cdc.SlotFacts{SafeWALSize: &safe}); left != 0 || !limited {
		t.Errorf("past the limit %v s are left, %t", left, limited)
	}
	if _, limited := secondsLeft(10, &cdc.SlotFacts{}); limited {
		t.Error("without a limit there is one")
	}
}
