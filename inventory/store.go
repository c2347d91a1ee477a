package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/outbox"
)

// outboxTable is the outbox of the inventory database.
const outboxTable outbox.Table = "outbox"

// ErrUnknownSKU is returned for a SKU whose stock was never set.
var ErrUnknownSKU = errors.New("unknown SKU")

// The reasons of a movement.
const (
	Sold     = "sold"     // taken by a paid order
	Returned = "returned" // given back by a cancelled order
	Shortage = "shortage" // a paid order asked for more than was available: nothing was taken
	Set      = "set"      // set to the number that a person counted
)

// Stock is the available quantity of one SKU.
type Stock struct {
	SKU       string    `json:"sku"`
	Available int64     `json:"available"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// A Movement is one line of a SKU's history. The changes of all its movements add up to the available quantity.
type Movement struct {
	ID        int64     `json:"id"`
	SKU       string    `json:"sku"`
	Reason    string    `json:"reason"`
	Change    int64     `json:"change"`              // of the available quantity; 0 for a shortage
	Requested *int64    `json:"requested,omitempty"` // only for a shortage
	OrderID   *string   `json:"orderId,omitempty"`   // nil when set
	EventID   *string   `json:"eventId,omitempty"`   // nil when set
	CreatedAt time.Time `json:"createdAt"`
}

// Store keeps the stock in PostgreSQL. Its methods may be called concurrently.
type Store struct{ pool *pgxpool.Pool }

// NewStore returns a Store that uses pool, which connects to the inventory database. The caller closes pool.
func NewStore(pool *pgxpool.Pool) *Store { return &Store{pool} }

// Apply moves the stock in tx as the events require, in their order, writes an answer for each into the outbox, and
// returns the movements of each event, with SKU, Reason, Change and Requested only. It must be called once per event;
// cdc/inbox ensures that. An error marked by inbox.Permanent means that one of the events can never be applied. Apply
// takes two round trips for any number of events.
func (s *Store) Apply(ctx context.Context, tx pgx.Tx, events ...Event) ([][]Movement, error) {
	shelf, err := lock(ctx, tx, events)
	if err != nil {
		return nil, err
	}
	var answers []outbox.Event
	done := make([][]Movement, len(events))
	for i, ev := range events {
		var short []Short
		switch {
		case ev.Type == OrderPaid:
			done[i], short = shelf.take(ev)
		case ev.WasPaid:
			if done[i], err = shelf.giveBack(ev); err != nil {
				return nil, err
			}
		}
		if len(done[i]) == 0 {
			continue
		}
		answer, err := ev.answer(done[i], short)
		if err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
	return done, write(ctx, tx, events, done, answers)
}

// A shelf is the stock that the events need, locked until the transaction ends.
type shelf struct {
	available map[string]int64            // by SKU; a SKU that is missing here is unknown
	taken     map[string]map[string]int64 // by order and SKU, for orders that have movements
}

// lock locks all SKUs in one order, before any stock moves: transactions that share SKUs wait for each other and cannot
// deadlock.
func lock(ctx context.Context, tx pgx.Tx, events []Event) (shelf, error) {
	on := shelf{map[string]int64{}, map[string]map[string]int64{}}
	wanted, cancelled := map[string]bool{}, []string{}
	for _, ev := range events {
		if ev.WasPaid {
			cancelled = append(cancelled, ev.OrderID)
		} else if ev.Type == OrderPaid {
			for _, item := range ev.Items {
				wanted[item.SKU] = true
			}
		}
	}
	var batch pgx.Batch
	var sku, order string
	var n int64
	batch.Queue(`SELECT sku, available FROM stock
		WHERE sku = ANY(ARRAY(SELECT unnest($1::text[]) UNION SELECT sku FROM stock_movements WHERE order_id = ANY($2::uuid[]))) ORDER BY sku FOR UPDATE`,
		slices.Collect(maps.Keys(wanted)), cancelled).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&sku, &n}, func() error {
			on.available[sku] = n
			return nil
		})
		return err
	})
	if len(cancelled) > 0 {
		batch.Queue(`SELECT order_id::text, sku, -sum(change)::bigint FROM stock_movements WHERE order_id = ANY($1::uuid[]) GROUP BY order_id, sku`,
			cancelled).Query(func(rows pgx.Rows) error {
			_, err := pgx.ForEachRow(rows, []any{&order, &sku, &n}, func() error {
				on.took(order, sku, n)
				return nil
			})
			return err
		})
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return shelf{}, fmt.Errorf("lock the stock: %w", err)
	}
	return on, nil
}

func (s shelf) took(order, sku string, n int64) {
	if s.taken[order] == nil {
		s.taken[order] = map[string]int64{}
	}
	s.taken[order][sku] += n
}

// take serves an order whole, or not at all; then only its shortages are recorded.
func (s shelf) take(ev Event) (done []Movement, short []Short) {
	want := make(map[string]int64, len(ev.Items))
	for _, item := range ev.Items {
		want[item.SKU] += item.Quantity
	}
	skus := slices.Sorted(maps.Keys(want))
	for _, sku := range skus {
		if n := want[sku]; n > s.available[sku] {
			short = append(short, Short{sku, n, s.available[sku]})
			done = append(done, Movement{SKU: sku, Reason: Shortage, Requested: &n})
		}
	}
	for _, sku := range skus {
		if len(short) > 0 {
			s.took(ev.OrderID, sku, 0)
			continue
		}
		s.available[sku] -= want[sku]
		s.took(ev.OrderID, sku, want[sku])
		done = append(done, Movement{SKU: sku, Reason: Sold, Change: -want[sku]})
	}
	return done, short
}

// giveBack returns the items of a cancelled order. It returns a permanent error if the order was paid but its payment
// was never applied here.
func (s shelf) giveBack(ev Event) (done []Movement, err error) {
	taken, known := s.taken[ev.OrderID]
	if !known {
		return nil, inbox.Permanent(fmt.Errorf("order %s does not exist here: it was paid and is cancelled, and its OrderPaid was never applied", ev.OrderID))
	}
	for _, sku := range slices.Sorted(maps.Keys(taken)) {
		if n := taken[sku]; n > 0 {
			s.available[sku] += n
			taken[sku] = 0
			done = append(done, Movement{SKU: sku, Reason: Returned, Change: n})
		}
	}
	return done, nil
}

// write writes the movements, the changes of the stock, and the answers into the outbox.
func write(ctx context.Context, tx pgx.Tx, events []Event, done [][]Movement, answers []outbox.Event) error {
	if len(answers) == 0 {
		return nil
	}
	var skus, reasons, orders, ids []string
	var changes []int64
	var requested []*int64
	for i, ev := range events {
		for _, m := range done[i] {
			skus, reasons, changes, requested = append(skus, m.SKU), append(reasons, m.Reason), append(changes, m.Change), append(requested, m.Requested)
			orders, ids = append(orders, ev.OrderID), append(ids, ev.ID)
		}
	}
	var batch pgx.Batch
	batch.Queue(`UPDATE stock SET available = available + moved.change, updated_at = clock_timestamp()
		FROM (SELECT sku, sum(change)::bigint AS change FROM unnest($1::text[], $2::bigint[]) AS line (sku, change) GROUP BY sku) AS moved
		WHERE stock.sku = moved.sku AND moved.change <> 0`, skus, changes)
	batch.Queue(`INSERT INTO stock_movements (sku, reason, change, requested, order_id, event_id)
		SELECT sku, reason, change, requested, order_id, event_id
		FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::uuid[], $6::uuid[])
			WITH ORDINALITY AS line (sku, reason, change, requested, order_id, event_id, n) ORDER BY n`, skus, reasons, changes, requested, orders, ids)
	if err := outboxTable.Queue(&batch, answers...); err != nil {
		return inbox.Permanent(err)
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		if reason, refused := refusal(err); refused {
			err = inbox.Permanent(errors.New(reason))
		}
		return fmt.Errorf("move the stock: %w", err)
	}
	return nil
}

// refusal returns the reason in err if PostgreSQL refuses the data itself, so that no retry can help. It leaves out the
// server's message, which may quote the data.
func refusal(err error) (reason string, ok bool) {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code[:2] != pgerrcode.DataException[:2] && pg.Code != pgerrcode.CheckViolation {
		return "", false
	}
	return fmt.Sprintf("PostgreSQL refuses it: SQLSTATE %s %s", pg.Code, pg.ConstraintName), true
}

// Set sets the available quantity of sku to the number that a person counted. The SKU need not exist yet.
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

// List returns up to limit SKUs after after, ordered by SKU.
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

// MovementOptions select the movements that Movements returns.
type MovementOptions struct {
	SKU    string // empty: any
	Reason string // empty: any
	After  int64  // only movements with a higher id
	Limit  int    // the most movements to return
}

// Movements returns movements, the oldest first.
func (s *Store) Movements(ctx context.Context, opts MovementOptions) ([]Movement, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT id, sku, reason, change, requested, order_id::text, event_id::text, created_at FROM stock_movements
		WHERE ($1 = '' OR sku = $1) AND ($2 = '' OR reason = $2) AND id > $3 ORDER BY id LIMIT $4`, opts.SKU, opts.Reason, opts.After, opts.Limit)
	if err == nil {
		var list []Movement
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Movement]); err == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("list movements: %w", err)
}

// Ping returns an error while the database does not answer or its tables do not exist.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, `SELECT FROM inbox, inbox_parked, stock, stock_movements LIMIT 0`)
	return err
}
