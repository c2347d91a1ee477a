//go:build debezium

package connect_test

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/debezium/connect"
)

// connectJVM are java's options in the scripts that Kafka comes with. WALPOST_BENCH_HEAP is another size of the heap.
var connectJVM = []string{"-Xms256M", "-Xmx" + cmp.Or(os.Getenv("WALPOST_BENCH_HEAP"), "2G"), "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"}

// tuned are the connector's settings for large batches without pauses.
var tuned = map[string]string{
	"poll.interval.ms":                                        "1",
	"max.batch.size":                                          "8192",
	"max.queue.size":                                          "32768",
	"producer.override.linger.ms":                             "0",
	"producer.override.batch.size":                            "262144",
	"producer.override.buffer.memory":                         "67108864",
	"producer.override.enable.idempotence":                    "true",
	"producer.override.acks":                                  "all",
	"producer.override.max.in.flight.requests.per.connection": "5",
}

// BenchmarkSideBySide measures the real Debezium, warm and tuned, and walpost with the configuration that it imports from
// Debezium's, on one table:
//
//	go test -tags debezium ./cdc/debezium/connect -run '^$' -bench SideBySide -benchtime 1x -timeout 1h
//
// WALPOST_BENCH_ROUNDS (3) and WALPOST_BENCH_ROWS (200000) set its length, and WALPOST_BENCH_TABLE names a file to which it
// adds its tables. In every round each side has its turn, and the ratio is that of the round.
func BenchmarkSideBySide(b *testing.B) {
	rounds, rows := number("WALPOST_BENCH_ROUNDS", 3), number("WALPOST_BENCH_ROWS", 200_000)
	brokers, binary := connect.Kafka(b), buildWalpost(b)
	for _, per := range []int{10, 1} {
		b.Run(fmt.Sprintf("backlog/%d", per), func(b *testing.B) {
			r := newRig(b, brokers, binary)
			sides := r.sides()
			t := newSheet(fmt.Sprintf("A backlog of %d rows in transactions of %d", rows, per))
			for round := range rounds {
				r.load(rows, per)
				for _, s := range turns(sides, round) {
					t.add(s.label(), r.drain(s, rows))
				}
			}
			t.print(b)
		})
	}
	b.Run("latency", func(b *testing.B) {
		r := newRig(b, brokers, binary)
		sides := r.sides()
		t := newSheet("1,000 transactions of one row a second, from COMMIT to consumer")
		for round := range rounds {
			for _, s := range turns(sides, round) {
				t.add(s.label(), r.late(s, 1000, 20*time.Second))
			}
		}
		t.print(b)
	})
	b.Run("start", func(b *testing.B) {
		r := newRig(b, brokers, binary)
		sides := r.sides()
		t := newSheet("From the start of the process to the first record in Kafka")
		for round := range rounds {
			for _, s := range turns(sides, round) {
				t.add(s.label(), r.first(s))
			}
		}
		t.print(b)
	})
}

// number returns the number in a variable of the environment, or otherwise.
func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// turns returns the sides, beginning with another one in each round.
func turns(sides []side, round int) []side {
	first := round % len(sides)
	return append(slices.Clone(sides[first:]), sides[:first]...)
}

// sides returns Debezium, after it has delivered a backlog to get warm, and walpost in both forms of delivery.
func (r *rig) sides() []side {
	r.Helper()
	d := r.newDebezium(connectJVM, map[string]string{"offset.flush.interval.ms": "5000"}, tuned)
	sides := []side{d, r.newWalpost("walpost", "at_least_once"), r.newWalpost("walpost, exactly once", "exactly_once")}
	const rows = 100_000
	r.load(rows, 10)
	if err := d.worker.Put("outbox", d.config); err != nil {
		r.Fatal(err)
	}
	for _, s := range sides {
		if s != side(d) {
			s.begin()
		}
		r.await(s.topic(), 0, rows)
		r.leave(s)
	}
	return sides
}

