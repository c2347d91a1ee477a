package inbox_test

import (
	"context"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/inbox/schema"
)

// A service that keeps a sum. Each payment comes twice, and counts once.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	brokers, pool, done := environment(ctx)
	defer done()

	consumer, err := inbox.New(inbox.Config{
		Brokers: brokers, Topic: "payments", Group: "accounting", Pool: pool,
		Handle: func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
			_, err := tx.Exec(ctx, `UPDATE balance SET amount = amount + $1::text::integer`, string(ev.Value))
			ev.OnCommit(func() {
				if string(ev.Value) == "32" { // the last one
					stop()
				}
			})
			return err
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := consumer.Run(ctx); err != nil {
		log.Fatal(err)
	}

	var balance int
	if err := pool.QueryRow(context.Background(), `SELECT amount FROM balance`).Scan(&balance); err != nil {
		log.Fatal(err)
	}
	fmt.Println("balance:", balance)
	// Output: balance: 42
}

// environment is a database with an inbox and a topic with payments of 10, 10 again, and 32.
func environment(ctx context.Context) (brokers []string, pool *pgxpool.Pool, done func()) {
	server, err := devenv.StartPostgres(ctx, devenv.PostgresConfig{})
	if err != nil {
		log.Fatal(err)
	}
	if pool, err = pgxpool.New(ctx, server.URL("postgres")); err != nil {
		log.Fatal(err)
	}
	if _, err := pool.Exec(ctx, schema.SQL+`; CREATE TABLE balance AS SELECT 0 AS amount`); err != nil {
		log.Fatal(err)
	}
	kafka, err := devenv.StartKafka(devenv.KafkaConfig{SeedTopics: map[string]int{"payments": 1}})
	if err != nil {
		log.Fatal(err)
	}
	producer, err := kgo.NewClient(kgo.SeedBrokers(kafka.Brokers()...))
	if err != nil {
		log.Fatal(err)
	}
	defer producer.Close()
	for _, payment := range [][2]string{{"0198c0de-0000-7000-8000-000000000001", "10"}, {"0198c0de-0000-7000-8000-000000000001", "10"}, {"0198c0de-0000-7000-8000-000000000002", "32"}} {
		record := &kgo.Record{Topic: "payments", Value: []byte(payment[1]), Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(payment[0])}}}
		if err := producer.ProduceSync(ctx, record).FirstErr(); err != nil {
			log.Fatal(err)
		}
	}
	return kafka.Brokers(), pool, func() {
		pool.Close()
		kafka.Close()
		_ = server.Close()
	}
}
