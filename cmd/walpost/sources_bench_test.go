package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// BenchmarkSources compares the WAL with polling on one machine: 500 events a second for some seconds, and then a backlog of
// WALPOST_BENCH_ROWS (100,000). It reports time from commit to consumer, what the relay and PostgreSQL, writers included, used of a
// core meanwhile, and WAL per event; of the backlog rows per second and the size of table and indexes when all is published.
func BenchmarkSources(b *testing.B) {
	binary, brokers := relayBinary(b), benchKafka(b)
	backlog := 100_000
	if n, err := strconv.Atoi(os.Getenv("WALPOST_BENCH_ROWS")); err == nil {
		backlog = n
	}
	const rate, events = 500, 5000
	for _, source := range []struct{ name, kind, interval, after string }{
		{"wal", "wal", "1s", "mark"},
		{"polling-100ms", "polling", "100ms", "mark"},
		{"polling-1s", "polling", "1s", "mark"},
		{"polling-1s-delete", "polling", "1s", "delete"},
	} {
		b.Run(source.name, func(b *testing.B) {
			server := cdctest.OwnPostgres(b, devenv.PostgresConfig{})
			s := stageOn(b, server.URL("postgres"), brokers)
			s.env["WALPOST_SOURCE_KIND"], s.env["WALPOST_SOURCE_POLLING_INTERVAL"] = source.kind, source.interval
			s.env["WALPOST_SOURCE_POLLING_AFTER_PUBLISH"] = source.after
			s.must("init")
			position := func() string { return s.query("SELECT pg_current_wal_lsn()::text") }
			start, cpu, began := position(), s.postgresCPU(), time.Now()
			lat, u := latencies(b, s, binary, rate, events)
			written, _ := strconv.ParseFloat(s.query("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1::text::pg_lsn)::text", start), 64)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ms(lat[len(lat)/2]), "p50-ms")
			b.ReportMetric(ms(lat[len(lat)*99/100]), "p99-ms")
			b.ReportMetric(100*u.cpu.Seconds()/u.wall.Seconds(), "%core-relay")
			b.ReportMetric(100*(s.postgresCPU()-cpu).Seconds()/time.Since(began).Seconds(), "%core-postgres")
			b.ReportMetric(written/events, "wal-B/event")
			load(b, s, backlog, 10)
			b.ReportMetric(float64(backlog)/drain(b, s, binary, backlog).wall.Seconds(), "rows/s")
			size, _ := strconv.ParseFloat(s.query("SELECT pg_total_relation_size('outbox')::text"), 64)
			b.ReportMetric(size/(1<<20), "MiB-table")
		})
	}
}

// postgresCPU is what the server's processes have used, those that have ended too.
func (s *stage) postgresCPU() time.Duration {
	s.t.Helper()
	pid := strings.TrimSpace(strings.SplitN(s.query("SELECT pg_read_file('postmaster.pid')"), "\n", 2)[0])
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	ticks := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		of := fields[11:13] // utime, stime
		switch {
		case filepath.Base(filepath.Dir(file)) == pid:
			of = fields[11:15] // and those of children that have ended
		case fields[1] != pid:
			continue
		}
		for _, f := range of {
			n, _ := strconv.Atoi(f)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
