//go:build chromium

package browser_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/page"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/polling"
)

// fake is a pipeline whose facts the test chooses.
type fake struct {
	config.Config
	unanswered chan struct{} // not nil: Status waits until it is closed

	mu      sync.Mutex
	status  pipeline.Status
	points  []pipeline.Point
	changes []pipeline.Change
	events  []pipeline.Event // the oldest first
	letters []pipeline.DeadLetter
	row     []byte
	trace   *pipeline.Trace
	err     error // of Kafka
	extra   []config.Setting
}

var _ page.Pipeline = (*fake)(nil)

// change changes the facts.
func (f *fake) change(do func(f *fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(f)
}

func (f *fake) Name() string { return f.Pipeline }

func (f *fake) Settings() []config.Setting { return append(f.Config.Settings(), f.extra...) }

func (f *fake) Status(context.Context) pipeline.Status {
	if f.unanswered != nil {
		<-f.unanswered
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

func (f *fake) History() []pipeline.Point {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.points
}

func (f *fake) Changes() []pipeline.Change {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changes
}

func (f *fake) Tail(_ context.Context, _ pipeline.TailOptions, each func(pipeline.Event) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if err := each(e); err != nil {
			return err
		}
	}
	return f.err
}

func (f *fake) DeadLetters(context.Context) ([]pipeline.DeadLetter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.letters, f.err
}

func (f *fake) DeadLetter(_ context.Context, id string) (pipeline.DeadLetter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.letters {
		if d.Key == id {
			d.Row = f.row
			return d, nil
		}
	}
	return pipeline.DeadLetter{}, fmt.Errorf("%q: no dead letter with this event id or key is unresolved: see `walpost dlq list`", id)
}

func (f *fake) Where(context.Context, pipeline.WhereOptions) (*pipeline.Trace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trace == nil {
		return &pipeline.Trace{From: now().Add(-time.Hour), Read: kafka.Searched{Records: 18_204, Partitions: 6}}, nil
	}
	return f.trace, nil
}

// now returns a time that is the same for the facts of one run.
var now = sync.OnceValue(func() time.Time { return time.Now().UTC().Truncate(time.Second) })

// ago returns a time before now.
func ago(d time.Duration) time.Time { return now().Add(-d) }

// of returns a pointer.
func of[T any](v T) *T { return &v }

// configured returns the configuration of one pipeline, from the environment as operators set it.
func configured(t testing.TB, further map[string]string) config.Config {
	t.Helper()
	env := map[string]string{
		"WALPOST_PIPELINE": "orders", "WALPOST_SOURCE_URL": "postgres://relay:" + secret + "@db.example.com:5432/shop?sslmode=verify-full", "WALPOST_SOURCE_SLOT": "orders", "WALPOST_SOURCE_PUBLICATION": "orders",
		"WALPOST_KAFKA_BROKERS": "kafka-1.example.com:9092,kafka-2.example.com:9092", "WALPOST_KAFKA_TOPIC": "shop.{aggregate_type}", "WALPOST_KAFKA_AGGREGATE_TYPES": "order,invoice",
	}
	for key, value := range further {
		env[key] = value
	}
	cfgs, err := config.Load("", func(key string) string { return env[key] })
	if err != nil {
		t.Fatal(err)
	}
	return cfgs[0]
}

// secret is a password that no page may show.
const secret = "browser-must-not-see-this"

// several returns the configurations of n pipelines in one file.
func several(t testing.TB, n int) []config.Config {
	t.Helper()
	var b strings.Builder
	b.WriteString("kafka: {brokers: ['kafka-1.example.com:9092'], aggregate_types: [order]}\npipelines:\n")
	for i := range n {
		fmt.Fprintf(&b, "- {pipeline: shop-%02d, source: {url: 'postgres://relay@db-%02d.example.com/shop?sslmode=verify-full', slot: shop_%02d}}\n", i+1, i+1, i+1)
	}
	path := filepath.Join(t.TempDir(), "walpost.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cfgs, err := config.Load(path, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	return cfgs
}

const (
	walEnd  = cdc.LSN(0x3_5A40_1C88)
	history = "7341289411230021635"
)

// facts returns what PostgreSQL says of a server and a slot in good health.
func facts() cdc.Facts {
	return cdc.Facts{
		Identity: cdc.Identity{SystemID: history, Timeline: 1},
		Slot:     cdc.SlotFacts{Name: "orders", Exists: true, Active: true, ActivePID: 4711, ConfirmedFlush: walEnd - 0x88, RestartLSN: walEnd - 0x40_0000, WALStatus: "reserved", SafeWALSize: of(int64(12 << 30))},
		WALEnd:   walEnd, Time: now(), Fingerprint: "16402/16390", Configured: cdc.Configured{Publication: "orders", Table: "public.outbox"},
	}
}

// record returns the state record that belongs to facts.
func record() *cdc.State {
	return &cdc.State{
		Version: cdc.StateVersion, Pipeline: "orders", Slot: "orders", SystemID: history, Timeline: 1, Covered: walEnd - 0x88, CommitLSN: walEnd - 0x200, Ordinal: 1,
		LastCommitTime: ago(2 * time.Second), Fingerprint: "16402/16390", Checked: walEnd - 0x88, CheckedAt: ago(4 * time.Second), CurrentAt: ago(time.Second),
		Configured: cdc.Configured{Publication: "orders", Table: "public.outbox"}, Instance: "relay-0", Epoch: 12, Time: ago(time.Second),
	}
}

// streaming returns the status of a relay that works.
func streaming() pipeline.Status {
	f, r := facts(), record()
	seconds := 0.0
	st := pipeline.Status{
		Pipeline: "orders", Verdict: pipeline.Flows, Role: cdc.Streaming, Since: ago(26 * time.Hour), Published: 1_482_907, Covered: r.Covered.String(), Confirmed: f.Slot.ConfirmedFlush.String(), Blocked: []string{},
		WALEnd: f.WALEnd.String(), LagBytes: of(int64(0x88)), LagSeconds: &seconds, RetainedBytes: of(int64(0x40_0000)), WALPerHour: of(int64(3 << 30)), SlotSeconds: of(4 * 3600.0),
		State: r, DeadLetters: of(0),
		Slot: &pipeline.Slot{Name: "orders", Exists: of(true), Active: true, ConfirmedFlush: f.Slot.ConfirmedFlush.String(), RestartLSN: f.Slot.RestartLSN.String(), WALStatus: "reserved", SafeWALSize: f.Slot.SafeWALSize},
	}
	st.Positions = positions(0, 0, 0x88, 0x88, 0x88, 0x40_0000)
	return st
}

// positions returns the positions of the WAL that many bytes before its end; those with a negative number are not known.
func positions(behind ...int64) (all []pipeline.Position) {
	for i, place := range []pipeline.Place{pipeline.AtWALEnd, pipeline.AtReceived, pipeline.AtPublished, pipeline.AtState, pipeline.AtConfirmed, pipeline.AtRestart} {
		if behind[i] < 0 {
			continue
		}
		all = append(all, pipeline.Position{Place: place, LSN: (walEnd - cdc.LSN(behind[i])).String(), Bytes: behind[i], Seconds: of(float64(behind[i]) / 800_000)})
	}
	return all
}

// blocks adds a cause, in its parts, as the relay's own status has it.
func blocks(st *pipeline.Status, verdict pipeline.Verdict, err error) {
	b := pipeline.Blocker{Found: err.Error()}
	if halt, is := errors.AsType[*cdc.HaltError](err); is {
		parts := halt.Parts()
		b = pipeline.Blocker{Found: parts[0][1], Means: parts[1][1], Run: parts[2][1]}
	}
	st.Verdict, st.Blocked, st.BlockedBy = verdict, append(st.Blocked, err.Error()), append(st.BlockedBy, b)
}

// halted returns the status and the past of a relay that has halted.
func halted(halt error, facts cdc.Facts) (pipeline.Status, []pipeline.Change) {
	st := streaming()
	st.Role, st.Reason, st.Since = cdc.Halted, halt.Error(), ago(21*time.Minute)
	blocks(&st, pipeline.NeedsSomeone, halt)
	st.LagBytes, st.LagSeconds = of(int64(37<<20)), of(1284.0)
	st.Slot.Active = false
	if facts.Slot.WALStatus != "reserved" {
		st.Slot.WALStatus, st.Slot.SafeWALSize, st.SlotSeconds = facts.Slot.WALStatus, of(int64(0)), nil
	}
	st.Positions = positions(0, 37<<20, 37<<20, 37<<20, 37<<20, 41<<20)
	why := st.BlockedBy[0]
	return st, []pipeline.Change{{At: ago(26 * time.Hour), Role: cdc.Starting}, {At: ago(26*time.Hour - time.Second), Role: cdc.Streaming}, {At: ago(21 * time.Minute), Role: cdc.Halted, Why: &why}}
}

// reconciled returns the halt with which a relay answers these facts.
func reconciled(t testing.TB, change func(*cdc.State, *cdc.Facts)) (cdc.Facts, error) {
	t.Helper()
	st, f := record(), facts()
	change(st, &f)
	_, err := cdc.Reconcile("orders", st, f)
	if _, halts := errors.AsType[*cdc.HaltError](err); !halts {
		t.Fatalf("no halt: %v", err)
	}
	return f, err
}

// hour returns an hour of points with gentle waves and a break.
func hour() (all []pipeline.Point) {
	for i := range 240 {
		p := pipeline.Point{At: ago(time.Duration(239-i) * 15 * time.Second)}
		if i < 90 || i > 97 { // the relay was restarted
			wave := 1 + 0.4*math.Sin(float64(i)/17) + 0.1*math.Sin(float64(i)*1.7)
			p.Rows = 1840 * wave
			p.P50, p.P99 = of(time.Duration(3.1*wave*float64(time.Millisecond))), of(time.Duration(11*wave*float64(time.Millisecond)))
			p.Lag = of(time.Duration(float64(40*time.Millisecond) * wave))
		}
		if i == 98 {
			p.Lag = of(95 * time.Second)
		}
		all = append(all, p)
	}
	return all
}

// idle returns an hour in which nothing happened.
func idle() (all []pipeline.Point) {
	for i := range 240 {
		all = append(all, pipeline.Point{At: ago(time.Duration(239-i) * 15 * time.Second), Lag: of(time.Duration(0))})
	}
	return all
}

// lastEvents returns n events, the oldest first.
func lastEvents(n int) (all []pipeline.Event) {
	for i := range n {
		e := pipeline.Event{
			Time: ago(time.Duration(n-i) * 700 * time.Millisecond), Topic: "shop.order", Partition: int32(i % 6), Offset: 248_100 + int64(i), Key: fmt.Appendf(nil, "order-%d", 88_100+i*7),
			Type: "OrderPaid", ID: fmt.Sprintf("0192f3a1-7c44-7b%02x-9e1d-3f5a70c1d2%02x", i, i), LSN: (walEnd - cdc.LSN(0x800*(n-i))).String(), Bytes: 412,
		}
		if i%5 != 0 {
			e.Lag = of(time.Duration(2+i%7) * time.Millisecond)
		}
		if i%7 == 3 {
			e.Key, e.Topic, e.Type = nil, "shop.invoice", "InvoiceSent"
		}
		all = append(all, e)
	}
	return all
}

// deadLetters returns n dead letters.
func deadLetters(n int) (all []pipeline.DeadLetter) {
	for i := range n {
		d := pipeline.DeadLetter{
			Key: fmt.Sprintf("3/5A3F%04X/1/0192f3a1-0000-7000-8000-%012d", i, i), EventID: fmt.Sprintf("0192f3a1-0000-7000-8000-%012d", i), LSN: fmt.Sprintf("3/5A3F%04X", i), Seq: 1, CommitTime: ago(time.Duration(n-i) * time.Second),
			Source: "orders", AggregateType: "order", AggregateID: fmt.Sprintf("order-%d", 40_000+i), EventType: "OrderPaid", Topic: "shop.order", Class: cdc.TooLarge,
			Reason: "the record has 1,312,044 bytes, more than the 1,048,588 bytes that topic shop.order takes (max.message.bytes)", Time: ago(time.Duration(n-i) * time.Second), Bytes: 1_312_044,
		}
		if i%3 == 1 {
			d.Class, d.Reason, d.HeldFor = cdc.ForOrder, "an earlier row of its key is a dead letter", all[i-1].Key
		}
		all = append(all, d)
	}
	return all
}

// polled returns the status of a relay that polls a table with this backlog.
func polled(b polling.Backlog) pipeline.Status {
	st := pipeline.Status{Pipeline: "orders", Verdict: pipeline.Flows, Role: cdc.Streaming, Since: ago(3 * time.Hour), Published: 90_211, Blocked: []string{}, Backlog: &b}
	if b.Horizon != nil {
		blocks(&st, pipeline.NeedsSomeone, errors.New(b.Horizon.String()))
	}
	if b.Failed > 0 {
		blocks(&st, pipeline.NeedsSomeone, fmt.Errorf("%s rows have failed and hold %d keys back: `walpost dlq list` says why", polling.Count(b.Failed), b.HeldKeys))
	}
	return st
}

// site is a server of the page that can be stopped and started on its address.
type site struct {
	t       testing.TB
	handler http.Handler
	addr    string
	server  *http.Server
}

// serve serves the page of these pipelines until the test ends.
func serve(t testing.TB, o page.Options, pipelines ...*fake) *site {
	t.Helper()
	s := &site{t: t, handler: page.Handler(t.Context(), pipelines, o), addr: "127.0.0.1:0"}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *site) start() {
	s.t.Helper()
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	s.server = &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.server.Serve(ln) }()
}

// stop ends the server and every connection.
func (s *site) stop() { _ = s.server.Close() }

func (s *site) url(path string) string { return "http://" + s.addr + path }
