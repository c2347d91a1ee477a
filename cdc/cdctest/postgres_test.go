package cdctest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
)

func TestDatabaseIsDroppedWithItsSlotsWhoeverIsConnected(t *testing.T) {
	admin, err := pgx.Connect(t.Context(), cdctest.Postgres(t).URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(context.Background()) }()
	var name string
	t.Run("user", func(t *testing.T) {
		url := cdctest.Database(t)
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		name = conn.Config().Database
		slot := cdctest.SlotName(t, "held")
		if _, err := conn.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput'), pg_create_logical_replication_slot($1 || '_idle', 'pgoutput')", slot); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), "CREATE PUBLICATION p FOR ALL TABLES"); err != nil {
			t.Fatal(err)
		}
		repl, err := pgconn.Connect(t.Context(), url+"&replication=database")
		if err != nil {
			t.Fatal(err)
		}
		if err := pglogrepl.StartReplication(t.Context(), repl, slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'p'"}}); err != nil {
			t.Fatal(err)
		}
	}) // neither connection is closed here
	var left int
	if err := admin.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = $1) + (SELECT count(*) FROM pg_database WHERE datname = $1)", name).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left != 0 {
		t.Errorf("%d slots and databases are left of %s", left, name)
	}
}

func TestConsumeAndReadAll(t *testing.T) {
	brokers, topic := cdctest.Kafka(t), cdctest.Name(t, "numbers")
	cdctest.CreateTopic(t, brokers, topic, 3)
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic), kgo.TransactionalID(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if got := cdctest.ReadAll(t, brokers, topic); len(got) != 0 {
		t.Errorf("an empty topic holds %d records", len(got))
	}
	for _, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for n := range 100 {
			r := kgo.Record{Key: fmt.Append(nil, n), Value: fmt.Append(nil, bool(end))}
			if err := client.ProduceSync(t.Context(), &r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := client.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	consumed := cdctest.Consume(t, brokers, topic, 20*time.Second, cdctest.AtLeast(100))
	all := cdctest.ReadAll(t, brokers, topic)
	if len(consumed) != 100 || len(all) != 100 {
		t.Errorf("consumed %d, read %d, want the 100 of the committed transaction", len(consumed), len(all))
	}
	for _, r := range all {
		if string(r.Value) != "true" {
			t.Fatalf("read a record of the aborted transaction")
		}
	}
}

func TestEventuallyWaitsAndFailsWithTheLastError(t *testing.T) {
	calls := 0
	cdctest.Eventually(t, 15*time.Second, func() error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	failing := &recorder{TB: t}
	func() {
		defer func() { _ = recover() }()
		cdctest.Eventually(failing, 30*time.Millisecond, func() error { return errors.New("never") })
	}()
	if want := fmt.Sprintf("not within %s: never", cdctest.Patience(30*time.Millisecond)); failing.message != want {
		t.Errorf("failed with %q, want %q", failing.message, want)
	}
}

// recorder is a test that notes how it failed.
type recorder struct {
	testing.TB
	message string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.message = fmt.Sprintf(format, args...)
	panic(r.message)
}
