package polling_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/outbox"
	"github.com/walpost/walpost/cdc/polling"
)

// Events without Kafka: the relay calls a handler in the process for each event, until the handler returns nil.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	server, err := devenv.StartPostgres(ctx, devenv.PostgresConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = server.Close() }()

	cfg := config.Default()
	cfg.Pipeline, cfg.Source.Kind, cfg.Source.URL = "mails", config.KindPolling, server.URL("postgres")
	cfg.Source.Polling.Interval, cfg.Source.Polling.Backoff = 50*time.Millisecond, 50*time.Millisecond

	conn, err := pgx.Connect(ctx, cfg.Source.URL)
	if err != nil {
		log.Fatal(err)
	}
	for _, sql := range polling.DDL(cfg.Source) { // once, as a migration
		if _, err := conn.Exec(ctx, sql); err != nil {
			log.Fatal(err)
		}
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { // a change and its events
		for _, buyer := range []string{"ada", "bob"} {
			event := outbox.NewEvent("buyer", buyer, "BuyerWelcomed")
			event.Payload = []byte(`{"to": "` + buyer + `@shop.example"}`)
			if err := outbox.Table("outbox").Append(ctx, tx, event); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	_ = conn.Close(ctx)

	refusals, mailed := 0, 0
	relay := polling.New(cfg, polling.To(func(_ context.Context, row *cdc.Row) error {
		if string(row.AggregateID) == "ada" && refusals < 2 {
			refusals++
			return errors.New("the mailbox is full")
		}
		fmt.Printf("%s %s\n", row.EventType, row.Payload)
		if mailed++; mailed == 2 {
			stop()
		}
		return nil
	}), cdc.Observer{}, zerolog.Nop())
	fmt.Println(relay.Run(ctx), refusals)
	// Output:
	// BuyerWelcomed {"to": "bob@shop.example"}
	// BuyerWelcomed {"to": "ada@shop.example"}
	// <nil> 2
}
