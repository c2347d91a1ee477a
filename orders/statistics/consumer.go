package statistics

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/inbox"
)

// Group is the consumer group.
const Group = "statistics"

// Inbox returns the configuration that counts order events. The caller adds brokers, topic and pool.
func Inbox() inbox.Config {
	return inbox.Config{
		Handle:      func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error { return count(ctx, tx, []inbox.Event{ev}) },
		HandleBatch: count,
		Types:       []string{paid, rejected, cancelled},
		Ignore:      []string{"OrderCreated", "OrderConfirmed", "OrderShipped", "OrderCompleted"},
	}
}

func count(ctx context.Context, tx pgx.Tx, records []inbox.Event) error {
	var newly, back []uuid.UUID
	var days []time.Time
	// One entry for each line of an order.
	var orderIDs []uuid.UUID
	var skus, currencies, prices []string
	var quantities []int64
	var returned []bool
	for _, record := range records {
		ev, err := decode(record)
		switch {
		case err != nil:
			return inbox.Permanent(err)
		case ev == nil:
			continue
		case ev.returned:
			back = append(back, ev.order)
		default:
			newly, days = append(newly, ev.order), append(days, ev.at.UTC().Truncate(24*time.Hour))
		}
		for _, it := range ev.items {
			orderIDs, skus, currencies = append(orderIDs, ev.order), append(skus, it.SKU), append(currencies, ev.currency)
			quantities, prices, returned = append(quantities, it.Quantity), append(prices, it.UnitPrice.String()), append(returned, ev.returned)
		}
	}

	var batch pgx.Batch
	batch.Queue(`INSERT INTO statistics_orders (order_id, paid_on) SELECT * FROM unnest($1::uuid[], $2::date[]) ON CONFLICT DO NOTHING`, newly, days)
	batch.Queue(`UPDATE statistics_orders SET returned = true WHERE order_id = ANY($1) AND NOT returned`, back)
	// Orders from before the beginning of a cut topic were not counted, so they cannot be returned either.
	batch.Queue(`SELECT count(*) FROM unnest($1::uuid[]) AS id WHERE EXISTS (SELECT FROM statistics_since)
		AND NOT EXISTS (SELECT FROM statistics_orders WHERE order_id = id)`, back)
	// One statement changes all rows, in a fixed order: transactions that share rows wait for each other and cannot
	// deadlock.
	batch.Queue(`
		INSERT INTO statistics SELECT paid_on, sku, currency,
			count(DISTINCT order_id) FILTER (WHERE NOT back), coalesce(sum(quantity) FILTER (WHERE NOT back), 0), coalesce(sum(quantity * price) FILTER (WHERE NOT back), 0),
			count(DISTINCT order_id) FILTER (WHERE back), coalesce(sum(quantity) FILTER (WHERE back), 0), coalesce(sum(quantity * price) FILTER (WHERE back), 0)
		FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::numeric[], $6::boolean[]) AS line (order_id, sku, currency, quantity, price, back)
		JOIN statistics_orders USING (order_id)
		GROUP BY paid_on, sku, currency ORDER BY paid_on, sku, currency
		ON CONFLICT (day, sku, currency) DO UPDATE SET
			orders = statistics.orders + excluded.orders, quantity = statistics.quantity + excluded.quantity, revenue = statistics.revenue + excluded.revenue,
			returned_orders = statistics.returned_orders + excluded.returned_orders, returned_quantity = statistics.returned_quantity + excluded.returned_quantity,
			returned_revenue = statistics.returned_revenue + excluded.returned_revenue`, orderIDs, skus, currencies, quantities, prices, returned)
	results := tx.SendBatch(ctx, &batch)
	defer results.Close()
	counted, err := results.Exec()
	if err != nil {
		return fmt.Errorf("count orders: %w", err)
	}
	taken, err := results.Exec()
	if err != nil {
		return fmt.Errorf("return orders: %w", err)
	}
	var before int64
	if err := results.QueryRow().Scan(&before); err != nil {
		return fmt.Errorf("look for orders that were never counted: %w", err)
	}
	switch {
	case counted.RowsAffected() < int64(len(newly)):
		return inbox.Permanent(fmt.Errorf("order %s was counted already, from another %s", newly[0], paid))
	case taken.RowsAffected()+before < int64(len(back)):
		return inbox.Permanent(fmt.Errorf("order %s was never counted as paid, or is returned already", back[0]))
	}
	if err := results.Close(); err != nil {
		return fmt.Errorf("count the sales: %w", err)
	}
	return nil
}
