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

// Apply takes or gives back, in tx, what each of the events asks for, in their order, and returns the movements of each,
// with SKU and Reason only. It must be called once per event: cdc/inbox sees to that. An error that inbox.Permanent has
// marked says that one of the events can never be applied.
func (s *Store) Apply(ctx context.Context, tx pgx.Tx, events ...Event) ([][]Movement, error) {
	// All SKUs in one order, before anything moves: transactions that share some wait for each other and never in a circle.
	var skus []string
	for _, ev := range events {
		for _, item := range ev.Items {
			skus = append(skus, item.SKU)
		}
	}
	if _, err := tx.Exec(ctx, `SELECT FROM stock WHERE sku = ANY($1) ORDER BY sku FOR UPDATE`, skus); err != nil {
		return nil, fmt.Errorf("lock the stock: %w", err)
	}
	var batch pgx.Batch
	done := make([][]Movement, len(events))
	for i, ev := range events {
		switch {
		case ev.Type == OrderPaid:
			take(&batch, ev, &done[i])
		case ev.WasPaid:
			giveBack(&batch, ev, &done[i])
		}
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		if reason, refused := refusal(err); refused {
			err = inbox.Permanent(errors.New(reason))
		}
		return nil, fmt.Errorf("move the stock: %w", err)
	}
	return done, nil
}

func take(batch *pgx.Batch, ev Event, done *[]Movement) {
	want := make(map[string]int64, len(ev.Items))
	for _, item := range ev.Items {
		want[item.SKU] += item.Quantity
	}
	for _, sku := range slices.Sorted(maps.Keys(want)) {
		batch.Queue(`
			WITH moved AS (
				UPDATE stock SET available = available - $2, updated_at = clock_timestamp()
				WHERE sku = $1 AND available >= $2 RETURNING sku
			)
			INSERT INTO stock_movements (sku, reason, change, requested, order_id, event_id)
			SELECT $1, CASE WHEN served THEN 'sold' ELSE 'shortage' END, CASE WHEN served THEN -$2 ELSE 0 END,
			       CASE WHEN NOT served THEN $2 END, $3, $4
			FROM (SELECT EXISTS (SELECT FROM moved) AS served) AS outcome
			RETURNING sku, reason`, sku, want[sku], ev.OrderID, ev.ID).Query(collect(done))
	}
}

// giveBack first refuses an order whose payment never came here.
func giveBack(batch *pgx.Batch, ev Event, done *[]Movement) {
	batch.Queue(`SELECT EXISTS (SELECT FROM stock_movements WHERE order_id = $1)`, ev.OrderID).QueryRow(func(row pgx.Row) error {
		var known bool
		err := row.Scan(&known)
		if err == nil && !known {
			err = inbox.Permanent(fmt.Errorf("order %s does not exist here: it was paid and is cancelled, and its OrderPaid was never applied", ev.OrderID))
		}
		return err
	})
	batch.Queue(`
		WITH taken AS (
			SELECT sku, -sum(change)::bigint AS quantity FROM stock_movements WHERE order_id = $1 GROUP BY sku HAVING sum(change) < 0
		), moved AS (
			UPDATE stock SET available = available + quantity, updated_at = clock_timestamp() FROM taken WHERE stock.sku = taken.sku
		)
		INSERT INTO stock_movements (sku, reason, change, order_id, event_id)
		SELECT sku, 'returned', quantity, $1, $2 FROM taken ORDER BY sku
		RETURNING sku, reason`, ev.OrderID, ev.ID).Query(collect(done))
}

func collect(done *[]Movement) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		var m Movement
		_, err := pgx.ForEachRow(rows, []any{&m.SKU, &m.Reason}, func() error {
			*done = append(*done, m)
			return nil
		})
		return err
	}
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
	_, err := s.pool.Exec(ctx, `SELECT FROM inbox, inbox_parked, stock, stock_movements LIMIT 0`)
	return err
}
