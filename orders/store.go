package orders

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/outbox"
	"github.com/walpost/walpost/cdc/pglimit"
)

// outboxTable is the outbox of the orders database.
const outboxTable outbox.Table = "outbox"

// Store keeps orders in PostgreSQL.
type Store struct {
	pool *pgxpool.Pool
}

// Open prepares the pool's connections without connecting.
func Open(ctx context.Context, config *pgxpool.Config) (*Store, error) {
	params := config.ConnConfig.RuntimeParams
	params["application_name"] = "orders"
	params["lock_timeout"] = "5s" // a repeated POST waits for the first; under the server's write timeout of 10 s
	params["idle_in_transaction_session_timeout"] = "10s"
	pglimit.Set(&config.ConnConfig.Config)
	config.ConnConfig.Tracer = pglimit.Queries{Within: 30 * time.Second}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &Store{pool}, nil
}

// Pool returns the store's pool, for the other tables in the orders database.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }

// Close waits until no connection is in use and closes all.
func (s *Store) Close() { s.pool.Close() }

// Ready returns nil if the service can take orders, and otherwise an error with the cause and the remedy.
func (s *Store) Ready(ctx context.Context) error {
	var missing string
	err := s.pool.QueryRow(ctx, `SELECT coalesce(string_agg(name, ' and '), '') FROM unnest(ARRAY['outbox', 'order_history']) AS name
		WHERE NOT coalesce(has_table_privilege(to_regclass(name), 'INSERT'), false)`).Scan(&missing)
	switch {
	case err != nil:
		return fmt.Errorf("the orders database cannot be used (start it, or fix ORDERS_DATABASE_URL): %w", err)
	case missing != "":
		return fmt.Errorf("this role may not INSERT into %s, or the orders database has no such table: run orders migrate, which makes the tables and gives the role its rights", missing)
	}
	return nil
}

// Change is an order after a change, with the change's event.
type Change struct {
	Order     Order
	EventID   uuid.UUID
	EventType string
}

// Place writes a new order, built by Request.Order, and its OrderCreated.
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
	return emit(ctx, tx, o, Detail{})
}

// Pay makes a created order paid and writes its charge and its OrderPaid. It returns ErrNotFound or a StateError if
// that is impossible.
func Pay(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Change, error) {
	o, err := lock(ctx, tx, id)
	if err != nil {
		return Change{}, err
	}
	return become(ctx, tx, o, Paid, Detail{})
}

// Cancel makes a created, paid or confirmed order cancelled and writes its OrderCancelled; if the order was paid, it
// also writes the refund. It returns ErrNotFound or a StateError if that is impossible.
func Cancel(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Change, error) {
	o, err := lock(ctx, tx, id)
	if err != nil {
		return Change{}, err
	}
	wasPaid := o.PaidAt != nil
	return become(ctx, tx, o, Cancelled, Detail{WasPaid: &wasPaid})
}

// Confirm makes a paid order, which Receive returned, confirmed and writes its OrderConfirmed. It returns a StateError
// if that is impossible.
func Confirm(ctx context.Context, tx pgx.Tx, o Order) (Change, error) {
	return become(ctx, tx, o, Confirmed, Detail{})
}

// Reject makes a paid order, which Receive returned, rejected for lack of stock and writes its refund and its
// OrderRejected. It returns a StateError if that is impossible.
func Reject(ctx context.Context, tx pgx.Tx, o Order, short []Short) (Change, error) {
	return become(ctx, tx, o, Rejected, Detail{Reason: "out_of_stock", Short: short})
}

// Ship makes a confirmed order shipped and writes its OrderShipped. trackingCode may be empty. It returns ErrNotFound
// or a StateError if that is impossible.
func Ship(ctx context.Context, tx pgx.Tx, id uuid.UUID, trackingCode string) (Change, error) {
	o, err := lock(ctx, tx, id)
	if err != nil {
		return Change{}, err
	}
	o.TrackingCode = trackingCode
	return become(ctx, tx, o, Shipped, Detail{TrackingCode: trackingCode})
}

// Complete makes a shipped order completed and writes its OrderCompleted. It returns ErrNotFound or a StateError if
// that is impossible.
func Complete(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Change, error) {
	o, err := lock(ctx, tx, id)
	if err != nil {
		return Change{}, err
	}
	return become(ctx, tx, o, Completed, Detail{})
}

// Receive writes an event of another service into the order's history, and returns the order, locked until tx ends. It
// returns ErrNotFound if the order does not exist, and ErrDuplicate if the event is in the history already.
func Receive(ctx context.Context, tx pgx.Tx, id uuid.UUID, what string, eventID uuid.UUID, detail any) (Order, error) {
	o, err := lock(ctx, tx, id)
	if errors.Is(err, ErrNotFound) {
		if err = awaitInsert(ctx, tx, id); err == nil {
			o, err = lock(ctx, tx, id)
		}
	}
	if err != nil {
		return Order{}, err
	}
	first, err := tx.Exec(ctx, `INSERT INTO order_history (order_id, what, event_id, detail) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`, id, what, eventID, detail)
	switch {
	case err != nil:
		return Order{}, fmt.Errorf("write the history of order %s: %w", id, err)
	case first.RowsAffected() == 0:
		return Order{}, ErrDuplicate
	}
	return o, nil
}

