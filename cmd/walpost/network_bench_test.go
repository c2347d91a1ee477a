//go:build linux

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// BenchmarkNetwork empties a backlog that comes over a network, with the relay and with pg_recvlogical on the same WAL, in turn, and
// prints a table: minimum, median and maximum of five rounds. Kafka is on loopback. WALPOST_BENCH_CONGESTION names another congestion
// control than the system's, WALPOST_BENCH_ROWS another number of rows.
//
// Rates leave out the start of the process, which takes more round trips in the relay than in pg_recvlogical. A backlog of one row
// says how long it is. CPU and idle cores are those of the whole process's time.
func BenchmarkNetwork(b *testing.B) {
	binary, brokers := relayBinary(b), benchKafka(b)
	var table strings.Builder
	delayed := func(mtu int, roundTrip time.Duration) func(testing.TB) *cdctest.Link {
		return func(t testing.TB) *cdctest.Link { return cdctest.Delayed(t, mtu, roundTrip) }
	}
	for _, way := range []struct {
		name string
		link func(testing.TB) *cdctest.Link
	}{
		{"0.1ms", delayed(9000, 100*time.Microsecond)},
		{"1ms", delayed(9000, time.Millisecond)},
		{"5ms", delayed(9000, 5*time.Millisecond)},
		{"20ms", delayed(9000, 20*time.Millisecond)},
		{"veth-1500", func(t testing.TB) *cdctest.Link { return cdctest.Veth(t, 1500) }},
	} {
		for _, perTx := range []int{10, 1} {
			rows := map[int]int{10: 300_000, 1: 150_000}[perTx]
			name := fmt.Sprintf("%s/tx-of-%d", way.name, perTx)
			b.Run(name, func(b *testing.B) {
				fmt.Fprintf(&table, "| %s %s", name, benchmarkNetwork(b, way.link(b), binary, brokers, rows, perTx))
			})
		}
	}
	control, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		b.Fatal(err)
	}
	fmt.Println("Congestion control " + cmp.Or(os.Getenv("WALPOST_BENCH_CONGESTION"), strings.TrimSpace(string(control))) + ".\n\n| network | relay, rows/s | pg_recvlogical, rows/s | ratio | relay, CPU µs/row | link beside the relay, CPU µs/row | cores idle beside the relay | beside pg_recvlogical | plain copy, MB/s | copy in pieces of 500 B, MB/s |\n|---|---|---|---|---|---|---|---|---|---|\n" + table.String())
}

