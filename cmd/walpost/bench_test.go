package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// benchKafka is WALPOST_TEST_KAFKA, or a kfake in a process of its own, so that its CPU is not the relay's.
func benchKafka(b *testing.B) []string {
	b.Helper()
	if addrs := os.Getenv("WALPOST_TEST_KAFKA"); addrs != "" {
		return strings.Split(addrs, ",")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "WALPOST_TEST_KFAKE=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("start kfake: %v", err)
	}
	return strings.Fields(line)
}

// kfakeMain serves until its standard input ends.
func kfakeMain() {
	k, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(strings.Join(k.Brokers(), " "))
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	k.Close()
	os.Exit(0)
}

// relayBinary builds walpost as users run it.
func relayBinary(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "walpost")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		b.Fatalf("build walpost: %v\n%s", err, out)
	}
	return path
}

// load writes rows of about 400 bytes in transactions of perTx, with the server's own procedures.
func load(b *testing.B, s *stage, rows, perTx int) {
	b.Helper()
	s.exec(`CREATE OR REPLACE PROCEDURE load(n int, per int) LANGUAGE plpgsql AS $$
		BEGIN
			FOR t IN 1..n / per LOOP
				INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
				SELECT gen_random_uuid(), 'order', 'order-' || (t * per + i) % 5000, 'OrderPaid',
				       jsonb_build_object('n', t * per + i, 'text', repeat('x', 280)) FROM generate_series(1, per) i;
				COMMIT;
			END LOOP;
		END $$`)
	conn := s.connect()
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), fmt.Sprintf("CALL load(%d, %d)", rows, perTx)); err != nil {
		b.Fatal(err)
	}
}

// usage is what a child process cost.
type usage struct {
	wall, cpu time.Duration
	rss       int64 // bytes
}

func usageOf(state *os.ProcessState, wall time.Duration) usage {
	u := usage{wall: wall, cpu: state.UserTime() + state.SystemTime()}
	if ru, ok := state.SysUsage().(*syscall.Rusage); ok {
		u.rss = ru.Maxrss << 10
	}
	return u
}

// drain runs the built relay until so many rows more are committed in Kafka, and stops it.
func drain(b *testing.B, s *stage, binary string, rows int) usage {
	b.Helper()
	cmd := exec.Command(binary, "relay")
	for k, v := range s.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	log := &buffer{}
	cmd.Stderr = log
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	for deadline := began.Add(2*time.Minute + time.Duration(rows)*time.Millisecond); ; {
		n := published(log.String())
		if n >= rows {
			break
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			b.Fatalf("%d of %d rows in time\n%s", n, rows, log)
		}
		time.Sleep(time.Millisecond + time.Since(began)/50) // asking costs the relay about a millisecond
	}
	wall := time.Since(began)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		b.Fatalf("relay: %v\n%s", err, cmd.Stderr)
	}
	return usageOf(cmd.ProcessState, wall)
}

// published asks the relay's own metrics, whose address its log tells, how many rows are durable.
func published(log string) (n int) {
	_, rest, _ := strings.Cut(log, `"address":"`)
	addr, _, _ := strings.Cut(rest, `"`)
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "walpost_rows_published_total") {
			f, _ := strconv.ParseFloat(lines.Text()[strings.LastIndexByte(lines.Text(), ' ')+1:], 64)
			n = int(f)
		}
	}
	return n
}

// recvlogical reads the slot to /dev/null with PostgreSQL's own client, over TCP.
func recvlogical(b *testing.B, s *stage, slot, end string) usage {
	b.Helper()
	tool, err := devenv.Tool("pg_recvlogical")
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(tool, "-d", s.admin, "--slot", slot, "--start", "--endpos", end, "-f", "/dev/null", "-o", "proto_version=1", "-o", "publication_names=walpost")
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("pg_recvlogical: %v\n%s", err, out)
	}
	return usageOf(cmd.ProcessState, time.Since(began))
}

