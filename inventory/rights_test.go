package inventory_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/inventory"
)

// TestLeastRights revokes the rights of sql/inventory/rights.sql one by one.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	admin := cdctest.Database(t)
	f := newFixtureOn(t, migrateURL(t, admin), cdctest.Kafka(t), 0)
	cdctest.LeastRights(t, admin, "inventory_service", f.work, func() {})
}

// work uses the whole service: stock, products, events that are applied, short or parked, and an operator's decision.
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
	var err error
	cdctest.Eventually(f, 20*time.Second, func() error {
		if err = cdctest.Denied(r.log, 0); err != nil || f.committed(f.topic)[0] == 5 {
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
	return errors.Join(err, cdctest.Denied(r.log, 0))
}
