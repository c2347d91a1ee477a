package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/orders/statistics"
)

// withOrderEvents gives c the topic of order events, and the settings that every group needs. The receivers of mails
// and webhooks do not exist: a consumer never contacts them.
func (c *consumed) withOrderEvents() (topic string) {
	c.Helper()
	topic = cdctest.Name(c, "order")
	cdctest.CreateTopic(c, strings.Split(c.env["ORDERS_KAFKA_BROKERS"], ","), topic, 1)
	c.env["ORDERS_TOPIC"] = topic
	c.env["ORDERS_SMTP_URL"], c.env["ORDERS_MAIL_FROM"], c.env["ORDERS_CATALOG_URL"] = "smtp://127.0.0.1:1", "shop@shop.example", c.env["ORDERS_DATABASE_URL"]
	c.env["ORDERS_WEBHOOK_URL"], c.env["ORDERS_WEBHOOK_SECRET"] = "http://127.0.0.1:1", "sixteen bytes or more"
	return topic
}

// relay puts the whole outbox on the topic.
func (c *consumed) relay(topic string) {
	c.Helper()
	rows, _ := c.conn.Query(c.Context(), `SELECT id::text, aggregate_id, event_type, payload::text FROM outbox ORDER BY payload->>'occurredAt'`)
	var id, key, eventType, value string
	if _, err := pgx.ForEachRow(rows, []any{&id, &key, &eventType, &value}, func() error {
		return c.client.ProduceSync(c.Context(), &kgo.Record{Topic: topic, Key: []byte(key), Value: []byte(value), Headers: []kgo.RecordHeader{
			{Key: "id", Value: []byte(id)}, {Key: "type", Value: []byte(eventType)},
		}}).FirstErr()
	}); err != nil {
		c.Fatal(err)
	}
}

