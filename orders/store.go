package orders

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/outbox"
)

// Store keeps orders in PostgreSQL.
type Store struct {
	pool *pgxpool.Pool
}

// Open prepares connections to the database at url and makes none yet, so it fails for a wrong url only.
func Open(ctx context.Context, url string) (*Store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	params := config.ConnConfig.RuntimeParams
	params["application_name"] = "orders"
	params["lock_timeout"] = "5s" // a repeated POST waits for the first; under the server's write timeout of 10 s
	params["idle_in_transaction_session_timeout"] = "10s"
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &Store{pool}, nil
}

// Close waits for what is using a connection and closes all.
func (s *Store) Close() { s.pool.Close() }

// Ready says what keeps the service from taking orders, and what to do about it.
func (s *Store) Ready(ctx context.Context) error {
	var may bool
	err := s.pool.QueryRow(ctx, `SELECT coalesce(has_table_privilege(to_regclass('outbox'), 'INSERT'), false)`).Scan(&may)
	switch {
	case err != nil:
		return fmt.Errorf("the orders database cannot be used (start it, or mend ORDERS_DATABASE_URL): %w", err)
	case !may:
		return errors.New("the orders database has no outbox this role may write to: run orders migrate")
	}
	return nil
}

// Change is an order after a change, and the event that tells of it.
type Change struct {
	Order     Order
	EventID   uuid.UUID
	EventType string
}

// Place writes a new order, made by Request.Order, and its OrderCreated.
func Place(ctx context.Context, tx pgx.Tx, o Order) (Change, error) {
	err := tx.QueryRow(ctx, `INSERT INTO orders (id, buyer_id, buyer_email, total, currency) VALUES ($1, $2, $3, $4, $5) RETURNING number, created_at`,
		o.ID, o.BuyerID, o.BuyerEmail, o.Total, o.Currency).Scan(&o.Number, &o.CreatedAt)
	if err != nil {
		return Change{}, fmt.Errorf("write order %s: %w", o.ID, err)
	}
	skus, quantities, prices := make([]string, len(o.Items)), make([]int, len(o.Items)), make([]string, len(o.Items))
	for i, item := range o.Items {
		skus[i], quantities[i], prices[i] = item.SKU, item.Quantity, item.UnitPrice.String()
	}
	_, err = tx.Exec(ctx, `INSERT INTO order_lines (order_id, line_no, sku, quantity, unit_price)
		SELECT $1, n, sku, quantity, price::numeric FROM unnest($2::text[], $3::integer[], $4::text[]) WITH ORDINALITY AS line (sku, quantity, price, n)`,
		o.ID, skus, quantities, prices)
	if err != nil {
		return Change{}, fmt.Errorf("write the lines of order %s: %w", o.ID, err)
	}
	return tell(ctx, tx, o)
}

// Pay makes a created order paid and writes its OrderPaid. The error is ErrNotFound or a StateError where that cannot be.
func Pay(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Change, error) {
	return become(ctx, tx, id, Paid)
}

// Cancel makes a created or paid order cancelled and writes its OrderCancelled. The error is ErrNotFound or a StateError where that
// cannot be.
func Cancel(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Change, error) {
	return become(ctx, tx, id, Cancelled)
}

func become(ctx context.Context, tx pgx.Tx, id uuid.UUID, to Status) (Change, error) {
	o, err := exactlyOne(ctx, tx, ` WHERE id = $1 FOR UPDATE OF orders`, id)
	if err != nil {
		return Change{}, err
	}
	if err := o.mayBecome(to); err != nil {
		return Change{}, err
	}
	err = tx.QueryRow(ctx, `UPDATE orders SET status = $2,
			paid_at = CASE $2 WHEN 'paid' THEN clock_timestamp() ELSE paid_at END,
			cancelled_at = CASE $2 WHEN 'cancelled' THEN clock_timestamp() END
		WHERE id = $1 RETURNING status, paid_at, cancelled_at`, id, to).Scan(&o.Status, &o.PaidAt, &o.CancelledAt)
	if err != nil {
		return Change{}, fmt.Errorf("make order %s %s: %w", id, to, err)
	}
	return tell(ctx, tx, o)
}

func tell(ctx context.Context, tx pgx.Tx, o Order) (Change, error) {
	ev, err := o.lastEvent()
	if err != nil {
		return Change{}, err
	}
	if err := outbox.Append(ctx, tx, ev); err != nil {
		return Change{}, err
	}
	return Change{Order: o, EventID: ev.ID, EventType: ev.Type}, nil
}

// Get returns one order, or ErrNotFound.
func (s *Store) Get(ctx context.Context, id uuid.UUID) (Order, error) {
	return exactlyOne(ctx, s.pool, ` WHERE id = $1`, id)
}

// List returns at most limit orders with a number below that one, the newest first.
func (s *Store) List(ctx context.Context, below int64, limit int) ([]Order, error) {
	return query(ctx, s.pool, ` WHERE number < $1 ORDER BY number DESC LIMIT $2`, below, limit)
}

// CountByStatus counts all orders.
func (s *Store) CountByStatus(ctx context.Context) (map[Status]int64, error) {
	rows, _ := s.pool.Query(ctx, `SELECT status, count(*) FROM orders GROUP BY status`)
	counts := map[Status]int64{Created: 0, Paid: 0, Cancelled: 0}
	var status Status
	var n int64
	_, err := pgx.ForEachRow(rows, []any{&status, &n}, func() error {
		counts[status] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count orders: %w", err)
	}
	return counts, nil
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func exactlyOne(ctx context.Context, q querier, where string, args ...any) (Order, error) {
	found, err := query(ctx, q, where, args...)
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Order{}, err
	}
	return found[0], nil
}

func query(ctx context.Context, q querier, where string, args ...any) ([]Order, error) {
	rows, _ := q.Query(ctx, `SELECT id, number, status, buyer_id, buyer_email, total, currency, created_at, paid_at, cancelled_at,
			lines.skus, lines.quantities, lines.prices
		FROM orders CROSS JOIN LATERAL (
			SELECT array_agg(sku ORDER BY line_no) AS skus, array_agg(quantity ORDER BY line_no) AS quantities, array_agg(unit_price::text ORDER BY line_no) AS prices
			FROM order_lines WHERE order_id = orders.id) AS lines`+where, args...)
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Order, error) {
		var o Order
		var skus, prices []string
		var quantities []int
		err := row.Scan(&o.ID, &o.Number, &o.Status, &o.BuyerID, &o.BuyerEmail, &o.Total, &o.Currency, &o.CreatedAt, &o.PaidAt, &o.CancelledAt,
			&skus, &quantities, &prices)
		for i := range skus {
			price, parseErr := ParseMoney(prices[i])
			err = errors.Join(err, parseErr)
			o.Items = append(o.Items, Item{skus[i], quantities[i], price})
		}
		return o, err
	})
	if err != nil {
		return nil, fmt.Errorf("read orders: %w", err)
	}
	return found, nil
}
