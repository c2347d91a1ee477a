package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

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

// drain runs the built relay until the topic holds rows, and stops it.
func drain(b *testing.B, s *stage, binary string, rows int) usage {
	b.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...))
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	cmd := exec.Command(binary, "relay")
	for k, v := range s.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stderr = &buffer{}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	admin := kadm.NewClient(client)
	for deadline := began.Add(2 * time.Minute); ; {
		var n int64
		ends, err := admin.ListEndOffsets(context.Background(), s.topic)
		if err == nil {
			ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
		}
		if n >= int64(rows) {
			break
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			b.Fatalf("%d of %d rows after two minutes\n%s", n, rows, cmd.Stderr)
		}
		time.Sleep(5 * time.Millisecond)
	}
	wall := time.Since(began)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		b.Fatalf("relay: %v\n%s", err, cmd.Stderr)
	}
	return usageOf(cmd.ProcessState, wall)
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
