package inbox_test

import (
	"context"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/inbox/schema"
)

// A service keeps a sum. Each payment arrives twice and counts once.
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

// A consumer written by hand applies its effects in transactions of database/sql. It inserts the inbox row first; if no
// row was inserted, the event was applied before. It commits the offset to Kafka after the transaction.
func Example_databaseSQL() {
	ctx := context.Background()
	brokers, pool, done := environment(ctx)
	defer done()
	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }()

	apply := func(r *kgo.Record) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		id := string(r.Headers[0].Value) // the header "id"
		marked, err := tx.ExecContext(ctx, `
			INSERT INTO inbox (consumer, event_id, event_day, topic, partition, kafka_offset) VALUES ('accounting', $1, inbox_day($1), $2, $3, $4)
			ON CONFLICT DO NOTHING`, id, r.Topic, r.Partition, r.Offset)
		if err != nil {
			return err
		}
		if n, err := marked.RowsAffected(); err != nil || n == 0 {
			fmt.Println("seen before:", string(r.Value))
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE balance SET amount = amount + $1::text::integer`, string(r.Value)); err != nil {
			return err
		}
		return tx.Commit()
	}

	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics("payments"), kgo.ConsumerGroup("accounting"), kgo.DisableAutoCommit())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for range 3 {
		for _, r := range client.PollRecords(ctx, 1).Records() {
			if err := apply(r); err != nil {
				log.Fatal(err)
			}
			if err := client.CommitRecords(ctx, r); err != nil {
				log.Fatal(err)
			}
		}
	}
	var balance int
	if err := db.QueryRow(`SELECT amount FROM balance`).Scan(&balance); err != nil {
		log.Fatal(err)
	}
	fmt.Println("balance:", balance)
	// Output:
	// seen before: 10
	// balance: 42
}

// environment returns a database with an inbox, and a topic with payments of 10, 10 again, and 32.
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
