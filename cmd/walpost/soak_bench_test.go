package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// soaked is what a relay holds at one time, and what it has left in Kafka.
type soaked struct {
	at                             time.Duration
	windows                        int
	rss, heap                      int // bytes
	goroutines, files, sockets     int
	stateTopic, sinceStart, behind int // bytes of the state topic, offsets that it holds, rows that wait
}

func (s soaked) String() string {
	return fmt.Sprintf("| %s | %d | %.1f | %.1f | %d | %d | %d | %d | %d | %d |", s.at.Round(time.Second), s.windows, float64(s.rss)/(1<<20), float64(s.heap)/(1<<20),
		s.goroutines, s.files, s.sockets, s.stateTopic>>10, s.sinceStart, s.behind)
}

// BenchmarkSoak runs a relay exactly once in which every row has its own window, so that minutes have the windows of a
// working day, while it is scraped and probed. It prints ten times what the relay holds, and fails where that grows
// after the first quarter, or where rows are missing, doubled or out of order. WALPOST_SOAK says how long it lasts (a
// minute without it). b.N is not used.
func BenchmarkSoak(b *testing.B) {
	lasts := time.Minute
	if text := os.Getenv("WALPOST_SOAK"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			b.Fatalf("WALPOST_SOAK: %v", err)
		}
	}
	s := newTestbedOn(b, cdctest.Database(b), benchKafka(b))
	s.Env["WALPOST_DELIVERY"], s.Env["WALPOST_WINDOW_ROWS"] = "exactly_once", "1"
	s.Env["WALPOST_POISON_POLICY"] = "dead_letter" // each scrape reads its topic
	s.MustRun("init")
	cmd, log := s.builtRelay(relayBinary(b))
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	r := &e2e.Relay{T: b, Log: log, PID: cmd.Process.Pid}
	r.WaitForLog(30*time.Second, `"streaming"`)
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(client.Close)
	writer := cdctest.StartWriter(b, cdctest.WriterConfig{URL: s.AdminURL, Rate: 6}) // about 110 rows a second
	head(s)
	lines := []string{
		"| after | windows | RSS, MiB | heap, MiB | goroutines | descriptors | connections | state topic, KiB | its offsets | rows that wait |",
		"|---|---|---|---|---|---|---|---|---|---|",
	}
	began := time.Now()
	var looks []soaked
	for next, tick := lasts/10, time.NewTicker(5*time.Second); len(looks) < 10; {
		<-tick.C
		for _, path := range []string{"/readyz", "/status"} {
			if said, err := r.Ask(path); err != nil || !strings.HasPrefix(said, "200") {
				b.Fatal(path, said, err)
			}
		}
		metrics, err := r.Ask("/metrics")
		if err != nil {
			b.Fatal(err)
		}
		if at := time.Since(began); at >= next {
			look := holds(b, r, metrics, kadm.NewClient(client), "walpost.state."+s.Name)
			look.at, look.behind = at, writer.Committed()-look.windows
			looks, lines, next = append(looks, look), append(lines, look.String()), next+lasts/10
			fmt.Println(look)
		}
	}
	printTable(b, lines)
	ledger := writer.Stop()
	s.WaitUntilConfirmed(10 * time.Minute) // on a busy machine many rows wait
	s.CheckDelivered(ledger)
	early, last := looks[2], looks[9]
	if last.rss > early.rss+early.rss/4 || last.heap > 2*early.heap+4<<20 || last.goroutines > early.goroutines+10 || last.files > early.files+10 || last.sockets > early.sockets+10 ||
		last.stateTopic > early.stateTopic+3<<20 && os.Getenv("WALPOST_TEST_KAFKA") != "" { // the one in the process compacts little
		b.Errorf("it grows: from\n%s to\n%s", early, last)
	}
}

var metricLine = regexp.MustCompile(`(?m)^(go_goroutines|go_memstats_heap_inuse_bytes|walpost_windows_total)(?:\{.*\})? (\S+)$`)

// holds looks at a relay's process and its state topic.
func holds(b *testing.B, r *e2e.Relay, metrics string, admin *kadm.Client, topic string) (s soaked) {
	for _, m := range metricLine.FindAllStringSubmatch(metrics, -1) {
		var value float64
		_, _ = fmt.Sscan(m[2], &value)
		*map[string]*int{"go_goroutines": &s.goroutines, "go_memstats_heap_inuse_bytes": &s.heap, "walpost_windows_total": &s.windows}[m[1]] = int(value)
	}
	proc := fmt.Sprintf("/proc/%d/", r.PID)
	status, _ := os.ReadFile(proc + "status")
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	_, _ = fmt.Sscan(rest, &s.rss)
	s.rss <<= 10
	files, err := os.ReadDir(proc + "fd")
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range files {
		s.files++
		if to, _ := os.Readlink(proc + "fd/" + f.Name()); strings.HasPrefix(to, "socket:") {
			s.sockets++
		}
	}
	dirs, err := admin.DescribeAllLogDirs(b.Context(), kadm.TopicsSet{topic: {0: {}}})
	if err != nil {
		b.Fatal(err)
	}
	dirs.Each(func(d kadm.DescribedLogDir) { s.stateTopic += int(d.Size()) })
	starts, err := admin.ListStartOffsets(b.Context(), topic)
	if err != nil {
		b.Fatal(err)
	}
	ends, err := admin.ListEndOffsets(b.Context(), topic)
	if err != nil {
		b.Fatal(err)
	}
	start, _ := starts.Lookup(topic, 0)
	end, _ := ends.Lookup(topic, 0)
	s.sinceStart = int(end.Offset - start.Offset)
	return s
}
