package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// epoch is the beginning of PostgreSQL's clock; its timestamps are microseconds since then.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// timestamp converts a PostgreSQL timestamp. It does not use a time.Duration, which ends 292 years after the epoch.
func timestamp(micros uint64) time.Time {
	return time.UnixMicro(epoch.UnixMicro() + int64(micros)).UTC()
}

var errTruncated = errors.New("message ends too early")

// decoder decodes pgoutput, protocol 1. It keeps the description of each relation, which the server sends before the
// relation's first row and again after every change.
type decoder struct {
	cfg       config.Source
	tableOID  uint32 // of the outbox, fixed when the session starts
	relations map[uint32]*relation
	// types that are not PostgreSQL's own, as the server describes them: a domain is its base type
	types map[uint32]uint32
	// describe asks the catalog for a table's columns, for a route that knows the types; nil: the stream is all there is.
	describe func(table uint32) ([]column, error)
	problems func(*mapping, []column) []cdc.Finding // with a description of columns, for such a route
	rekeys   bool                                   // an update of the primary key is an insert
	onUpdate func()                                 // is called with the first update of the outbox; nil: updates are ignored
	halts    bool                                   // at an update of the outbox
}

// relation has the places of the outbox's columns in a tuple; the map has nil for a table that is not the outbox.
type relation struct {
	field     []field // of each column on the wire
	form      []form
	constants cdc.Row // fields that no column fills
	scratch   []byte
	further   []int    // of each column on the wire, its place in values plus one; 0: none; nil if there are no such columns
	values    [][]byte // Row.Further of the last row
	key       []int    // columns of the primary key, in its order; nil if an update of them counts as any other
	missing   bool     // the last tuple lacked a value that is needed: a large one that an update left as it was
}

// form is a column's format on the wire, if its text is not its value.
type form uint8

const (
	formText   form = iota
	formBytea       // \x and hex digits
	formPadded      // char(n)
)

// field is the set of row fields that a column fills: none, one or several.
type field uint8

const (
	fieldID field = 1 << iota
	fieldAggregateType
	fieldAggregateID
	fieldEventType
	fieldPayload
	fieldHeaders
	fieldCreatedAt
)

func newDecoder(cfg config.Source, tableOID uint32) *decoder {
	d := &decoder{cfg: cfg, tableOID: tableOID, relations: map[uint32]*relation{}, types: map[uint32]uint32{}}
	if v := cfg.Columns.Verbatim; v != nil {
		d.halts, d.rekeys = v.Updates == config.HaltAtUpdate, v.Rekeyed
	}
	return d
}

// copyData decodes the content of a CopyData frame: a WAL message or a keepalive. Slices in m point into body.
func (d *decoder) copyData(body []byte, m *cdc.Message) error {
	if len(body) == 0 {
		return errTruncated
	}
	switch body[0] {
	case pglogrepl.XLogDataByteID:
		if len(body) < 26 {
			return errTruncated
		}
		return d.message(body[25:], m)
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		if len(body) < 18 {
			return errTruncated
		}
		m.Kind, m.LSN, m.ReplyRequested = cdc.Keepalive, cdc.LSN(binary.BigEndian.Uint64(body[1:])), body[17] != 0
		return nil
	}
	return fmt.Errorf("unknown message %q in the replication stream", body[0])
}

// message decodes one pgoutput message.
func (d *decoder) message(b []byte, m *cdc.Message) error {
	r := cursor{b: b}
	switch t := pglogrepl.MessageType(r.byte()); t {
	case pglogrepl.MessageTypeBegin:
		m.Kind, m.LSN = cdc.Begin, cdc.LSN(r.uint64())
		m.Row.CommitTime = timestamp(r.uint64())
		m.Row.XID = r.uint32()
	case pglogrepl.MessageTypeCommit:
		r.skip(1 + 8) // flags, the commit record's start
		m.Kind, m.LSN = cdc.Commit, cdc.LSN(r.uint64())
		r.skip(8) // commit time
	case pglogrepl.MessageTypeRelation:
		m.Kind = cdc.Other
		return d.relation(&r)
	case pglogrepl.MessageTypeInsert:
		return d.insert(&r, m)
	case pglogrepl.MessageTypeType:
		m.Kind = cdc.Other
		d.typ(&r)
	case pglogrepl.MessageTypeUpdate:
		m.Kind = cdc.Other
		return d.update(&r, m)
	case pglogrepl.MessageTypeDelete, pglogrepl.MessageTypeTruncate, pglogrepl.MessageTypeOrigin, pglogrepl.MessageTypeMessage:
		m.Kind = cdc.Other
	default:
		return fmt.Errorf("unknown pgoutput message %q", byte(t))
	}
	if r.short {
		return errTruncated
	}
	return nil
}

