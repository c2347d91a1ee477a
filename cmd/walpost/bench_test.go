package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
)

// benchKafka returns the brokers of WALPOST_TEST_KAFKA, or starts kfake in another process, so that its CPU is not
// counted as the relay's.
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

// insertOf returns the statement with which load writes the rows of a transaction. A row has about the given length on
// the wire, in bytes. In the table of init it cannot be less than 170, so narrow is for 100.
func insertOf(bytes int) string {
	if bytes <= 100 {
		return `INSERT INTO outbox SELECT t * per + i, 'order', 'order-' || (t * per + i) % 5000, 'OrderPaid', '{}' FROM generate_series(1, per) i`
	}
	const others = 190 // what comes beside the text
	return fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'order-' || (t * per + i) %% 5000, 'OrderPaid',
		       jsonb_build_object('n', t * per + i, 'text', repeat('x', %d)) FROM generate_series(1, per) i`, bytes-others)
}

const narrow = `CREATE TABLE outbox (id bigint PRIMARY KEY, aggregate_type text NOT NULL, aggregate_id text NOT NULL, event_type text NOT NULL, payload jsonb NOT NULL)`

// load writes rows in transactions of perTx, with a procedure in the server.
func load(b *testing.B, s *testbed, insert string, rows, perTx int) {
	b.Helper()
	s.Exec(`CREATE OR REPLACE PROCEDURE load(n int, per int) LANGUAGE plpgsql AS $$
		BEGIN
			FOR t IN 1..n / per LOOP
				` + insert + `;
				COMMIT;
			END LOOP;
		END $$`)
	conn := s.Connect()
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), fmt.Sprintf("CALL load(%d, %d)", rows, perTx)); err != nil {
		b.Fatal(err)
	}
}

// usage is what a child process cost.
type usage struct {
	wall, cpu              time.Duration
	voluntary, involuntary int64 // switches to another process
}

func usageOf(state *os.ProcessState, wall time.Duration) usage {
	u := usage{wall: wall, cpu: state.UserTime() + state.SystemTime()}
	if ru, ok := state.SysUsage().(*syscall.Rusage); ok {
		u.voluntary, u.involuntary = ru.Nvcsw, ru.Nivcsw
	}
	return u
}

// drained is what it took to read a backlog.
type drained struct {
	usage           // of the process that read it
	rss       int64 // its, at the highest, in bytes
	walsender cpu   // of the process that sent it
	kafka     time.Duration
	others    float64 // part of the machine that others used meanwhile
	bytes     float64 // that came on the wire, if the reader counts them
	wire      string  // what the reader says of its connection
}

// drain runs the built relay until this many rows more are committed in Kafka, and stops it.
func drain(b *testing.B, s *testbed, binary string, rows int) (d drained) {
	b.Helper()
	m := s.processes()
	before := m.shares()
	cmd, log := s.builtRelay(binary)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	for deadline := began.Add(2*time.Minute + time.Duration(rows)*time.Millisecond); ; {
		n := metric(log.String(), "walpost_rows_published_total")
		if int(n) >= rows {
			break
		}
		if time.Now().After(deadline) {
			b.Fatalf("%.0f of %d rows in time\n%s", n, rows, log)
		}
		time.Sleep(time.Millisecond + time.Since(began)/100) // asking costs the relay about a millisecond
	}
	wall := time.Since(began)
	d.walsender, _ = cpuOf(s.walsenderPID())
	d.rss = e2e.PeakMemory(cmd.Process.Pid)
	d.bytes = metric(log.String(), "walpost_received_bytes_total")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		b.Fatalf("relay: %v\n%s", err, log)
	}
	d.usage = usageOf(cmd.ProcessState, wall)
	after := m.shares()
	d.kafka, d.others = after.broker-before.broker, after.others(before)
	d.wire = wireOf(log.String())
	return d
}

// builtRelay returns a relay of the built binary, not started, and its log.
func (s *testbed) builtRelay(binary string) (*exec.Cmd, *cdctest.Log) {
	cmd, log := exec.Command(binary, "relay"), &cdctest.Log{}
	for k, v := range s.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stderr = log
	s.T.Cleanup(func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	return cmd, log
}

// wireOf returns the transport of the replication connection, from a relay's log.
func wireOf(log string) string {
	for line := range strings.Lines(log) {
		var said struct{ Message, Wire string }
		if json.Unmarshal([]byte(line), &said) == nil && said.Message == "streaming" && said.Wire != "" {
			return said.Wire
		}
	}
	return "(not said)"
}

// metric asks a relay for a metric, at the address that its log says.
func metric(log, name string) (n float64) {
	_, rest, _ := strings.Cut(log, `"address":"`)
	addr, _, _ := strings.Cut(rest, `"`)
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), name) {
			n, _ = strconv.ParseFloat(lines.Text()[strings.LastIndexByte(lines.Text(), ' ')+1:], 64)
		}
	}
	return n
}

// recvlogical reads a slot to /dev/null with PostgreSQL's own client.
func recvlogical(b *testing.B, s *testbed, url, slot, end string) (d drained) {
	b.Helper()
	tool, err := devenv.Tool("pg_recvlogical")
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(tool, "-d", url, "--slot", slot, "--start", "--endpos", end, "-f", "/dev/null", "-o", "proto_version=1", "-o", "publication_names=walpost")
	m := s.processes()
	conn := s.Connect()
	defer func() { _ = conn.Close(context.Background()) }()
	before := m.shares()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	// Its walsender ends with it, and what either has used is lost then: look every few milliseconds.
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var pid int
	for look := time.NewTicker(3 * time.Millisecond); ; {
		select {
		case err := <-ended:
			look.Stop()
			d.usage = usageOf(cmd.ProcessState, time.Since(began))
			d.others = m.shares().others(before)
			if err != nil {
				b.Fatalf("pg_recvlogical: %v\n%s", err, &out)
			}
			return d
		case <-look.C:
		}
		if pid == 0 {
			pid = senderOf(conn, slot)
		}
		if used, known := cpuOf(pid); known {
			d.walsender = used
		}
		d.rss = max(d.rss, e2e.PeakMemory(cmd.Process.Pid))
	}
}

var deliveries = []string{"at_least_once", "exactly_once"}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// BenchmarkFirstEvent measures the time from the start of the process to the first record of a waiting row.
func BenchmarkFirstEvent(b *testing.B) {
	binary := relayBinary(b)
	brokers := benchKafka(b)
	s := newTestbedOn(b, cdctest.Database(b), brokers)
	s.MustRun("init")
	var total time.Duration
	n := 0
	for b.Loop() {
		s.InsertRows(1)
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
	s := newTestbedOn(b, cdctest.Database(b), benchKafka(b))
	s.MustRun("init")
	load(b, s, insertOf(400), rows, rows)
	b.ResetTimer()
	r := round{drained: drain(b, s, binary, rows), rows: rows}
	b.ReportMetric(r.rate(), "rows/s")
	b.ReportMetric(r.system(), "walsender-system-µs/row")
	b.ReportMetric(r.relay(), "cpu-µs/row")
	b.ReportMetric(r.memory(), "rss-MiB")
	b.ReportMetric(0, "ns/op")
}
