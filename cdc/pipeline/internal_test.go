package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
)

// TestDeadLettersAreChosenByIDThenByKey: the keys of failed rows are their positions, and a bigint id often equals another row's position.
func TestDeadLettersAreChosenByIDThenByKey(t *testing.T) {
	entry := func(key, id string) kafka.Entry {
		return kafka.Entry{Key: key, Letter: &cdc.DeadLetter{Row: cdc.Row{ID: []byte(id)}}}
	}
	entries := []kafka.Entry{entry("1", "1"), entry("2", "3"), entry("5", "2"), entry("0/1/x", "x"), entry("0/2/x", "x"), {Key: "unreadable"}}
	for id, want := range map[string]string{"1": "1", "2": "5", "3": "2", "5": "5", "0/1/x": "0/1/x", "unreadable": "unreadable"} {
		if chosen, err := choose(entries, []string{id}); err != nil || len(chosen) != 1 || !chosen[want] {
			t.Errorf("%s: %v, %v; want %s", id, chosen, err, want)
		}
	}
	for id, want := range map[string]string{"x": "2 dead letters have this event id: name one by its key: 0/1/x, 0/2/x", "7": "no dead letter"} {
		if _, err := choose(entries, []string{id}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", id, err, want)
		}
	}
	if chosen, err := choose(entries, nil); err != nil || len(chosen) != len(entries) {
		t.Errorf("all: %v, %v", chosen, err)
	}
}

// TestGroupRegistersAllOrNone: after an error the registry is unchanged, so that a process can try another configuration.
func TestGroupRegistersAllOrNone(t *testing.T) {
	reg := prometheus.NewRegistry()
	good := config.Default()
	good.Pipeline, good.Source.URL, good.Kafka.Brokers, good.Kafka.AggregateTypes = "a", "postgres://127.0.0.1:1/none", []string{"127.0.0.1:1"}, []string{"a"}
	bad := good
	bad.Pipeline = "Not Legal"
	if _, err := NewGroup([]config.Config{good, bad}, Options{Registerer: reg}); err == nil {
		t.Fatal("an illegal name was taken")
	}
	if _, err := NewGroup([]config.Config{good}, Options{Registerer: reg}); err != nil {
		t.Error(err)
	}
}

// failing is a server that answers for its facts, but not for its identity.
type failing struct{ standing }

var errNameless = errors.New("no walsender is free")

func (failing) Identify(context.Context, int32) (cdc.Identity, error) {
	return cdc.Identity{}, errNameless
}

