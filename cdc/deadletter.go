package cdc

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/walpost/walpost/cdc/header"
)

// DeadLetter is a row that could not be published, as the dead letter topic keeps it until an operator redrives or
// drops it: a tombstone under its key then ends it. The record's value is the whole row, so that redrive can make the
// record that the row would have become. Its headers give the reason to people who read the topic.
type DeadLetter struct {
	Row     Row
	Class   Class
	Reason  string
	Topic   string // the row's topic; empty if it was not known
	HeldFor string // key of the dead letter that this row waits for; empty if the row itself was rejected
	Source  string // the pipeline
	// system id and timeline that the row's position belongs to; empty if an older walpost did not record them
	Server string
	Time   time.Time
}

// maxShown limits how much of the row's columns headers and key repeat; the value has all of it.
const maxShown = 1 << 10

func cut(b []byte) []byte { return b[:min(len(b), maxShown)] }

// Key returns <commit LSN>/<ordinal>/<event id>. It is the same when the row is delivered again, so that a repeat
// replaces the first record.
func (d *DeadLetter) Key() string {
	return fmt.Sprintf("%s/%d/%s", d.Row.Commit, d.Row.Ordinal, cut(d.Row.ID))
}

// Holds returns the names of the orders that a row is part of: its key within its topic, and its key within its
// aggregate type, which does not change when kafka.topic or kafka.rename change. A row without a key is part of none.
func (d *DeadLetter) Holds() []string { return holds(d.Topic, d.Row.AggregateType, d.Row.AggregateID) }

func holds(topic string, aggregateType, key []byte) (of []string) {
	if len(key) == 0 {
		return nil
	}
	if topic != "" {
		of = append(of, "topic "+topic+" "+string(cut(key)))
	}
	return append(of, "type "+string(cut(aggregateType))+" "+string(cut(key)))
}

// The names of a dead letter's headers, in addition to those of cdc/header.
const (
	headerReason        = "reason"
	headerClass         = "class"
	headerTopic         = "topic"
	headerAggregateType = "aggregate_type"
	headerAggregateID   = "aggregate_id"
	headerTime          = "dead_lettered_at"
	headerHeldFor       = "held_for"
	headerServer        = "server"
)

// record turns rec into the row's dead letter in topic.
func (d *DeadLetter) record(topic string, rec *Record) error {
	value, err := d.Value()
	if err != nil {
		return err
	}
	row := &d.Row
	headers := append(rec.Headers[:0],
		Header{headerReason, []byte(d.Reason)},
		Header{headerClass, []byte(d.Class)},
		Header{header.LSN, []byte(row.Commit.String())},
		Header{header.Seq, strconv.AppendUint(nil, uint64(row.Ordinal), 10)},
		Header{header.Source, []byte(d.Source)},
		Header{header.ID, cut(row.ID)},
		Header{header.Type, cut(row.EventType)},
		Header{headerAggregateType, cut(row.AggregateType)},
		Header{headerAggregateID, cut(row.AggregateID)},
		Header{headerTopic, []byte(d.Topic)},
		Header{headerServer, []byte(d.Server)},
		Header{headerTime, []byte(d.Time.UTC().Format(time.RFC3339Nano))},
	)
	if d.HeldFor != "" {
		headers = append(headers, Header{headerHeldFor, []byte(d.HeldFor)})
	}
	*rec = Record{Row: rec.Row, Topic: topic, Key: []byte(d.Key()), Value: value, Headers: headers}
	return nil
}

// deadLetterVersion is the version of the value that this program writes, and the newest that it reads.
const deadLetterVersion = 1

// deadLetterJSON is the value: position and transaction of the row, and its columns, each null, text, or bytes.
type deadLetterJSON struct {
	Version       int       `json:"version"`
	LSN           string    `json:"lsn"`
	Seq           uint32    `json:"seq"`
	XID           uint32    `json:"xid"`
	CommitTime    time.Time `json:"commit_time"`
	ID            column    `json:"id"`
	AggregateType column    `json:"aggregate_type"`
	AggregateID   column    `json:"aggregate_id"`
	EventType     column    `json:"event_type"`
	Payload       column    `json:"payload"`
	Headers       column    `json:"headers"`
	CreatedAt     column    `json:"created_at"`
	Shape         *Shape    `json:"shape,omitempty"`
	Further       []column  `json:"further,omitempty"`
	Former        []column  `json:"former,omitempty"`
}