// enter lets a side run. Debezium's process has been running, except after it was ended.
func (r *rig) enter(s side) {
	r.Helper()
	if w, ok := s.(warm); ok {
		w.goOn()
	} else {
		s.begin()
	}
}

// leave stops a side when it has confirmed what it has read.
func (r *rig) leave(s side) {
	r.Helper()
	if w, ok := s.(warm); ok {
		w.rest()
	} else {
		s.end()
	}
}

// await returns when this many records more have arrived in a topic, with the times when the first and the last of them
// were seen. With transactions the markers count too, so it waits until nothing more comes.
func (r *rig) await(topic string, before int64, rows int) (first, last time.Time) {
	r.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for n := before; ; {
		now := r.ends(topic)
		at := time.Now()
		if now > before && first.IsZero() {
			first = at
		}
		if now != n {
			n, last = now, at
		}
		if n >= before+int64(rows) && at.Sub(last) > 300*time.Millisecond {
			return first, last
		}
		if at.After(deadline) {
			r.Fatalf("topic %s: %d of %d records", topic, n-before, rows)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// drain lets a side deliver a backlog, and returns what it took.
func (r *rig) drain(s side, rows int) map[string]float64 {
	r.Helper()
	before, then, began := r.ends(s.topic()), look(r), time.Now()
	load := loadAverage()
	var used time.Duration
	if _, ok := s.(warm); ok {
		used = cpuOf(r, s.pid())
	}
	r.enter(s)
	first, last := r.await(s.topic(), before, rows)
	used = cpuOf(r, s.pid()) - used
	others := look(r).othersSince(then, runtime.NumCPU())
	peak := e2e.PeakMemory(s.pid())
	r.leave(s)
	return map[string]float64{
		"rows/s":                      float64(rows) / last.Sub(first).Seconds(),
		"rows/s with start or resume": float64(rows) / last.Sub(began).Seconds(),
		"CPU s per 100,000":           used.Seconds() * 100_000 / float64(rows),
		"peak MiB":                    float64(peak) / (1 << 20),
		"others %":                    100 * others,
		"load before":                 load,
	}
}

// first starts a side's process while a row waits, and returns the time to its record.
func (r *rig) first(s side) map[string]float64 {
	r.Helper()
	if _, ok := s.(warm); ok {
		s.end()
	}
	before, load := r.ends(s.topic()), loadAverage()
	r.load(1, 1)
	began := time.Now()
	s.begin()
	first, _ := r.await(s.topic(), before, 1)
	used, peak := cpuOf(r, s.pid()), e2e.PeakMemory(s.pid())
	r.leave(s)
	return map[string]float64{
		"ms": float64(first.Sub(began).Milliseconds()), "CPU s": used.Seconds(), "peak MiB": float64(peak) / (1 << 20), "load before": load,
	}
}

// late writes transactions of one row at a steady rate, and returns how much later a consumer has them.
func (r *rig) late(s side, rate int, long time.Duration) map[string]float64 {
	r.Helper()
	load := loadAverage()
	r.enter(s)
	s.up()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var mu sync.Mutex
	came := map[string]time.Time{} // by key
	client, err := kgo.NewClient(kgo.SeedBrokers(r.brokers...), kgo.ConsumeTopics(s.topic()), kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		r.Fatal(err)
	}
	defer client.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			at := time.Now()
			mu.Lock()
			fetches.EachRecord(func(record *kgo.Record) { came[string(record.Key)] = at })
			mu.Unlock()
		}
	}()
	// A quarter more at the start is not measured: the consumer finds its place, and Debezium's restart is over.
	lead := long / 4
	var then machine
	var used time.Duration
	committed := map[string]time.Time{}
	n := int((lead + long).Seconds() * float64(rate))
	began := time.Now()
	const writers = 4
	var wg sync.WaitGroup
	for w := range writers {
		conn := e2e.ConnectTo(r, r.url)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := w; i < n; i += writers {
				due := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
				time.Sleep(time.Until(due))
				key := fmt.Sprintf("%s-%d", s.slot(), began.UnixNano()+int64(i))
				if _, err := conn.Exec(ctx, `INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', $1, 'OrderPaid', jsonb_build_object('text', repeat('x', 240)))`, key); err != nil {
					r.Error(err)
					return
				}
				if at := time.Now(); due.Sub(began) >= lead {
					mu.Lock()
					committed[key] = at
					mu.Unlock()
				}
			}
		}()
	}
	time.Sleep(lead)
	then, used = look(r), cpuOf(r, s.pid())
	wg.Wait()
	used, others := cpuOf(r, s.pid())-used, look(r).othersSince(then, runtime.NumCPU())
	cdctest.Eventually(r, time.Minute, func() error {
		mu.Lock()
		defer mu.Unlock()
		missing := 0
		for key := range committed {
			if came[key].IsZero() {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d records are missing", missing, len(committed))
		}
		return nil
	})
	cancel()
	<-done
	var ms []float64
	for key, at := range committed {
		ms = append(ms, float64(came[key].Sub(at).Microseconds())/1000)
	}
	slices.Sort(ms)
	peak := e2e.PeakMemory(s.pid())
	r.leave(s)
	return map[string]float64{
		"p50 ms": ms[len(ms)/2], "p99 ms": ms[len(ms)*99/100], "max ms": ms[len(ms)-1],
		"CPU s per 100,000": used.Seconds() * 100_000 / float64(len(committed)), "peak MiB": float64(peak) / (1 << 20),
		"others %": 100 * others, "load before": load,
	}
}

// loadAverage returns the machine's load average of the last minute.
func loadAverage() float64 {
	text, _ := os.ReadFile("/proc/loadavg")
	f, _ := strconv.ParseFloat(strings.Fields(string(text) + " ?")[0], 64)
	return f
}

// sheet holds figures of each side and round.
type sheet struct {
	title  string
	labels []string
	runs   map[string][]map[string]float64
}

func newSheet(title string) *sheet {
	return &sheet{title: title, runs: map[string][]map[string]float64{}}
}

func (t *sheet) add(label string, figures map[string]float64) {
	if t.runs[label] == nil {
		t.labels = append(t.labels, label)
	}
	t.runs[label] = append(t.runs[label], figures)
}

// print writes a row for each side and figure: minimum, median and maximum, and the ratio to the first side in each round.
func (t *sheet) print(b *testing.B) {
	b.Helper()
	slices.Sort(t.labels) // Debezium is the first
	var out strings.Builder
	fmt.Fprintf(&out, "\n%s (%s, %d rounds)\n\n| figure | side | min | median | max | Debezium's / this one's, in each round |\n|---|---|---|---|---|---|\n",
		t.title, time.Now().Format(time.DateOnly), len(t.runs[t.labels[0]]))
	var names []string
	for name := range t.runs[t.labels[0]][0] {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, label := range t.labels {
			var all []float64
			var ratios []string
			for i, run := range t.runs[label] {
				all = append(all, run[name])
				if base := t.runs[t.labels[0]][i][name]; label != t.labels[0] && !strings.HasPrefix(name, "others") && !strings.HasPrefix(name, "load") {
					ratios = append(ratios, fmt.Sprintf("%.2f", base/run[name]))
				}
			}
			slices.Sort(all)
			fmt.Fprintf(&out, "| %s | %s | %s | %s | %s | %s |\n", name, label, figure(all[0]), figure(all[len(all)/2]), figure(all[len(all)-1]), strings.Join(ratios, ", "))
		}
	}
	fmt.Println(out.String()) // b.Log would shorten it
	if file := os.Getenv("WALPOST_BENCH_TABLE"); file != "" {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = f.WriteString(out.String())
		_ = f.Close()
	}
}

// figure returns a number with three digits at least.
func figure(x float64) string {
	if math.Abs(x) >= 100 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.2f", x)
}
