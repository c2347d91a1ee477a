package debezium

import (
	"encoding/base64"
	"math/big"
	"strconv"
)

// kind is the type of a schema of Kafka Connect.
type kind byte

const (
	boolean kind = iota
	int16s
	int32s
	int64s
	float32s
	float64s
	text
	binary
	array
	structure
)

// kindNames are the names that JsonConverter writes.
var kindNames = [...]string{"boolean", "int16", "int32", "int64", "float", "double", "string", "bytes", "array", "struct"}

// schema describes a value, as Kafka Connect does.
type schema struct {
	kind     kind
	optional bool
	name     string
	version  int
	numbered bool // it has a version
	doc      string
	params   [][2]string
	fallback *value // the column's default, which stands for NULL
	fields   []field
	items    *schema

	json []byte // the text that describes it, once it was needed
}

// field is one field of a struct.
type field struct {
	name string
	of   *schema
}

// class is the Java class that would hold a value. Converters differ by class where the schema is the same.
type class byte

const (
	null       class = iota
	truth            // Boolean
	integer          // Short, Integer or Long, as the schema says
	float            // Float or Double, as the schema says
	chars            // String
	byteBuffer       // ByteBuffer
	byteArray        // byte[]
	bigDecimal       // BigDecimal
	utilDate         // java.util.Date, as milliseconds
	list             // List
	object           // Struct
)

// value is one value. Its bytes belong to the row, or to the router's memory.
type value struct {
	class class
	n     int64 // of an integer or a date; of a truth 0 or 1
	f     float64
	b     []byte // of chars, byteBuffer and byteArray
	d     decimal
	list  []value // of a list, and of an object in the order of its fields
	of    *schema // of an object
}

// decimal is Java's BigDecimal: unscaled × 10^-scale.
type decimal struct {
	unscaled *big.Int
	scale    int
}

// describe returns the schema as JsonConverter writes it. Equal schemas have equal texts.
func (s *schema) describe() []byte {
	if s == nil {
		return []byte("null")
	}
	if s.json == nil {
		b := s.inner(make([]byte, 0, 128))
		s.json = append(b, '}')
	}
	return s.json
}

// inner appends the description without its last brace, because a field adds its name.
func (s *schema) inner(b []byte) []byte {
	b = append(append(append(b, `{"type":"`...), kindNames[s.kind]...), '"')
	switch s.kind {
	case array:
		b = append(append(b, `,"items":`...), s.items.describe()...)
	case structure:
		b = append(b, `,"fields":[`...)
		for i, f := range s.fields {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSONString(append(f.of.inner(b), `,"field":`...), []byte(f.name))
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	b = strconv.AppendBool(append(b, `,"optional":`...), s.optional)
	if s.name != "" {
		b = appendJSONString(append(b, `,"name":`...), []byte(s.name))
	}
	if s.numbered {
		b = strconv.AppendInt(append(b, `,"version":`...), int64(s.version), 10)
	}
	if s.doc != "" {
		b = appendJSONString(append(b, `,"doc":`...), []byte(s.doc))
	}
	if s.params != nil {
		b = append(b, `,"parameters":{`...)
		for i, p := range s.params {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendJSONString(b, []byte(p[0])), ':')
			b = appendJSONString(b, []byte(p[1]))
		}
		b = append(b, '}')
	}
	if s.fallback != nil {
		b = appendJSON(append(b, `,"default":`...), *s.fallback, s, false)
	}
	return b
}

// equal reports whether two schemas are the same for Kafka Connect.
func (s *schema) equal(other *schema) bool {
	return s == other || s != nil && other != nil && string(s.describe()) == string(other.describe())
}

// appendJSON appends the value as JsonConverter writes it. numeric is decimal.format=NUMERIC.
func appendJSON(b []byte, v value, s *schema, numeric bool) []byte {
	switch v.class {
	case null:
		return append(b, "null"...)
	case truth:
		return strconv.AppendBool(b, v.n != 0)
	case integer:
		return strconv.AppendInt(b, v.n, 10)
	case utilDate:
		return strconv.AppendInt(b, days(v.n, s), 10)
	case float:
		if infinite := v.f-v.f != 0; infinite { // NaN too
			return append(appendFloat(append(b, '"'), v.f, s != nil && s.kind == float32s), '"')
		}
		return appendFloat(b, v.f, s != nil && s.kind == float32s)
	case chars:
		return appendJSONString(b, v.b)
	case byteBuffer, byteArray:
		return append(base64.StdEncoding.AppendEncode(append(b, '"'), v.b), '"')
	case bigDecimal:
		if numeric {
			return appendDecimal(b, v.d)
		}
		return append(base64.StdEncoding.AppendEncode(append(b, '"'), twosComplement(v.d.unscaled)), '"')
	case list:
		b = append(b, '[')
		for i, one := range v.list {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSON(b, one, s.items, numeric)
		}
		return append(b, ']')
	default:
		b = append(b, '{')
		for i, one := range v.list {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendJSONString(b, []byte(v.of.fields[i].name)), ':')
			if one.class == null && v.of.fields[i].of.fallback != nil {
				one = *v.of.fields[i].of.fallback
			}
			b = appendJSON(b, one, v.of.fields[i].of, numeric)
		}
		return append(b, '}')
	}
}

