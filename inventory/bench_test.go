package inventory_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/inventory"
)

// BenchmarkConsume measures the rate at which one process applies paid orders of one to three of a hundred SKUs, from
// Kafka to the committed offset, over three partitions.
func BenchmarkConsume(b *testing.B) {
	for _, batch := range []int{1, 500} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			pool := benchDatabase(b)
			store := inventory.NewStore(pool)
			f := &fixture{pool: pool, store: store, brokers: cdctest.Kafka(b), topic: cdctest.Name(b, "orders")}
			cdctest.CreateTopic(b, f.brokers, f.topic, 3)
			client, err := kgo.NewClient(kgo.SeedBrokers(f.brokers...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
			if err != nil {
				b.Fatal(err)
			}
			defer client.Close()
			var skus []string
			for i := range 100 {
				skus = append(skus, fmt.Sprintf("sku-%02d", i))
				if _, err := store.Set(b.Context(), skus[i], 1_000_000_000); err != nil {
					b.Fatal(err)
				}
			}
			for i := range b.N {
				var items []inventory.Item
				for k := range 1 + i%3 {
					items = append(items, item(skus[(i*7+k*31)%100], 1))
				}
				client.Produce(b.Context(), paid(orderID(), items...).record(f.topic), nil)
			}
			if err := client.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
			cfg := f.config(cdctest.Name(b, "inventory"))
			cfg.Batch = batch
			consumer, err := inbox.New(cfg.Inbox())
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			b.ResetTimer()
			begun := time.Now()
			go func() { done <- consumer.Run(ctx) }()
			cdctest.Eventually(b, 10*time.Minute, func() error {
				var next int
				if err := pool.QueryRow(b.Context(), `SELECT coalesce(sum(next_offset), 0) FROM inbox_partitions`).Scan(&next); err != nil || next < b.N {
					return fmt.Errorf("%d of %d events applied (%w)", next, b.N, err)
				}
				return nil
			})
			b.ReportMetric(float64(b.N)/time.Since(begun).Seconds(), "events/s")
			b.StopTimer()
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
		})
	}
}

func benchDatabase(b *testing.B) *pgxpool.Pool {
	b.Helper()
	return migrateURL(b, cdctest.Database(b))
}
