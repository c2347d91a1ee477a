// Package outbox writes an event in the transaction in which a service writes its state. The event is a row that
// walpost relays to Kafka.
//
//	CREATE TABLE outbox (
//	    id             uuid PRIMARY KEY,                 -- minted once; consumers deduplicate by it
//	    aggregate_type text NOT NULL,                    -- decides the topic
//	    aggregate_id   text NOT NULL,                    -- the record's key: events of one aggregate stay in order
//	    event_type     text NOT NULL,
//	    payload        jsonb NOT NULL,                   -- a JSON object, the record's value
//	    headers        jsonb NOT NULL DEFAULT '{}',
//	    created_at     timestamptz NOT NULL DEFAULT clock_timestamp()
//	);
//
// The table's CHECKs (sql/orders/00002_outbox.sql) are the contract. Append checks the same rules before the round
// trip, and its errors are sentences. A row is never changed. A writer needs the right to INSERT and no other, because
// Append reads nothing back.
//
// A service names its Table once. Append takes a transaction of pgx, AppendSQL one of database/sql (or of a library
// that embeds it, as sqlx.Tx does). A pool or a connection is neither, so code that forgets the transaction does not
// compile.
package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The limits of the table's CHECKs, in bytes as PostgreSQL stores them. A payload has at most 900,000 bytes as jsonb.
// Only PostgreSQL knows this size exactly (it puts a space after each colon and comma, and writes 1e3 as 1000), so only
// the CHECK rejects a payload near its limit.
const (
	maxAggregateType = 100
	maxAggregateID   = 1024
	maxEventType     = 255
	maxHeaders       = 16_384
)

// ErrRejected is wrapped by the error for an event that can never be written without a change. Roll the transaction
// back.
var ErrRejected = errors.New("outbox: event rejected")

var aggregateType = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)

// Event is one row of the outbox.
type Event struct {
	ID            uuid.UUID         // must be set, and must stay the same when the transaction is tried again
	AggregateType string            // such as "order"
	AggregateID   string            // such as the order's id
	Type          string            // in the past tense, such as "OrderPaid"
	Payload       json.RawMessage   // a JSON object
	Headers       map[string]string // further headers of the Kafka record, in addition to walpost's; may be nil
}

// NewEvent returns an event with a new id, a UUIDv7, so that the payload can contain the id.
func NewEvent(aggregateType, aggregateID, eventType string) Event {
	return Event{ID: uuid.Must(uuid.NewV7()), AggregateType: aggregateType, AggregateID: aggregateID, Type: eventType}
}

// A Table is the name of an outbox table, with or without its schema: "outbox", "billing.outbox_events". It is the
// relay's source.table.
type Table string

// quoted returns the name as SQL.
func (t Table) quoted() string { return pgx.Identifier(strings.Split(string(t), ".")).Sanitize() }

// Append writes the event in tx: the event exists if tx commits, and not otherwise. After any error tx must be rolled
// back. An error that wraps ErrRejected comes again for the same event.
func (t Table) Append(ctx context.Context, tx pgx.Tx, ev Event) error {
	var batch pgx.Batch
	if err := t.Queue(&batch, ev); err != nil {
		return err
	}
	return appended(ev, tx.SendBatch(ctx, &batch).Close())
}

