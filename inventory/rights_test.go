package inventory_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/inventory"
)

// TestLeastRights does the service's work with the rights of sql/inventory/rights.sql, and without each of them once: the error names the
// table, and the work is done once the right is back. One that nobody misses is one too many.
func TestLeastRights(t *testing.T) {
	admin := cdctest.Database(t)
	f := newFixtureOn(t, migrateURL(t, admin), cdctest.Kafka(t), 0)
	owner, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Close(t.Context()) })
	file, err := os.ReadFile("../sql/inventory/rights.sql")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.work(); err != nil {
		t.Fatalf("with all rights: %v", err)
	}
	n := 0
	for _, grant := range regexp.MustCompile(`(?m)^GRANT ([A-Z, ]+) ON (FUNCTION )?([a-z_, ]+) TO :service`).FindAllStringSubmatch(string(file), -1) {
		for right := range strings.SplitSeq(grant[1], ", ") {
			for table := range strings.SplitSeq(grant[3], ", ") {
				n++
				change := func(verb, preposition string) {
					if _, err := owner.Exec(t.Context(), fmt.Sprintf("%s %s ON %s%s %s inventory_service", verb, right, grant[2], table, preposition)); err != nil {
						t.Fatal(err)
					}
				}
				change("REVOKE", "FROM")
				switch err := f.work(); {
				case err == nil:
					t.Errorf("nobody misses %s on %s: it is one too many", right, table)
				case !strings.Contains(err.Error(), "permission denied for "):
					t.Errorf("without %s on %s: %v", right, table, err)
				}
				change("GRANT", "TO")
			}
		}
	}
	if err := f.work(); err != nil {
		t.Errorf("with all rights again: %v", err)
	}
	if n < 20 {
		t.Errorf("only %d rights were taken away", n)
	}
}

// work is what the service does: stock, products, events that are applied, short or parked, and an operator's decision.
func (f *fixture) work() error {
	ctx := f.Context()
	sku := uuid.NewString()
	steps := []func() error{
		func() error { _, err := f.store.Set(ctx, sku, 5); return err },
		func() error { _, err := f.store.Set(ctx, sku, 6); return err },
		func() error { _, err := f.store.SetProduct(ctx, inventory.Product{SKU: sku, Name: "tea"}); return err },
		func() error {
			_, err := f.store.SetProduct(ctx, inventory.Product{SKU: sku, Name: "green tea"})
			return err
		},
		func() error { _, err := f.store.Product(ctx, sku); return err },
		func() error { _, err := f.store.Get(ctx, sku); return err },
		func() error { _, err := f.store.List(ctx, "", 10); return err },
		func() error {
			_, err := f.store.Movements(ctx, inventory.MovementOptions{SKU: sku, Limit: 10})
			return err
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	f.topic = cdctest.Name(f, "orders")
	cdctest.CreateTopic(f, f.brokers, f.topic, 1)
	sold, held := paid(orderID(), item(sku, 2)), paid(orderID(), item(sku, 1))
	f.produce(sold, paid(orderID(), item(sku, 100)))
	f.produceRecords(&kgo.Record{Topic: f.topic, Key: []byte(held.OrderID), Value: []byte("no event")})
	f.produce(held, cancelled(sold.OrderID, true, item(sku, 2)))
	r := f.start(f.topic)
	defer r.stop()
	refused := func() error {
		for line := range strings.Lines(r.log.String()) {
			if strings.Contains(line, "permission denied") {
				return errors.New(line)
			}
		}
		return nil
	}
	var err error
	cdctest.Eventually(f, 20*time.Second, func() error {
		if err = refused(); err != nil || f.committed(f.topic)[0] == 5 {
			return nil
		}
		return errors.New("the events are not done, and the log says nothing of rights")
	})
	if err != nil {
		return err
	}
	cfg := f.config(f.topic).Inbox()
	o := inbox.NewOperator(cfg, "somebody")
	if _, err := o.List(ctx, inbox.ListOptions{}); err != nil {
		return err
	}
	if _, err := o.Drop(ctx, inbox.DropOptions{All: true}); err != nil {
		return err
	}
	_, err = o.Decisions(ctx, 10)
	return errors.Join(err, refused())
}
