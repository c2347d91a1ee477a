package inbox_test

import (
	"context"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/inbox"
)

// A consumer that keeps a sum. The second delivery of the same event changes nothing.
func ExampleOnce() {
	ctx := context.Background()
	server, err := devenv.StartPostgres(ctx, devenv.PostgresConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, table+`; CREATE TABLE balance AS SELECT 0 AS amount`); err != nil {
		log.Fatal(err)
	}

	deliver := func(msg inbox.Message, amount int) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			first, err := inbox.Once(ctx, tx, "accounting", msg)
			if err != nil || !first {
				return err
			}
			_, err = tx.Exec(ctx, `UPDATE balance SET amount = amount + $1`, amount)
			return err
		}) // and only now commit the offset
	}

	msg := inbox.Message{EventID: "0198c0de-0000-7000-8000-000000000001", Topic: "payments", Partition: 0, Offset: 42}
	for range 2 {
		if err := deliver(msg, 10); err != nil {
			log.Fatal(err)
		}
	}
	var amount int
	if err := conn.QueryRow(ctx, `SELECT amount FROM balance`).Scan(&amount); err != nil {
		log.Fatal(err)
	}
	fmt.Println("balance:", amount)
	// Output: balance: 10
}
