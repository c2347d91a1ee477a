package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/polling"
)

// screen is what a watcher writes to.
type screen struct {
	mu            sync.Mutex
	b             bytes.Buffer
	width, height int
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *screen) size() (width, height int, ok bool) { return s.width, s.height, s.width > 0 }

// saying returns a function that returns one status.
func saying(st pipeline.Status) func(context.Context) pipeline.Status {
	return func(context.Context) pipeline.Status { return st }
}

func healthy(name string) pipeline.Status {
	exists, lag, retained, seconds, left := true, int64(2048), int64(50<<20), 1.5, 7200.0
	dead := 0
	return pipeline.Status{
		Pipeline: name, Verdict: pipeline.Flows, Blocked: []string{}, Slot: &pipeline.Slot{Name: name, Exists: &exists, Active: true},
		LagBytes: &lag, LagSeconds: &seconds, RetainedBytes: &retained, SlotSeconds: &left, DeadLetters: &dead,
	}
}

// watching runs a watcher until the screen has the texts.
func watching(t *testing.T, w *watcher, s *screen, texts ...string) string {
	t.Helper()
	w.out, w.size = s, s.size
	for range w.ask {
		w.cfgs = append(w.cfgs, config.Config{Pipeline: fmt.Sprintf("p%d", len(w.cfgs))})
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.watch(ctx) }()
	cdctest.Eventually(t, 30*time.Second, func() error {
		for _, text := range texts {
			if !strings.Contains(s.String(), text) {
				return fmt.Errorf("the screen does not have %q:\n%s", text, s)
			}
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	return s.String()
}

// TestWatchShowsSeveralAsATable: one row for each, with what is known, and no escape codes where no terminal is.
func TestWatchShowsSeveralAsATable(t *testing.T) {
	t.Parallel()
	missing := false
	w := &watcher{every: 20 * time.Millisecond, colours: true, ask: []func(context.Context) pipeline.Status{
		saying(healthy("orders")),
		saying(pipeline.Status{
			Pipeline: "stock", Verdict: pipeline.NeedsSomeone, Slot: &pipeline.Slot{Exists: &missing}, Blocked: []string{"a", "b"},
			BlockedBy: []pipeline.Blocker{{Found: "the slot is \x1b[31mmissing", Run: "x"}, {Found: "b"}},
		}),
		saying(pipeline.Status{Pipeline: "mail", Verdict: pipeline.Flows, Backlog: &polling.Backlog{Pending: 7, OldestSeconds: 90, Failed: 2}}),
	}}
	said := watching(t, w, &screen{}, "\n\nwalpost status at")
	for _, want := range []string{
		"PIPELINE  VERDICT        SLOT     LAG     LAG TIME  RETAINED  LEFT  DEAD  WHAT IS WRONG\n",
		"orders    flows          active   2048 B  1.5 s     50 MiB    2h    0     nothing\n",
		`stock     needs someone  missing  -       -         -         -     -     the slot is \x1b[31mmissing (and 1 more)` + "\n",
		"mail      flows          polled   7 rows  1m30s     -         -     2     nothing\n",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say\n%s in\n%s", want, said)
		}
	}
	narrow := watching(t, &watcher{every: 20 * time.Millisecond, ask: w.ask}, &screen{width: 80, height: 24}, "mail")
	want := "2h    0" + endOfLine + "\r\n" + `stock     needs someone  missing  -       -         -         -     -` + endOfLine + "\r\n" + `  the slot is \x1b[31mmissing (and 1 more)` + endOfLine + "\r\nmail "
	if !strings.Contains(narrow, want) {
		t.Errorf("80 letters wide it does not say\n%q in\n%q", want, narrow)
	}
	if strings.Contains(said, "\x1b") {
		t.Errorf("no terminal, and escape codes: %q", said)
	}
}

// TestWatchOnATerminal draws each look over the one before, cuts lines and columns, and leaves the terminal as it was.
func TestWatchOnATerminal(t *testing.T) {
	t.Parallel()
	blocked := healthy("orders")
	blocked.Verdict, blocked.Blocked, blocked.BlockedBy = pipeline.NeedsSomeone, []string{"x"}, []pipeline.Blocker{{Found: strings.Repeat("long ", 30), Run: "run `walpost adopt`"}}
	for name, colours := range map[string]bool{"in colour": true, "NO_COLOR": false} {
		w := &watcher{every: 20 * time.Millisecond, colours: colours, ask: []func(context.Context) pipeline.Status{saying(blocked)}}
		s := &screen{width: 40, height: 6}
		said := watching(t, w, s, home+"walpost status at", "blocked    long", "… 5 more lines")
		if strings.Contains(said, red) != colours {
			t.Errorf("%s: %q", name, said)
		}
		looks := strings.Split(strings.TrimPrefix(said, otherScreen+hideCursor), home)
		if !strings.HasPrefix(said, otherScreen+hideCursor) || !strings.HasSuffix(said, endOfScreen+showCursor+mainScreen) || len(looks) < 2 {
			t.Errorf("%s: the screen is not given back: %q", name, said)
		}
		for _, look := range looks[1:] {
			lines := strings.Split(look, "\r\n")
			if len(lines) > s.height || strings.Contains(look, "\n\n") {
				t.Errorf("%s: %d lines: %q", name, len(lines), look)
			}
			for _, line := range lines {
				for _, code := range []string{endOfLine, endOfScreen, red, usual, showCursor, mainScreen} {
					line = strings.ReplaceAll(line, code, "")
				}
				if n := len([]rune(line)); n > s.width {
					t.Errorf("%s: a line of %d letters: %q", name, n, line)
				}
			}
		}
	}
}

// TestWatchOfADatabaseThatHangs: the others are shown as before, and the screen says for how long there was no answer.
func TestWatchOfADatabaseThatHangs(t *testing.T) {
	t.Parallel()
	hangs := func(answered int) func(context.Context) pipeline.Status {
		return func(ctx context.Context) pipeline.Status {
			if answered--; answered < 0 {
				<-ctx.Done()
			}
			return healthy("stock")
		}
	}
	w := &watcher{every: 50 * time.Millisecond, json: true, ask: []func(context.Context) pipeline.Status{saying(healthy("orders")), hangs(0), hangs(1)}}
	said := watching(t, w, &screen{}, "no answer from PostgreSQL and Kafka for 2.", "the other lines are older", "since this command asks")
	lines := strings.Split(strings.TrimSuffix(said, "\n"), "\n")
	var all []pipeline.Status
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &all); err != nil || len(all) != 3 || len(lines) < 10 {
		t.Fatalf("%d lines, the last %s: %v", len(lines), lines[len(lines)-1], err)
	}
	if all[0].Verdict != pipeline.Flows || all[1].Verdict != pipeline.CannotTell || all[1].Pipeline != "p1" || all[2].Verdict != pipeline.CannotTell || *all[2].LagBytes != 2048 {
		t.Errorf("%+v", all)
	}
}

// TestWatchTakesAnInterval or none, and refuses a wrong one.
func TestWatchTakesAnInterval(t *testing.T) {
	t.Parallel()
	env := map[string]string{"WALPOST_PIPELINE": "orders", "WALPOST_SOURCE_URL": "postgres://walpost@127.0.0.1:1/orders", "WALPOST_KAFKA_BROKERS": "127.0.0.1:1", "WALPOST_KAFKA_AGGREGATE_TYPES": "order"}
	getenv := func(key string) string { return env[key] }
	for flag, want := range map[string]string{"--watch": "every 2.0 s\n", "--watch=100ms": "every 100 ms\n"} {
		ctx, cancel := context.WithCancel(t.Context())
		s := &screen{}
		ended := make(chan error, 1)
		go func() { ended <- run(ctx, []string{"status", flag}, getenv, s, s) }()
		cdctest.Eventually(t, 30*time.Second, func() error { return contains(s.String(), want) })
		cdctest.Eventually(t, 30*time.Second, func() error { return contains(s.String(), "verdict    cannot tell") })
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", flag, err)
		}
	}
	for _, flag := range []string{"--watch=x", "--watch=1ms"} {
		if err := run(t.Context(), []string{"status", flag}, getenv, &screen{}, &screen{}); err == nil || !strings.Contains(err.Error(), "write the time between two looks") {
			t.Errorf("%s: %v", flag, err)
		}
	}
}
