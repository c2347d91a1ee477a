// Package saga applies the stock's answer to its order: a paid order becomes confirmed, or rejected and refunded.
//
//	outbox.event.order ──▶ inventory ──▶ its outbox ──▶ relay ──▶ outbox.event.stock ──▶ cdc/inbox ──▶ Apply
//
// An order that was cancelled meanwhile stays cancelled after any answer: the cancellation refunded its money, and
// inventory releases its stock when it receives the cancellation. The answer is stored in the order's history in every
// case. An answer can never be applied if its order does not exist, or if the order's state cannot have asked for it.
package saga

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/orders"
)

// Group is the consumer group that applies stock events to orders.
const Group = "orders"

// Inbox returns the configuration that applies stock events to orders. The caller adds brokers, topic and pool.
func Inbox(log zerolog.Logger) inbox.Config {
	return inbox.Config{
		Types: []string{StockReserved, StockRejected, StockReleased},
		Handle: func(ctx context.Context, tx pgx.Tx, record inbox.Event) error {
			ev, err := Decode(record.Type, record.ID, record.Value)
			if err != nil {
				return inbox.Permanent(err)
			}
			change, err := Apply(ctx, tx, ev)
			if err != nil {
				return err
			}
			record.OnCommit(func() {
				log.Debug().Str("topic", record.Topic).Int32("partition", record.Partition).Int64("offset", record.Offset).
					Stringer("event_id", ev.ID).Stringer("order_id", ev.OrderID).Str("type", ev.Type).Msg("event applied")
				if change.EventType != "" {
					log.Info().Stringer("order_id", ev.OrderID).Str("order_number", strconv.FormatInt(change.Order.Number, 10)).
						Stringer("event_id", change.EventID).Str("type", change.EventType).Msg("order " + string(change.Order.Status))
				}
			})
			return nil
		},
	}
}

// Apply changes an order, in tx, according to the stock's answer. The Change is empty if the answer changes nothing. An
// error marked by inbox.Permanent means that the event can never be applied.
func Apply(ctx context.Context, tx pgx.Tx, ev Event) (orders.Change, error) {
	o, err := orders.Receive(ctx, tx, ev.OrderID, ev.Type, ev.ID, ev.Detail)
	switch {
	case errors.Is(err, orders.ErrNotFound):
		return orders.Change{}, inbox.Permanent(fmt.Errorf("order %s does not exist here", ev.OrderID))
	case errors.Is(err, orders.ErrDuplicate): // the inbox was emptied and is filled again
		return orders.Change{}, nil
	case err != nil || o.Status == orders.Cancelled:
		return orders.Change{}, err
	}
	var change orders.Change
	switch ev.Type {
	case StockReserved:
		change, err = orders.Confirm(ctx, tx, o)
	case StockRejected:
		change, err = orders.Reject(ctx, tx, o, ev.Detail.Short)
	case StockReleased:
		err = fmt.Errorf("order %d is %s and its stock was released", o.Number, o.Status)
		return change, inbox.Permanent(err)
	}
	if errors.As(err, new(*orders.StateError)) {
		err = inbox.Permanent(err)
	}
	return change, err
}
