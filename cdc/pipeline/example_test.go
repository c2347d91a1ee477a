package pipeline_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/outbox"
	"github.com/walpost/walpost/cdc/pipeline"
)

// A service that prepares and relays its own outbox. The configuration is that of `walpost relay`.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	getenv, done := environment(ctx)
	defer done()

	cfgs, err := config.Load("", getenv) // a file, or WALPOST_ variables, or both
	if err != nil {
		log.Fatal(err)
	}
	relay, err := pipeline.New(cfgs[0], pipeline.Options{Log: zerolog.New(io.Discard), Registerer: prometheus.DefaultRegisterer})
	if err != nil {
		log.Fatal(err)
	}
	// Once, with an administrator's rights, like `walpost init`: it makes what is missing.
	if _, err := relay.Init(ctx, pipeline.InitOptions{AdminURL: getenv("WALPOST_ADMIN_URL")}); err != nil {
		log.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- relay.Run(ctx) }()

	place(ctx, getenv("WALPOST_SOURCE_URL"), "42")
	fmt.Println(receive(ctx, getenv("WALPOST_KAFKA_BROKERS"), "outbox.event.order"))
	role, _ := relay.Role()
	fmt.Println(role, relay.Ready(ctx), relay.Status(ctx).Published)
	stop()
	fmt.Println(<-ended)
	// Output:
	// 42 OrderPlaced {"order": "42"}
	// streaming <nil> 1
	// <nil>
}

// environment starts a database and a Kafka, and returns the environment of a service.
func environment(ctx context.Context) (getenv func(string) string, done func()) {
	server, err := devenv.StartPostgres(ctx, devenv.PostgresConfig{})
	if err != nil {
		log.Fatal(err)
	}
	kafka, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		log.Fatal(err)
	}
	env := map[string]string{
		"WALPOST_PIPELINE":              "orders",
		"WALPOST_SOURCE_URL":            server.URL("postgres"),
		"WALPOST_KAFKA_BROKERS":         strings.Join(kafka.Brokers(), ","),
		"WALPOST_KAFKA_AGGREGATE_TYPES": "order",
		"WALPOST_KAFKA_REPLICATION":     "1",
		"WALPOST_ADMIN_URL":             server.URL("postgres"),
	}
	return func(key string) string { return env[key] }, func() {
		kafka.Close()
		_ = server.Close()
	}
}

// place does the work of the service: it writes a change and its event in one transaction.
func place(ctx context.Context, url, order string) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		event := outbox.NewEvent("order", order, "OrderPlaced")
		event.Payload = []byte(`{"order": "` + order + `"}`)
		return outbox.Table("outbox").Append(ctx, tx, event)
	})
	if err != nil {
		log.Fatal(err)
	}
}

// receive returns the first record of a topic, as a consumer sees it.
func receive(ctx context.Context, brokers, topic string) string {
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...), kgo.ConsumeTopics(topic))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		for _, r := range fetches.Records() {
			for _, h := range r.Headers {
				if h.Key == "type" {
					return fmt.Sprintf("%s %s %s", r.Key, h.Value, r.Value)
				}
			}
		}
	}
}
