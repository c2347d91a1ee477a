package orders

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Entry is one event in the life of an order.
type Entry struct {
	At      time.Time       `json:"at"`
	What    string          `json:"what"`              // the type of an event, charge or refund, mail or webhook
	EventID *uuid.UUID      `json:"eventId,omitempty"` // absent if it is no longer known
	Detail  json.RawMessage `json:"detail"`            // an object
}

// history has a SELECT for each table with entries about orders; n orders entries of the same instant.
const history = `
	SELECT at, what, event_id, detail FROM (
		SELECT order_id, at, id AS n, what, event_id, detail FROM order_history
		UNION ALL
		SELECT order_id, at, NULL, kind, event_id, jsonb_build_object('amount', amount::text, 'currency', currency) FROM payments
		UNION ALL
		SELECT order_id, began_at, a.id, channel, event_id,
			jsonb_build_object('kind', kind, 'to', a.recipient, 'outcome', coalesce(outcome, 'unknown'), 'answer', coalesce(answer, ''))
		FROM notifications n JOIN notification_attempts a ON a.notification_id = n.id
		UNION ALL
		SELECT order_id, ended_at, NULL, channel, event_id, jsonb_build_object('kind', kind, 'status', status, 'reason', reason)
		FROM notifications WHERE status IN ('SUPPRESSED', 'FAILED')
	) AS entry WHERE order_id = $1 ORDER BY at, n NULLS LAST`

// History returns what happened to an order, the oldest first, or ErrNotFound.
func (s *Store) History(ctx context.Context, id uuid.UUID) ([]Entry, error) {
	rows, _ := s.pool.Query(ctx, history, id)
	entries, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Entry])
	if err != nil {
		return nil, fmt.Errorf("read the history of order %s: %w", id, err)
	}
	if len(entries) == 0 {
		return nil, ErrNotFound
	}
	return entries, nil
}
