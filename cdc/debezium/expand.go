package debezium

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// expander turns a payload's JSON text into a struct, as table.expand.json.payload does.
type expander struct {
	root       string // the payload column, which names the schemas
	keepNull   bool   // table.json.payload.null.behavior=optional_bytes
	keepEmpty  bool   // table.json.payload.empty.array.behavior=optional_string
	emptyArray *schema
}

func newExpander(o *Options) *expander {
	return &expander{
		root: o.payload, keepNull: o.keepNull, keepEmpty: o.keepEmpty,
		emptyArray: &schema{kind: array, optional: true, items: optionalOf(text)},
	}
}

var errJSON = errors.New("no JSON that Debezium expands")

// expand returns the struct of a payload. err: the payload stays text. If the text has a schema and no struct, then ok is
// false, and Debezium describes the text with a schema that does not fit it.
func (e *expander) expand(payload []byte) (s *schema, v value, ok bool, err error) {
	if len(payload) == 0 || payload[0] != '{' && payload[0] != '[' {
		return nil, value{}, false, errJSON
	}
	p := parser{t: payload}
	n, err := p.node(0)
	if err != nil {
		return nil, value{}, false, err
	}
	if s, err = e.schema(e.root, true, n); err != nil {
		return nil, value{}, false, err
	}
	if s == nil || s.kind != structure {
		return s, value{}, false, nil
	}
	v, ok = e.data(n, s)
	return s, v, ok, nil
}

// nodeKind is a type of JSON as Jackson tells them apart.
type nodeKind byte

const (
	jsonNull nodeKind = iota
	jsonBool
	jsonInt
	jsonLong
	jsonBig
	jsonDouble
	jsonString
	jsonArray
	jsonObject
)

// node is one value of a JSON document.
type node struct {
	kind nodeKind
	n    int64 // of jsonInt, jsonLong and jsonBool
	f    float64
	s    []byte
	list []*node
	keys []string // of an object, whose values are list
}

func optionalOf(k kind) *schema { return &schema{kind: k, optional: true} }

// schema returns the schema of a node; nil: the field is left out. named is false in an array of arrays, where structs
// have no name.
func (e *expander) schema(key string, named bool, n *node) (*schema, error) {
	switch n.kind {
	case jsonString:
		return optionalOf(text), nil
	case jsonBool:
		return optionalOf(boolean), nil
	case jsonInt:
		return optionalOf(int32s), nil
	case jsonLong:
		return optionalOf(int64s), nil
	case jsonBig, jsonDouble:
		return optionalOf(float64s), nil
	case jsonNull:
		if e.keepNull {
			return optionalOf(binary), nil
		}
		return nil, nil
	case jsonArray:
		if len(n.list) == 0 {
			if e.keepEmpty {
				return e.emptyArray, nil
			}
			return nil, nil
		}
		items, err := e.items(key, named, n)
		if err != nil {
			return nil, err
		}
		return &schema{kind: array, optional: true, items: items}, nil
	}
	s := optionalOf(structure)
	if named {
		s.name = key
	}
	for i, name := range n.keys {
		inner := name
		if named && !blank(key) {
			inner = key + "." + name
		}
		of, err := e.schema(inner, true, n.list[i])
		if err != nil {
			return nil, err
		}
		if of == nil {
			continue
		}
		if name == "" {
			return nil, errors.New("a field without a name")
		}
		s.fields = append(s.fields, field{name, of})
	}
	return s, nil
}

func blank(s string) bool {
	return len(bytes.TrimFunc([]byte(s), func(r rune) bool { return r <= ' ' })) == 0
}