// awaitInsert waits for a transaction that is inserting the order. PostgreSQL writes a commit to the WAL before other
// sessions see it. In that moment the event may have reached inventory, and the answer may be back already. An INSERT
// with the same primary key waits for the transaction.
func awaitInsert(ctx context.Context, tx pgx.Tx, id uuid.UUID) error {
	attempt, err := tx.Begin(ctx)
	if err != nil {
		return fmt.Errorf("wait for order %s: %w", id, err)
	}
	_, err = attempt.Exec(ctx, `INSERT INTO orders (id, number, buyer_id, buyer_email, total, currency) OVERRIDING SYSTEM VALUE
		VALUES ($1, 0, 'nobody', 'nobody@invalid', 0, 'EUR') ON CONFLICT (id) DO NOTHING`, id) // number 0: the sequence would lose a number
	if err := errors.Join(err, attempt.Rollback(ctx)); err != nil {
		return fmt.Errorf("wait for order %s: %w", id, err)
	}
	return nil
}

// lock locks the order with FOR NO KEY UPDATE. FOR UPDATE would block inserts of rows that refer to the order, such as
// its mails: those transactions insert for many orders, in another order than here, and could deadlock.
func lock(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Order, error) {
	return exactlyOne(ctx, tx, ` WHERE id = $1 FOR NO KEY UPDATE OF orders`, id)
}

func become(ctx context.Context, tx pgx.Tx, o Order, to Status, detail Detail) (Change, error) {
	if err := o.mayBecome(to); err != nil {
		return Change{}, err
	}
	o.Status = to
	column := string(to) + "_at"
	err := tx.QueryRow(ctx, `UPDATE orders SET status = $2, tracking_code = nullif($3, ''), `+column+` = clock_timestamp() WHERE id = $1 RETURNING `+column,
		o.ID, to, o.TrackingCode).Scan(o.changedAt())
	if err != nil {
		return Change{}, fmt.Errorf("make order %s %s: %w", o.ID, to, err)
	}
	return emit(ctx, tx, o, detail)
}

// emit writes the event of the order's last change, its line in the history, and its charge or refund.
func emit(ctx context.Context, tx pgx.Tx, o Order, detail Detail) (Change, error) {
	by := payment{uuid.Must(uuid.NewV7()), o.Total, o.Currency}
	ev, at, err := o.lastEvent(detail, by)
	if err != nil {
		return Change{}, err
	}
	var batch pgx.Batch
	if err := outboxTable.Queue(&batch, ev); err != nil {
		return Change{}, err
	}
	batch.Queue(`INSERT INTO order_history (order_id, at, what, event_id, detail) VALUES ($1, $2, $3, $4, $5)`, o.ID, at, ev.Type, ev.ID, detail)
	if kind := o.lastPayment(); kind != "" {
		batch.Queue(`INSERT INTO payments (id, order_id, kind, amount, currency, event_id, at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			by.ID, o.ID, kind, by.Amount, by.Currency, ev.ID, at)
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return Change{}, fmt.Errorf("write %s of order %s, its history and payments: %w", ev.Type, o.ID, err)
	}
	return Change{Order: o, EventID: ev.ID, EventType: ev.Type}, nil
}

// lastPayment returns the kind of the payment that belongs to the last change, or "".
func (o Order) lastPayment() string {
	switch {
	case o.Status == Paid:
		return "charge"
	case o.PaidAt != nil && (o.Status == Rejected || o.Status == Cancelled):
		return "refund"
	}
	return ""
}

// Get returns one order, or ErrNotFound.
func (s *Store) Get(ctx context.Context, id uuid.UUID) (Order, error) {
	return exactlyOne(ctx, s.pool, ` WHERE id = $1`, id)
}

// List returns at most limit orders with a number below below, the newest first.
func (s *Store) List(ctx context.Context, below int64, limit int) ([]Order, error) {
	return query(ctx, s.pool, ` WHERE number < $1 ORDER BY number DESC LIMIT $2`, below, limit)
}

// CountByStatus counts all orders by status.
func (s *Store) CountByStatus(ctx context.Context) (map[Status]int64, error) {
	rows, _ := s.pool.Query(ctx, `SELECT status, count(*) FROM orders GROUP BY status`)
	counts := map[Status]int64{}
	for status := range next {
		counts[status] = 0
	}
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
	rows, _ := q.Query(ctx, `SELECT id, number, status, buyer_id, buyer_email, total, currency,
			created_at, paid_at, confirmed_at, rejected_at, shipped_at, completed_at, cancelled_at, coalesce(tracking_code, ''),
			lines.skus, lines.quantities, lines.prices
		FROM orders CROSS JOIN LATERAL (
			SELECT array_agg(sku ORDER BY line_no) AS skus, array_agg(quantity ORDER BY line_no) AS quantities, array_agg(unit_price::text ORDER BY line_no) AS prices
			FROM order_lines WHERE order_id = orders.id) AS lines`+where, args...)
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Order, error) {
		var o Order
		var skus, prices []string
		var quantities []int
		err := row.Scan(&o.ID, &o.Number, &o.Status, &o.BuyerID, &o.BuyerEmail, &o.Total, &o.Currency,
			&o.CreatedAt, &o.PaidAt, &o.ConfirmedAt, &o.RejectedAt, &o.ShippedAt, &o.CompletedAt, &o.CancelledAt, &o.TrackingCode,
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