// foreign reports, from the first bytes of a CopyData frame, whether the rest can stay unread because it is no insert
// into the outbox. It returns errTruncated while it has too few bytes.
func (d *decoder) foreign(head []byte) (bool, error) {
	if len(head) < 1 {
		return false, errTruncated
	}
	if head[0] != pglogrepl.XLogDataByteID {
		return false, fmt.Errorf("a message %q of more than %d bytes in the replication stream", head[0], readChunk)
	}
	r := cursor{b: head}
	r.skip(25)
	switch t := pglogrepl.MessageType(r.byte()); t {
	case pglogrepl.MessageTypeInsert:
		rel, err := d.known(&r)
		return rel == nil && err == nil, err
	case pglogrepl.MessageTypeUpdate:
		if peek := r; d.rekeys {
			rel, err := d.known(&peek)
			if rel == nil || err != nil {
				return err == nil, err
			}
			kind := peek.byte()
			if peek.short {
				return false, errTruncated
			}
			if rel.key != nil && kind != 'N' {
				return false, nil
			}
		}
		err := d.update(&r, nil)
		return err == nil, err
	case pglogrepl.MessageTypeDelete, pglogrepl.MessageTypeTruncate, pglogrepl.MessageTypeMessage:
		return true, nil
	}
	if r.short {
		return false, errTruncated
	}
	return false, nil
}

// known reads the OID of a row's relation and returns the relation's description; nil for a table that is not the
// outbox.
func (d *decoder) known(r *cursor) (*relation, error) {
	oid := r.uint32()
	rel, known := d.relations[oid]
	if r.short {
		return nil, errTruncated
	}
	if !known {
		return nil, &cdc.HaltError{Found: fmt.Sprintf("the stream has a row of relation %d before its description", oid), Means: "walpost cannot decode the stream, and skipping could lose rows", Run: "restart the relay; if the halt comes back, report it with the PostgreSQL version"}
	}
	return rel, nil
}

// update handles an update of the outbox as config.Verbatim asks. One that changes the primary key becomes an insert.
func (d *decoder) update(r *cursor, m *cdc.Message) error {
	if !d.halts && d.onUpdate == nil && !d.rekeys {
		return nil
	}
	rel, err := d.known(r)
	if err != nil || rel == nil {
		return err
	}
	if rel.key != nil {
		if rekeyed, err := rel.rekeyed(r, m); rekeyed || err != nil {
			return err
		}
	}
	if !d.halts && d.onUpdate == nil {
		return nil
	}
	if d.halts {
		option := optionOf(&d.cfg.Columns, "updates")
		return &cdc.UndecodableError{
			Found: "a row of the outbox was updated, and " + option + " halts the relay then",
			Fix:   "to publish the rows after it and ignore updates, set " + option + ": warn",
		}
	}
	d.onUpdate()
	d.onUpdate = nil
	return nil
}

// rekeyed decodes an update whose key is another one than before, as an insert.
func (rel *relation) rekeyed(r *cursor, m *cdc.Message) (bool, error) {
	if kind := r.byte(); kind != 'K' && kind != 'O' { // the key is as it was
		return false, nil
	}
	former, err := rel.keyOf(r)
	if err != nil {
		return false, err
	}
	if r.byte() != 'N' {
		return false, errors.New("an update without a new tuple")
	}
	again := *r
	now, err := rel.keyOf(&again)
	if err != nil || slices.EqualFunc(former, now, bytes.Equal) {
		return false, err
	}
	rel.missing = false
	if err := rel.tuple(r, &m.Row); err != nil {
		return false, err
	}
	if rel.missing {
		return false, &cdc.UndecodableError{
			Found: "a row of the outbox got another primary key, which makes it a new row here, and the stream does not have its large values, which stayed as they were",
			Fix:   "to have them in the stream from now on, run ALTER TABLE … REPLICA IDENTITY FULL",
		}
	}
	m.Kind, m.Row.Former = cdc.Insert, former
	return true, nil
}

