package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/outbox"
	migrations "github.com/walpost/walpost/sql"
)

// events is the service's outbox.
const events outbox.Table = "outbox"

// A change and its event in one transaction. pgx.BeginFunc commits if its function returns nil and rolls back otherwise, so both are
// written or neither is.
func ExampleTable_Append() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	url, done := database(ctx)
	defer done()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()

	send := func(id, place string) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO parcels VALUES ($1, $2)`, id, place); err != nil {
				return err
			}
			ev := outbox.NewEvent("parcel", id, "ParcelSent")
			ev.Payload, _ = json.Marshal(map[string]any{"eventId": ev.ID, "parcel": id, "place": place})
			return events.Append(ctx, tx, ev)
		})
	}
	fmt.Println("sent:", send("p-1", "Lisbon"))
	fmt.Println("sent:", send("", "Porto") != nil) // the event has no key: neither event nor parcel is written

	var parcels, written int
	var payload string
	err = conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM parcels), count(*), min((payload - 'eventId')::text) FROM outbox`).Scan(&parcels, &written, &payload)
	fmt.Println(parcels, written, payload, err)
	// Output:
	// sent: <nil>
	// sent: true
	// 1 1 {"place": "Lisbon", "parcel": "p-1"} <nil>
}

// The same with database/sql. Rollback after Commit does nothing, so it can be deferred at once.
func ExampleTable_AppendSQL() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	url, done := database(ctx)
	defer done()
	db, err := sql.Open("pgx", url) // import _ "github.com/jackc/pgx/v5/stdlib"
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = db.Close() }()

	send := func(id, place string) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if _, err := tx.ExecContext(ctx, `INSERT INTO parcels VALUES ($1, $2)`, id, place); err != nil {
			return err
		}
		ev := outbox.NewEvent("parcel", id, "ParcelSent")
		ev.Payload, _ = json.Marshal(map[string]any{"eventId": ev.ID, "parcel": id, "place": place})
		if err := events.AppendSQL(ctx, tx, ev); err != nil {
			return err
		}
		return tx.Commit()
	}
	fmt.Println("sent:", send("p-1", "Lisbon"))
	fmt.Println("refused:", errors.Is(send("", "Porto"), outbox.ErrRejected)) // the event has no key: neither event nor parcel is written

	var parcels, written int
	err = db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM parcels), count(*) FROM outbox`).Scan(&parcels, &written)
	fmt.Println(parcels, written, err)
	// Output:
	// sent: <nil>
	// refused: true
	// 1 1 <nil>
}

// database starts a database with an outbox and a table of parcels.
func database(ctx context.Context) (url string, done func()) {
	server, err := devenv.StartPostgres(ctx, devenv.PostgresConfig{})
	if err != nil {
		log.Fatal(err)
	}
	url = server.URL("postgres")
	if err := migrations.Migrate(ctx, migrations.Orders, url, server.URLFor("orders_service", "", "postgres"), io.Discard); err != nil {
		log.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, `CREATE TABLE parcels (id text PRIMARY KEY, place text)`); err != nil {
		log.Fatal(err)
	}
	return url, func() { _ = server.Close() }
}
