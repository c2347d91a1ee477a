package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/inventory"
	"github.com/walpost/walpost/orders/saga"
)

// account has the number of events at each place of their way.
type account struct {
	committed, published, again, letters, dropped, applied, twice int

	missing []string // ids of events that are nowhere, or had no effect
	behind  int64    // records that the consumers have not read yet
}

func (a *account) String() string {
	return fmt.Sprintf("%d events committed: %d published (%d records came again), %d dead letters, %d dropped. %d of them move stock or orders: applied %d, twice %d, missing %d.",
		a.committed, a.published, a.again, a.letters, a.dropped, a.applied+len(a.missing), a.applied, a.twice, len(a.missing))
}

// finish waits until every event is where it belongs, and prints the account. It returns an error if an event is missing or
// was applied twice.
func (w *witness) finish(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("waited %s for the last events", patience))
	defer cancel()
	w.say("\nThe last events arrive, and each is looked for.")
	var a account
	err := until(ctx, func() error {
		now, err := w.count(ctx)
		if err != nil {
			return err
		}
		if a = now; len(a.missing) > 0 || a.behind > 0 {
			return fmt.Errorf("%d records are not read yet", a.behind)
		}
		return nil
	})
	w.say("%s", &a)
	if len(a.missing) > 0 {
		return fmt.Errorf("%d events are missing, such as %q: waited %s for them", len(a.missing), a.missing[:min(len(a.missing), 5)], patience)
	}
	if err != nil {
		return err
	}
	if a.twice > 0 {
		return fmt.Errorf("%d events were applied twice", a.twice)
	}
	return w.balance(ctx)
}

// count compares the outboxes with the records that arrived, the dead letters and the inboxes. A consumer writes its
// answers in the transaction of an event's effect. So once nothing is missing and nothing is unread, nothing more comes.
func (w *witness) count(ctx context.Context) (a account, err error) {
	for _, way := range w.ways {
		lags, err := kadm.NewClient(w.kafka).Lag(ctx, way.to)
		if err == nil {
			err = lags.Error()
		}
		if err != nil {
			return a, err
		}
		for _, lag := range lags {
			a.behind += lag.Lag.Total()
		}
	}
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	w.saw(w.kafka.PollFetches(soon).Records())
	for _, n := range w.copies {
		a.again += n - 1
	}
	for topic, way := range w.ways {
		if err := w.countWay(ctx, topic, way, &a); err != nil {
			return a, err
		}
	}
	return a, nil
}

// saw counts the records of each event, and follows the dead letters. It returns the records of events.
func (w *witness) saw(records []*kgo.Record) (events []*kgo.Record) {
	for _, record := range records {
		if record.Topic != letterTopic {
			w.copies[header(record, "id")]++
			events = append(events, record)
			continue
		}
		key := string(record.Key) // <lsn>/<seq>/<event id>
		w.letters[key[strings.LastIndexByte(key, '/')+1:]] = record.Value != nil
	}
	return events
}

// countWay adds the events of one outbox to a.
func (w *witness) countWay(ctx context.Context, topic string, way way, a *account) error {
	to := w.ordersDB
	if topic == orderTopic {
		to = w.inventoryDB
	}
	applied, err := quantities(ctx, to, `SELECT event_id, count(*) FROM inbox GROUP BY event_id`)
	if err != nil {
		return fmt.Errorf("read the inbox of %s: %w", way.to, err)
	}
	rows, _ := way.from.Query(ctx, `SELECT id::text, event_type FROM outbox`)
	var id, eventType string
	_, err = pgx.ForEachRow(rows, []any{&id, &eventType}, func() error {
		a.committed++
		unresolved, letter := w.letters[id]
		switch published := w.copies[id] > 0; {
		case published && slices.Contains(effective, eventType) && applied[id] == 0, !published && !letter:
			a.missing = append(a.missing, id)
		case !published && unresolved:
			a.letters++
		case !published:
			a.dropped++
		}
		if w.copies[id] > 0 {
			a.published++
		}
		if applied[id] > 0 {
			a.applied++
		}
		if applied[id] > 1 {
			a.twice++
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read an outbox: %w", err)
	}
	return nil
}

// effective are the types of events that a consumer applies; it passes over the others.
var effective = []string{inventory.OrderPaid, inventory.OrderCancelled, saga.StockReserved, saga.StockRejected, saga.StockReleased}

// balance checks that the stock is what was set minus the items of the orders that have them: an event that was applied
// twice, or without its effect, would show here.
func (w *witness) balance(ctx context.Context) error {
	set, err := quantities(ctx, w.inventoryDB, `SELECT sku, sum(change)::bigint FROM stock_movements WHERE reason = 'set' GROUP BY sku`)
	if err != nil {
		return err
	}
	sold, err := quantities(ctx, w.ordersDB, `SELECT sku, sum(quantity)::bigint FROM order_lines JOIN orders ON id = order_id
		WHERE status IN ('confirmed', 'shipped', 'completed') GROUP BY sku`)
	if err != nil {
		return err
	}
	stock, err := w.stock(ctx)
	if err != nil {
		return err
	}
	if err := adds(set, sold, stock); err != nil {
		return err
	}
	w.say("The stock is what the orders say.")
	return nil
}