// BenchmarkDrain empties a backlog through the built binary and compares with pg_recvlogical on the same WAL, in turn.
func BenchmarkDrain(b *testing.B) {
	rows := 300_000
	if n, err := strconv.Atoi(os.Getenv("WALPOST_BENCH_ROWS")); err == nil {
		rows = n
	}
	binary := relayBinary(b)
	brokers := benchKafka(b)
	var stages []*stage
	var slots []string
	admin := cdctest.Database(b)
	for i := range b.N {
		s := stageOn(b, admin, brokers)
		s.must("init")
		slot := fmt.Sprintf("limit_%d", i)
		s.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
		stages, slots = append(stages, s), append(slots, slot)
	}
	load(b, stages[0], rows, 10)
	end := stages[0].query("SELECT pg_current_wal_lsn()::text")
	b.ResetTimer()
	var wall, cpu, limit time.Duration
	var rss int64
	worst := 1e9
	for i, s := range stages {
		l := recvlogical(b, s, slots[i], end)
		u := drain(b, s, binary, rows)
		b.Logf("run %d: relay %.0f rows/s, %.2f CPU µs/row, %d MiB; pg_recvlogical %.0f rows/s; ratio %.2f", i,
			float64(rows)/u.wall.Seconds(), float64(u.cpu.Microseconds())/float64(rows), u.rss>>20, float64(rows)/l.wall.Seconds(), l.wall.Seconds()/u.wall.Seconds())
		wall, cpu, limit, rss = wall+u.wall, cpu+u.cpu, limit+l.wall, max(rss, u.rss)
		worst = min(worst, l.wall.Seconds()/u.wall.Seconds())
	}
	n := float64(rows * b.N)
	b.ReportMetric(n/wall.Seconds(), "rows/s")
	b.ReportMetric(limit.Seconds()/wall.Seconds(), "x-recvlogical")
	b.ReportMetric(worst, "x-worst")
	b.ReportMetric(float64(cpu.Microseconds())/n, "cpu-µs/row")
	b.ReportMetric(float64(rss>>20), "rss-MiB")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkDeliveries drains the same WAL in both modes, in turn, and reports the median of each.
func BenchmarkDeliveries(b *testing.B) {
	const rows = 300_000
	binary := relayBinary(b)
	brokers := benchKafka(b)
	admin := cdctest.Database(b)
	stages := map[string][]*stage{}
	for range b.N {
		for _, mode := range deliveries {
			s := stageOn(b, admin, brokers)
			s.env["WALPOST_DELIVERY"] = mode
			s.must("init")
			stages[mode] = append(stages[mode], s)
		}
	}
	load(b, stages[deliveries[0]][0], rows, 10)
	b.ResetTimer()
	rates := map[string][]float64{}
	for i := range b.N {
		for _, mode := range deliveries {
			u := drain(b, stages[mode][i], binary, rows)
			rates[mode] = append(rates[mode], rows/u.wall.Seconds())
			b.Logf("run %d: %s %.0f rows/s, %.2f CPU µs/row, %d MiB", i, mode, rows/u.wall.Seconds(), float64(u.cpu.Microseconds())/rows, u.rss>>20)
		}
	}
	median := func(mode string) float64 {
		slices.Sort(rates[mode])
		return rates[mode][len(rates[mode])/2]
	}
	b.ReportMetric(median("at_least_once"), "rows/s-at-least-once")
	b.ReportMetric(median("exactly_once"), "rows/s-exactly-once")
	b.ReportMetric(median("exactly_once")/median("at_least_once"), "ratio")
	b.ReportMetric(0, "ns/op")
}

var deliveries = []string{"at_least_once", "exactly_once"}

// BenchmarkLatency writes single-row transactions at a fixed rate, whatever the relay does, and measures from the commit's
// return to a read_committed consumer. b.N is not used: each rate runs for some seconds.
func BenchmarkLatency(b *testing.B) {
	binary := relayBinary(b)
	brokers := benchKafka(b)
	for _, mode := range deliveries {
		for _, rate := range []int{100, 1000, 5000} {
			benchmarkLatency(b, binary, brokers, mode, rate)
		}
	}
}

func benchmarkLatency(b *testing.B, binary string, brokers []string, mode string, rate int) {
	b.Run(fmt.Sprintf("%s/%d-per-second", mode, rate), func(b *testing.B) {
		s := stageOn(b, cdctest.Database(b), brokers)
		s.env["WALPOST_DELIVERY"] = mode
		s.must("init")
		n := rate * 10
		if rate == 100 {
			n = rate * 20
		}
		lat, u := latencies(b, s, binary, `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
			VALUES (gen_random_uuid(), 'order', $1, 'OrderPaid', jsonb_build_object('text', repeat('x', 250)))`, rate, n)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(ms(lat[len(lat)/2]), "p50-ms")
		b.ReportMetric(ms(lat[len(lat)*99/100]), "p99-ms")
		b.ReportMetric(100*u.cpu.Seconds()/u.wall.Seconds(), "%core")
		b.ReportMetric(float64(u.rss>>20), "rss-MiB")
	})
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// latencies runs insert for each key from 1 to n, and returns, sorted, how long after its commit each row reached a consumer. The
// first second warms up.
func latencies(b *testing.B, s *stage, binary, insert string, rate, n int) ([]time.Duration, usage) {
	b.Helper()
	cmd := exec.Command(binary, "relay")
	for k, v := range s.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	log := &buffer{}
	cmd.Stderr = log
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	(&relay{t: b, log: log}).says(20*time.Second, `"streaming"`)
	client, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.ConsumeTopics(s.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(time.Second), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()

	committed := make([]atomic.Int64, n+1) // when commit i had returned
	arrived := make([]time.Time, n+1)
	received := make(chan int, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	go func() {
		got := 0
		for got < n && ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			now := time.Now()
			fetches.EachRecord(func(r *kgo.Record) {
				if i, err := strconv.Atoi(string(r.Key)); err == nil && arrived[i].IsZero() {
					arrived[i] = now
					got++
				}
			})
		}
		received <- got
	}()

	const writers = 16
	pool, err := pgxpool.New(ctx, s.admin+"&pool_max_conns="+strconv.Itoa(writers))
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	jobs := make(chan int, n)
	var group errgroup.Group
	for range writers {
		group.Go(func() error {
			for i := range jobs {
				if _, err := pool.Exec(ctx, insert, strconv.Itoa(i)); err != nil {
					return err
				}
				committed[i].Store(time.Now().UnixNano())
			}
			return nil
		})
	}
	start := time.Now()
	for i := 1; i <= n; {
		due := int(time.Since(start).Seconds()*float64(rate)) + 1
		for ; i <= min(due, n); i++ {
			jobs <- i
		}
		time.Sleep(time.Until(start.Add(time.Duration(float64(i-1) / float64(rate) * 1e9))))
	}
	close(jobs)
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	if got := <-received; got < n {
		b.Fatalf("%d of %d rows arrived\n%s", got, n, log)
	}
	wall := time.Since(began)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		b.Fatalf("relay: %v\n%s", err, log)
	}
	var lat []time.Duration
	for i := rate + 1; i <= n; i++ {
		lat = append(lat, max(0, arrived[i].Sub(time.Unix(0, committed[i].Load()))))
	}
	slices.Sort(lat)
	return lat, usageOf(cmd.ProcessState, wall)
}

// BenchmarkFirstEvent is the time from the start of the process to the first record of a waiting row.
func BenchmarkFirstEvent(b *testing.B) {
	binary := relayBinary(b)
	brokers := benchKafka(b)
	s := stageOn(b, cdctest.Database(b), brokers)
	s.must("init")
	var total time.Duration
	n := 0
	for b.Loop() {
		s.insert(1)
		n++
		total += drain(b, s, binary, 1).wall
	}
	b.ReportMetric(ms(total)/float64(n), "ms-to-first-event")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkHugeTransaction drains one transaction of a million rows.
func BenchmarkHugeTransaction(b *testing.B) {
	const rows = 1_000_000
	binary := relayBinary(b)
	s := stageOn(b, cdctest.Database(b), benchKafka(b))
	s.must("init")
	load(b, s, rows, rows)
	b.ResetTimer()
	u := drain(b, s, binary, rows)
	b.ReportMetric(rows/u.wall.Seconds(), "rows/s")
	b.ReportMetric(float64(u.rss>>20), "rss-MiB")
	b.ReportMetric(0, "ns/op")
}