// keyOf reads a tuple and returns the values of the primary key.
func (rel *relation) keyOf(r *cursor) ([][]byte, error) {
	values := make([][]byte, len(rel.key))
	for i := range int(r.uint16()) {
		kind := r.byte()
		if kind != 't' {
			continue
		}
		value := r.bytes(int(r.uint32()))
		if at := slices.Index(rel.key, i); at >= 0 {
			values[at] = value
		}
	}
	if r.short {
		return nil, errTruncated
	}
	return values, nil
}

// insert decodes the tuple of an outbox row. Other tables' rows become Other.
func (d *decoder) insert(r *cursor, m *cdc.Message) error {
	rel, err := d.known(r)
	if err != nil {
		return err
	}
	if rel == nil {
		m.Kind = cdc.Other
		return nil
	}
	if r.byte() != 'N' {
		return errors.New("an insert without a new tuple")
	}
	m.Kind = cdc.Insert
	return rel.tuple(r, &m.Row)
}

// tuple reads the columns and points row's fields to them. A NULL column stays nil.
func (rel *relation) tuple(r *cursor, row *cdc.Row) error {
	*row = rel.constants
	if rel.values != nil {
		clear(rel.values)
		row.Further = rel.values
	}
	if n := int(r.uint16()); n != len(rel.field) {
		return fmt.Errorf("a tuple of %d columns, the relation has %d", n, len(rel.field))
	}
	for i, f := range rel.field {
		var value []byte
		switch kind := r.byte(); kind {
		case 'n':
			continue
		case 't':
			value = r.bytes(int(r.uint32()))
		case 'u': // in an update
			rel.missing = rel.missing || f != 0 || rel.further != nil && rel.further[i] > 0
			continue
		default:
			if r.short {
				return errTruncated
			}
			return fmt.Errorf("a column of kind %q in an insert", kind)
		}
		if r.short {
			return errTruncated
		}
		if rel.further != nil && rel.further[i] > 0 {
			rel.values[rel.further[i]-1] = value
		}
		if form := rel.form[i]; f != 0 && form != formText {
			if err := rel.reform(form, f, value, row); err != nil {
				return err
			}
			continue
		}
		switch f {
		case 0:
		case fieldID:
			row.ID = value
		case fieldAggregateType:
			row.AggregateType = value
		case fieldAggregateID:
			row.AggregateID = value
		case fieldEventType:
			row.EventType = value
		case fieldPayload:
			row.Payload = value
		case fieldHeaders:
			row.Headers = value
		case fieldCreatedAt:
			row.CreatedAt = value
		default: // several
			f.set(row, value)
		}
	}
	if r.short {
		return errTruncated
	}
	return nil
}

// set assigns the value to each of the row's fields that the column fills.
func (f field) set(row *cdc.Row, value []byte) {
	for i := range purposes {
		if f&purposes[i].field != 0 {
			*purposes[i].of(row) = value
		}
	}
}

// reform assigns a column's value to the row if its text is not its value: char(n) loses its padding, and a bytea
// becomes its bytes. As an id, which people type, a bytea becomes its hex digits.
func (rel *relation) reform(form form, f field, value []byte, row *cdc.Row) error {
	if form == formPadded {
		f.set(row, bytes.TrimRight(value, " "))
		return nil
	}
	if f&fieldID != 0 {
		digits, ok := bytes.CutPrefix(value, []byte(`\x`))
		if !ok {
			return errors.New(`a bytea that does not begin with \x`)
		}
		row.ID = digits
		if f &^= fieldID; f == 0 {
			return nil
		}
		rel.scratch = append(rel.scratch[:0], value...) // decoding in place would overwrite the digits
		value = rel.scratch
	}
	value, err := unhex(value)
	if err != nil {
		return err
	}
	f.set(row, value)
	return nil
}

// unhex decodes bytea's text output (\x…) in place.
func unhex(b []byte) ([]byte, error) {
	digits, ok := bytes.CutPrefix(b, []byte(`\x`))
	if !ok {
		return nil, errors.New(`a bytea that does not begin with \x`)
	}
	n, err := hex.Decode(b, digits)
	if err != nil {
		return nil, fmt.Errorf("a bytea: %w", err)
	}
	return b[:n], nil
}

