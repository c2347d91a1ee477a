package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/inbox"
)

// consumer names this service in its inbox. It is not the Kafka group: whoever reads the topic into this database, in
// whatever group, finds the events that are already in it.
const consumer = "inventory"

// ErrUnknownSKU is returned when nobody has ever set the stock of a SKU.
var ErrUnknownSKU = errors.New("unknown SKU")

// The reasons of a movement.
const (
	Sold     = "sold"     // taken by a paid order
	Returned = "returned" // given back by a cancelled order that had taken it
	Shortage = "shortage" // wanted by a paid order and not there: nothing was taken
	Set      = "set"      // set to what a person counted
)

// Stock is what there is of one SKU.
type Stock struct {
	SKU       string    `json:"sku"`
	Available int64     `json:"available"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// A Movement is one line of a SKU's history. The changes of a SKU's movements add up to what is available.
type Movement struct {
	ID        int64     `json:"id"`
	SKU       string    `json:"sku"`
	Reason    string    `json:"reason"`
	Change    int64     `json:"change"`              // of what is available; 0 for a shortage
	Requested *int64    `json:"requested,omitempty"` // of a shortage
	OrderID   *string   `json:"orderId,omitempty"`   // nil when set
	EventID   *string   `json:"eventId,omitempty"`   // nil when set
	CreatedAt time.Time `json:"createdAt"`
}

// Store is the stock in PostgreSQL. Its methods may be called concurrently.
type Store struct{ pool *pgxpool.Pool }

// NewStore uses the inventory database behind pool, which stays the caller's to close.
func NewStore(pool *pgxpool.Pool) *Store { return &Store{pool} }

// Applied is what Apply did.
type Applied struct {
	Duplicate bool
	Movements []Movement // SKU and Reason only
}

// Apply takes or gives back what ev asks for, once, however often and from how many sides it is called with ev. The
// inbox row, the stock and the movements are one transaction. at is where this delivery of ev came from.
func (s *Store) Apply(ctx context.Context, ev Event, at inbox.Message) (Applied, error) {
	at.EventID = ev.ID // the canonical form, however it was written
	var done Applied
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		first, err := inbox.Once(ctx, tx, consumer, at)
		switch {
		case err != nil:
			return err
		case !first:
			done.Duplicate = true
		case ev.Type == OrderPaid:
			done.Movements, err = take(ctx, tx, ev)
		case ev.WasPaid:
			done.Movements, err = giveBack(ctx, tx, ev)
		}
		return err
	})
	if err != nil {
		return Applied{}, fmt.Errorf("apply %s %s: %w", ev.Type, ev.ID, err)
	}
	return done, nil
}

func take(ctx context.Context, tx pgx.Tx, ev Event) ([]Movement, error) {
	want := make(map[string]int64, len(ev.Items))
	for _, item := range ev.Items {
		want[item.SKU] += item.Quantity
	}
	return move(ctx, tx, ev, want, `
		WITH moved AS (
			UPDATE stock SET available = available - $2, updated_at = clock_timestamp()
			WHERE sku = $1 AND available >= $2 RETURNING sku
		)
		INSERT INTO stock_movements (sku, reason, change, requested, order_id, event_id)
		SELECT $1, CASE WHEN served THEN 'sold' ELSE 'shortage' END, CASE WHEN served THEN -$2 ELSE 0 END,
		       CASE WHEN NOT served THEN $2 END, $3, $4
		FROM (SELECT EXISTS (SELECT FROM moved) AS served) AS outcome
		RETURNING sku, reason`)
}

func giveBack(ctx context.Context, tx pgx.Tx, ev Event) ([]Movement, error) {
	rows, err := tx.Query(ctx, `
		SELECT sku, -sum(change)::bigint FROM stock_movements
		WHERE order_id = $1 GROUP BY sku HAVING sum(change) < 0`, ev.OrderID)
	if err != nil {
		return nil, fmt.Errorf("find what order %s took: %w", ev.OrderID, err)
	}
	taken := map[string]int64{}
	var sku string
	var quantity int64
	if _, err := pgx.ForEachRow(rows, []any{&sku, &quantity}, func() error {
		taken[sku] = quantity
		return nil
	}); err != nil {
		return nil, fmt.Errorf("find what order %s took: %w", ev.OrderID, err)
	}
	return move(ctx, tx, ev, taken, `
		WITH moved AS (
			UPDATE stock SET available = available + $2, updated_at = clock_timestamp() WHERE sku = $1
		)
		INSERT INTO stock_movements (sku, reason, change, order_id, event_id)
		VALUES ($1, 'returned', $2, $3, $4)
		RETURNING sku, reason`)
}

// move runs sql for each SKU in one round trip, in sorted order: two orders lock the SKUs they share in the same order.
func move(ctx context.Context, tx pgx.Tx, ev Event, quantities map[string]int64, sql string) ([]Movement, error) {
	var batch pgx.Batch
	var done []Movement
	for _, sku := range slices.Sorted(maps.Keys(quantities)) {
		batch.Queue(sql, sku, quantities[sku], ev.OrderID, ev.ID).QueryRow(func(row pgx.Row) error {
			var m Movement
			err := row.Scan(&m.SKU, &m.Reason)
			done = append(done, m)
			return err
		})
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("move the stock of order %s: %w", ev.OrderID, err)
	}
	return done, nil
}

// RecordMalformed keeps the place of an event that can never be applied, its id where it has one, and the reason. It
// reports whether that place is new.
func (s *Store) RecordMalformed(ctx context.Context, at inbox.Message, reason string) (bool, error) {
	tag, err := s.pool.Exec(ctx, `
		INSERT INTO malformed_events (topic, partition, kafka_offset, consumer, event_id, reason)
		VALUES ($1, $2, $3, $4, nullif($5, ''), $6) ON CONFLICT DO NOTHING`,
		at.Topic, at.Partition, at.Offset, consumer, at.EventID, reason)
	if err != nil {
		return false, fmt.Errorf("record a malformed event: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// refusal is the reason in err when PostgreSQL refuses the data itself, so that trying again would never help. The
// message of the server stays out of it, for it may quote the data.
func refusal(err error) (reason string, ok bool) {
	const dataException, checkViolation = "22", "23514"
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code[:2] != dataException && pg.Code != checkViolation {
		return "", false
	}
	return fmt.Sprintf("PostgreSQL refuses it: SQLSTATE %s %s", pg.Code, pg.ConstraintName), true
}

// Set makes available what a person says there is of sku, which need not be known yet.
func (s *Store) Set(ctx context.Context, sku string, available int64) (Stock, error) {
	var stock Stock
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO stock (sku, available) VALUES ($1, 0) ON CONFLICT DO NOTHING`, sku); err != nil {
			return err
		}
		var before int64
		if err := tx.QueryRow(ctx, `SELECT available FROM stock WHERE sku = $1 FOR UPDATE`, sku).Scan(&before); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO stock_movements (sku, reason, change) VALUES ($1, 'set', $2)`,
			sku, available-before); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `UPDATE stock SET available = $2, updated_at = clock_timestamp() WHERE sku = $1
			RETURNING sku, available, updated_at`, sku, available)
		if err != nil {
			return err
		}
		stock, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Stock])
		return err
	})
	if err != nil {
		return Stock{}, fmt.Errorf("set the stock of %s: %w", sku, err)
	}
	return stock, nil
}

// Get returns the stock of sku, or ErrUnknownSKU.
func (s *Store) Get(ctx context.Context, sku string) (Stock, error) {
	rows, err := s.pool.Query(ctx, `SELECT sku, available, updated_at FROM stock WHERE sku = $1`, sku)
	if err == nil {
		var stock Stock
		if stock, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Stock]); err == nil {
			return stock, nil
		}
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrUnknownSKU
	}
	return Stock{}, fmt.Errorf("read the stock of %s: %w", sku, err)
}

// List returns up to limit SKUs behind after, in the order of their names.
func (s *Store) List(ctx context.Context, after string, limit int) ([]Stock, error) {
	rows, err := s.pool.Query(ctx, `SELECT sku, available, updated_at FROM stock WHERE sku > $1 ORDER BY sku LIMIT $2`, after, limit)
	if err == nil {
		var list []Stock
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Stock]); err == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("list the stock: %w", err)
}

// Movements returns up to limit movements with an id above after, oldest first: those of sku unless it is empty, those
// for reason unless it is empty.
func (s *Store) Movements(ctx context.Context, sku, reason string, after int64, limit int) ([]Movement, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT id, sku, reason, change, requested, order_id::text, event_id::text, created_at FROM stock_movements
		WHERE ($1 = '' OR sku = $1) AND ($2 = '' OR reason = $2) AND id > $3 ORDER BY id LIMIT $4`, sku, reason, after, limit)
	if err == nil {
		var list []Movement
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Movement]); err == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("list movements: %w", err)
}

// Ping fails while the database cannot be used: it is away, or its tables are not there.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, `SELECT FROM inbox, malformed_events, stock, stock_movements LIMIT 0`)
	return err
}