// TestRebuildKilledAtItsLastStatementLeavesWhatWas kills (-9) a process that has counted everything and not committed:
// the old statistics stay.
func TestRebuildKilledAtItsLastStatementLeavesWhatWas(t *testing.T) {
	cdctest.Long(t, "kills processes")
	c := newConsumed(t)
	topic := c.withOrderEvents()
	c.paid()
	c.relay(topic)
	if out, err := c.command("statistics", "rebuild"); err != nil {
		t.Fatalf("%s (%v)", out, err)
	}
	change := func(sql string) {
		t.Helper()
		if _, err := c.conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	count := func(sql string) (n int) {
		t.Helper()
		if err := c.conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	change(`UPDATE statistics SET orders = 99`) // so that old and new figures differ
	change(`BEGIN; LOCK TABLE inbox_decisions`)
	cmd := exec.Command(os.Args[0], "statistics", "rebuild")
	cmd.Env = append(os.Environ(), "ORDERS_TEST_MAIN=1")
	for name, value := range c.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cdctest.Eventually(t, time.Minute, func() error {
		if count(`SELECT count(*) FROM pg_locks WHERE relation = 'inbox_decisions'::regclass AND NOT granted`) == 0 {
			return errors.New("the rebuild is not at its last statement")
		}
		return nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	change(`COMMIT`)
	cdctest.Eventually(t, time.Minute, func() error {
		if count(`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'orders consume statistics'`) > 0 {
			return errors.New("its session is still there")
		}
		return nil
	})
	if n := count(`SELECT orders FROM statistics`); n != 99 {
		t.Errorf("%d orders", n)
	}
	if n := count(`SELECT count(*) FROM inbox_decisions`); n != 1 {
		t.Errorf("%d decisions", n)
	}
	if out, err := c.command("statistics", "rebuild"); err != nil || count(`SELECT orders FROM statistics`) != 1 {
		t.Errorf("again: %s (%v)", out, err)
	}
}

func TestStatisticsAreShownAndRebuiltByCommand(t *testing.T) {
	c := newConsumed(t)
	topic := c.withOrderEvents()
	relay := func() { c.relay(topic) }
	c.paid()
	if _, err := c.conn.Exec(t.Context(), `SELECT cancel_order($1)`, c.paid()); err != nil {
		t.Fatal(err)
	}
	day := time.Now().UTC().Format(time.DateOnly)
	empty, err := c.command("statistics", "show")
	if err != nil || strings.Count(empty, "\n") != 1 {
		t.Errorf("%s (%v)", empty, err)
	}
	if _, err := c.command("statistics", "rebuild"); err == nil || !strings.Contains(err.Error(), "order 100001, paid at ") || !strings.Contains(err.Error(), "--partial") {
		t.Errorf("of an empty topic: %v", err)
	}
	relay()
	relay()
	got, err := c.command("statistics", "rebuild")
	if err != nil || got != "3 events counted, 3 copies of them skipped, 4 of other types\n" {
		t.Errorf("%s (%v)", got, err)
	}
	got, err = c.command("statistics", "show")
	if line := strings.Join(strings.Fields(strings.TrimPrefix(got, empty[:3])), " "); err != nil || !strings.HasSuffix(line, day+" tea 2 4 79.60 1 2 39.80 EUR") {
		t.Errorf("%s (%v)", got, err)
	}
	got, err = c.command("statistics", "show", "--json", "--day", day)
	if err != nil || !strings.Contains(got, `"returnedRevenue": "39.80"`) || strings.Contains(got, "since") {
		t.Errorf("%s (%v)", got, err)
	}
	if got, err = c.command("statistics", "show", "--day", "2020-02-29"); err != nil || strings.Count(got, "\n") != 1 {
		t.Errorf("%s (%v)", got, err)
	}
	if _, err := c.command("statistics", "show", "--from", "yesterday"); err == nil || !strings.Contains(err.Error(), "from must be a day") {
		t.Errorf("got %v", err)
	}
	// The first events are gone with their topic: the new one begins with another order.
	c.env["ORDERS_TOPIC"], c.env["ORDERS_GROUP_PREFIX"] = c.topic, "other."
	if got, err = c.command("statistics", "rebuild", "--partial"); err != nil || !strings.Contains(got, "the topic has lost its first events") {
		t.Errorf("%s (%v)", got, err)
	}
	if got, err = c.command("statistics", "show"); err != nil || !strings.Contains(got, "since "+day+" only") {
		t.Errorf("%s (%v)", got, err)
	}
}

// TestStoppingOneGroupDelaysNoOther blocks each group in turn at its first write, while all run in one process.
func TestStoppingOneGroupDelaysNoOther(t *testing.T) {
	cdctest.Long(t, "runs several processes")
	c := newConsumed(t)
	topic := c.withOrderEvents()
	ctx, cancel := context.WithCancel(context.Background())
	done, log := make(chan error, 1), &cdctest.Log{}
	go func() { done <- watched(ctx, []string{"consume"}, getenv(c.env), io.Discard, log) }()
	defer func() {
		cancel()
		if err := <-done; err != nil || t.Failed() {
			t.Errorf("consume: %v\n%s", err, log)
		}
	}()
	var sent int64
	// Every group advances for an event of an unknown type: the event is parked.
	send := func() {
		t.Helper()
		sent++
		for _, to := range []string{topic, c.topic} {
			if err := c.client.ProduceSync(t.Context(), &kgo.Record{Topic: to, Key: []byte("k"), Headers: []kgo.RecordHeader{
				{Key: "id", Value: []byte(uuid.Must(uuid.NewV7()).String())}, {Key: "type", Value: []byte("NeverHeardOf")},
			}}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	moved := func(db interface {
		QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	}, group string,
	) error {
		var next int64
		err := db.QueryRow(t.Context(), `SELECT coalesce(max(next_offset), 0) FROM inbox_partitions WHERE consumer_group = $1`, c.env["ORDERS_GROUP_PREFIX"]+group).Scan(&next)
		if err == nil && next != sent {
			err = fmt.Errorf("group %s is at %d of %d", group, next, sent)
		}
		return err
	}
	all := func(but string) {
		t.Helper()
		cdctest.Eventually(t, time.Minute, func() error {
			var errs []error
			for _, name := range groupNames() {
				if name != but {
					errs = append(errs, moved(c.conn, name))
				}
			}
			return errors.Join(errs...)
		})
	}
	send()
	all("")
	for _, held := range groupNames() {
		tx, err := c.conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `SELECT FROM inbox_partitions WHERE consumer_group = $1 FOR UPDATE`, c.env["ORDERS_GROUP_PREFIX"]+held); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			send()
			all(held)
		}
		if moved(tx, held) == nil {
			t.Errorf("group %s was not held at all", held)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		all("")
	}
	if len(groupNames()) != 4 || groupNames()[3] != statistics.Group {
		t.Errorf("groups: %v", groupNames())
	}
}
