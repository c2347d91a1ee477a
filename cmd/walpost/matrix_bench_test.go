package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// BenchmarkMatrix drains backlogs through the built binary and through pg_recvlogical, in turn, from the same WAL: rows
// of several sizes, in transactions of several lengths, over several kinds of connection. What decides is most of all
// the walsender's system time a row, which is small only while its client's receive window is closed; so each line says
// it. WALPOST_BENCH_ROUNDS is how many rounds each cell has. b.N is not used.
func BenchmarkMatrix(b *testing.B) {
	binary, brokers := relayBinary(b), benchKafka(b)
	lines := []string{
		"| cell | rows/s: min, median, max | × pg_recvlogical: min, median, max | walsender µs/row: user + system (most) | relay µs/row | Kafka µs/row | peak RSS, MiB | voluntary switches a 1,000 rows | busy rounds |",
		"|---|---|---|---|---|---|---|---|---|",
	}
	for _, c := range cells() {
		b.Run(c.name, func(b *testing.B) { lines = append(lines, c.run(b, binary, brokers)...) })
	}
	printTable(b, lines)
}

// matrixCell is a kind of backlog, over a kind of connection.
type matrixCell struct {
	name                       string
	wire                       string // tcp, tls or unix
	bytes, perTx, rows, rounds int
	readers                    []string // pg_recvlogical, and modes of delivery
}

const reference = "pg_recvlogical"

func cells() (all []matrixCell) {
	rows := map[int]int{100: 600_000, 400: 500_000, 2000: 200_000, 16_000: 40_000} // two seconds' worth or more: the start is in them, too
	sizes := map[int]string{100: "100B", 400: "400B", 2000: "2kB", 16_000: "16kB"}
	transactions := map[int]string{1: "1", 10: "10", 1000: "1k"}
	add := func(first, wire string, bytes, perTx, rounds int, modes ...string) {
		if n, err := strconv.Atoi(os.Getenv("WALPOST_BENCH_ROUNDS")); err == nil {
			rounds = n
		}
		name := strings.Join([]string{first, sizes[bytes], transactions[perTx]}, "/")
		n := rows[bytes]
		if perTx == 1 {
			n /= 2
		}
		all = append(all, matrixCell{name, wire, bytes, perTx, n, rounds, append([]string{reference}, modes...)})
	}
	for _, bytes := range []int{100, 400, 2000, 16_000} {
		for _, perTx := range []int{1, 10, 1000} {
			rounds := 3
			if bytes == 400 && perTx <= 10 {
				rounds = 20
			}
			add("tcp", "tcp", bytes, perTx, rounds, "at_least_once")
		}
	}
	for _, wire := range []string{"tls", "unix"} {
		add(wire, wire, 400, 1, 3, "at_least_once")
		add(wire, wire, 400, 10, 3, "at_least_once")
	}
	add("exactly-once", "tcp", 400, 10, 3, deliveries...)
	return all
}

// serve starts a server, with room for slots. It returns the superuser's URL over TCP, and what turns it into one over
// the cell's kind of connection.
func (c matrixCell) serve(b *testing.B, slots int) (admin string, over func(string) string) {
	settings := map[string]string{"max_replication_slots": strconv.Itoa(slots + 10), "autovacuum": "off"} // it would come in some round
	query := url.Values{"sslmode": {"disable"}}
	switch c.wire {
	case "tls":
		authority := cdctest.NewAuthority(b, "authority", time.Time{})
		its := authority.Issue(b, cdctest.Certificate{Name: "postgres", Hosts: []string{"127.0.0.1"}})
		settings["ssl"], settings["ssl_cert_file"], settings["ssl_key_file"] = "on", its.CertFile, its.KeyFile
		query = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {authority.File}}
	case "unix":
		dir, err := os.MkdirTemp("", "walpost-socket-")
		if err == nil {
			err = os.Chmod(dir, 0o777) // run by root, the server is another user's process
		}
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		settings["unix_socket_directories"] = dir
		query.Set("host", dir)
	}
	admin = cdctest.OwnPostgres(b, devenv.PostgresConfig{Settings: settings}).URL("postgres")
	return admin, func(raw string) string {
		u, err := url.Parse(raw)
		if err != nil {
			b.Fatal(err)
		}
		if query.Has("host") {
			query.Set("port", u.Port())
			u.Host = ""
		}
		u.RawQuery = query.Encode()
		return u.String()
	}
}

