package pipeline

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/walpost/walpost/cdc"
)

// refusing is a login that Kafka does not accept, with the reason.
type refusing string

func (r *refusing) Trouble() error {
	if *r == "" {
		return nil
	}
	return errors.New(string(*r))
}

// TestStatusSaysWhatTheRelayDoes follows a relay through its roles: readiness, status and metrics say the same.
func TestStatusSaysWhatTheRelayDoes(t *testing.T) {
	reg := prometheus.NewRegistry()
	slot := standing{WALEnd: 500, Slot: cdc.SlotFacts{Exists: true, ConfirmedFlush: 200, RestartLSN: 100}}
	var refused refusing
	con := newMetrics("orders", watched{slot: "walpost", facts: slot, letters: three{}, login: &refused}, reg)
	o := con.observer()
	mux := http.NewServeMux()
	running(con).Routes(mux)
	halt := &cdc.HaltError{Found: "found", Means: "means", Run: "run"}
	for _, c := range []struct {
		name      string
		does      func()
		ready     string // what /readyz says where it is not
		status    string
		streaming float64
	}{
		{"before anything", func() {}, "starting", `"role":"starting"`, 0},
		{"standing by", func() { o.Role(cdc.Standby, cdc.ErrSlotInUse) }, "", `"role":"standby"`, 0},
		{"streaming", func() { o.Role(cdc.Streaming, nil) }, "", `"role":"streaming"`, 1},
		{"kafka stalled", func() { o.Stalled(true, time.Minute) }, "kafka does not answer", `"kafka_stalled":true`, 1},
		{"kafka that lets nobody in", func() { refused = "kafka at k:9093 refuses the token" }, "kafka at k:9093 refuses the token; rows wait in the slot", `"blocked":["kafka at k:9093 refuses the token"`, 1},
		{"kafka back", func() { o.Stalled(false, time.Minute) }, "", "\"blocked\":[\"3 dead letters are unresolved: `walpost dlq list` says why\"]", 1},
		{"stalled", func() { o.Stuck(&cdc.StallError{Cause: "standby", Found: "sb1 is away"}) }, "sb1 is away", `"stalled":"sb1 is away"`, 1},
		{"and going on", func() { o.Stuck(nil) }, "", "\"blocked\":[\"3 dead letters are unresolved: `walpost dlq list` says why\"]", 1},
		{"a synchronous standby", func() { o.CommitsWait(errors.New("every commit waits")) }, "", `"commits_wait":"every commit waits"`, 1},
		{"and none any more", func() { o.CommitsWait(nil) }, "", `"role":"streaming"`, 1},
		{"rows delivered", func() {
			o.Received(0x16B3800, 2, 1, 3, 400)
			o.Published([]cdc.Record{{Row: &cdc.Row{}}, {Row: &cdc.Row{}}}, time.Millisecond)
			o.Covered(&cdc.State{Covered: 0x16B3748})
			o.Confirmed(0x16B3748)
		}, "", `"covered_lsn":"0/16B3748","confirmed_lsn":"0/16B3748"`, 1},
		{"retrying", func() { o.Role(cdc.Retrying, errors.New("reset")) }, "retrying: reset", `"reason":"reset"`, 0},
		{"halted", func() { o.Role(cdc.Halted, halt) }, "halted: found: means; run", `"reason":"found: means; run"`, 0},
	} {
		c.does()
		if err := con.ready(); (err == nil) != (c.ready == "") || err != nil && !strings.Contains(err.Error(), c.ready) {
			t.Errorf("%s: ready says %v, want %q", c.name, err, c.ready)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", "/status", nil))
		if !strings.Contains(w.Body.String(), c.status) {
			t.Errorf("%s: status is %s, want %s", c.name, w.Body, c.status)
		}
		if got := gauge(t, reg, "walpost_streaming"); got != c.streaming {
			t.Errorf("%s: walpost_streaming is %v", c.name, got)
		}
	}
	for name, want := range map[string]float64{
		"walpost_rows_received_total": 2, "walpost_rows_dropped_total": 1, "walpost_other_messages_total": 3, "walpost_received_bytes_total": 400,
		"walpost_rows_published_total": 2, "walpost_windows_total": 1, "walpost_halts_total": 1, "walpost_retries_total": 1, "walpost_covered_lsn": 0x16B3748,
	} {
		if got := gauge(t, reg, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for name, want := range map[string]float64{
		"walpost_slot_lag_bytes": 300, "walpost_slot_retained_bytes": 400, "walpost_slot_lost": 0, "walpost_dead_letters_unresolved": 3,
	} {
		if got := gauge(t, reg, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

// TestLagIsTimeSinceTheEndWasReached: the lag is right also for a relay that is halted, stands by, or was idle for long. The
// metric is absent while the lag is unknown.
func TestLagIsTimeSinceTheEndWasReached(t *testing.T) {
	began := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		does func(o cdc.Observer, see func(confirmed, end cdc.LSN, second int))
		says string
	}{
		"all is confirmed": {func(_ cdc.Observer, see func(cdc.LSN, cdc.LSN, int)) { see(200, 200, 0) }, `"lag_seconds":0,`},
		"nobody knows":     {func(_ cdc.Observer, see func(cdc.LSN, cdc.LSN, int)) { see(200, 500, 0) }, ""},
		"idle, then stuck": {func(_ cdc.Observer, see func(cdc.LSN, cdc.LSN, int)) {
			see(200, 200, 0)
			see(200, 200, 3600)
			see(200, 500, 3640)
		}, `"lag_seconds":40,`},
		"the session looks more": {func(o cdc.Observer, see func(cdc.LSN, cdc.LSN, int)) {
			see(200, 200, 0)
			o.Looked(200, 500, began.Add(60*time.Second), began.Add(50*time.Second))
			see(200, 500, 60)
		}, `"lag_seconds":10,`},
		"its record says so": {func(o cdc.Observer, see func(cdc.LSN, cdc.LSN, int)) {
			o.Covered(&cdc.State{Covered: 200, CurrentAt: began})
			see(200, 500, 7)
		}, `"lag_seconds":7,`},
		"halted": {func(o cdc.Observer, see func(cdc.LSN, cdc.LSN, int)) {
			see(200, 200, 0)
			o.Role(cdc.Halted, errors.New("halt"))
			see(200, 500, 90)
		}, `"lag_seconds":90,`},
		"busy, a little behind": {func(_ cdc.Observer, see func(cdc.LSN, cdc.LSN, int)) {
			see(100, 200, 0)
			see(250, 300, 5)
			see(350, 400, 10)
		}, `"lag_seconds":5,`},
	} {
		reg := prometheus.NewRegistry()
		con := newMetrics("orders", watched{slot: "walpost"}, reg)
		mux := http.NewServeMux()
		running(con).Routes(mux)
		said := ""
		c.does(con.observer(), func(confirmed, end cdc.LSN, second int) {
			con.asked.facts = standing{WALEnd: end, Time: began.Add(time.Duration(second) * time.Second), Slot: cdc.SlotFacts{Exists: true, ConfirmedFlush: confirmed}}
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequest("GET", "/status", nil))
			said = w.Body.String()
		})
		if has := strings.Contains(said, "lag_seconds"); has != (c.says != "") || !strings.Contains(said, c.says) {
			t.Errorf("%s: %s, want %s", name, said, c.says)
		}
		if n, err := testutil.GatherAndCount(reg, "walpost_lag_seconds"); err != nil || (n > 0) != (c.says != "") {
			t.Errorf("%s: walpost_lag_seconds is there: %t, %v", name, n > 0, err)
		}
	}
}

// running returns a group with a pipeline whose Run was called, and that has these metrics.
func running(m *metrics) Group {
	p := &Pipeline{metrics: m}
	p.ran.Store(true)
	return Group{p}
}

type standing cdc.Facts

func (s standing) Facts(context.Context) (cdc.Facts, error) { return cdc.Facts(s), nil }

type three struct{}

func (three) Count(context.Context) (int, error) { return 3, nil }

func gauge(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
