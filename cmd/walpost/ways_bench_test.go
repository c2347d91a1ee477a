package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// BenchmarkWays compares, on one machine, the ways in and the ways of keeping the table small: first 500 events a
// second for some seconds, each in its own transaction, then a backlog of WALPOST_BENCH_ROWS (100,000) that was
// written a day ago, published and cleaned up. Of the first it reports time from commit to consumer and what relay and
// PostgreSQL, writers included, used of a core; of the second rows per second, CPU per event while it is published, WAL
// per event from its insert until it is published and for cleaning up, and the size of table and indexes when all is
// published, and when it is cleaned up and vacuumed.
func BenchmarkWays(b *testing.B) {
	binary, brokers := relayBinary(b), benchKafka(b)
	backlog := 100_000
	if n, err := strconv.Atoi(os.Getenv("WALPOST_BENCH_ROWS")); err == nil {
		backlog = n
	}
	const insert = `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) VALUES (event_id, 'order', key, 'OrderPaid', body, at)`
	polling := func(interval, after string) map[string]string {
		return map[string]string{
			"WALPOST_SOURCE_KIND": "polling", "WALPOST_SOURCE_POLLING_INTERVAL": interval, "WALPOST_SOURCE_POLLING_AFTER_PUBLISH": after,
		}
	}
	for _, way := range []struct {
		name, event string
		init        string
		env         map[string]string
		cleaned     bool // by walpost cleanup
	}{
		{name: "wal/plain", event: insert, cleaned: true},
		{name: "wal/by-day", event: insert, init: "--partition-by-day", cleaned: true},
		{name: "wal/insert-and-delete", event: insert + "; DELETE FROM outbox WHERE outbox.id = event_id"},
		{name: "polling/100ms-mark", event: insert, env: polling("100ms", "mark"), cleaned: true},
		{name: "polling/1s-mark", event: insert, env: polling("1s", "mark"), cleaned: true},
		{name: "polling/1s-delete", event: insert, env: polling("1s", "delete")},
	} {
		b.Run(way.name, func(b *testing.B) {
			server := cdctest.OwnPostgres(b, devenv.PostgresConfig{})
			s := newTestbedOn(b, server.URL("postgres"), brokers)
			maps.Copy(s.Env, way.env)
			s.MustRun(strings.Fields("init " + way.init)...)
			if way.init != "" {
				day := time.Now().UTC().AddDate(0, 0, -1)
				s.Exec(fmt.Sprintf("CREATE TABLE %s PARTITION OF outbox FOR VALUES FROM ('%s 00:00+00') TO ('%s 00:00+00')",
					day.Format("outbox_20060102"), day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)))
			}
			s.Exec(`CREATE FUNCTION event(key text, body jsonb, at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
				DECLARE event_id uuid := gen_random_uuid();
				BEGIN ` + way.event + `; END $$`)
			s.Exec(`CREATE PROCEDURE backlog(n int) LANGUAGE plpgsql AS $$
				BEGIN
					FOR i IN 1..n LOOP
						PERFORM event('order-' || i % 5000, jsonb_build_object('n', i, 'text', repeat('x', 280)), now() - interval '1 day');
						COMMIT;
					END LOOP;
				END $$`)

			l := live(b, s, binary, `SELECT event($1, jsonb_build_object('text', repeat('x', 280)), now())`, 1, []phase{{500, 10 * time.Second}})
			l.report(b)
			b.ReportMetric(100*(l.cores.walsender+l.cores.postgres), "%core-postgres")

			each := func(what float64) float64 { return what / float64(backlog) }
			s.Exec("CHECKPOINT")
			start := s.walPosition()
			conn := s.Connect()
			defer func() { _ = conn.Close(context.Background()) }()
			if _, err := conn.Exec(b.Context(), fmt.Sprintf("CALL backlog(%d)", backlog)); err != nil {
				b.Fatal(err)
			}
			m := s.processes()
			cpu := m.shares().postgres
			u := drain(b, s, binary, backlog)
			b.ReportMetric(float64(backlog)/u.wall.Seconds(), "rows/s")
			b.ReportMetric(each(float64(u.cpu.Microseconds())), "µs-relay/event")
			b.ReportMetric(each(float64((m.shares().postgres - cpu).Microseconds())), "µs-postgres/event")
			b.ReportMetric(each(s.walWritten(start)), "wal-B/event")
			b.ReportMetric(s.tableMiB(), "MiB-published")
			if way.cleaned {
				s.StartRelay()
				if way.env == nil {
					s.WaitUntilConfirmed(2 * time.Minute)
				}
				before := s.walPosition()
				s.MustRun("cleanup", "--retention", "0s")
				b.ReportMetric(each(s.walWritten(before)), "wal-B/event-cleanup")
			}
			s.Exec("VACUUM")
			b.ReportMetric(s.tableMiB(), "MiB-cleaned")
		})
	}
}

func (s *testbed) walPosition() string {
	s.T.Helper()
	return s.Query("SELECT pg_current_wal_lsn()::text")
}

func (s *testbed) number(sql string, args ...any) float64 {
	s.T.Helper()
	n, err := strconv.ParseFloat(s.Query(sql, args...), 64)
	if err != nil {
		s.T.Fatal(err)
	}
	return n
}

// walWritten returns the bytes of WAL since a position.
func (s *testbed) walWritten(since string) float64 {
	s.T.Helper()
	return s.number("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1::text::pg_lsn)::text", since)
}

// tableMiB returns the size of the outbox with its partitions and indexes.
func (s *testbed) tableMiB() float64 {
	s.T.Helper()
	return s.number(`SELECT coalesce((SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname ~ '^outbox' AND relkind = 'r'), 0)::text`) / (1 << 20)
}
