package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// BenchmarkTables writes events of about 400 bytes, each in its own transaction and dated a day back, in each of the ways, and
// reports what an event costs in WAL, how large the table is when all are written, what cleaning up costs in WAL, and how large
// the table is then, when VACUUM has run.
func BenchmarkTables(b *testing.B) {
	events := 100_000
	if n, err := strconv.Atoi(os.Getenv("WALPOST_BENCH_ROWS")); err == nil {
		events = n
	}
	const insert = `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
		VALUES (key, 'order', 'order-' || i % 5000, 'OrderPaid', body, now() - interval '1 day')`
	for _, mode := range []struct {
		name, event string
		init        []string
		env         map[string]string
	}{
		{name: "plain", event: insert},
		{name: "by-day", event: insert, init: []string{"--partition-by-day"}},
		{name: "insert-and-delete", event: insert + "; DELETE FROM outbox WHERE id = key"},
		{name: "messages", env: map[string]string{"WALPOST_SOURCE_MESSAGES": "shop"}, event: `PERFORM pg_logical_emit_message(true, 'shop',
			jsonb_build_object('id', key, 'aggregate_type', 'order', 'aggregate_id', 'order-' || i % 5000, 'event_type', 'OrderPaid', 'payload', body)::text)`},
	} {
		b.Run(mode.name, func(b *testing.B) {
			s := stageOn(b, cdctest.Database(b), benchKafka(b))
			for k, v := range mode.env {
				s.env[k] = v
			}
			s.must(append([]string{"init"}, mode.init...)...)
			if mode.init != nil {
				day := time.Now().UTC().AddDate(0, 0, -1)
				s.exec(fmt.Sprintf("CREATE TABLE %s PARTITION OF outbox FOR VALUES FROM ('%s 00:00+00') TO ('%s 00:00+00')",
					day.Format("outbox_20060102"), day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)))
			}
			s.exec(`CREATE PROCEDURE load(n int) LANGUAGE plpgsql AS $$
				DECLARE key uuid; body jsonb;
				BEGIN
					FOR i IN 1..n LOOP
						key := gen_random_uuid();
						body := jsonb_build_object('n', i, 'text', repeat('x', 280));
						` + mode.event + `;
						COMMIT;
					END LOOP;
				END $$`)
			load := func() {
				conn := s.connect()
				defer func() { _ = conn.Close(context.Background()) }()
				if _, err := conn.Exec(context.Background(), fmt.Sprintf("CALL load(%d)", events)); err != nil {
					b.Fatal(err)
				}
			}
			size := func() float64 {
				text := s.query(`SELECT coalesce((SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname ~ '^outbox' AND relkind = 'r'), 0)::text`)
				n, _ := strconv.ParseFloat(text, 64)
				return n / (1 << 20)
			}
			written := func(since string) float64 {
				n, _ := strconv.ParseFloat(s.query("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1::text::pg_lsn)::text", since), 64)
				return n
			}
			s.exec("CHECKPOINT")
			start := s.query("SELECT pg_current_wal_lsn()::text")
			b.ResetTimer()
			load()
			b.StopTimer()
			b.ReportMetric(written(start)/float64(events), "wal-B/event")
			b.ReportMetric(size(), "MiB-written")
			s.start()
			s.confirmed(2 * time.Minute)
			if mode.env == nil {
				before := s.query("SELECT pg_current_wal_lsn()::text")
				s.must("cleanup", "--retention", "0s")
				b.ReportMetric(written(before)/float64(events), "wal-B/event-cleanup")
				s.exec("VACUUM")
			}
			b.ReportMetric(size(), "MiB-cleaned")
			b.ReportMetric(0, "ns/op")
		})
	}
}