// relation keeps a relation's description. The outbox is the table that has its OID now, under any name, and also the
// table that had its name at this place in the WAL: after a table was renamed, swapped or renamed back, the slot has
// rows of both kinds, and none of them may be lost. If a publication does not carry a new table under the old name,
// the checks of the catalog find that.
func (d *decoder) relation(r *cursor) error {
	oid := r.uint32()
	name := r.string() + "." + r.string()
	r.skip(1) // replica identity
	columns := make([]column, r.uint16())
	for i := range columns {
		r.skip(1) // flags
		columns[i].name = r.string()
		columns[i].typeOID = r.uint32()
		columns[i].declared = columns[i].typeOID
		columns[i].shape = cdc.Column{Name: columns[i].name, Modifier: int32(r.uint32())}
		if r.short {
			return errTruncated
		}
	}
	if r.short {
		return errTruncated
	}
	if oid != d.tableOID && name != d.cfg.Table {
		d.relations[oid] = nil
		return nil
	}
	for i := range columns {
		if c := &columns[i]; c.typeOID >= firstOther || d.types[c.typeOID] != 0 {
			c.typeOID = d.types[c.typeOID]
		}
	}
	if d.cfg.Columns.Verbatim != nil {
		if err := d.shapes(oid, columns); err != nil {
			return err
		}
	}
	m := mapColumns(d.cfg.Columns, columns)
	if d.problems != nil {
		m.problems = append(m.problems, d.problems(&m, columns)...)
	}
	if len(m.problems) > 0 {
		return &cdc.UndecodableError{
			Found: "at this place in the WAL the table's columns do not fit: " + cdc.Sentences(m.problems),
			Fix:   "if source.columns is wrong, correct it",
		}
	}
	if d.cfg.Columns.Verbatim != nil {
		d.relations[oid] = m.verbatim(name, columns, d.rekeys)
	} else {
		d.relations[oid] = m.relation(columns)
	}
	return nil
}

// shapes completes the columns' descriptions from the catalog, which knows more than the stream: NOT NULL, defaults,
// labels. A column that was changed since this place in the WAL has only what the stream says.
func (d *decoder) shapes(oid uint32, columns []column) error {
	var catalog []column
	if d.describe != nil {
		var err error
		if catalog, err = d.describe(oid); err != nil {
			return err
		}
	}
	for i := range columns {
		c := &columns[i]
		if c.shape.Type = c.typeOID; c.shape.Type >= firstOther {
			c.shape.Type = 0
		}
		if at := find(catalog, c.name); at >= 0 && catalog[at].declared == c.declared {
			modifier := c.shape.Modifier
			c.key = catalog[at].key
			if c.shape = catalog[at].shape; c.declared == c.typeOID { // not a domain
				c.shape.Modifier = modifier
			}
		}
	}
	return nil
}

// typ keeps the type of a column. The server sends it before the relation, for types that are not PostgreSQL's own.
// For a domain it sends the base type's name; for PostgreSQL's own types it sends no schema.
func (d *decoder) typ(r *cursor) {
	oid := r.uint32()
	schema, name := r.string(), r.string()
	switch own := ownTypes[name]; {
	case r.short:
	case schema != "":
		d.types[oid] = otherText
	case own != 0:
		d.types[oid] = own
	default:
		d.types[oid] = otherUnfit
	}
}

// tooLarge returns the error for a row whose message is too large to be read.
func (d *decoder) tooLarge(head []byte, size int) error {
	var m cdc.Message
	_ = d.message(head[25:], &m) // truncated, but with the first columns
	return &cdc.UndecodableError{
		Found: fmt.Sprintf("outbox row %q is too large to read: it has %d bytes, source.max_row_bytes is %s", m.Row.ID, size, d.cfg.MaxRowBytes),
		Fix:   "raise source.max_row_bytes, if Kafka takes such a record",
	}
}

// cursor reads a message from front to back. Beyond its end it returns zeros and sets short.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) bytes(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.b, c.short = nil, true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) skip(n int) { c.bytes(n) }

func (c *cursor) byte() byte {
	if len(c.b) < 1 {
		c.short = true
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) uint16() uint16 {
	if v := c.bytes(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if v := c.bytes(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if v := c.bytes(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (c *cursor) string() string {
	i := bytes.IndexByte(c.b, 0)
	if i < 0 {
		c.b, c.short = nil, true
		return ""
	}
	v := string(c.b[:i])
	c.b = c.b[i+1:]
	return v
}