// items returns the schema of an array's elements, which must have one type.
func (e *expander) items(key string, named bool, n *node) (*schema, error) {
	sample := &node{}
	general := func(k nodeKind) nodeKind {
		if k >= jsonInt && k <= jsonDouble {
			return jsonInt
		}
		return k
	}
	exact := func(k nodeKind) nodeKind { // int, long and others are three types of number
		if k == jsonBig {
			return jsonDouble
		}
		return k
	}
	for _, one := range n.list {
		switch {
		case one.kind == jsonNull:
		case sample.kind == jsonNull:
			sample = one
		case general(one.kind) != general(sample.kind) || exact(one.kind) != exact(sample.kind):
			return nil, errors.New("an array of several types")
		}
	}
	if sample.kind != jsonObject {
		s, err := e.schema("", false, sample)
		if err == nil && s == nil {
			err = errors.New("an array whose elements have no type")
		}
		return s, err
	}
	var of []*schema
	for _, one := range n.list {
		if one.kind != jsonObject {
			continue
		}
		s, err := e.schema(key, named, one)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(of, s.equal) {
			of = append(of, s)
		}
	}
	// Debezium merges them in the order of a hash set, which differs from run to run.
	slices.SortStableFunc(of, func(a, b *schema) int { return len(b.fields) - len(a.fields) })
	if len(of) == 1 {
		return of[0], nil
	}
	merged := &schema{kind: structure, name: of[0].name, fields: slices.Clone(of[0].fields)}
	for _, s := range of[1:] {
		for _, f := range s.fields {
			at := slices.IndexFunc(merged.fields, func(m field) bool { return m.name == f.name })
			switch {
			case at < 0:
				merged.fields = append(merged.fields, f)
			case merged.fields[at].of.kind == binary && f.of.kind != binary:
				merged.fields[at].of = f.of
			}
		}
	}
	return merged, nil
}

// data returns the value of a node under a schema, or false if it does not fit.
func (e *expander) data(n *node, s *schema) (value, bool) {
	switch n.kind {
	case jsonString:
		return value{class: chars, b: n.s}, s.kind == text
	case jsonBool:
		return value{class: truth, n: n.n}, s.kind == boolean
	case jsonInt:
		return value{class: integer, n: n.n}, s.kind == int32s
	case jsonLong:
		return value{class: integer, n: n.n}, s.kind == int64s
	case jsonDouble:
		return value{class: float, f: n.f}, s.kind == float64s
	case jsonBig:
		return value{}, false
	case jsonArray:
		v := value{class: list, list: make([]value, 0, len(n.list))}
		if s.kind != array {
			return v, false
		}
		for _, one := range n.list {
			of, ok := e.data(one, s.items)
			if !ok {
				return v, false
			}
			v.list = append(v.list, of)
		}
		return v, true
	case jsonNull:
		return value{}, s.optional
	case jsonObject:
		if s.kind != structure {
			return value{}, false
		}
		v := value{class: object, of: s, list: make([]value, len(s.fields))}
		for i, f := range s.fields {
			at := slices.Index(n.keys, f.name)
			if at < 0 {
				continue
			}
			var ok bool
			if v.list[i], ok = e.data(n.list[at], f.of); !ok {
				return v, false
			}
		}
		return v, true
	}
	return value{}, true
}

// Limits of Jackson's reader.
const (
	maxDepth  = 500
	maxNumber = 1000
	maxName   = 50_000
	maxString = 100_000_000
)

// parser reads JSON as Jackson's ObjectMapper does: it ignores what follows the first value, and of two fields with one
// name the last counts, in the place of the first.
type parser struct {
	t []byte
	i int
}

func (p *parser) space() {
	for p.i < len(p.t) && (p.t[p.i] == ' ' || p.t[p.i] == '\t' || p.t[p.i] == '\n' || p.t[p.i] == '\r') {
		p.i++
	}
}

func (p *parser) next() byte {
	if p.space(); p.i < len(p.t) {
		return p.t[p.i]
	}
	return 0
}