// Value returns the whole row as JSON.
func (d *DeadLetter) Value() ([]byte, error) {
	r := &d.Row
	var further, former []column
	for _, value := range r.Further {
		further = append(further, value)
	}
	for _, value := range r.Former {
		former = append(former, value)
	}
	value, err := encodeJSON(deadLetterJSON{
		deadLetterVersion, r.Commit.String(), r.Ordinal, r.XID, r.CommitTime,
		r.ID, r.AggregateType, r.AggregateID, r.EventType, r.Payload, r.Headers, r.CreatedAt, r.Shape, further, former,
	})
	if err != nil {
		return nil, fmt.Errorf("encode dead letter %s: %w", d.Key(), err)
	}
	return value, nil
}

// encodeJSON encodes v without escaping HTML: an escape takes six bytes for one.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// column is a column's bytes: a JSON string if they are UTF-8, else {"base64": …}. It never takes more than twice the
// bytes, and the topic's limit relies on that: text that would take more (control characters) is encoded as bytes
// too.
type column []byte

func (c column) MarshalJSON() ([]byte, error) {
	switch {
	case c == nil:
		return []byte("null"), nil
	case utf8.Valid(c):
		if text, err := encodeJSON(string(c)); err != nil || len(text) <= 2*len(c)+2 {
			return text, err
		}
	}
	return fmt.Appendf(nil, `{"base64":"%s"}`, base64.StdEncoding.EncodeToString(c)), nil
}

func (c *column) UnmarshalJSON(b []byte) error {
	if b[0] == '{' {
		var raw struct {
			Base64 *[]byte `json:"base64"`
		}
		if err := json.Unmarshal(b, &raw); err != nil {
			return err
		}
		if raw.Base64 == nil {
			return errors.New(`an object without "base64" is no column`)
		}
		*c = append(column{}, *raw.Base64...)
		return nil
	}
	var text *string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	*c = nil
	if text != nil {
		*c = append(column{}, *text...)
	}
	return nil
}

// ParseDeadLetter returns the dead letter in a record of the dead letter topic.
func ParseDeadLetter(headers []Header, value []byte) (*DeadLetter, error) {
	var j deadLetterJSON
	if err := json.Unmarshal(value, &j); err != nil {
		return nil, fmt.Errorf("read dead letter: %w", err)
	}
	if j.Version < 1 || j.Version > deadLetterVersion {
		return nil, fmt.Errorf("read dead letter: version %d, this walpost reads up to %d: use the newer walpost that wrote it", j.Version, deadLetterVersion)
	}
	d := &DeadLetter{Row: Row{
		Position: Position{Ordinal: j.Seq}, XID: j.XID, CommitTime: j.CommitTime,
		ID: j.ID, AggregateType: j.AggregateType, AggregateID: j.AggregateID, EventType: j.EventType,
		Payload: j.Payload, Headers: j.Headers, CreatedAt: j.CreatedAt, Shape: j.Shape,
	}}
	for _, value := range j.Further {
		d.Row.Further = append(d.Row.Further, value)
	}
	for _, value := range j.Former {
		d.Row.Former = append(d.Row.Former, value)
	}
	if err := d.Row.Commit.Scan(j.LSN); err != nil {
		return nil, fmt.Errorf("read dead letter: lsn: %w", err)
	}
	for _, h := range headers {
		v := string(h.Value)
		switch h.Key {
		case headerReason:
			d.Reason = v
		case headerClass:
			d.Class = Class(v)
		case headerTopic:
			d.Topic = v
		case headerHeldFor:
			d.HeldFor = v
		case header.Source:
			d.Source = v
		case headerServer:
			d.Server = v
		case headerTime:
			var err error
			if d.Time, err = time.Parse(time.RFC3339Nano, v); err != nil {
				return nil, fmt.Errorf("read dead letter: %w", err)
			}
		}
	}
	return d, nil
}

// holdsOf returns the same as Holds, from a record's headers alone.
func holdsOf(headers []Header) []string {
	var topic string
	var aggregateType, key []byte
	for _, h := range headers {
		switch h.Key {
		case headerTopic:
			topic = string(h.Value)
		case headerAggregateType:
			aggregateType = h.Value
		case headerAggregateID:
			key = h.Value
		}
	}
	return holds(topic, aggregateType, key)
}
