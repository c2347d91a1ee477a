package postgres

import (
	"fmt"
	"slices"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// column is a column of the outbox as the catalog or the stream describes it.
type column struct {
	name      string
	typeOID   uint32 // for a domain its base type; otherText and otherUnfit for types that are not PostgreSQL's own
	typ       string // in SQL's notation; empty if only the stream describes it
	generated string // s: stored, v: virtual; empty: not generated

	declared uint32     // OID of the column's own type, which may be a domain
	key      int        // its place in the primary key, from 1 on; 0: it is not part of it
	shape    cdc.Column // for a route that asks for it
}

// Type OIDs, fixed in pg_type.dat.
const (
	otherText  = 0 // an enum, or a base type of an extension: its text is the value
	oidBytea   = 17
	oidInt8    = 20
	oidInt2    = 21
	oidInt4    = 23
	oidText    = 25
	oidJSON    = 114
	oidBpchar  = 1042
	oidVarchar = 1043

	oidTimestamp   = 1114
	oidTimestamptz = 1184
	oidNumeric     = 1700
	oidUUID        = 2950
	oidJSONB       = 3802

	otherUnfit = ^uint32(0) // an array, a composite or a range

	firstOther = 16384 // the first OID that is not PostgreSQL's own
)

// ownTypes has the names, as the stream sends them, of the types that are treated differently.
var ownTypes = map[string]uint32{
	"bytea": oidBytea, "int8": oidInt8, "int2": oidInt2, "int4": oidInt4, "text": oidText, "json": oidJSON, "bpchar": oidBpchar, "varchar": oidVarchar,
	"timestamp": oidTimestamp, "timestamptz": oidTimestamptz, "numeric": oidNumeric, "uuid": oidUUID, "jsonb": oidJSONB,
}

var (
	textTypes = []uint32{oidText, oidVarchar, oidBpchar, otherText}
	idTypes   = append([]uint32{oidUUID, oidInt8, oidInt4, oidInt2, oidNumeric, oidBytea}, textTypes...)
)

// purpose is a part of a row that a column can fill, in the order of a row's fields.
type purpose struct {
	field    field
	key      string
	value    func(*config.Columns) string
	fallback string
	types    []uint32
	are      string
	of       func(*cdc.Row) *[]byte
	in       func(*cdc.Shape) **cdc.Column // nil: a shape does not describe it
}

var purposes = []purpose{
	{fieldID, "id", func(c *config.Columns) string { return c.ID }, "", idTypes, "uuid, text, an integer, numeric or bytea", func(r *cdc.Row) *[]byte { return &r.ID }, func(s *cdc.Shape) **cdc.Column { return &s.ID }},
	{fieldAggregateType, "aggregate_type", func(c *config.Columns) string { return c.AggregateType }, "", textTypes, "text or an enum", func(r *cdc.Row) *[]byte { return &r.AggregateType }, func(s *cdc.Shape) **cdc.Column { return &s.AggregateType }},
	{fieldAggregateID, "aggregate_id", func(c *config.Columns) string { return c.AggregateID }, "", idTypes, "text, uuid, an integer, numeric or bytea", func(r *cdc.Row) *[]byte { return &r.AggregateID }, func(s *cdc.Shape) **cdc.Column { return &s.AggregateID }},
	{fieldEventType, "event_type", func(c *config.Columns) string { return c.EventType }, "", textTypes, "text or an enum", func(r *cdc.Row) *[]byte { return &r.EventType }, func(s *cdc.Shape) **cdc.Column { return &s.EventType }},
	{fieldPayload, "payload", func(c *config.Columns) string { return c.Payload }, "", []uint32{oidJSONB, oidJSON, oidText, oidVarchar, oidBytea, otherText}, "jsonb, json, text or bytea", func(r *cdc.Row) *[]byte { return &r.Payload }, func(s *cdc.Shape) **cdc.Column { return &s.Payload }},
	{fieldHeaders, "headers", func(c *config.Columns) string { return c.Headers }, "headers", []uint32{oidJSONB, oidJSON, oidText, oidVarchar, otherText}, "jsonb, json or text", func(r *cdc.Row) *[]byte { return &r.Headers }, nil},
	{fieldCreatedAt, "created_at", func(c *config.Columns) string { return c.CreatedAt }, "created_at", []uint32{oidTimestamptz, oidTimestamp}, "timestamptz or timestamp", func(r *cdc.Row) *[]byte { return &r.CreatedAt }, func(s *cdc.Shape) **cdc.Column { return &s.CreatedAt }},
}

// mapping has the source of each purpose, in their order.
type mapping struct {
	from     []origin
	further  []int // of each column of config.Verbatim.Further; -1: the table does not have it
	problems []cdc.Finding
	left     []string // columns with a default name that are not used, and why
}

// origin is a column, a constant, or nothing.
type origin struct {
	column   int // -1: none
	constant []byte
}

// mapColumns finds the configured columns among a table's columns.
func mapColumns(cfg config.Columns, columns []column) mapping {
	var m mapping
	for _, p := range purposes {
		name := p.value(&cfg)
		from := origin{column: -1}
		if word, ok := config.Constant(name); ok {
			from.constant = []byte(word)
		} else if name != config.None {
			named := name != ""
			if !named {
				name = p.fallback
			}
			i := find(columns, name)
			switch {
			case i < 0 && named && cfg.Verbatim != nil && p.field == fieldEventType: // for people only
			case i < 0 && named:
				m.problems = append(m.problems, Problem("columns", "name the right one", "%s: the table has no column %q", optionOf(&cfg, p.key), name))
			case i < 0:
			case slices.Contains(p.types, columns[i].typeOID), named && cfg.Verbatim != nil:
				from.column = i
			case named:
				m.problems = append(m.problems, Problem("columns", "it must be "+p.are, "source.columns.%s: column %q has %s that cannot be used here", p.key, name, columns[i].what()))
			default:
				m.left = append(m.left, fmt.Sprintf("column %q has %s and is not used: source.columns.%s takes %s; write source.columns.%s: %q if the table has no such column", name, columns[i].what(), p.key, p.are, p.key, config.None))
			}
		}
		m.from = append(m.from, from)
	}
	if cfg.Verbatim == nil {
		return m
	}
	for _, name := range cfg.Verbatim.Further {
		i := find(columns, name)
		if i < 0 && !cfg.Verbatim.Optional {
			m.problems = append(m.problems, Problem("columns", "name the right one", "%s: the table has no column %q", optionOf(&cfg, furtherColumns), name))
		}
		m.further = append(m.further, i)
	}
	return m
}

// find returns the index of the column with the name; -1 if there is none.
func find(columns []column, name string) int {
	return slices.IndexFunc(columns, func(c column) bool { return c.name == name })
}

// furtherColumns is the key of config.Verbatim.Options for its Further.
const furtherColumns = "further"

// optionOf returns the configuration key that names the column for a purpose.
func optionOf(cfg *config.Columns, key string) string {
	if cfg.Verbatim != nil && cfg.Verbatim.Options[key] != "" {
		return cfg.Verbatim.Options[key]
	}
	return "source.columns." + key
}

// what returns the column's type in words.
func (c *column) what() string {
	if c.typ == "" {
		return "a type"
	}
	return "the type " + c.typ
}

// shape returns the description of a row's columns.
func (m *mapping) shape(table string, columns []column) *cdc.Shape {
	s := &cdc.Shape{Table: table}
	for i, p := range purposes {
		if at := m.from[i].column; at >= 0 && p.in != nil {
			*p.in(s) = &columns[at].shape
		}
	}
	for _, at := range m.further {
		var c *cdc.Column
		if at >= 0 {
			c = &columns[at].shape
		}
		s.Further = append(s.Further, c)
	}
	return s
}

// verbatim returns the description by which tuples are decoded for a route that knows the types.
func (m *mapping) verbatim(table string, columns []column, rekeyed bool) *relation {
	rel := m.relation(columns)
	clear(rel.form)
	rel.constants.Shape = m.shape(table, columns)
	if rekeyed {
		for place := 1; ; place++ {
			at := slices.IndexFunc(columns, func(c column) bool { return c.key == place })
			if at < 0 {
				break
			}
			rel.key = append(rel.key, at)
			rel.constants.Shape.Key = append(rel.constants.Shape.Key, &columns[at].shape)
		}
	}
	if len(m.further) == 0 {
		return rel
	}
	rel.further, rel.values = make([]int, len(columns)), make([][]byte, len(m.further))
	for i, at := range m.further {
		if at >= 0 {
			rel.further[at] = i + 1
		}
	}
	return rel
}

// relation returns the description by which the columns' tuples are decoded.
func (m *mapping) relation(columns []column) *relation {
	rel := &relation{field: make([]field, len(columns)), form: make([]form, len(columns))}
	for i, p := range purposes {
		switch from := m.from[i]; {
		case from.column >= 0:
			rel.field[from.column] |= p.field
		case from.constant != nil:
			*p.of(&rel.constants) = from.constant
		}
	}
	for i, c := range columns {
		switch c.typeOID {
		case oidBytea:
			rel.form[i] = formBytea
		case oidBpchar:
			rel.form[i] = formPadded
		}
	}
	return rel
}

// verbatim returns an expression for the column as PostgreSQL prints it, which a cast to text does not always return:
// it drops the blanks of char(n), and writes true for t.
func (c *column) verbatim() string {
	name := Ident(c.name)
	return "CASE WHEN " + name + " IS NOT NULL THEN convert_to(format('%s', " + name + "), 'UTF8') END"
}

// sql returns an expression for a column's bytes for a purpose: the same bytes that the decoder returns.
func (c *column) sql(p field) string {
	name := Ident(c.name)
	switch {
	case c.typeOID == oidBytea && p == fieldID:
		return "convert_to(encode(" + name + ", 'hex'), 'UTF8')"
	case c.typeOID == oidBytea:
		return name + "::bytea"
	}
	return "convert_to(" + name + "::text, 'UTF8')"
}

// unfit returns the HaltError for a server, publication or table that cannot be relayed as it is.
func unfit(problems []cdc.Finding) error {
	return &cdc.HaltError{
		Found: cdc.Sentences(problems),
		Means: "the relay cannot stream like this; nothing is lost",
		Run:   "fix this, and the relay resumes by itself; after a change of its configuration, restart it",
	}
}

// unseen returns the problem that the stream does not have a generated column.
func (c *column) unseen(version int, publication string) cdc.Finding {
	const check, found = "generated_column", "column %q is generated and does not reach the WAL"
	const otherwise = "name a plain column that the writer or a trigger fills, or use source.kind: polling"
	switch {
	case c.generated == "v":
		return Problem(check, "a virtual one never does: "+otherwise, found, c.name)
	case version >= 18:
		return Problem(check, "ALTER PUBLICATION "+publication+" SET (publish_generated_columns = stored)", found, c.name)
	}
	return Problem(check, "PostgreSQL sends none before version 18: "+otherwise, found, c.name)
}

// generated returns the mapped columns that are generated, those that the configuration names apart from those with a
// default name.
func (t *table) generated(cfg *config.Columns) (named, byDefault []*column) {
	for i, from := range t.mapped.from {
		switch {
		case from.column < 0 || t.columns[from.column].generated == "":
		case purposes[i].value(cfg) == "":
			byDefault = append(byDefault, &t.columns[from.column])
		default:
			named = append(named, &t.columns[from.column])
		}
	}
	return slices.Compact(named), byDefault
}