// benchmarkNetwork returns a line of the table, without its name.
func benchmarkNetwork(b *testing.B, link *cdctest.Link, binary string, brokers []string, rows, perTx int) string {
	const rounds = 5
	if n, err := strconv.Atoi(os.Getenv("WALPOST_BENCH_ROWS")); err == nil {
		rows = n
	}
	if control := os.Getenv("WALPOST_BENCH_CONGESTION"); control != "" {
		link.Congestion(b, control)
	}
	server := cdctest.OwnPostgres(b, devenv.PostgresConfig{Settings: map[string]string{"listen_addresses": "127.0.0.1," + link.Host}})
	over := func(through string) string {
		u, err := url.Parse(through)
		if err != nil {
			b.Fatal(err)
		}
		u.Host = net.JoinHostPort(link.Peer, u.Port())
		return u.String()
	}
	ready := func() (s *stage, drainIt, limit func(rows int) usage) {
		s = stageOn(b, server.URL("postgres"), brokers)
		s.must("init")
		s.env["WALPOST_SOURCE_URL"] = over(s.env["WALPOST_SOURCE_URL"])
		slot := cdctest.SlotName(b, "limit")
		s.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
		far := *s
		far.admin = over(s.admin)
		drainIt = func(rows int) usage {
			link.Forget()
			return drain(b, s, binary, rows)
		}
		limit = func(int) usage {
			link.Forget()
			return recvlogical(b, &far, slot, s.position())
		}
		return s, drainIt, limit
	}
	first, drainOne, limitOne := ready()
	admit(b, first, over(first.admin))
	var starts, limitStarts []time.Duration
	for range 3 {
		first.insert(1)
		starts, limitStarts = append(starts, drainOne(1).wall), append(limitStarts, limitOne(1).wall)
	}
	slices.Sort(starts)
	slices.Sort(limitStarts)
	start, limitStart := starts[1], limitStarts[1]
	plain, pieces := capacity(b, link, 64<<10), capacity(b, link, 500)
	b.Logf("a start takes the relay %.0f ms, pg_recvlogical %.0f ms; a plain copy goes at %.0f MB/s, in pieces of 500 bytes at %.0f MB/s", ms(start), ms(limitStart), plain, pieces)

	var sides [rounds][2]func(int) usage
	for i := range sides {
		_, sides[i][0], sides[i][1] = ready()
	}
	load(b, first, rows, perTx)
	first.exec("CHECKPOINT")
	b.ResetTimer()
	var rates, limits, ratios, cpus, links []float64
	var idles [2][]float64
	for i := range sides {
		var used [2]usage
		var linkCPU, serverCPU [2]time.Duration
		var idle [2]float64 // of the machine's cores
		for turn := range 2 {
			side := (i + turn) % 2
			linkBefore, serverBefore, idleBefore, began := link.CPU(), first.postgresCPU(), idleTime(b), time.Now()
			used[side] = sides[i][side](rows)
			idle[side] = (idleTime(b) - idleBefore).Seconds() / time.Since(began).Seconds()
			idles[side] = append(idles[side], idle[side])
			linkCPU[side], serverCPU[side] = link.CPU()-linkBefore, first.postgresCPU()-serverBefore
		}
		perSecond := func(u usage, start time.Duration) float64 { return float64(rows) / (u.wall - start).Seconds() }
		each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(rows) }
		rates = append(rates, perSecond(used[0], start))
		limits = append(limits, perSecond(used[1], limitStart))
		ratios = append(ratios, rates[i]/limits[i])
		cpus = append(cpus, each(used[0].cpu))
		links = append(links, each(linkCPU[0]))
		b.Logf("round %d: relay %.0f rows/s in %.2f s, pg_recvlogical %.0f in %.2f s, ratio %.2f; CPU µs/row: relay %.2f, its link %.2f, its server %.2f, pg_recvlogical %.2f, its link %.2f, its server %.2f; "+
			"of %d cores idle %.2f and %.2f; %d packets dropped so far", i, rates[i], used[0].wall.Seconds(), limits[i], used[1].wall.Seconds(), ratios[i],
			cpus[i], links[i], each(serverCPU[0]), each(used[1].cpu), each(linkCPU[1]), each(serverCPU[1]), runtime.NumCPU(), idle[0], idle[1], link.Dropped())
	}
	b.ReportMetric(0, "ns/op")
	three := func(format string, of []float64) string {
		slices.Sort(of)
		return fmt.Sprintf(format+" / "+format+" / "+format, of[0], of[len(of)/2], of[len(of)-1])
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %.0f | %.0f |\n", three("%.0f", rates), three("%.0f", limits), three("%.2f", ratios), three("%.2f", cpus), three("%.2f", links), three("%.2f", idles[0]), three("%.2f", idles[1]), plain, pieces)
}

// admit lets every address in, which a new server does not, and waits until a connection to url is made.
func admit(b *testing.B, s *stage, url string) {
	b.Helper()
	file, err := os.OpenFile(s.query("SHOW hba_file"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	_, err = file.WriteString("host all,replication all 198.18.0.0/15 trust\n")
	if err := cmp.Or(err, file.Close()); err != nil {
		b.Fatal(err)
	}
	s.exec("SELECT pg_reload_conf()")
	cdctest.Eventually(b, 10*time.Second, func() error {
		conn, err := pgx.Connect(b.Context(), url)
		if err == nil {
			err = conn.Close(b.Context())
		}
		return err
	})
}

// idleTime is how long the machine's cores have been idle, taken together.
func idleTime(b *testing.B) time.Duration {
	b.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	ticks, err := strconv.Atoi(strings.Fields(string(text))[4])
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// capacity is how many MB a second arrive over the link when they are written in pieces of a size.
func capacity(b *testing.B, link *cdctest.Link, size int) float64 {
	b.Helper()
	const warm, during = 500 * time.Millisecond, time.Second
	listener, err := net.Listen("tcp", net.JoinHostPort(link.Host, "0"))
	if err != nil {
		b.Fatal(err)
	}
	link.Forget()
	sent := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		for piece := make([]byte, size); err == nil; {
			_, err = conn.Write(piece)
		}
		sent <- err
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(link.Peer, port), 5*time.Second)
	if err != nil {
		b.Fatal(errors.Join(err, listener.Close()))
	}
	received := 0
	began, buf := time.Now(), make([]byte, 256<<10)
	for time.Since(began) < warm+during {
		n, err := conn.Read(buf)
		if err != nil {
			b.Fatal(err)
		}
		if time.Since(began) > warm {
			received += n
		}
	}
	_ = errors.Join(conn.Close(), listener.Close())
	<-sent
	return float64(received) / 1e6 / during.Seconds()
}
