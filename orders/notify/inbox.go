package notify

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/orders"
)

// Inbox returns the configuration of the consumer that writes a channel's notifications from order events. to is the
// recipient of webhooks.
func (s *Store) Inbox(channel, to string) inbox.Config {
	return inbox.Config{Pool: s.pool, Types: Types, Ignore: Ignored, Handle: func(ctx context.Context, tx pgx.Tx, record inbox.Event) error {
		ev, err := decode(record.Type, record.ID, record.Value)
		if err != nil {
			return inbox.Permanent(err)
		}
		return take(ctx, tx, channel, to, ev, record.Value)
	}}
}

// take writes the notification of ev, unless there is one already.
func take(ctx context.Context, tx pgx.Tx, channel, to string, ev event, value []byte) error {
	var set Settings
	var state orders.Status
	err := set.scan(tx.QueryRow(ctx, `SELECT `+settingsColumns+`, o.status FROM orders o LEFT JOIN customer_notifications s ON s.customer_id = $2 WHERE o.id = $1`,
		ev.OrderID, ev.BuyerID), &state)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return inbox.Permanent(fmt.Errorf("order %s does not exist here", ev.OrderID))
	case err != nil:
		return fmt.Errorf("read the order and its customer's settings: %w", err)
	}
	format := set.Format
	if channel == ChannelWebhook {
		format = "json"
	} else {
		to = clean(ev.BuyerEmail, 254)
	}
	kind := kinds[ev.EventType]
	status, reason := initialStatus(channel, kind, state, set, ev.BuyerEmail)
	_, err = tx.Exec(ctx, `INSERT INTO notifications (order_id, channel, kind, event_id, event, recipient, language, format, status, reason, final, ended_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, nullif($10, ''), $9 = 'FAILED', CASE WHEN $9 <> 'PENDING' THEN clock_timestamp() END)
		ON CONFLICT ON CONSTRAINT notifications_once DO NOTHING`,
		ev.OrderID, channel, kind, ev.EventID, string(value), to, set.Language, format, status, reason)
	if err != nil {
		return fmt.Errorf("write the notification: %w", err)
	}
	return nil
}

const badAddress = "the recipient is not one plain e-mail address"

// initialStatus returns the status of a new notification: PENDING; or SUPPRESSED or FAILED, with the reason, if nobody
// must try to send it.
func initialStatus(channel, kind string, state orders.Status, set Settings, address string) (status, reason string) {
	switch {
	case !set.Kinds[kind]:
		return Suppressed, "the customer does not want a notification when an order is " + kind
	case kind == "confirmed" && state == orders.Cancelled:
		return Suppressed, "the order is cancelled already"
	case channel == ChannelMail && !orders.PlainEmail(address):
		return Failed, badAddress
	}
	return Pending, ""
}
