package console_test

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
	"github.com/walpost/walpost/cdc/console"
)

// TestConsoleSaysWhatTheRelayDoes follows a relay through its roles: readiness, status and metrics say the same.
func TestConsoleSaysWhatTheRelayDoes(t *testing.T) {
	reg := prometheus.NewRegistry()
	con := console.New("orders", "walpost", reg)
	con.WatchSlot(standing{WALEnd: 500, Slot: cdc.SlotFacts{Exists: true, ConfirmedFlush: 200, RestartLSN: 100}})
	con.CountDeadLetters(three{})
	o := con.Observer()
	mux := http.NewServeMux()
	console.Group{con}.Routes(mux)
	halt := &cdc.Halt{Found: "found", Means: "means", Run: "run"}
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
		{"kafka back", func() { o.Stalled(false, time.Minute) }, "", `"kafka_stalled":false`, 1},
		{"rows delivered", func() {
			o.Received(2, 1, 3, 400)
			o.Published(make([]cdc.Record, 2), time.Millisecond)
			o.Covered(&cdc.State{Covered: 0x16B3748})
			o.Confirmed(0x16B3748)
		}, "", `"covered_lsn":"0/16B3748","confirmed_lsn":"0/16B3748"`, 1},
		{"retrying", func() { o.Role(cdc.Retrying, errors.New("reset")) }, "retrying: reset", `"reason":"reset"`, 0},
		{"halted", func() { o.Role(cdc.Halted, halt) }, "halted: found: means; run", `"reason":"found: means; run"`, 0},
	} {
		c.does()
		if err := con.Ready(t.Context()); (err == nil) != (c.ready == "") || err != nil && !strings.Contains(err.Error(), c.ready) {
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