func (p *parser) node(depth int) (*node, error) {
	c := p.next()
	switch {
	case c == '{' || c == '[':
		if depth >= maxDepth {
			return nil, errJSON
		}
		p.i++
		return p.container(c, depth+1)
	case c == '"':
		s, err := p.text(maxString)
		return &node{kind: jsonString, s: s}, err
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	}
	for word, n := range map[string]*node{"true": {kind: jsonBool, n: 1}, "false": {kind: jsonBool}, "null": {}} {
		if bytes.HasPrefix(p.t[p.i:], []byte(word)) {
			p.i += len(word)
			if p.i < len(p.t) && isWord(p.t[p.i]) {
				return nil, errJSON
			}
			return n, nil
		}
	}
	return nil, errJSON
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

func (p *parser) container(open byte, depth int) (*node, error) {
	n, end := &node{kind: jsonArray}, byte(']')
	if open == '{' {
		n, end = &node{kind: jsonObject}, '}'
	}
	if p.next() == end {
		p.i++
		return n, nil
	}
	var places map[string]int
	for {
		name := ""
		if open == '{' {
			if p.next() != '"' {
				return nil, errJSON
			}
			s, err := p.text(maxName)
			if err != nil {
				return nil, err
			}
			if p.next() != ':' {
				return nil, errJSON
			}
			p.i++
			name = string(s)
		}
		one, err := p.node(depth)
		if err != nil {
			return nil, err
		}
		if open == '[' {
			n.list = append(n.list, one)
		} else {
			if places == nil {
				places = map[string]int{}
			}
			if at, twice := places[name]; twice {
				n.list[at] = one
			} else {
				places[name] = len(n.list)
				n.keys, n.list = append(n.keys, name), append(n.list, one)
			}
		}
		switch p.next() {
		case ',':
			p.i++
		case end:
			p.i++
			return n, nil
		default:
			return nil, errJSON
		}
	}
}

// text reads a string. A half of a surrogate pair becomes three bytes that are no UTF-8.
func (p *parser) text(most int) ([]byte, error) {
	p.i++
	var s []byte
	for p.i < len(p.t) {
		c := p.t[p.i]
		p.i++
		switch {
		case c == '"':
			if len(s) > most {
				return nil, errJSON
			}
			if s == nil {
				s = []byte{}
			}
			return s, nil
		case c < 0x20:
			return nil, errJSON
		case c != '\\':
			s = append(s, c)
			continue
		}
		if p.i == len(p.t) {
			return nil, errJSON
		}
		c = p.t[p.i]
		p.i++
		switch at := bytes.IndexByte([]byte(`"\/bfnrt`), c); {
		case at >= 0:
			s = append(s, "\"\\/\b\f\n\r\t"[at])
		case c == 'u':
			u, ok := p.unit()
			if !ok {
				return nil, errJSON
			}
			if from := p.i; utf16.IsSurrogate(rune(u)) && bytes.HasPrefix(p.t[p.i:], []byte(`\u`)) {
				p.i += 2
				if low, ok := p.unit(); ok && utf16.DecodeRune(rune(u), rune(low)) != utf8.RuneError {
					s = utf8.AppendRune(s, utf16.DecodeRune(rune(u), rune(low)))
					continue
				}
				p.i = from
			}
			if utf16.IsSurrogate(rune(u)) {
				s = append(s, 0xED, 0x80|byte(u>>6&0x3F), 0x80|byte(u&0x3F))
				continue
			}
			s = utf8.AppendRune(s, rune(u))
		default:
			return nil, errJSON
		}
	}
	return nil, errJSON
}

func (p *parser) unit() (uint16, bool) {
	if p.i+4 > len(p.t) {
		return 0, false
	}
	u, err := strconv.ParseUint(string(p.t[p.i:p.i+4]), 16, 16)
	p.i += 4
	return uint16(u), err == nil && !bytes.ContainsAny(p.t[p.i-4:p.i], "_+-")
}

func (p *parser) number() (*node, error) {
	from, whole := p.i, true
	digits := func() int {
		at := p.i
		for p.i < len(p.t) && p.t[p.i] >= '0' && p.t[p.i] <= '9' {
			p.i++
		}
		return p.i - at
	}
	if p.t[p.i] == '-' {
		p.i++
	}
	at := p.i
	if n := digits(); n == 0 || n > 1 && p.t[at] == '0' {
		return nil, errJSON
	}
	if p.i < len(p.t) && p.t[p.i] == '.' {
		whole = false
		if p.i++; digits() == 0 {
			return nil, errJSON
		}
	}
	if p.i < len(p.t) && (p.t[p.i] == 'e' || p.t[p.i] == 'E') {
		whole = false
		if p.i++; p.i < len(p.t) && (p.t[p.i] == '+' || p.t[p.i] == '-') {
			p.i++
		}
		if digits() == 0 {
			return nil, errJSON
		}
	}
	word := string(p.t[from:p.i])
	if len(word) > maxNumber {
		return nil, errJSON
	}
	if !whole {
		f, _ := strconv.ParseFloat(word, 64) // out of range: infinity, as for Java
		return &node{kind: jsonDouble, f: f}, nil
	}
	n, err := strconv.ParseInt(word, 10, 64)
	switch {
	case err != nil:
		return &node{kind: jsonBig}, nil
	case n == int64(int32(n)):
		return &node{kind: jsonInt, n: n}, nil
	default:
		return &node{kind: jsonLong, n: n}, nil
	}
}