// run does the cell's rounds, and returns its lines of the table. Everything is made before them: slots and pipelines
// of all rounds, then the backlog, once.
func (c matrixCell) run(b *testing.B, binary string, brokers []string) (lines []string) {
	admin, over := c.serve(b, c.rounds*len(c.readers))
	s := newTestbedOn(b, admin, brokers)
	if c.bytes <= 100 {
		s.Exec(narrow)
	}
	var end string
	var topics []string
	read := map[string][]func() drained{} // by reader, for each round
	for i := range c.rounds {
		for _, reader := range c.readers {
			if reader == reference {
				slot := fmt.Sprintf("limit_%d", i)
				s.Exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
				read[reader] = append(read[reader], func() drained { return recvlogical(b, s, over(admin), slot, end) })
				continue
			}
			its := newTestbedOn(b, admin, brokers)
			its.Env["WALPOST_SOURCE_URL"] = over(its.Env["WALPOST_SOURCE_URL"])
			its.Env["WALPOST_DELIVERY"] = reader
			its.MustRun("init")
			topics = append(topics, its.Topic)
			read[reader] = append(read[reader], func() drained { return drain(b, its, binary, c.rows) })
		}
	}
	b.Cleanup(func() { deleteTopics(b, brokers, topics) })
	s.Exec("ALTER TABLE outbox ALTER payload SET STORAGE EXTERNAL") // a large payload comes as large as it is
	load(b, s, insertOf(c.bytes), c.rows, c.perTx)
	end = s.walPosition()
	s.Exec("CHECKPOINT")
	syscall.Sync() // what the load has left to be written to disk

	head(s)
	fmt.Printf("\n%s: %s rows in transactions of %d, %d rounds\n", b.Name(), thousands(float64(c.rows)), c.perTx, c.rounds)
	rounds := map[string][]round{}
	for i := range c.rounds {
		this := map[string]drained{}
		busy := false
		for j := range c.readers {
			reader := c.readers[(i+j)%len(c.readers)] // each is first once
			this[reader] = read[reader][i]()
			busy = busy || this[reader].others > tooBusy
		}
		for _, reader := range c.readers {
			r := round{drained: this[reader], rows: float64(c.rows), busy: busy, reference: this[reference].wall}
			if len(c.readers) > 2 {
				r.plain = this[deliveries[0]].wall
			}
			if i == 0 && reader != reference {
				fmt.Printf("%s: wire: %s; %.0f B a row, with its part of Begin and Commit\n", reader, r.wire, r.bytes/r.rows)
			}
			fmt.Printf("round %d, %s: %s\n", i+1, reader, r)
			rounds[reader] = append(rounds[reader], r)
		}
	}
	for _, reader := range c.readers {
		all := results(rounds[reader])
		fmt.Printf("%s: %s\n", reader, all)
		if reader == reference {
			continue
		}
		lines = append(lines, all.line(c.name+", "+reader))
		all.report(b) // those of the last reader stay
	}
	return lines
}

func deleteTopics(b *testing.B, brokers, topics []string) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).DeleteTopics(context.Background(), topics...); err != nil {
		b.Logf("delete topics: %v", err)
	}
}

// round is one reader's part of a round.
type round struct {
	drained
	rows             float64
	reference, plain time.Duration // what pg_recvlogical took in this round, and at least once, if both modes are compared
	busy             bool          // others were, while one of the readers was at work
}

// tooBusy is the part of the machine that others may use.
const tooBusy = 0.05

func (r round) rate() float64       { return r.rows / r.wall.Seconds() }
func (r round) ratio() float64      { return r.reference.Seconds() / r.wall.Seconds() }
func (r round) plainRatio() float64 { return r.plain.Seconds() / r.wall.Seconds() }
func (r round) relay() float64      { return r.each(r.cpu) }
func (r round) user() float64       { return r.each(r.walsender.user) }
func (r round) system() float64     { return r.each(r.walsender.system) }
func (r round) broker() float64     { return r.each(r.kafka) }
func (r round) memory() float64     { return float64(r.rss) / (1 << 20) }
func (r round) switches() float64   { return 1000 * float64(r.voluntary) / r.rows }

// each returns a time as microseconds a row.
func (r round) each(d time.Duration) float64 { return float64(d.Microseconds()) / r.rows }

func (r round) String() string {
	text := fmt.Sprintf("%s rows/s, %.2f × pg_recvlogical; its CPU %.2f µs/row, walsender %.2f user + %.2f system, Kafka %.2f µs/row; %d voluntary, %d involuntary switches; %.0f MiB; others used %.1f %% of the machine",
		thousands(r.rate()), r.ratio(), r.relay(), r.user(), r.system(), r.broker(), r.voluntary, r.involuntary, r.memory(), 100*r.others)
	if r.plain > 0 {
		text += fmt.Sprintf("; %.2f × at least once", r.plainRatio())
	}
	if r.others > tooBusy {
		text += "; busy machine"
	}
	return text
}