// TestSurveyKeepsWhatItHasRead: to read the server's identity may need a replication connection, and all may be in use.
func TestSurveyKeepsWhatItHasRead(t *testing.T) {
	server := failing{standing{WALEnd: 500, Slot: cdc.SlotFacts{Exists: true, ConfirmedFlush: 200}}}
	record := func(context.Context, *cdc.Facts) (*cdc.State, error) { return &cdc.State{Covered: 300}, nil }
	if s, err := read(t.Context(), server, record); err != nil || s.Facts.WALEnd != 500 || s.State.Covered != 300 {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := readAll(t.Context(), server, record); !errors.Is(err, errNameless) || s.Facts.WALEnd != 500 || s.State.Covered != 300 {
		t.Errorf("%+v, %v", s, err)
	}
}

type backlog polling.Backlog

func (b backlog) Backlog(context.Context) (polling.Backlog, error) { return polling.Backlog(b), nil }

// TestStatusOfARunningPollerSaysWhatBlocks: GET /status has the same causes as `walpost status`.
func TestStatusOfARunningPollerSaysWhatBlocks(t *testing.T) {
	m := newMetrics("orders", watched{table: backlog{Pending: 3, Failed: 1, HeldKeys: 1}}, prometheus.NewRegistry())
	m.observer().Role(cdc.Streaming, nil)
	st := m.status()
	want := "1 row has failed and holds 1 key back: `walpost dlq list` says why"
	if st.Backlog == nil || st.Backlog.Pending != 3 || !slices.Contains(st.Blocked, want) || st.Slot != nil {
		t.Errorf("%+v", st)
	}
}

// TestStatusHasAHaltInItsParts: the status has a halt's parts with and without a running relay, and also for one of several pipelines.
func TestStatusHasAHaltInItsParts(t *testing.T) {
	halt := &cdc.HaltError{Found: "f", Means: "m", Run: "run `walpost adopt`", Risk: cdc.Range{From: 1, To: 2}}
	halted := fmt.Errorf("look: %w", halt)
	m := newMetrics("orders", watched{}, prometheus.NewRegistry())
	m.observer().Role(cdc.Halted, halted)
	asked := Status{}
	asked.blocked(halted)
	want := []Blocker{{Found: "look: f", Means: "m, LSN range (0/1, 0/2]", Run: "run `walpost adopt`"}}
	for who, st := range map[string]Status{"a running relay": m.status(), "walpost status": asked} {
		if !slices.Equal(st.BlockedBy, want) || !slices.Equal(st.Blocked, []string{halted.Error()}) || st.Verdict != NeedsSomeone {
			t.Errorf("%s: %+v", who, st)
		}
	}

	file := filepath.Join(t.TempDir(), "walpost.yaml")
	text := "kafka: {brokers: ['k:9092'], aggregate_types: [a]}\nsource: {url: 'postgres://u@127.0.0.1/d'}\npipelines: [{pipeline: a}, {pipeline: b, source: {slot: b}, kafka: {topic: b}}]"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfgs, err := config.Load(file, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if got := blocker(runnable(&cfgs[0], fmt.Errorf("look: %w", halt))); got.Found != "look: f" || got.Run != "run `walpost -p a adopt`" {
		t.Errorf("%+v", got)
	}
}

// TestWhereOfATimeToCome: a writer's clock is ahead.
func TestWhereOfATimeToCome(t *testing.T) {
	ahead, before := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	if _, err := from("k", []postgres.TableRow{{ID: "e", CreatedAt: ahead}}, 0); err == nil || !strings.Contains(err.Error(), "event e has the time "+ahead.Format(time.RFC3339)) {
		t.Errorf("%v", err)
	}
	if at, err := from("k", []postgres.TableRow{{ID: "e", CreatedAt: ahead}, {ID: "f", CreatedAt: before}}, 0); err != nil || !at.Equal(before.Add(-clockMargin)) {
		t.Errorf("%s, %v", at, err)
	}
}

// TestHaltIsLoggedInItsParts: a log line has a field for each part.
func TestHaltIsLoggedInItsParts(t *testing.T) {
	var out strings.Builder
	logger(config.Config{}, zerolog.New(&out), func() string { return kafkaAway }, &catchUp{now: time.Now}).Role(cdc.Halted, fmt.Errorf("look: %w", &cdc.HaltError{Found: "f", Means: "m", Run: "r", Risk: cdc.Range{From: 1, To: 2}}))
	if said, want := out.String(), `"found":"f","means":"m, LSN range (0/1, 0/2]","run":"r","message":"halted"`; !strings.Contains(said, want) {
		t.Errorf("the log says %s, want %s", said, want)
	}
}

// TestNotesAreLoggedOnce: a note is logged once, although each session finds it again.
func TestNotesAreLoggedOnce(t *testing.T) {
	var out strings.Builder
	o := logger(config.Default(), zerolog.New(&out), func() string { return kafkaAway }, &catchUp{now: time.Now})
	for _, notes := range [][]string{{"a", "b"}, {"a", "b"}, {"b"}, {"a", "b"}} {
		o.Noted(notes)
	}
	if a, b := strings.Count(out.String(), `"message":"a"`), strings.Count(out.String(), `"message":"b"`); a != 2 || b != 1 {
		t.Errorf("a was logged %d times, want 2: it had gone; b %d times, want 1:\n%s", a, b, &out)
	}
}
