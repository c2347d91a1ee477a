package inbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A Message is one delivery of an event.
type Message struct {
	// EventID is what makes two deliveries the same event: the outbox row's id, which the relay puts into the record
	// header "id". It must be the same in every delivery, so never an offset or an id made by the consumer.
	EventID string

	// Topic, Partition and Offset say where the first delivery came from. They are kept for people who search, and
	// take no part in telling a duplicate.
	Topic     string
	Partition int32
	Offset    int64
}

// Once reports whether msg comes to consumer for the first time, and remembers it in tx. The effect of the event
// belongs in the same tx, and only when first is true.
//
// While another transaction holds the same event, Once waits for its end or for that of ctx. tx must be READ COMMITTED,
// the default: at a higher level a concurrent duplicate is a serialization failure instead of a duplicate. After an
// error tx is of no more use and the delivery must be repeated.
func Once(ctx context.Context, tx pgx.Tx, consumer string, msg Message) (first bool, err error) {
	tag, err := tx.Exec(ctx,
		`INSERT INTO inbox (consumer, event_id, topic, partition, kafka_offset) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (consumer, event_id) DO NOTHING`,
		consumer, msg.EventID, msg.Topic, msg.Partition, msg.Offset)
	if err != nil {
		return false, fmt.Errorf("mark event %s in the inbox of %s: %w", msg.EventID, consumer, err)
	}
	return tag.RowsAffected() == 1, nil
}
