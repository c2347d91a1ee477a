package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// BenchmarkLive writes transactions at a rate that does not wait for the relay, and measures from the commit's return
// to a read_committed consumer, and what each process used of a core meanwhile. b.N is not used: each case runs for
// some seconds.
func BenchmarkLive(b *testing.B) {
	binary, brokers := relayBinary(b), benchKafka(b)
	lines := []string{
		"| case | p50, p99, p99.9, ms | % of a core: relay | walsender | other PostgreSQL | Kafka | writers' clients and consumer | others, % of the machine | written | backlog, events: half-way, end |",
		"|---|---|---|---|---|---|---|---|---|---|",
	}
	run := func(name, mode string, perTx int, phases func(b *testing.B, s *testbed) []phase) {
		b.Run(name, func(b *testing.B) {
			s := newTestbedOn(b, cdctest.Database(b), brokers)
			s.Env["WALPOST_DELIVERY"] = mode
			plan := phases(b, s)
			s.MustRun("init")
			l := live(b, s, binary, fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
				SELECT gen_random_uuid(), 'order', $1::text, 'OrderPaid', jsonb_build_object('text', repeat('x', 220)) FROM generate_series(1, %d)`, perTx), perTx, plan)
			head(s)
			fmt.Printf("\n%s: wire: %s\n%s\n", b.Name(), l.wire, l)
			lines = append(lines, l.line(name))
			l.report(b)
		})
	}
	steady := func(rate float64, lasts time.Duration) func(*testing.B, *testbed) []phase {
		return func(*testing.B, *testbed) []phase { return []phase{{rate, lasts}} }
	}
	for _, mode := range deliveries {
		run(mode+"/100", mode, 1, steady(100, 20*time.Second))
		run(mode+"/1000", mode, 1, steady(1000, 10*time.Second))
		run(mode+"/5000", mode, 1, steady(5000, 10*time.Second))
	}
	plain := deliveries[0]
	run(plain+"/10000", plain, 1, steady(10_000, 10*time.Second))
	run(plain+"/20000-by-10", plain, 10, steady(2000, 10*time.Second))
	run(plain+"/50000-by-10", plain, 10, steady(5000, 10*time.Second))
	run("swing", plain, 1, func(*testing.B, *testbed) (phases []phase) {
		for range 5 {
			phases = append(phases, phase{200, 3 * time.Second}, phase{8000, 3 * time.Second})
		}
		return phases
	})
	run("near-drain", plain, 10, func(b *testing.B, s *testbed) []phase {
		// The writers need more than twice the CPU of all that drains. With them, two cores are nearly used up at this
		// part.
		const rows, part = 300_000, 0.28
		other := newTestbedOn(b, s.AdminURL, brokers)
		other.MustRun("init")
		load(b, other, insertOf(400), rows, 10)
		rate := rows / drain(b, other, binary, rows).wall.Seconds()
		fmt.Printf("\n%s: the drain makes %s rows/s\n", b.Name(), thousands(rate))
		return []phase{{part * rate / 10, 10 * time.Second}}
	})
	printTable(b, lines)
}

// phase is a time with a rate of transactions a second.
type phase struct {
	rate  float64
	lasts time.Duration
}

// schedule returns when each transaction is due, and its phase.
func schedule(phases []phase) (due []time.Duration, of []int) {
	var begins time.Duration
	for p, phase := range phases {
		for n := range int(phase.rate * phase.lasts.Seconds()) {
			due, of = append(due, begins+time.Duration(float64(n)/phase.rate*1e9)), append(of, p)
		}
		begins += phase.lasts
	}
	return due, of
}

// lived is how a relay kept up with writers.
type lived struct {
	phases    []phase
	perTx     int
	latencies [][]time.Duration // of events, by phase, sorted

	planned, written float64 // transactions a second
	half, end        int     // events committed and not arrived, in the middle and when the writers stopped
	cores            struct{ relay, walsender, postgres, broker, itself float64 }
	others           float64 // part of the machine
	rss              int64
	wire             string
}

const writers = 8

// live runs insert for each transaction of a schedule, with its number for the parameter and for the key of its perTx
// events, on a few connections, each of which sends what is due without waiting for the answers: that is cheap enough
// for the client to keep up. It ends with the schedule's time, even if transactions are left. An event's latency is
// from the client's receiving the answer to the commit until the consumer has the record. The first second warms up.
func live(b *testing.B, s *testbed, binary, insert string, perTx int, phases []phase) (l lived) {
	b.Helper()
	cmd, log := s.builtRelay(binary)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	(&e2e.Relay{T: b, Log: log}).WaitForLog(20*time.Second, `"streaming"`)
	due, of := schedule(phases)
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	w := writing{due: due, committed: make([]time.Time, len(due))}
	for _, p := range phases {
		w.lasts += p.lasts
	}
	c := startConsumer(ctx, b, s, len(due), perTx)
	backlog := func() int { return max(0, int(w.count.Load())*perTx-int(c.count.Load())) }
	conns := make([]*pgconn.PgConn, writers)
	for i := range conns {
		conn, err := pgconn.Connect(ctx, s.AdminURL)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = conn.Close(context.Background()) }()
		if _, err := conn.Prepare(ctx, "insert", insert, nil); err != nil {
			b.Fatal(err)
		}
		conns[i] = conn
	}

	m := s.processes()
	m.relay, m.walsender = cmd.Process.Pid, s.walsenderPID()
	before := m.shares()
	w.start = time.Now()
	var half atomic.Int64
	timer := time.AfterFunc(w.lasts/2, func() { half.Store(int64(backlog())) })
	defer timer.Stop()
	var group errgroup.Group
	for i, conn := range conns {
		group.Go(func() error { return w.write(ctx, conn, i) })
	}
	if err := group.Wait(); err != nil {
		b.Fatalf("write: %v\n%s", err, log)
	}
	took := time.Since(w.start)
	l.half, l.end = int(half.Load()), backlog()
	after := m.shares()
	cores := func(part func(shares) time.Duration) float64 {
		return (part(after) - part(before)).Seconds() / after.at.Sub(before.at).Seconds()
	}
	l.cores.relay = cores(func(s shares) time.Duration { return s.relay })
	l.cores.walsender = cores(func(s shares) time.Duration { return s.walsender })
	l.cores.postgres = cores(func(s shares) time.Duration { return s.postgres - s.walsender })
	l.cores.broker = cores(func(s shares) time.Duration { return s.broker })
	l.cores.itself = cores(func(s shares) time.Duration { return s.itself })
	l.others = after.others(before)

	cdctest.Eventually(b, time.Minute, func() error {
		if n := backlog(); n > 0 {
			return fmt.Errorf("%d events have not arrived\n%s", n, log)
		}
		return nil
	})
	l.rss = e2e.PeakMemory(cmd.Process.Pid)
	cancel()
	<-c.ended
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		b.Fatalf("relay: %v\n%s", err, log)
	}
	l.wire, l.phases, l.perTx = wireOf(log.String()), phases, perTx
	l.planned, l.written = float64(len(due))/w.lasts.Seconds(), float64(w.count.Load())/took.Seconds()
	l.latencies = make([][]time.Duration, len(phases))
	for _, a := range c.arrivals {
		if due[a.tx] >= time.Second {
			p := of[a.tx]
			l.latencies[p] = append(l.latencies[p], max(0, a.at.Sub(w.committed[a.tx])))
		}
	}
	for _, lat := range l.latencies {
		slices.Sort(lat)
	}
	return l
}

// writing is a schedule that is carried out.
type writing struct {
	due       []time.Duration
	lasts     time.Duration
	start     time.Time
	committed []time.Time // when the answer to each came
	count     atomic.Int64
}

// write does every eighth transaction from the first on. Each is a statement with a Sync behind it, which commits it.
func (w *writing) write(ctx context.Context, conn *pgconn.PgConn, first int) error {
	const atOnce = 64 // of one connection
	pipe := conn.StartPipeline(ctx)
	for next := first; next < len(w.due); {
		time.Sleep(time.Until(w.start.Add(w.due[next])))
		now := time.Since(w.start)
		if now > w.lasts {
			break
		}
		sent := next
		for ; next < len(w.due) && w.due[next] <= now && next < sent+atOnce*writers; next += writers {
			pipe.SendQueryPrepared("insert", [][]byte{strconv.AppendInt(nil, int64(next), 10)}, nil, nil)
			pipe.SendPipelineSync()
		}
		if err := pipe.Flush(); err != nil {
			return err
		}
		for ; sent < next; sent += writers {
			for synced := false; !synced; {
				results, err := pipe.GetResults()
				if err != nil {
					return err
				}
				_, synced = results.(*pgconn.PipelineSync)
			}
			w.committed[sent] = time.Now()
			w.count.Add(1)
		}
	}
	return pipe.Close()
}

// consumer notes when events arrive.
type consumer struct {
	count    atomic.Int64
	arrivals []arrival // to be read when it has ended
	ended    chan struct{}
}

type arrival struct {
	tx int
	at time.Time
}

// startConsumer reads until ctx ends. It counts perTx events of each transaction; what comes again is not counted.
func startConsumer(ctx context.Context, b *testing.B, s *testbed, transactions, perTx int) *consumer {
	b.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...), kgo.ConsumeTopics(s.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(time.Second), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		b.Fatal(err)
	}
	c := &consumer{ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		defer client.Close()
		seen := make([]int, transactions)
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			now := time.Now()
			fetches.EachRecord(func(r *kgo.Record) {
				tx, err := strconv.Atoi(string(r.Key))
				if err != nil || seen[tx] == perTx {
					return
				}
				seen[tx]++
				c.arrivals = append(c.arrivals, arrival{tx, now})
				c.count.Add(1)
			})
		}
	}()
	return c
}

// quantiles returns p50, p99 and p99.9 of sorted times, in milliseconds.
func quantiles(sorted []time.Duration) (q [3]float64) {
	for i, part := range []float64{0.5, 0.99, 0.999} {
		if len(sorted) > 0 {
			q[i] = ms(sorted[int(float64(len(sorted))*part)])
		}
	}
	return q
}

// all returns the times of all phases.
func (l lived) all() []time.Duration {
	return slices.Sorted(slices.Values(slices.Concat(l.latencies...)))
}

// times returns the quantiles as text, with those of each phase.
func (l lived) times() string {
	q := quantiles(l.all())
	text := fmt.Sprintf("%.1f, %.1f, %.1f", q[0], q[1], q[2])
	if len(l.phases) > 1 {
		text += "; p99 of each phase:"
		for i, p := range l.phases {
			text += fmt.Sprintf(" %.1f (%s/s)", quantiles(l.latencies[i])[1], thousands(p.rate*float64(l.perTx)))
		}
	}
	return text
}

// rate returns how much was written, in events a second, and the plan if it was more.
func (l lived) rate() string {
	text := thousands(l.written*float64(l.perTx)) + "/s"
	if l.written < 0.98*l.planned {
		return "writers reach " + text + " of " + thousands(l.planned*float64(l.perTx)) + "/s"
	}
	return text
}

func (l lived) String() string {
	text := fmt.Sprintf("commit to consumer, p50, p99, p99.9: %s ms; %s; of a core: relay %.0f %%, walsender %.0f %%, other PostgreSQL %.0f %%, Kafka %.0f %%, writers' clients and consumer %.0f %%; others used %.1f %% of the machine; backlog %s events half-way, %s at the end; relay %d MiB",
		l.times(), l.rate(), 100*l.cores.relay, 100*l.cores.walsender, 100*l.cores.postgres, 100*l.cores.broker, 100*l.cores.itself, 100*l.others, thousands(float64(l.half)), thousands(float64(l.end)), l.rss>>20)
	if l.others > tooBusy {
		text += "; busy machine"
	}
	return text
}

func (l lived) line(name string) string {
	return fmt.Sprintf("| %s | %s | %.0f | %.0f | %.0f | %.0f | %.0f | %.1f | %s | %s, %s |", name, l.times(), 100*l.cores.relay, 100*l.cores.walsender, 100*l.cores.postgres,
		100*l.cores.broker, 100*l.cores.itself, 100*l.others, l.rate(), thousands(float64(l.half)), thousands(float64(l.end)))
}

func (l lived) report(b *testing.B) {
	q := quantiles(l.all())
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(q[0], "p50-ms")
	b.ReportMetric(q[1], "p99-ms")
	b.ReportMetric(q[2], "p99.9-ms")
	b.ReportMetric(100*l.cores.relay, "%core-relay")
	b.ReportMetric(100*l.cores.walsender, "%core-walsender")
	b.ReportMetric(float64(l.rss>>20), "rss-MiB")
}
