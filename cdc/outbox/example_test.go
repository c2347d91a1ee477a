package outbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/outbox"
	"github.com/walpost/walpost/sql"
)

// A change and its event in one transaction. pgx.BeginFunc commits when its function returns nil and rolls back otherwise, so there
// is no third way.
func ExampleAppend() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := devenv.StartPostgres(ctx, devenv.PostgresConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	service := server.URLFor("orders_service", "", "postgres")
	if err := sql.Migrate(ctx, sql.Orders, server.URL("postgres"), service, io.Discard); err != nil {
		log.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, `CREATE TABLE parcels (id text PRIMARY KEY, place text)`); err != nil {
		log.Fatal(err)
	}

	send := func(id, place string) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO parcels VALUES ($1, $2)`, id, place); err != nil {
				return err
			}
			ev := outbox.NewEvent("parcel", id, "ParcelSent")
			ev.Payload, _ = json.Marshal(map[string]any{"eventId": ev.ID, "parcel": id, "place": place})
			return outbox.Append(ctx, tx, ev)
		})
	}
	fmt.Println("sent:", send("p-1", "Lisbon"))
	fmt.Println("sent:", send("", "Porto") != nil) // an event without a key is refused, and the parcel with it

	var parcels, events int
	var payload string
	err = conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM parcels), count(*), min((payload - 'eventId')::text) FROM outbox`).Scan(&parcels, &events, &payload)
	fmt.Println(parcels, events, payload, err)
	// Output:
	// sent: <nil>
	// sent: true
	// 1 1 {"place": "Lisbon", "parcel": "p-1"} <nil>
}