// AppendSQL does what Append does, for a transaction of database/sql. A violation that only the table's CHECKs find
// wraps ErrRejected with the driver pgx/v5/stdlib. An error of another driver is wrapped unchanged.
func (t Table) AppendSQL(ctx context.Context, tx *sql.Tx, ev Event) error {
	headers, err := ev.check()
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO `+t.quoted()+` (id, aggregate_type, aggregate_id, event_type, payload, headers)
		VALUES ($1::text::uuid, $2::text, $3::text, $4::text, $5::text::jsonb, $6::text::jsonb)`,
		ev.ID.String(), ev.AggregateType, ev.AggregateID, ev.Type, string(ev.Payload), headers)
	return appended(ev, err)
}

// appended returns the error of an insert, with ErrRejected if the same event would fail again.
func appended(ev Event, err error) error {
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) {
		switch pgErr.Code {
		case pgerrcode.CheckViolation:
			if pgErr.ConstraintName == "" { // the event can be written after a partition is created
				return fmt.Errorf("append event %s of type %q: the outbox has no partition for the present time: `walpost cleanup` creates those of the next days, and a DEFAULT partition takes rows that have none", ev.ID, ev.Type)
			}
			// pgErr.Detail holds the row, so leave it out
			return fmt.Errorf("%w: event %s of type %q violates %s of the outbox", ErrRejected, ev.ID, ev.Type, pgErr.ConstraintName)
		case pgerrcode.UntranslatableCharacter, pgerrcode.NumericValueOutOfRange: // \u0000, or a number larger than numeric
			return fmt.Errorf("%w: event %s of type %q: payload cannot be stored as jsonb: %s", ErrRejected, ev.ID, ev.Type, pgErr.Message)
		}
	}
	if err != nil {
		return fmt.Errorf("append event %s of type %q to the outbox: %w", ev.ID, ev.Type, err)
	}
	return nil
}

// Queue adds one statement to a batch that writes several events in their order. The caller sends the batch in a
// transaction, so the events cost no extra round trip. If PostgreSQL refuses an event, the batch ends with PostgreSQL's
// error.
func (t Table) Queue(batch *pgx.Batch, events ...Event) error {
	n := len(events)
	ids, kinds, aggregates, types, payloads, headers := make([]uuid.UUID, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	for i, ev := range events {
		text, err := ev.check()
		if err != nil {
			return err
		}
		ids[i], kinds[i], aggregates[i], types[i], payloads[i], headers[i] = ev.ID, ev.AggregateType, ev.AggregateID, ev.Type, string(ev.Payload), text
	}
	batch.Queue(`INSERT INTO `+t.quoted()+` (id, aggregate_type, aggregate_id, event_type, payload, headers)
		SELECT id, kind, aggregate, type, payload::jsonb, headers::jsonb
		FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) WITH ORDINALITY AS event (id, kind, aggregate, type, payload, headers, n) ORDER BY n`,
		ids, kinds, aggregates, types, payloads, headers)
	return nil
}

// check returns the headers as JSON, or an error with everything that is wrong with the event.
func (ev Event) check() (headers string, err error) {
	var errs []error
	wrong := func(ok bool, sentence string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(sentence, args...))
		}
	}
	wrong(ev.ID != uuid.Nil, "it has no id: make it with NewEvent")
	wrong(aggregateType.MatchString(ev.AggregateType), "aggregate type %.120q must be 1 to %d letters, digits, dots, underscores and dashes", ev.AggregateType, maxAggregateType)
	wrong(isText(ev.AggregateID, maxAggregateID), "aggregate id must be 1 to %d bytes of UTF-8 without NUL, and has %d", maxAggregateID, len(ev.AggregateID))
	wrong(isText(ev.Type, maxEventType), "event type must be 1 to %d bytes of UTF-8 without NUL, and has %d", maxEventType, len(ev.Type))
	wrong(isObject(ev.Payload), "payload must be a JSON object in UTF-8")
	headers, ok := encodeHeaders(ev.Headers)
	wrong(ok, "headers must be UTF-8 without NUL and at most %d bytes as jsonb", maxHeaders)
	if len(errs) > 0 {
		return "", fmt.Errorf("%w: %w", ErrRejected, errors.Join(errs...))
	}
	return headers, nil
}

// isText reports whether s is text of 1 to most bytes that PostgreSQL can store.
func isText(s string, most int) bool {
	return s != "" && len(s) <= most && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// isObject reports whether the payload is a JSON object in UTF-8.
func isObject(payload json.RawMessage) bool {
	return json.Valid(payload) && utf8.Valid(payload) && strings.HasPrefix(strings.TrimLeft(string(payload), " \t\r\n"), "{")
}

// encodeHeaders returns the headers as JSON, and reports whether PostgreSQL can store them.
func encodeHeaders(headers map[string]string) (string, bool) {
	size := len("{}")
	for k, v := range headers {
		if !utf8.ValidString(k+v) || strings.ContainsRune(k+v, 0) {
			return "", false
		}
		size += jsonbSize(k) + len(": ") + jsonbSize(v)
	}
	if len(headers) > 1 {
		size += (len(headers) - 1) * len(", ")
	}
	if len(headers) == 0 {
		return "{}", true
	}
	text, err := json.Marshal(headers)
	return string(text), err == nil && size <= maxHeaders
}

// jsonbSize returns the number of bytes that PostgreSQL writes for a JSON string.
func jsonbSize(s string) int {
	size := len(s) + 2
	for _, r := range s {
		switch {
		case strings.ContainsRune("\"\\\b\f\n\r\t", r):
			size++
		case r < ' ':
			size += len(`\u0000`) - 1
		}
	}
	return size
}
