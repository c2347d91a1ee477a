package postgres

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"

	"github.com/walpost/walpost/cdc"
)

// emitted decodes a message of pg_logical_emit_message. An event is transactional and has the configured prefix; what was
// emitted without a transaction comes out of its order, also when the transaction is rolled back, and is Other.
func (d *decoder) emitted(r *cursor, m *cdc.Message) error {
	transactional := r.byte()&1 != 0
	r.skip(8) // LSN
	prefix := r.string()
	content := r.bytes(int(r.uint32()))
	if r.short {
		return errTruncated
	}
	if m.Kind = cdc.Other; transactional && d.cfg.Messages != "" && prefix == d.cfg.Messages {
		m.Kind, m.Row = cdc.Insert, event(content)
	}
	return nil
}

// value is a column of an event: a string's text, a number as it stands, nothing where it is null.
type value []byte

// UnmarshalJSON keeps what is neither a string nor null as it is.
func (v *value) UnmarshalJSON(b []byte) error {
	var text *string
	switch {
	case b[0] != '"' && b[0] != 'n':
		*v = bytes.Clone(b)
		return nil
	case json.Unmarshal(b, &text) != nil || text == nil:
		*v = nil
		return nil
	}
	*v = []byte(*text)
	return nil
}

// event reads the JSON of a message: an object with the names of the table's columns. Payload and headers are the
// JSON as it stands there.
func event(content []byte) cdc.Row {
	var e struct {
		ID            value           `json:"id"`
		AggregateType value           `json:"aggregate_type"`
		AggregateID   value           `json:"aggregate_id"`
		EventType     value           `json:"event_type"`
		Payload       json.RawMessage `json:"payload"`
		Headers       json.RawMessage `json:"headers"`
		CreatedAt     value           `json:"created_at"`
	}
	malformed := ""
	switch {
	case !utf8.Valid(content):
		malformed = "the message is not UTF-8: emit it as bytea, convert_to(…, 'UTF8')"
	case json.Unmarshal(content, &e) != nil:
		malformed = "the message is no JSON object of id, aggregate_type, aggregate_id, event_type and payload"
	}
	if malformed != "" {
		return cdc.Row{Payload: content, Malformed: malformed}
	}
	null := func(raw json.RawMessage) []byte {
		if string(raw) == "null" {
			return nil
		}
		return raw
	}
	return cdc.Row{
		ID: e.ID, AggregateType: e.AggregateType, AggregateID: e.AggregateID, EventType: e.EventType,
		Payload: null(e.Payload), Headers: null(e.Headers), CreatedAt: e.CreatedAt,
	}
}