// days returns the number that stands for a java.util.Date of milliseconds ms: of a date its days.
func days(ms int64, s *schema) int64 {
	if s.kind == int32s && s.name == connectDate {
		return floorDiv(ms, 86_400_000)
	}
	return ms
}

// appendJSONString appends text as Jackson writes it to UTF-8: it escapes quotes, backslashes and controls, and each half
// of a surrogate pair, in capitals.
func appendJSONString(b, s []byte) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			switch c {
			case '\b':
				b = append(b, '\\', 'b')
			case '\t':
				b = append(b, '\\', 't')
			case '\n':
				b = append(b, '\\', 'n')
			case '\f':
				b = append(b, '\\', 'f')
			case '\r':
				b = append(b, '\\', 'r')
			default:
				b = appendEscape(b, uint16(c))
			}
		case c >= 0xF0 && i+3 < len(s): // beyond U+FFFF
			r := uint32(c&7)<<18 | uint32(s[i+1]&0x3F)<<12 | uint32(s[i+2]&0x3F)<<6 | uint32(s[i+3]&0x3F) - 0x10000
			b = appendEscape(appendEscape(b, uint16(0xD800+r>>10)), uint16(0xDC00+r&0x3FF))
			i += 4
			continue
		case c == 0xED && i+2 < len(s) && s[i+1] >= 0xA0: // half of a pair, which a JSON document can hold alone
			b = appendEscape(b, 0xD000|uint16(s[i+1]&0x3F)<<6|uint16(s[i+2]&0x3F))
			i += 3
			continue
		default:
			b = append(b, c)
		}
		i++
	}
	return append(b, '"')
}

func appendEscape(b []byte, unit uint16) []byte {
	const hex = "0123456789ABCDEF"
	return append(b, '\\', 'u', hex[unit>>12], hex[unit>>8&15], hex[unit>>4&15], hex[unit&15])
}

// appendText appends the value as Java's toString writes it, which is what StringConverter sends.
func appendText(b []byte, v value, s *schema) []byte {
	switch v.class {
	case null:
		return append(b, "null"...)
	case truth:
		return strconv.AppendBool(b, v.n != 0)
	case integer:
		return strconv.AppendInt(b, v.n, 10)
	case float:
		return appendFloat(b, v.f, s != nil && s.kind == float32s)
	case chars:
		return appendUTF8(b, v.b)
	case byteBuffer:
		b = strconv.AppendInt(append(b, "java.nio.HeapByteBuffer[pos=0 lim="...), int64(len(v.b)), 10)
		return append(strconv.AppendInt(append(b, " cap="...), int64(len(v.b)), 10), ']')
	case bigDecimal:
		return appendDecimal(b, v.d)
	case utilDate:
		return appendDateText(b, v.n)
	case list:
		b = append(b, '[')
		for i, one := range v.list {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = appendText(b, one, s.items)
		}
		return append(b, ']')
	case object:
		b = append(b, "Struct{"...)
		first := true
		for i, one := range v.list {
			if one.class == null {
				continue
			}
			if !first {
				b = append(b, ',')
			}
			first = false
			b = appendText(append(appendUTF8(b, []byte(v.of.fields[i].name)), '='), one, v.of.fields[i].of)
		}
		return append(b, '}')
	default:
		return b // byte[]: Java writes its address; the checks at the start refuse it
	}
}

// appendUTF8 appends text, and a question mark for a half of a surrogate pair, as Java encodes a string.
func appendUTF8(b, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] == 0xED && i+2 < len(s) && s[i+1] >= 0xA0 {
			b = append(b, '?')
			i += 2
			continue
		}
		b = append(b, s[i])
	}
	return b
}

// appendHeader appends the value as SimpleHeaderConverter writes it; embedded: inside a list or a struct.
func appendHeader(b []byte, v value, s *schema, embedded bool) []byte {
	switch v.class {
	case chars:
		if !embedded {
			return append(b, v.b...)
		}
		return appendQuoted(b, v.b)
	case byteBuffer, byteArray:
		if !embedded {
			return base64.StdEncoding.AppendEncode(b, v.b)
		}
		return append(base64.StdEncoding.AppendEncode(append(b, '"'), v.b), '"')
	case utilDate:
		return appendDateHeader(b, v.n)
	case list:
		b = append(b, '[')
		for i, one := range v.list {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendHeader(b, one, s.items, true)
		}
		return append(b, ']')
	case object:
		b = append(b, '{')
		for i, one := range v.list {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendHeader(append(appendQuoted(b, []byte(v.of.fields[i].name)), ':'), one, v.of.fields[i].of, true)
		}
		return append(b, '}')
	default:
		return appendText(b, v, s)
	}
}

// appendQuoted quotes text as SimpleHeaderConverter does.
func appendQuoted(b, s []byte) []byte {
	b = append(b, '"')
	for _, c := range s {
		if c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return append(b, '"')
}