// results are a reader's part of all rounds of a cell.
type results []round

func (rs results) of(what func(round) float64) span {
	var values []float64
	for _, r := range rs {
		values = append(values, what(r))
	}
	return spanOf(values)
}

func (rs results) busy() (n int) {
	for _, r := range rs {
		if r.busy {
			n++
		}
	}
	return n
}

// plain returns the ratio to at least once, in parentheses, if there is one.
func (rs results) plain() string {
	if len(rs) == 0 || rs[0].plain == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s × at least once)", rs.of(round.plainRatio).text(2))
}

func (rs results) String() string {
	return fmt.Sprintf("minimum, median, maximum of %d rounds: %s rows/s; %s × pg_recvlogical%s; walsender system %s µs/row; its CPU %s µs/row; at most %.0f MiB; %d rounds on a busy machine",
		len(rs), rs.of(round.rate).text(0), rs.of(round.ratio).text(2), rs.plain(), rs.of(round.system).text(2), rs.of(round.relay).text(2), rs.of(round.memory).max, rs.busy())
}

func (rs results) line(cell string) string {
	system := rs.of(round.system)
	return fmt.Sprintf("| %s | %s | %s%s | %.2f + %.2f (%.2f) | %.2f | %.2f | %.0f | %.1f | %d of %d |", cell, rs.of(round.rate).text(0), rs.of(round.ratio).text(2), rs.plain(),
		rs.of(round.user).median, system.median, system.max, rs.of(round.relay).median, rs.of(round.broker).median, rs.of(round.memory).max, rs.of(round.switches).median, rs.busy(), len(rs))
}

func (rs results) report(b *testing.B) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rs.of(round.rate).median, "rows/s")
	b.ReportMetric(rs.of(round.ratio).median, "x-recvlogical")
	b.ReportMetric(rs.of(round.ratio).min, "x-worst")
	b.ReportMetric(rs.of(round.system).median, "walsender-system-µs/row")
	b.ReportMetric(rs.of(round.relay).median, "cpu-µs/row")
	b.ReportMetric(rs.of(round.memory).max, "rss-MiB")
	if rs.plain() != "" {
		b.ReportMetric(rs.of(round.plainRatio).median, "x-at-least-once")
	}
}

// span is where values lie.
type span struct{ min, median, max float64 }

func spanOf(values []float64) span {
	if len(values) == 0 {
		return span{}
	}
	values = slices.Sorted(slices.Values(values))
	last := len(values) - 1
	return span{values[0], (values[last/2] + values[len(values)/2]) / 2, values[last]}
}

func (s span) text(decimals int) string {
	if decimals == 0 {
		return thousands(s.min) + ", " + thousands(s.median) + ", " + thousands(s.max)
	}
	return fmt.Sprintf("%.*f, %.*f, %.*f", decimals, s.min, decimals, s.median, decimals, s.max)
}

func thousands(n float64) string {
	text := strconv.Itoa(int(math.Round(n)))
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

var headOnce sync.Once

// head prints, once, what the figures of this run depend on.
func head(s *testbed) {
	headOnce.Do(func() {
		file := func(name string) string {
			text, _ := os.ReadFile("/proc/" + name)
			return strings.Join(strings.Fields(string(text)), " ")
		}
		info, _ := os.ReadFile("/proc/cpuinfo")
		_, model, _ := strings.Cut(string(info), "model name\t: ")
		model, _, _ = strings.Cut(model, "\n")
		kafka := cmp.Or(os.Getenv("WALPOST_TEST_KAFKA"), "in-process, in a process beside")
		fmt.Printf("\nkernel %s, %d × %s, PostgreSQL %s, Kafka: %s, rmem_max %s, tcp_rmem %s\n", file("sys/kernel/osrelease"), runtime.NumCPU(), model,
			s.Query("SHOW server_version"), kafka, file("sys/net/core/rmem_max"), file("sys/net/ipv4/tcp_rmem"))
	})
}

// printTable prints Markdown, and adds it to the file that WALPOST_BENCH_TABLE names.
func printTable(b *testing.B, lines []string) {
	b.Helper()
	text := "\n" + strings.Join(lines, "\n") + "\n"
	fmt.Print(text)
	name := os.Getenv("WALPOST_BENCH_TABLE")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		b.Error(err)
	}
	if err := f.Close(); err != nil {
		b.Error(err)
	}
}
