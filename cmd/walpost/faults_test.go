package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cmd/internal/pipeline"
)

// long says whether this is the long form of the suite.
func long() bool { return os.Getenv("WALPOST_TEST_LONG") != "" }

// kills is how often each test of that kind kills.
func kills() int {
	if long() {
		return 30
	}
	return 5
}

// settled waits until everything committed is delivered and confirmed, and checks the topic against the ledger.
func (s *stage) settled(ledger cdctest.Ledger) cdctest.Report {
	s.t.Helper()
	s.confirmed(time.Minute)
	report := cdctest.Check(ledger, cdctest.ReadAll(s.t, s.brokers, s.topic))
	if err := report.Err(); err != nil {
		s.t.Errorf("%d events committed: %v", len(ledger.Events), err)
	}
	s.t.Logf("%d events, %d records, %d duplicates in %d replays", report.Events, report.Records, report.Duplicates, report.Replays)
	return report
}

// hit is what a kill found: which of the gaps between row, state record and slot it fell into.
type hit struct{ inFlight, beforeState, beforeConfirm bool }

// look compares what was committed, what is in the topic, what the state record says and what the slot has confirmed.
func (s *stage) look(committed int) hit {
	s.t.Helper()
	st := s.state()
	var confirmed cdc.LSN
	if err := confirmed.Scan(s.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"])); err != nil {
		s.t.Fatal(err)
	}
	if confirmed > st.Covered {
		s.t.Errorf("I2: the slot has confirmed %s, the state record covers %s", confirmed, st.Covered)
	}
	ids := map[string]bool{}
	var last cdc.Position
	for _, r := range cdctest.ReadAll(s.t, s.brokers, s.topic) {
		ids[header(r, "id")] = true
		if p := positionOf(s.t, r); p.Compare(last) > 0 {
			last = p
		}
	}
	return hit{
		inFlight:      committed > len(ids),
		beforeState:   last.Compare(st.Last()) > 0,
		beforeConfirm: st.Covered > confirmed,
	}
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

func positionOf(t testing.TB, r *kgo.Record) (p cdc.Position) {
	t.Helper()
	seq, err := strconv.ParseUint(header(r, "seq"), 10, 32)
	if err := errors.Join(err, p.Commit.Scan(header(r, "lsn"))); err != nil {
		t.Fatal(err)
	}
	p.Ordinal = uint32(seq)
	return p
}

// TestKillLosesNothing kills -9 under load until every gap between row, state and slot was hit: at random, and every other time
// as soon as a state record is durable, for what is then not confirmed yet is confirmed within milliseconds on servers that ask.
func TestKillLosesNothing(t *testing.T) {
	s := newStage(t)
	s.must("init")
	s.env["LOG_LEVEL"] = "debug"
	s.env["WALPOST_SOURCE_STATUS_INTERVAL"] = "100ms" // what is confirmed too early is confirmed often
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 300})
	var inFlight, beforeState, beforeConfirm, n int
	for ; n < kills() || (n < 5*kills() && (inFlight == 0 || beforeState == 0 || beforeConfirm == 0)); n++ {
		r := s.spawn()
		r.says(20*time.Second, `"streaming"`)
		if n%2 == 0 {
			time.Sleep(rand.N(1500 * time.Millisecond)) // the instant of the kill is what is random here
		} else {
			durable := make(chan struct{})
			r.log.on("state record is durable", func() {
				_ = syscall.Kill(r.pid, syscall.SIGKILL)
				close(durable)
			})
			select {
			case <-durable:
			case <-time.After(20 * time.Second):
				t.Fatal("no state record in 20 s of load")
			}
		}
		committed := w.Committed()
		r.kill()
		h := s.look(committed)
		inFlight, beforeState, beforeConfirm = inFlight+count(h.inFlight), beforeState+count(h.beforeState), beforeConfirm+count(h.beforeConfirm)
	}
	t.Logf("%d kills: %d with rows in flight, %d between produce and state, %d between state and confirm", n, inFlight, beforeState, beforeConfirm)
	if inFlight == 0 || beforeState == 0 || beforeConfirm == 0 {
		t.Error("a gap was never hit: this run proves nothing about it")
	}
	ledger := w.Stop()
	s.start()
	if report := s.settled(ledger); report.Duplicates == 0 {
		t.Error("no kill led to a replay: the kills were too tame to prove anything")
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestStopRepeatsNothing asks the relay to stop under load: what it took is delivered, and nothing comes twice.
func TestStopRepeatsNothing(t *testing.T) {
	s := newStage(t)
	s.must("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 300})
	for range kills() {
		r := s.spawn()
		r.says(20*time.Second, `"streaming"`)
		time.Sleep(rand.N(700 * time.Millisecond)) // the instant of the stop is what is random here
		if err := r.stop(); err != nil {
			t.Fatalf("asked to stop, the relay ended with %v:\n%s", err, r.log)
		}
		st := s.state()
		confirmed := s.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"])
		if confirmed != st.Covered.String() {
			t.Errorf("after a stop the slot has confirmed %s, the state record covers %s", confirmed, st.Covered)
		}
	}
	ledger := w.Stop()
	s.start()
	if report := s.settled(ledger); report.Duplicates > 0 {
		t.Errorf("%d duplicates, although every stop was asked for", report.Duplicates)
	}
}

// TestSecondRelayStandsByAndTakesOver has two relays on one slot; the first is killed, then the second stopped.
func TestSecondRelayStandsByAndTakesOver(t *testing.T) {
	s := newStage(t)
	s.must("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 100})
	first := s.spawn()
	first.says(20*time.Second, `"streaming"`)
	second := s.spawn()
	second.says(20*time.Second, "standing by")
	first.kill()
	second.says(20*time.Second, `"streaming"`)
	third := s.spawn()
	third.says(20*time.Second, "standing by")
	if err := second.stop(); err != nil {
		t.Fatal(err)
	}
	third.says(20*time.Second, `"streaming"`)
	s.settled(w.Stop())
	if strings.Count(third.log.String(), "standing by") != 1 {
		t.Errorf("standing by is told once, not at every attempt:\n%s", third.log)
	}
}

// outage stands between a relay's Kafka client and the brokers.
type outage struct {
	mu    sync.Mutex
	away  bool
	conns map[net.Conn]struct{}
}

func (o *outage) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.away {
		return nil, errors.New("kafka is away")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err == nil {
		o.conns[conn] = struct{}{}
	}
	return conn, err
}

func (o *outage) set(away bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.away = away; away {
		for c := range o.conns {
			_ = c.Close()
		}
		clear(o.conns)
	}
}

// startWith runs the relay in this process with a Kafka that can be taken away.
func (s *stage) startWith(o *outage) *relay {
	s.t.Helper()
	o.conns = map[net.Conn]struct{}{}
	cfg, err := cdc.LoadConfig("", s.getenv)
	if err != nil {
		s.t.Fatal(err)
	}
	r := &relay{t: s.t, log: &buffer{}}
	engine, _ := pipeline.Relay(cfg, zerolog.New(r.log), prometheus.NewRegistry(), kgo.Dialer(o.dial))
	ctx, cancel := context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	s.t.Cleanup(func() { s.report(r, r.stop()) })
	return r
}

// TestKafkaAway takes Kafka away under load: the slot is given back, so that PostgreSQL can be stopped, and everything
// arrives once Kafka is back.
func TestKafkaAway(t *testing.T) {
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := stageOn(t, server.URL("shop"), cdctest.Kafka(t))
	s.env["WALPOST_QUEUE_TIMEOUT"] = "3s"
	s.env["WALPOST_WINDOW_ROWS"] = "200"
	s.must("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 200})
	var o outage
	r := s.startWith(&o)
	r.says(20*time.Second, `"streaming"`)
	cdctest.Eventually(t, 20*time.Second, func() error {
		if w.Committed() < 500 {
			return fmt.Errorf("%d rows written", w.Committed())
		}
		return nil
	})
	o.set(true)
	away := 10 * time.Second
	if long() {
		away = time.Minute
	}
	back := time.After(away)
	s.eventually(20*time.Second, "NOT active")
	r.says(10*time.Second, "kafka does not take the window")
	ledger := w.Stop()
	began := time.Now()
	if err := server.Stop(t.Context(), "fast"); err != nil {
		t.Fatalf("PostgreSQL could not be stopped while Kafka was away: %v", err)
	}
	t.Logf("PostgreSQL stopped in %s while Kafka was away", time.Since(began).Round(time.Millisecond))
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for outage := true; outage; {
		select {
		case <-back:
			outage = false
		case <-time.After(100 * time.Millisecond):
			if s.query("SELECT active::text FROM pg_replication_slots") == "true" {
				t.Fatal("the replication connection was opened again before Kafka answered")
			}
		}
	}
	o.set(false)
	r.says(30*time.Second, "kafka answers again")
	s.settled(ledger)
}

// TestPostgresRestarts restarts PostgreSQL under load. The stop must not wait for the relay.
func TestPostgresRestarts(t *testing.T) {
	for _, mode := range []string{"fast", "immediate"} {
		t.Run(mode, func(t *testing.T) {
			server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
			if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
				t.Fatal(err)
			}
			s := stageOn(t, server.URL("shop"), cdctest.Kafka(t))
			s.must("init")
			w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.admin, Rate: 200})
			r := s.start()
			var longest time.Duration
			for range kills() {
				r.says(20*time.Second, `"streaming"`)
				seen := w.Committed()
				cdctest.Eventually(t, 30*time.Second, func() error {
					if w.Committed() <= seen+50 {
						return errors.New("nothing is being written")
					}
					return nil
				})
				began := time.Now()
				if err := server.Stop(t.Context(), mode); err != nil {
					t.Fatal(err)
				}
				longest = max(longest, time.Since(began))
				if err := server.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("longest stop: %s", longest.Round(time.Millisecond))
			if longest > 5*time.Second {
				t.Errorf("a %s stop took %s: PostgreSQL waited for the relay", mode, longest)
			}
			s.settled(w.Stop())
		})
	}
}
