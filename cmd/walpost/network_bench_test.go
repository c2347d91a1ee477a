//go:build linux && network

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// BenchmarkNetwork empties a backlog that comes over a network, with the relay and with pg_recvlogical on the same WAL,
// in turn, and prints a table: minimum, median and maximum of five rounds. Kafka is on loopback.
// WALPOST_BENCH_CONGESTION names another congestion control than the system's. WALPOST_BENCH_ROWS says how many rows a
// backlog has, WALPOST_BENCH_ROUNDS how many rounds there are.
//
// Rates leave out the start of the process, which takes more round trips in the relay than in pg_recvlogical; a backlog
// of one row says how long it is.
func BenchmarkNetwork(b *testing.B) {
	binary, brokers := relayBinary(b), benchKafka(b)
	var lines []string
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
				lines = append(lines, "| "+name+" "+benchmarkNetwork(b, way.link(b), binary, brokers, rows, perTx))
			})
		}
	}
	control, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		b.Fatal(err)
	}
	printTable(b, append([]string{
		"Congestion control " + cmp.Or(os.Getenv("WALPOST_BENCH_CONGESTION"), strings.TrimSpace(string(control))) + ".",
		"",
		"| network | relay, rows/s | pg_recvlogical, rows/s | ratio | relay, CPU µs/row | walsender, CPU µs/row | link, CPU µs/row | plain copy, MB/s | copy in pieces of 500 B, MB/s |",
		"|---|---|---|---|---|---|---|---|---|",
	}, lines...))
}

// benchmarkNetwork returns a line of the table, without its name.
func benchmarkNetwork(b *testing.B, link *cdctest.Link, binary string, brokers []string, rows, perTx int) string {
	rounds := 5
	if n, err := strconv.Atoi(os.Getenv("WALPOST_BENCH_ROUNDS")); err == nil {
		rounds = n
	}
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
	ready := func() (s *testbed, drainIt, limit func(rows int) drained) {
		s = newTestbedOn(b, server.URL("postgres"), brokers)
		s.MustRun("init")
		s.Env["WALPOST_SOURCE_URL"] = over(s.Env["WALPOST_SOURCE_URL"])
		slot := cdctest.SlotName(b, "limit")
		s.Exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
		drainIt = func(rows int) drained {
			link.Forget()
			return drain(b, s, binary, rows)
		}
		limit = func(int) drained {
			link.Forget()
			return recvlogical(b, s, over(s.AdminURL), slot, s.walPosition())
		}
		return s, drainIt, limit
	}
	first, drainOne, limitOne := ready()
	admit(b, first, over(first.AdminURL))
	var starts, limitStarts []time.Duration
	for range 3 {
		first.InsertRows(1)
		starts, limitStarts = append(starts, drainOne(1).wall), append(limitStarts, limitOne(1).wall)
	}
	slices.Sort(starts)
	slices.Sort(limitStarts)
	start, limitStart := starts[1], limitStarts[1]
	plain, pieces := capacity(b, link, 64<<10), capacity(b, link, 500)
	b.Logf("a start takes the relay %.0f ms, pg_recvlogical %.0f ms; a plain copy goes at %.0f MB/s, in pieces of 500 bytes at %.0f MB/s", ms(start), ms(limitStart), plain, pieces)

	sides := make([][2]func(int) drained, rounds)
	for i := range sides {
		_, sides[i][0], sides[i][1] = ready()
	}
	load(b, first, insertOf(400), rows, perTx)
	first.Exec("CHECKPOINT")
	b.ResetTimer()
	var rates, limits, ratios, cpus, senders, links []float64
	for i := range sides {
		var took [2]drained
		var linkCPU [2]time.Duration
		for turn := range 2 {
			side := (i + turn) % 2
			before := link.CPU()
			took[side] = sides[i][side](rows)
			linkCPU[side] = link.CPU() - before
		}
		each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(rows) }
		rates = append(rates, float64(rows)/(took[0].wall-start).Seconds())
		limits = append(limits, float64(rows)/(took[1].wall-limitStart).Seconds())
		ratios = append(ratios, rates[i]/limits[i])
		cpus = append(cpus, each(took[0].cpu))
		senders = append(senders, each(took[0].walsender.total()))
		links = append(links, each(linkCPU[0]))
		fmt.Printf("round %d: relay %s rows/s (wire: %s), pg_recvlogical %s, ratio %.2f; CPU µs/row: relay %.2f, its walsender %.2f, its link %.2f, pg_recvlogical %.2f, its walsender %.2f, its link %.2f; others used %.1f and %.1f %% of the machine; %d packets dropped so far\n",
			i+1, thousands(rates[i]), took[0].wire, thousands(limits[i]), ratios[i], cpus[i], senders[i], links[i],
			each(took[1].cpu), each(took[1].walsender.total()), each(linkCPU[1]), 100*took[0].others, 100*took[1].others, link.Dropped())
	}
	b.ReportMetric(0, "ns/op")
	return fmt.Sprintf("| %s | %s | %s | %.2f | %.2f | %.2f | %.0f | %.0f |", spanOf(rates).text(0), spanOf(limits).text(0), spanOf(ratios).text(2),
		spanOf(cpus).median, spanOf(senders).median, spanOf(links).median, plain, pieces)
}

// admit lets every address in, which a new server does not, and waits until a connection to url is made.
func admit(b *testing.B, s *testbed, url string) {
	b.Helper()
	file, err := os.OpenFile(s.Query("SHOW hba_file"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	_, err = file.WriteString("host all,replication all 198.18.0.0/15 trust\n")
	if err := cmp.Or(err, file.Close()); err != nil {
		b.Fatal(err)
	}
	s.Exec("SELECT pg_reload_conf()")
	cdctest.Eventually(b, 30*time.Second, func() error {
		conn, err := pgx.Connect(b.Context(), url)
		if err == nil {
			err = conn.Close(b.Context())
		}
		return err
	})
}

// capacity returns how many MB a second arrive over the link when they are written in pieces of a size.
func capacity(b *testing.B, link *cdctest.Link, size int) float64 {
	b.Helper()
	const warm, during = time.Second, time.Second
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
